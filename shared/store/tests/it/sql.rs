//! Plain SQL for what a test wants to change or to know and no function of the store does.

use store::Tx;

/// Runs a statement that must succeed.
pub(crate) async fn run(tx: &mut Tx, statement: &'static str) {
    match tx {
        Tx::Postgres(tx) => sqlx::query(statement).execute(tx.conn()).await.map(drop).unwrap(),
        Tx::Sqlite(tx) => sqlx::query(statement).execute(&mut **tx).await.map(drop).unwrap(),
    }
}

/// The first column of every row, which must be text and not NULL.
pub(crate) async fn texts(tx: &mut Tx, query: &'static str) -> Vec<String> {
    match tx {
        Tx::Postgres(tx) => sqlx::query_scalar(query).fetch_all(tx.conn()).await.unwrap(),
        Tx::Sqlite(tx) => sqlx::query_scalar(query).fetch_all(&mut **tx).await.unwrap(),
    }
}

/// The only number of the only row.
pub(crate) async fn number(tx: &mut Tx, query: &'static str) -> i64 {
    match tx {
        Tx::Postgres(tx) => sqlx::query_scalar(query).fetch_one(tx.conn()).await.unwrap(),
        Tx::Sqlite(tx) => sqlx::query_scalar(query).fetch_one(&mut **tx).await.unwrap(),
    }
}
