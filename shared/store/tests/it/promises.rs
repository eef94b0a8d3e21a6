//! The audit runs on both databases and finds what was planted.

use rstest::rstest;
use store::promises::{PROMISES, SETTLED, audit};
use testkit::{Database, fresh_store};

#[rstest]
#[tokio::test]
async fn an_empty_database_keeps_every_promise(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.read().await.unwrap();
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
    assert_eq!(audit(&mut tx, SETTLED).await.unwrap(), []);
}
