//! Roles start in any order, before the schema too.

use rstest::rstest;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use store::start::when_ready;
use store::{Store, StoreError};
use testkit::Database;
use testkit::database::{fresh_url, test_options};

#[rstest]
#[tokio::test]
async fn a_role_waits_for_the_schema_and_for_its_work_to_succeed_and_says_what_is_missing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let (url, _folder) = fresh_url(database).await.unwrap();
    let store = Store::open(&test_options(url)).await.unwrap();
    let (told, tries) = (RefCell::new(Vec::new()), Cell::new(0));
    let waiting = when_ready(
        &store,
        |missing| told.borrow_mut().push(missing),
        || Duration::from_millis(20),
        async || {
            tries.set(tries.get() + 1);
            if tries.get() == 1 { Err(StoreError::BadUrl("not this time".to_owned())) } else { Ok(tries.get()) }
        },
    );
    let migrating = async {
        while told.borrow().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(tries.get(), 0, "nothing is tried on a schema that does not fit");
        store.migrate().await.unwrap();
    };
    let both = Box::pin(async { tokio::join!(waiting, migrating).0 });
    let done = tokio::time::timeout(Duration::from_secs(60), both).await;
    assert_eq!(done.expect("it is ready in the end"), 2);
    let told = told.into_inner();
    assert!(
        told[0].starts_with("the schema is at 0, this version needs ") && told[0].ends_with(": run `roost migrate`")
    );
    assert_eq!(told.last().unwrap(), "not this time");
}
