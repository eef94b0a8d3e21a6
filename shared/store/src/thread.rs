//! One conversation: its messages in pages, one message with its history, and what people do to a conversation.

use crate::column::rows;
use crate::feed::{self, Change};
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{
    AttemptOutcome, Channel, ContactId, ConversationId, ConversationStatus, Direction, LeadId, MediaId, MessageId,
    MessageType, Origin, SendState, Status, Timestamp, UserId,
};

rows! {
    /// A message as the thread shows it.
    pub struct MessageRow {
        /// The message.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Who spoke.
        pub direction: Direction,
        /// Where.
        pub channel: Channel,
        /// What it is made of; `type` in the database and the API.
        pub kind: MessageType,
        /// E-mail's subject.
        pub subject: Option<String>,
        /// Its text.
        pub body: Option<String>,
        /// Name of the template it was made from.
        pub template_name: Option<String>,
        /// Kind of its first file.
        pub media_mime_type: Option<String>,
        /// How far it has come.
        pub status: Status,
        /// Why it failed: our word.
        pub error_class: Option<String>,
        /// Why it failed: the provider's code.
        pub error_code: Option<String>,
        /// Why it failed: for a person.
        pub error_message: Option<String>,
        /// The provider's id.
        pub provider_message_id: Option<String>,
        /// The caller's key.
        pub client_message_id: Option<String>,
        /// How often a person has had it sent anew.
        pub send_generation: i16,
        /// Whether it may have been sent without our knowing.
        pub outcome_unknown: bool,
        /// Who vouched that it arrived.
        pub confirmed_by_name: Option<String>,
        /// Who brought it into being.
        pub origin: Origin,
        /// Who wrote it, of us.
        pub created_by_user_id: Option<UserId>,
        /// Their name.
        pub created_by_name: Option<String>,
        /// The message it answers.
        pub reply_to_message_id: Option<MessageId>,
        /// What the item carried beyond its text.
        pub payload: Option<serde_json::Value>,
        /// The item as it arrived.
        pub raw_payload: Option<String>,
        /// The provider's time: the order of the thread.
        pub occurred_at: Timestamp,
        /// When we stored it.
        pub created_at: Timestamp,
        /// When the provider took it.
        pub sent_at: Option<Timestamp>,
        /// When it reached the person.
        pub delivered_at: Option<Timestamp>,
        /// When they read it.
        pub read_at: Option<Timestamp>,
        /// When it failed.
        pub failed_at: Option<Timestamp>,
        /// Where its send stands; `None` once it is over.
        pub send_state: Option<SendState>,
        /// When it will be tried (again).
        pub send_due_at: Option<Timestamp>,
        /// How many attempts were made in this generation.
        pub send_attempt: Option<i16>,
    }

    /// A file of a message.
    pub struct MediaRow {
        /// The file.
        pub id: MediaId,
        /// Its message.
        pub message_id: MessageId,
        /// image, audio, video, document, sticker.
        pub kind: String,
        /// As the provider says.
        pub mime_type: Option<String>,
        /// As the sender named it.
        pub filename: Option<String>,
        /// Its size.
        pub size_bytes: Option<i64>,
        /// Text beside it.
        pub caption: Option<String>,
        /// PENDING, STORED, EXPIRED, FAILED, TOO_LARGE or BLOCKED.
        pub state: String,
    }

    /// One thing that was said about a message's status.
    pub struct StatusEventRow {
        /// Our word; `None` for a word of the provider's that we do not map.
        pub status: Option<Status>,
        /// The provider's word.
        pub provider_status: Option<String>,
        /// The provider's code for a failure.
        pub error_code: Option<String>,
        /// The provider's words for a failure.
        pub error_message: Option<String>,
        /// PROVIDER, SENDER or OPERATOR.
        pub source: String,
        /// Whether it raised the status.
        pub applied: bool,
        /// When it happened.
        pub occurred_at: Timestamp,
    }

    /// One attempt to send.
    pub struct AttemptRow {
        /// Of which generation.
        pub generation: i16,
        /// Which, from 1.
        pub attempt: i16,
        /// How it ended.
        pub outcome: AttemptOutcome,
        /// HTTP status, when there was a reply.
        pub http_status: Option<i16>,
        /// The provider's code.
        pub provider_code: Option<String>,
        /// The provider's words.
        pub error_message: Option<String>,
        /// When it ended.
        pub finished_at: Timestamp,
    }

    /// The person and the lead behind a conversation, as the CRM's client reads them.
    pub struct PartyRow {
        /// The person.
        pub contact_id: ContactId,
        /// Their nationality.
        pub nationality: Option<String>,
        /// Their company.
        pub company_name: Option<String>,
        /// Where they came from.
        pub contact_source: Option<String>,
        /// Their lead.
        pub lead_id: Option<LeadId>,
        /// Its stage.
        pub stage: Option<String>,
        /// Its priority.
        pub priority: Option<String>,
        /// What they ask for.
        pub service_type: Option<String>,
        /// Its score.
        pub ai_score: Option<i16>,
        /// What the team wrote about it.
        pub notes: Option<String>,
        /// When something of it runs out.
        pub expiry_date: Option<Timestamp>,
        /// When somebody promised to come back to it.
        pub next_follow_up_at: Option<Timestamp>,
        /// Its owner.
        pub lead_assigned_user_id: Option<UserId>,
    }
}

