//! Rows of `sends`: one per outbound message that is not finished. The lane, the due time, the lease and the attempt are
//! here; the queue carries only references. A file per thing that happens to a row, in the order of its life.

/// Whether nothing says that an earlier attempt of the row `$s` has got through: a late acceptance that came while a later
/// attempt was in flight, proof that was parked because a call was open, a message that is SENT. The keeper settles such a
/// row; until then it is no candidate, or it would be sent twice. A row that was never tried, in no generation, pays nothing for
/// this.
/// Scalar subqueries, so that PostgreSQL looks into an index for each row, and never reads all attempts into a hash table.
macro_rules! nothing_heard {
    ($s:literal) => {
        concat!(
            "((",
            $s,
            ".attempt = 0 AND ",
            $s,
            ".generation = 0) OR ((SELECT h.id FROM send_attempts h WHERE h.message_id = ",
            $s,
            ".message_id AND h.generation = ",
            $s,
            ".generation AND h.outcome = 'ACCEPTED' LIMIT 1) IS NULL
       AND (SELECT h.id FROM message_status_events h WHERE h.waits_for_message_id = ",
            $s,
            ".message_id AND h.message_id IS NULL LIMIT 1) IS NULL
       AND (SELECT h.status_rank FROM messages h WHERE h.id = ",
            $s,
            ".message_id) < 30))"
        )
    };
}
pub mod claim;
pub mod deadline;
pub mod dispatch;
pub mod due;
pub mod evidence;
pub mod expired;
pub mod give_back;

use crate::batch::json;
use crate::column::rows;
use crate::set::{numbers, with_ids};
use crate::tx::on_backend;
use crate::{Result, Tx};
use domain::{AccountId, ConversationId, MessageId, SendState, Timestamp};

pub use claim::{CLAIM_WITHIN, Claimed, Claims, claim, claimed_under};
pub use deadline::{Expired, expire};
pub use dispatch::{
    Room, Stale, dispatch, dispatch_all, dispatch_lanes, republish, rooms, set_back, stale_accounts, window,
};
pub use due::fall_due;
pub use evidence::{Evidence, Silence, Verdict, conclude, note_witnesses, settle_by_evidence, silences};
pub use expired::{ExpiredLease, expired_leases};
pub use give_back::give_back;

rows! {
    /// A send that is not finished.
    pub struct SendRow {
        /// Which message.
        pub message_id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Place in the conversation's lane; `None` outside it.
        pub seq: Option<i64>,
        /// Which generation: a person's retry opens a new one.
        pub generation: i16,
        /// How many claims there have been in this generation.
        pub attempt: i16,
        /// Whether it gives way to conversations.
        pub bulk: bool,
        /// Where it stands.
        pub state: SendState,
        /// When it may go, by the database's clock.
        pub due_at: Timestamp,
        /// When it is given up, by the database's clock.
        pub deadline_at: Timestamp,
        /// Whose claim it is, while IN_FLIGHT.
        pub lease_token: Option<String>,
        /// Until when.
        pub lease_until: Option<Timestamp>,
        /// When its reference was last published.
        pub dispatched_at: Option<Timestamp>,
        /// Since when nobody knows what became of the attempt.
        pub unknown_since: Option<Timestamp>,
        /// When the first sign of life of the account after the attempt arrived.
        pub witness_at: Option<Timestamp>,
        /// W3C trace context of the request that asked for it.
        pub traceparent: Option<String>,
    }
}

macro_rules! send_columns {
    () => {
        "message_id, conversation_id, channel_account_id, seq, generation, attempt, bulk, state, due_at, deadline_at, \
         lease_token, lease_until, dispatched_at, unknown_since, witness_at, traceparent"
    };
}

const SEND_OF: crate::set::Both =
    with_ids!(concat!("SELECT ", send_columns!(), " FROM sends WHERE message_id IN "), "$1", " ORDER BY message_id");

/// The unfinished sends of these messages. A message without a row is finished.
/// # Errors
/// Only when the database cannot be reached.
pub async fn of(tx: &mut Tx, messages: &[MessageId]) -> Result<Vec<SendRow>> {
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_as(SEND_OF.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(SEND_OF.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    })
}

/// SQLite has one writer, so reading locks; PostgreSQL is told to.
const SEND_LOCK: crate::set::Both = crate::set::Both {
    postgres: concat!(
        "SELECT ",
        send_columns!(),
        " FROM sends WHERE message_id = ANY($1) ORDER BY message_id FOR UPDATE"
    ),
    sqlite: SEND_OF.sqlite,
};

/// As [`of`], holding the rows until the transaction ends. Lock the messages first: that is the order of every path.
/// # Errors
/// Only when the database cannot be reached.
pub async fn lock(tx: &mut Tx, messages: &[MessageId]) -> Result<Vec<SendRow>> {
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_as(SEND_LOCK.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(SEND_LOCK.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    })
}

const DEPLOYMENT_ID: &str = "SELECT id FROM deployment";

/// Whose messages these are: part of every correlation.
/// # Errors
/// Only when the database cannot be reached, or was not migrated.
pub async fn deployment(tx: &mut Tx) -> Result<String> {
    Ok(on_backend!(tx, conn => sqlx::query_scalar(DEPLOYMENT_ID).fetch_one(conn).await?))
}
