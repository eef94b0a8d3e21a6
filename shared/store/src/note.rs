//! Notes of the team. They stand in the thread, and have no account, no provider id, no attempts and no row in `sends`:
//! nothing that sends can find them.

use crate::tx::on_backend;
use crate::{At, Result, Tx, thread};
use domain::{ConversationId, MessageId, Origin, Timestamp, UserId};

/// A note is SENT the moment it is written: there is nowhere further to go.
const NOTE_ADD: &str =
    "INSERT INTO messages (conversation_id, contact_id, lead_id, direction, channel, type, body, search_text,
      status, origin, created_by_user_id, occurred_at, created_at)
    SELECT c.id, c.contact_id, c.lead_id, 'OUTBOUND', 'INTERNAL_NOTE', 'note', $2, $3, 'SENT', $4, $5, $6, $6
    FROM conversations c WHERE c.id = $1 AND c.deleted_at IS NULL RETURNING id";

/// Writes a note into a conversation. Moves no counter, no window and no place in the list. `None` for an unknown
/// conversation.
/// # Errors
/// Only when the database cannot be reached.
pub async fn add(
    tx: &mut Tx,
    conversation: ConversationId,
    text: &str,
    by: Option<UserId>,
    now: Timestamp,
) -> Result<Option<MessageId>> {
    let origin = if by.is_some() { Origin::Agent } else { Origin::Api };
    let id: Option<i64> = on_backend!(tx, conn => sqlx::query_scalar(NOTE_ADD)
        .bind(conversation.get()).bind(text).bind(domain::text::folded(text)).bind(origin.as_str())
        .bind(by.map(UserId::get)).bind(At(now)).fetch_optional(conn).await?);
    if id.is_some() {
        thread::changed(tx, conversation, now).await?;
    }
    Ok(id.map(MessageId::new))
}
