//! Leases of the keeper's jobs.

use crate::sending::seconds;
use rstest::rstest;
use store::lease;
use testkit::rows::NOON;
use testkit::{Database, fresh_store};

#[rstest]
#[tokio::test]
async fn one_process_has_a_job_until_it_lets_go_or_falls_silent(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let until = NOON + seconds(10);
    assert!(lease::take(&mut tx, "sweep", "a", until, NOON).await.unwrap());
    assert!(!lease::take(&mut tx, "sweep", "b", until, NOON + seconds(9)).await.unwrap());
    assert!(lease::take(&mut tx, "sweep", "a", until + seconds(9), NOON + seconds(9)).await.unwrap(), "prolonged");
    assert!(lease::take(&mut tx, "other", "b", until, NOON).await.unwrap(), "another job");
    assert!(lease::take(&mut tx, "sweep", "b", NOON + seconds(40), NOON + seconds(20)).await.unwrap(), "fell silent");
    assert!(!lease::take(&mut tx, "sweep", "a", NOON + seconds(40), NOON + seconds(21)).await.unwrap());
    lease::release(&mut tx, "sweep", "a").await.unwrap();
    assert!(!lease::take(&mut tx, "sweep", "a", NOON + seconds(40), NOON + seconds(21)).await.unwrap(), "not its own");
    lease::release(&mut tx, "sweep", "b").await.unwrap();
    assert!(lease::take(&mut tx, "sweep", "a", NOON + seconds(40), NOON + seconds(21)).await.unwrap());
    tx.commit().await.unwrap();
}
