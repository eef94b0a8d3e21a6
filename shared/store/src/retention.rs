//! What is kept for a time only. Oldest rows first, a bounded number at once: a purge never holds a long transaction,
//! which would hold back every reader of the change feed.

use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::Timestamp;

/// Rows that one call looks at.
const AT_ONCE: i64 = 5_000;

/// By position, not by time: only the primary key is an index, and older rows stand in front.
const FEED_PURGE: &str = "DELETE FROM change_feed WHERE id IN (
    SELECT oldest.id FROM (SELECT id, created_at FROM change_feed ORDER BY tx, id LIMIT $2) AS oldest
     WHERE oldest.created_at < $1)";

/// Forgets changes from before `before`: readers that are further behind begin anew. Returns how many went; call again
/// while there are any.
/// # Errors
/// Only when the database cannot be reached.
pub async fn purge_feed(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    Ok(on_backend!(tx, conn => sqlx::query(FEED_PURGE)
        .bind(At(before)).bind(AT_ONCE).execute(conn).await?.rows_affected()))
}

const WEBHOOK_PURGE: &str = "DELETE FROM webhook_events WHERE id IN (
    SELECT oldest.id FROM (SELECT id, received_at FROM webhook_events ORDER BY id LIMIT $2) AS oldest
     WHERE oldest.received_at < $1)";

/// Forgets raw webhooks that arrived before `before`: they can no longer be replayed. Returns how many went; call again
/// while there are any.
/// # Errors
/// Only when the database cannot be reached.
pub async fn purge_webhooks(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    Ok(on_backend!(tx, conn => sqlx::query(WEBHOOK_PURGE)
        .bind(At(before)).bind(AT_ONCE / 5).execute(conn).await?.rows_affected()))
}

/// What waits for the end of its message's call is not old; what waits for a message that is gone is.
const PARKED_PURGE: &str = "DELETE FROM message_status_events WHERE id IN (
    SELECT e.id FROM message_status_events e
     WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND e.received_at < $1
       AND (e.waits_for_message_id IS NULL OR NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = e.waits_for_message_id))
     LIMIT $2)";

/// Forgets receipts that arrived before `before` and found no message of ours: another tool sends from the same account.
/// Returns how many went; call again while there are any.
/// # Errors
/// Only when the database cannot be reached.
pub async fn purge_parked(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    Ok(on_backend!(tx, conn => sqlx::query(PARKED_PURGE)
        .bind(At(before)).bind(AT_ONCE).execute(conn).await?.rows_affected()))
}
