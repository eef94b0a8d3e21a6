//! Opening, migrating, transactions, waking readers.

use rstest::rstest;
use std::time::Duration;
use store::{SchemaState, Store};
use testkit::Database;
use testkit::database::{fresh_store, fresh_url, test_options};

#[rstest]
#[tokio::test]
async fn a_fresh_database_is_too_old_until_migrated_and_migrating_twice_changes_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let (url, _folder) = fresh_url(database).await.unwrap();
    let store = Store::open(&test_options(url)).await.unwrap();
    assert!(matches!(store.schema_state().await.unwrap(), SchemaState::TooOld { have: 0, .. }));
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Fits);
}

#[tokio::test]
async fn several_processes_may_migrate_at_once_on_postgres() {
    let (url, _folder) = fresh_url(Database::Postgres).await.unwrap();
    let (a, b) =
        (Store::open(&test_options(url.clone())).await.unwrap(), Store::open(&test_options(url)).await.unwrap());
    let (first, second) = tokio::join!(a.migrate(), b.migrate());
    first.unwrap();
    second.unwrap();
    assert_eq!(a.schema_state().await.unwrap(), SchemaState::Fits);
}

#[rstest]
#[tokio::test]
async fn readers_are_woken_by_another_process(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let writer = match database {
        Database::Postgres => Store::open(&db.options).await.unwrap(),
        Database::Sqlite => db.store.clone(), // one process
    };
    let mut changes = db.store.changes();
    // The first change says "listening"; what is said before that may be missed, so say it until it is heard.
    let heard = async {
        if database == Database::Postgres {
            changes.changed().await.unwrap();
        }
        writer.wake_readers();
        changes.changed().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), heard).await.expect("woken");
}

#[rstest]
#[tokio::test]
async fn the_databases_clock_runs_close_to_ours_on_one_machine(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let ours = domain::Clock::now(&domain::SystemClock::default());
    let theirs = db.store.read().await.unwrap().database_now().await.unwrap();
    assert!(theirs.since(ours).max(ours.since(theirs)) < Duration::from_secs(10));
}
