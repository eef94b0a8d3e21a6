//! How much waits to be sent, for whoever watches: by state, and for each account how many conversations wait and since
//! when.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{SendState, Timestamp};

rows! {
    /// How many sends are in a state.
    pub struct InState {
        /// The state.
        pub state: SendState,
        /// So many.
        pub sends: i64,
    }
    /// What waits on one account.
    pub struct Waiting {
        /// The configuration's name for it.
        pub account: String,
        /// ACTIVE, PAUSED or BROKEN.
        pub status: String,
        /// Conversations whose next message is due and not dispatched, counted up to [`MOST_HEADS`].
        pub heads: i64,
        /// Since when the oldest due message of a conversation waits.
        pub oldest: Option<Timestamp>,
        /// Since when the oldest due message of a broadcast waits.
        pub oldest_bulk: Option<Timestamp>,
    }
}

/// Further than this nobody counts: a broadcast to a million must not make looking at it expensive.
pub const MOST_HEADS: i64 = 10_000;

const SENDS_BY_STATE: &str = "SELECT state, count(*) AS sends FROM sends GROUP BY state";

/// How many sends are in each state; states without any are left out.
/// # Errors
/// Only when the database cannot be reached.
pub async fn by_state(tx: &mut Tx) -> Result<Vec<InState>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(SENDS_BY_STATE).fetch_all(conn).await?))
}

/// The oldest is asked for once with `bulk` and once without, so that each is the first entry of a range of the index.
const SENDS_WAITING: &str = "SELECT a.name AS account, a.status AS status,
    (SELECT count(*) FROM (SELECT 1 AS one FROM sends s
       WHERE s.channel_account_id = a.id AND s.state = 'WAITING' AND s.due_at <= $1
         AND s.seq = (SELECT min(e.seq) FROM sends e WHERE e.conversation_id = s.conversation_id) LIMIT $2) AS h) AS heads,
    (SELECT s.due_at FROM sends s WHERE s.channel_account_id = a.id AND s.bulk = false AND s.state = 'WAITING'
       AND s.due_at <= $1 ORDER BY s.due_at LIMIT 1) AS oldest,
    (SELECT s.due_at FROM sends s WHERE s.channel_account_id = a.id AND s.bulk = true AND s.state = 'WAITING'
       AND s.due_at <= $1 ORDER BY s.due_at LIMIT 1) AS oldest_bulk
  FROM channel_accounts a WHERE a.status <> 'DISABLED' ORDER BY a.id";

/// What waits on each account that is in the configuration. `now` is the database's clock.
/// # Errors
/// Only when the database cannot be reached.
pub async fn waiting(tx: &mut Tx, now: Timestamp) -> Result<Vec<Waiting>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(SENDS_WAITING).bind(At(now)).bind(MOST_HEADS).fetch_all(conn).await?))
}
