//! What waits to be sent can be looked at however much it is.

use crate::sql;
use domain::AccountId;
use store::backlog::{MOST_HEADS, waiting};
use testkit::rows;
use testkit::{Database, fresh_store};

#[tokio::test]
async fn looking_at_a_large_backlog_reads_no_more_than_it_counts_and_compiles_nothing_on_postgresql() {
    let db = fresh_store(Database::Postgres).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    assert_eq!(rows::account(&mut tx, "sales").await.unwrap(), AccountId::new(1));
    for fill in [
        // Quickly, without asking each row for the message it refers to.
        "SET LOCAL session_replication_role = replica",
        "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, bulk, state, due_at, deadline_at, created_at)
         SELECT i, i, 1, 1, i > 5, 'WAITING', now() - interval '1 hour', now(), now() FROM generate_series(1, 50000) AS i",
    ] {
        sql::run(&mut tx, fill).await;
    }
    tx.commit().await.unwrap();

    let mut tx = db.store.begin().await.unwrap();
    sql::run(&mut tx, "ANALYZE sends").await;
    let read = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = 'sends'";
    let before = sql::number(&mut tx, read).await;
    let now = tx.database_now().await.unwrap();
    let found = waiting(&mut tx, now).await.unwrap();
    assert_eq!((found.len(), found[0].heads), (1, MOST_HEADS));
    assert!(found[0].oldest.is_some() && found[0].oldest_bulk.is_some());
    // Each head, the lane it is the head of, and little else.
    let rows = sql::number(&mut tx, read).await - before;
    assert!(rows <= 2 * MOST_HEADS + 100, "{rows} rows were read");
    assert_eq!(sql::texts(&mut tx, "SHOW jit").await, ["off"]);
}
