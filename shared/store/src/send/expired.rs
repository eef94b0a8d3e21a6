//! Leases that ran out. Nobody judges them on the spot: they are reported through the results queue, behind whatever the
//! sender said before it went silent.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{AccountId, MessageId, Timestamp};

rows! {
    /// A claim whose sender has neither reported nor given it back in time.
    pub struct ExpiredLease {
        /// Which message.
        pub message_id: MessageId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Which generation.
        pub generation: i16,
        /// Which attempt.
        pub attempt: i16,
        /// The lease's token.
        pub lease_token: String,
    }
}

const SEND_EXPIRED: &str = "SELECT message_id, channel_account_id, generation, attempt, lease_token FROM sends
    WHERE state = 'IN_FLIGHT' AND lease_until <= $1 ORDER BY lease_until LIMIT $2";

/// The leases that ended before `now` (the database's), oldest first.
/// # Errors
/// Only when the database cannot be reached.
pub async fn expired_leases(tx: &mut Tx, now: Timestamp, limit: i64) -> Result<Vec<ExpiredLease>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(SEND_EXPIRED).bind(At(now)).bind(limit).fetch_all(conn).await?))
}