macro_rules! message_select {
    () => {
        "SELECT m.id, m.conversation_id, m.direction, m.channel, m.type AS kind, m.subject, m.body, m.template_name,
           m.media_mime_type, m.status, m.error_class, m.error_code, m.error_message, m.provider_message_id,
           m.client_message_id, m.send_generation, m.outcome_unknown, v.name AS confirmed_by_name, m.origin,
           m.created_by_user_id, w.name AS created_by_name, m.reply_to_message_id, m.payload, m.raw_payload, m.occurred_at,
           m.created_at, m.sent_at, m.delivered_at, m.read_at, m.failed_at, s.state AS send_state,
           s.due_at AS send_due_at, s.attempt AS send_attempt
         FROM messages m LEFT JOIN sends s ON s.message_id = m.id LEFT JOIN users v ON v.id = m.confirmed_by_user_id
           LEFT JOIN users w ON w.id = m.created_by_user_id "
    };
}

/// What was undone before it left is not shown.
const MESSAGE_PAGE: &str = concat!(
    message_select!(),
    "WHERE m.conversation_id = $1 AND (m.occurred_at, m.id) < ($2, $3) AND coalesce(m.error_code, '') <> 'UNDONE'
     ORDER BY m.occurred_at DESC, m.id DESC LIMIT $4"
);

/// A place in a thread: the oldest message of the page before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCursor {
    /// Its `occurred_at`.
    pub at: Timestamp,
    /// Its id.
    pub id: MessageId,
}

/// 9999-12-31: after everything.
const FAR: Timestamp = Timestamp::from_seconds(253_402_214_400);

/// The newest `limit` messages before `before`, oldest of them first.
/// # Errors
/// Only when the database cannot be reached.
pub async fn page(
    tx: &mut Tx,
    conversation: ConversationId,
    before: Option<ThreadCursor>,
    limit: i64,
) -> Result<Vec<MessageRow>> {
    let before = before.unwrap_or(ThreadCursor { at: FAR, id: MessageId::new(i64::MAX) });
    let mut messages: Vec<MessageRow> = on_backend!(tx, conn => sqlx::query_as(MESSAGE_PAGE)
        .bind(conversation.get()).bind(At(before.at)).bind(before.id.get()).bind(limit).fetch_all(conn).await?);
    messages.reverse();
    Ok(messages)
}

/// What arrived last, not what happened last: a delayed message is new although it belongs further up.
const MESSAGE_ARRIVED: &str = concat!(
    message_select!(),
    "WHERE m.id IN (SELECT id FROM messages WHERE conversation_id = $1 AND id > $2 ORDER BY id DESC LIMIT $3)
       AND coalesce(m.error_code, '') <> 'UNDONE' ORDER BY m.occurred_at, m.id"
);

/// The `limit` messages of a conversation that were stored last, above the id `above`, in the thread's order.
/// # Errors
/// Only when the database cannot be reached.
pub async fn arrived(
    tx: &mut Tx,
    conversation: ConversationId,
    above: MessageId,
    limit: i64,
) -> Result<Vec<MessageRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(MESSAGE_ARRIVED)
        .bind(conversation.get()).bind(above.get()).bind(limit).fetch_all(conn).await?))
}

