//! Writing the change feed, in the transaction of what changed: ids only, never text. Readers are woken after the commit
//! ([`crate::Store::wake_readers`]).

use crate::batch::json;
use crate::{At, Result, Tx};
use domain::{ContactId, ConversationId, MessageId, Status, Timestamp};

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A conversation: messages came in, its counters or state moved. One per conversation and batch.
    Conversation {
        /// Which.
        conversation: ConversationId,
        /// Whose.
        contact: Option<ContactId>,
    },
    /// A message of ours came to another status.
    MessageStatus {
        /// In which conversation.
        conversation: ConversationId,
        /// Which message.
        message: MessageId,
        /// To which status it came.
        status: Status,
    },
}

impl Change {
    /// Value of `change_feed.kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Change::Conversation { .. } => "conversation",
            Change::MessageStatus { .. } => "message_status",
        }
    }
}

const FEED_INSERT_PG: &str =
    "INSERT INTO change_feed (kind, conversation_id, contact_id, entity_id, status, created_at)
    SELECT kind, conversation_id, contact_id, entity_id, status, $6
      FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
        AS i(kind, conversation_id, contact_id, entity_id, status)";
const FEED_INSERT_SQLITE: &str =
    "INSERT INTO change_feed (kind, conversation_id, contact_id, entity_id, status, created_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, $2 FROM json_each($1)";

/// Kind, conversation, contact, entity, status.
type Row = (&'static str, i64, Option<i64>, Option<i64>, Option<&'static str>);

/// Appends to the feed.
/// # Errors
/// Only when the database cannot be reached.
pub async fn write(tx: &mut Tx, changes: &[Change], now: Timestamp) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let rows: Vec<Row> = changes
        .iter()
        .map(|change| match *change {
            Change::Conversation { conversation, contact } => {
                (change.kind(), conversation.get(), contact.map(ContactId::get), None, None)
            }
            Change::MessageStatus { conversation, message, status } => {
                (change.kind(), conversation.get(), None, Some(message.get()), Some(status.as_str()))
            }
        })
        .collect();
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(FEED_INSERT_PG)
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.3).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.4).collect::<Vec<_>>())
                .bind(At(now))
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            sqlx::query(FEED_INSERT_SQLITE).bind(json(&rows)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
