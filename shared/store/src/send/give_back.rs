//! IN_FLIGHT → WAITING without a call: the slot was lost, the sender stops, or the lease has too little left.

use crate::batch::json;
use crate::set::{Both, numbers, with_ids};
use crate::{Result, Tx};
use domain::MessageId;

const SEND_GIVE_BACK: Both = with_ids!(
    "UPDATE sends SET state = 'WAITING', attempt = attempt - 1, lease_token = NULL, lease_until = NULL, dispatched_at = NULL
      WHERE state = 'IN_FLIGHT' AND lease_token = $1 AND message_id IN ",
    "$2",
    ""
);

/// Gives claims back that were not called; the attempt does not count. Only where the token is still ours: a lease that
/// was judged meanwhile stays judged. Returns how many rows were.
/// # Errors
/// Only when the database cannot be reached. The rows then end by their lease.
pub async fn give_back(tx: &mut Tx, lease_token: &str, messages: &[MessageId]) -> Result<u64> {
    Ok(match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(SEND_GIVE_BACK.postgres).bind(lease_token).bind(numbers(messages));
            query.execute(tx.conn()).await?.rows_affected()
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query(SEND_GIVE_BACK.sqlite).bind(lease_token).bind(json(messages)?);
            query.execute(&mut **tx).await?.rows_affected()
        }
    })
}