const MESSAGE_GET: &str = concat!(message_select!(), "WHERE m.id = $2 AND m.conversation_id = $1");

/// One message of a conversation; `None` for any other conversation's.
/// # Errors
/// Only when the database cannot be reached.
pub async fn message(tx: &mut Tx, conversation: ConversationId, id: MessageId) -> Result<Option<MessageRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(MESSAGE_GET)
        .bind(conversation.get()).bind(id.get()).fetch_optional(conn).await?))
}

rows! {
    /// A message under its caller's key.
    pub struct KeyedRow {
        /// The message.
        pub id: MessageId,
        /// What the caller asked for.
        pub request_hash: Option<Vec<u8>>,
    }
}

const MESSAGE_UNDER_KEY: &str =
    "SELECT id, request_hash FROM messages WHERE conversation_id = $1 AND client_message_id = $2";

/// The message that was accepted under a caller's key, if any was.
/// # Errors
/// Only when the database cannot be reached.
pub async fn under_key(tx: &mut Tx, conversation: ConversationId, key: &str) -> Result<Option<KeyedRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(MESSAGE_UNDER_KEY)
        .bind(conversation.get()).bind(key).fetch_optional(conn).await?))
}

const MEDIA_BETWEEN: &str =
    "SELECT x.id, x.message_id, x.kind, x.mime_type, x.filename, x.size_bytes, x.caption, x.state
    FROM messages m JOIN message_media x ON x.message_id = m.id
    WHERE m.conversation_id = $1 AND m.occurred_at >= $2 AND m.occurred_at <= $3 ORDER BY x.message_id, x.position";

/// The files of `messages`, which are a stretch of one conversation in its order.
/// # Errors
/// Only when the database cannot be reached.
pub async fn media_of(tx: &mut Tx, conversation: ConversationId, messages: &[MessageRow]) -> Result<Vec<MediaRow>> {
    let (Some(first), Some(last)) = (messages.first(), messages.last()) else { return Ok(Vec::new()) };
    Ok(on_backend!(tx, conn => sqlx::query_as(MEDIA_BETWEEN)
        .bind(conversation.get()).bind(At(first.occurred_at)).bind(At(last.occurred_at)).fetch_all(conn).await?))
}

const STATUS_HISTORY: &str = "SELECT status, provider_status, error_code, error_message, source, applied, occurred_at
    FROM message_status_events WHERE message_id = $1 ORDER BY id LIMIT 200";

/// Everything that was said about a message's status, in the order it was kept.
/// # Errors
/// Only when the database cannot be reached.
pub async fn status_history(tx: &mut Tx, id: MessageId) -> Result<Vec<StatusEventRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(STATUS_HISTORY).bind(id.get()).fetch_all(conn).await?))
}

const ATTEMPT_HISTORY: &str =
    "SELECT generation, attempt, outcome, http_status, provider_code, error_message, finished_at
    FROM send_attempts WHERE message_id = $1 ORDER BY generation, attempt LIMIT 200";

/// Every attempt to send a message, in order.
/// # Errors
/// Only when the database cannot be reached.
pub async fn attempts(tx: &mut Tx, id: MessageId) -> Result<Vec<AttemptRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(ATTEMPT_HISTORY).bind(id.get()).fetch_all(conn).await?))
}

const PARTY: &str =
    "SELECT k.id AS contact_id, k.nationality, k.company_name, k.source AS contact_source, l.id AS lead_id,
      l.stage, l.priority, l.service_type, l.ai_score, l.notes, l.expiry_date, l.next_follow_up_at,
      l.assigned_user_id AS lead_assigned_user_id
    FROM conversations c JOIN contacts k ON k.id = c.contact_id LEFT JOIN leads l ON l.id = c.lead_id WHERE c.id = $1";

/// The person and the lead behind a conversation.
/// # Errors
/// Only when the database cannot be reached.
pub async fn party(tx: &mut Tx, id: ConversationId) -> Result<Option<PartyRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(PARTY).bind(id.get()).fetch_optional(conn).await?))
}

