//! Whose fault an error is: an item's, which is set aside, or the database's, for which everything is held.

use rstest::rstest;
use store::StoreError;
use testkit::{Database, fresh_store};

/// The error of one statement.
async fn error_of(database: Database, statement: &'static str) -> StoreError {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let outcome = match &mut tx {
        store::Tx::Postgres(tx) => sqlx::query(statement).execute(tx.conn()).await.map(drop),
        store::Tx::Sqlite(tx) => sqlx::query(statement).execute(&mut **tx).await.map(drop),
    };
    outcome.unwrap_err().into()
}

#[rstest]
#[case::breaks_a_check(
    "INSERT INTO users (email, name, role, created_at) VALUES ('a', 'a', 'king', CURRENT_TIMESTAMP)",
    true
)]
#[case::breaks_not_null("INSERT INTO api_tokens (name) VALUES (NULL)", true)]
#[case::table_is_being_restored("INSERT INTO not_there_yet (id) VALUES (1)", false)]
#[case::column_is_not_there_yet("UPDATE users SET not_there_yet = 1", false)]
#[tokio::test]
async fn only_a_broken_rule_is_an_items_fault(
    #[case] statement: &'static str,
    #[case] fault: bool,
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let error = error_of(database, statement).await;
    assert_eq!(error.is_items_fault(), fault, "{error} {:?}", error.code());
}

#[tokio::test]
async fn a_changed_password_or_a_lost_permission_is_no_items_fault_on_postgres() {
    let db = fresh_store(Database::Postgres).await.unwrap();
    let store::StoreUrl::Postgres(url) = &db.options.url else { unreachable!() };
    let mut options = db.options.clone();
    options.url = store::StoreUrl::Postgres(url.replace("postgres@", "nobody_of_that_name@"));
    let refused = store::Store::open(&options).await.unwrap().begin().await.unwrap_err();
    assert!(!refused.is_items_fault(), "{refused} {:?}", refused.code());
    let mut tx = db.store.begin().await.unwrap();
    let store::Tx::Postgres(conn) = &mut tx else { unreachable!() };
    sqlx::query("SET default_transaction_read_only = on").execute(conn.conn()).await.unwrap();
    sqlx::query("SET TRANSACTION READ ONLY").execute(conn.conn()).await.unwrap();
    let denied: StoreError = sqlx::query("DELETE FROM users").execute(conn.conn()).await.unwrap_err().into();
    assert!(!denied.is_items_fault(), "{denied} {:?}", denied.code());
}
