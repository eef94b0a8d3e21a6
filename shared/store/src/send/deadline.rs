//! Sends whose deadline has passed before they could go: FAILED, class EXPIRED.

use crate::batch::json;
use crate::column::rows;
use crate::feed::{self, Change};
use crate::set::{Both, numbers, with_ids};
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{AccountId, ConversationId, MessageId, Status, Timestamp};

/// Class of a message that was given up because its deadline passed.
pub const EXPIRED: &str = "EXPIRED";

rows! {
    /// A send that was given up.
    pub struct Expired {
        /// Which message.
        pub message_id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
    }
}

/// What has got through in an earlier attempt is not given up: the keeper settles it ([`crate::result::settle`]). The states
/// are written so that the indexes of what waits and of what is DISPATCHED both serve.
const SEND_OVERDUE: &str = concat!(
    "SELECT message_id, conversation_id, channel_account_id FROM sends
    WHERE (state IN ('SCHEDULED', 'WAITING') OR state = 'DISPATCHED') AND deadline_at <= $1 AND ",
    nothing_heard!("sends"),
    " ORDER BY message_id LIMIT $2"
);

/// Messages before their sends: the order of every path. SQLite has one writer and holds everything.
const MESSAGE_LOCK: &str = "SELECT id FROM messages WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
const CONVERSATION_LOCK: &str = "SELECT id FROM conversations WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";

const SEND_EXPIRE: Both = with_ids!(
    concat!(
        "DELETE FROM sends WHERE state IN ('SCHEDULED', 'WAITING', 'DISPATCHED') AND deadline_at <= $1 AND ",
        nothing_heard!("sends"),
        " AND message_id IN "
    ),
    "$2",
    " RETURNING message_id, conversation_id, channel_account_id"
);
const MESSAGE_EXPIRE: Both = with_ids!(
    "UPDATE messages SET status = 'FAILED', outcome_unknown = false, failed_at = $1, error_class = 'EXPIRED',
       error_code = 'deadline', error_message = 'It could not be sent before its deadline.'
      WHERE status_rank < 30 AND id IN ",
    "$2",
    ""
);
const CONVERSATION_FAILED: Both = with_ids!(
    "UPDATE conversations SET last_failed_at = $1, updated_at = $1
      WHERE (last_failed_at IS NULL OR last_failed_at < $1) AND id IN ",
    "$2",
    ""
);

/// Fails up to `limit` sends that wait (SCHEDULED, WAITING, DISPATCHED) although their deadline has passed by `database_now`. A
/// reference in a queue that nobody reads would wait for ever; one that is read later finds nothing to claim. What is IN_FLIGHT
/// ends in its own way first. `now` is people's time.
/// # Errors
/// Only when the database cannot be reached.
pub async fn expire(tx: &mut Tx, database_now: Timestamp, now: Timestamp, limit: i64) -> Result<Vec<Expired>> {
    let overdue: Vec<Expired> = on_backend!(tx, conn =>
        sqlx::query_as(SEND_OVERDUE).bind(At(database_now)).bind(limit).fetch_all(conn).await?);
    if overdue.is_empty() {
        return Ok(overdue);
    }
    let messages: Vec<MessageId> = overdue.iter().map(|row| row.message_id).collect();
    if let Tx::Postgres(tx) = tx {
        let conversations: Vec<i64> = overdue.iter().map(|row| row.conversation_id.get()).collect();
        sqlx::query(CONVERSATION_LOCK).bind(conversations).execute(tx.conn()).await?;
        sqlx::query(MESSAGE_LOCK).bind(numbers(&messages)).execute(tx.conn()).await?;
    }
    let expired: Vec<Expired> = match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query_as(SEND_EXPIRE.postgres).bind(At(database_now)).bind(numbers(&messages));
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query_as(SEND_EXPIRE.sqlite).bind(At(database_now)).bind(json(&messages)?);
            query.fetch_all(&mut **tx).await?
        }
    };
    let messages: Vec<MessageId> = expired.iter().map(|row| row.message_id).collect();
    let conversations: Vec<i64> = expired.iter().map(|row| row.conversation_id.get()).collect();
    match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(MESSAGE_EXPIRE.postgres).bind(At(now)).bind(numbers(&messages));
            query.execute(tx.conn()).await?;
            sqlx::query(CONVERSATION_FAILED.postgres).bind(At(now)).bind(conversations).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query(MESSAGE_EXPIRE.sqlite).bind(At(now)).bind(json(&messages)?);
            query.execute(&mut **tx).await?;
            let query = sqlx::query(CONVERSATION_FAILED.sqlite).bind(At(now)).bind(json(&conversations)?);
            query.execute(&mut **tx).await?;
        }
    }
    let changes = expired.iter().map(|row| Change::MessageStatus {
        conversation: row.conversation_id,
        message: row.message_id,
        status: Status::Failed,
    });
    feed::write(tx, &changes.collect::<Vec<_>>(), now).await?;
    Ok(expired)
}