rows! {
    /// A template the provider has approved.
    pub struct TemplateRow {
        /// Its name.
        pub name: String,
        /// Its language code.
        pub language: String,
        /// Its parts, as the provider describes them.
        pub components: serde_json::Value,
    }
}

const TEMPLATES_APPROVED: &str = "SELECT t.name, t.language, t.components FROM conversations c
    JOIN message_templates t ON t.channel_account_id = c.channel_account_id
    WHERE c.id = $1 AND t.status = 'APPROVED' ORDER BY t.name, t.language LIMIT 500";

/// The approved templates of a conversation's account.
/// # Errors
/// Only when the database cannot be reached.
pub async fn templates(tx: &mut Tx, id: ConversationId) -> Result<Vec<TemplateRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(TEMPLATES_APPROVED).bind(id.get()).fetch_all(conn).await?))
}

/// Tells the feed that a conversation moved.
pub(crate) async fn changed(tx: &mut Tx, conversation: ConversationId, now: Timestamp) -> Result<()> {
    feed::write(tx, &[Change::Conversation { conversation, contact: None }], now).await
}

/// The team's counter falls when the assignee looks, or anybody where there is none; a program without a user (`$2` is -1)
/// speaks for the whole team.
const CONVERSATION_READ: &str = "UPDATE conversations SET unread_count = 0, version = version + 1, updated_at = $3
    WHERE id = $1 AND deleted_at IS NULL AND unread_count > 0
      AND (assigned_user_id IS NULL OR assigned_user_id = $2 OR $2 = -1)";

/// Somebody looked at a conversation: its counter goes to zero if it was theirs to look at. `false`: nothing changed.
/// # Errors
/// Only when the database cannot be reached.
pub async fn mark_read(tx: &mut Tx, id: ConversationId, by: Option<UserId>, now: Timestamp) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(CONVERSATION_READ)
        .bind(id.get()).bind(by.map_or(-1, UserId::get)).bind(At(now)).execute(conn).await?.rows_affected());
    if rows == 1 {
        changed(tx, id, now).await?;
    }
    Ok(rows == 1)
}

/// Who is to answer a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Whoever comes first.
    Nobody,
    /// This person.
    User(UserId),
    /// The assistant.
    Ai,
}

const CONVERSATION_ASSIGN: &str = "UPDATE conversations SET assigned_user_id = $2, handler = $3, version = version + 1,
    updated_at = $4 WHERE id = $1 AND deleted_at IS NULL";

/// Hands a conversation to somebody. `false` for an unknown conversation.
/// # Errors
/// When the database cannot be reached, or the user does not exist (a missing reference).
pub async fn assign(tx: &mut Tx, id: ConversationId, to: Handler, now: Timestamp) -> Result<bool> {
    let (user, handler) = match to {
        Handler::Nobody => (None, "NONE"),
        Handler::User(user) => (Some(user.get()), "HUMAN"),
        Handler::Ai => (None, "AI"),
    };
    let rows = on_backend!(tx, conn => sqlx::query(CONVERSATION_ASSIGN)
        .bind(id.get()).bind(user).bind(handler).bind(At(now)).execute(conn).await?.rows_affected());
    if rows == 1 {
        changed(tx, id, now).await?;
    }
    Ok(rows == 1)
}

const CONVERSATION_SET_STATUS: &str = "UPDATE conversations SET status = $2, closed_at = $3, version = version + 1,
    updated_at = $4 WHERE id = $1 AND deleted_at IS NULL AND status <> $2";

/// Closes or reopens a conversation. `false`: unknown, or it was so already.
/// # Errors
/// Only when the database cannot be reached.
pub async fn set_status(tx: &mut Tx, id: ConversationId, status: ConversationStatus, now: Timestamp) -> Result<bool> {
    let closed_at = (status == ConversationStatus::Closed).then_some(At(now));
    let rows = on_backend!(tx, conn => sqlx::query(CONVERSATION_SET_STATUS)
        .bind(id.get()).bind(status.as_str()).bind(closed_at).bind(At(now)).execute(conn).await?.rows_affected());
    if rows == 1 {
        changed(tx, id, now).await?;
    }
    Ok(rows == 1)
}
