//! Accepting a send: the message and its row in `sends` in one transaction, before anything is published or called. From
//! here on it ends in a state that a person understands, whatever dies.

use crate::batch::{plain, plain_opt};
use crate::column::rows;
use crate::feed::{self, Change};
use crate::set::Both;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{
    AccountId, Channel, ContactId, Content, ConversationId, LeadId, MessageId, Origin, SendState, Status, Timestamp,
    UserId,
};
use sqlx::types::Json;
use std::time::Duration;

/// A send that was checked and is to be accepted.
#[derive(Clone, Debug)]
pub struct NewSend<'a> {
    /// To which conversation.
    pub conversation: ConversationId,
    /// What it says.
    pub content: &'a Content,
    /// A template's words with its parameters filled in, where they are known: what people read in the thread.
    pub text: Option<&'a str>,
    /// The caller's key: the same key in the same conversation is the same message, for ever.
    pub client_message_id: Option<&'a str>,
    /// Hash of what the caller asked for: the same key with another hash is refused.
    pub request_hash: Option<&'a [u8]>,
    /// The message it answers.
    pub reply_to: Option<MessageId>,
    /// Who asks.
    pub origin: Origin,
    /// The person who asks.
    pub created_by: Option<UserId>,
    /// Whether it gives way to conversations.
    pub bulk: bool,
    /// How long after it is due it is given up.
    pub deadline: Duration,
    /// People's time.
    pub now: Timestamp,
    /// Not before then, by people's time.
    pub send_at: Option<Timestamp>,
    /// How long it can be undone; it keeps its place in the lane meanwhile.
    pub hold: Option<Duration>,
    /// W3C trace context of the request.
    pub traceparent: Option<&'a str>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum AcceptOutcome {
    /// It is accepted; dispatch its account after the commit.
    Created(AcceptedRow),
    /// The key is known and asked for the same: this is the message as it stands.
    Duplicate(AcceptedRow),
    /// The key is known and asked for something else: refuse it.
    Conflict,
    /// There is no such conversation, or it has no account to send from.
    NoConversation,
}

rows! {
    /// An accepted message.
    pub struct AcceptedRow {
        /// The message.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// How far it has come.
        pub status: Status,
        /// Its text.
        pub body: Option<String>,
        /// The provider's id, once there is one.
        pub provider_message_id: Option<String>,
        /// What the caller asked for.
        pub request_hash: Option<Vec<u8>>,
        /// When it was accepted.
        pub created_at: Timestamp,
    }

    /// The conversation it goes to.
    pub struct Target {
        /// With whom.
        pub contact_id: ContactId,
        /// Which lead.
        pub lead_id: Option<LeadId>,
        /// From which account.
        pub channel_account_id: Option<AccountId>,
        /// On which channel.
        pub channel: Channel,
    }
}

/// First of all, before any insert: places in the lane are given out under this lock, so that they follow commit order.
/// SQLite has one writer.
const CONVERSATION_LOCK: Both = Both {
    postgres: "SELECT contact_id, lead_id, channel_account_id, channel FROM conversations
        WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE",
    sqlite: "SELECT contact_id, lead_id, channel_account_id, channel FROM conversations
        WHERE id = $1 AND deleted_at IS NULL",
};

const MESSAGE_ACCEPT: &str =
    "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel,
    type, body, search_text, template_name, template_language, template_params, status, client_message_id, request_hash,
    origin, created_by_user_id, reply_to_message_id, reply_to_provider_id, occurred_at, created_at, queued_at)
  VALUES ($1, $2, $3, $4, 'OUTBOUND', $5, $6, $7, $8, $9, $10, $11, 'QUEUED', $12, $13, $14, $15, $16,
    (SELECT r.provider_message_id FROM messages r WHERE r.id = $16 AND r.conversation_id = $1
        AND r.provider_message_id NOT LIKE 'x:%'), $17, $17, $17)
  ON CONFLICT (conversation_id, client_message_id) WHERE client_message_id IS NOT NULL DO NOTHING
  RETURNING id, conversation_id, channel_account_id, status, body, provider_message_id, request_hash, created_at";

const MESSAGE_BY_CLIENT_ID: &str = "SELECT id, conversation_id, channel_account_id, status, body, provider_message_id,
    request_hash, created_at FROM messages WHERE conversation_id = $1 AND client_message_id = $2";

const SEND_INSERT: &str =
    "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, bulk, state, due_at,
    deadline_at, traceparent, created_at)
  VALUES ($1, $2, $3, CASE WHEN $4 = 'WAITING'
    THEN (SELECT coalesce(max(l.seq), 0) + 1 FROM sends l WHERE l.conversation_id = $2) END, $5, $4, $6, $7, $8, $9)";

/// A reply to the customer: nobody waits for one any more. What is only scheduled is not a reply yet.
const CONVERSATION_REPLIED: &str = "UPDATE conversations SET
    last_message_id = CASE WHEN last_message_at <= $2 THEN $3 ELSE last_message_id END,
    last_message_preview = CASE WHEN last_message_at <= $2 THEN $4 ELSE last_message_preview END,
    last_message_direction = CASE WHEN last_message_at <= $2 THEN 'OUTBOUND' ELSE last_message_direction END,
    last_message_at = CASE WHEN last_message_at <= $2 THEN $2 ELSE last_message_at END,
    last_outbound_at = CASE WHEN last_outbound_at > $2 THEN last_outbound_at ELSE $2 END,
    first_response_at = CASE WHEN $5 AND first_response_at IS NULL AND last_inbound_at IS NOT NULL THEN $2
                             ELSE first_response_at END,
    needs_reply_since = CASE WHEN $5 THEN NULL ELSE needs_reply_since END,
    unread_count = CASE WHEN $5 THEN 0 ELSE unread_count END,
    version = version + 1, updated_at = $2 WHERE id = $1";

const LEAD_WRITTEN_TO: &str = "UPDATE leads SET last_outbound_at = $2, last_contact_at = $2, last_contact_channel = $3,
    updated_at = $2 WHERE id = $1 AND (last_outbound_at IS NULL OR last_outbound_at < $2)";

/// Accepts a send. After the commit: wake the readers, dispatch the account, answer.
/// # Errors
/// When the database cannot be reached. Whether it was accepted is then unknown; asking again under the same key is
/// harmless.
pub async fn accept(tx: &mut Tx, new: &NewSend<'_>) -> Result<AcceptOutcome> {
    let lock = if tx.is_postgres() { CONVERSATION_LOCK.postgres } else { CONVERSATION_LOCK.sqlite };
    let target: Option<Target> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(lock).bind(new.conversation.get()).fetch_optional(conn).await?);
    let Some((target, account)) = target.and_then(|target| target.channel_account_id.map(|account| (target, account)))
    else {
        return Ok(AcceptOutcome::NoConversation);
    };
    let Some(row) = insert_message(tx, new, &target, account).await? else {
        return find_by_key(tx, new).await;
    };
    insert_send(tx, new, &row).await?;
    let counts_as_reply = new.send_at.is_none() && !new.bulk;
    let preview = row.body.as_deref().map(domain::text::preview);
    on_backend!(&mut *tx, conn => { sqlx::query(CONVERSATION_REPLIED).bind(new.conversation.get()).bind(At(new.now))
        .bind(row.id.get()).bind(preview).bind(counts_as_reply).execute(conn).await?; });
    if let Some(lead) = target.lead_id {
        on_backend!(&mut *tx, conn => { sqlx::query(LEAD_WRITTEN_TO).bind(lead.get()).bind(At(new.now))
            .bind(target.channel.as_str()).execute(conn).await?; });
    }
    let (conversation, message, status) = (row.conversation_id, row.id, row.status);
    let contact = Some(target.contact_id);
    let changes =
        [Change::Conversation { conversation, contact }, Change::MessageStatus { conversation, message, status }];
    feed::write(tx, &changes, new.now).await?;
    Ok(AcceptOutcome::Created(row))
}

async fn insert_message(
    tx: &mut Tx,
    new: &NewSend<'_>,
    target: &Target,
    account: AccountId,
) -> Result<Option<AcceptedRow>> {
    let (kind, body, template) = match new.content {
        Content::Template { name, language, params } => ("template", new.text, Some((name, language, params))),
        Content::Text { body } => ("text", Some(body.as_str()), None),
        // Content is open for later kinds of message; none can be built yet.
        _ => ("unsupported", new.text, None),
    };
    let body = plain_opt(body);
    let (name, language, params) = match template {
        Some((name, language, params)) => {
            let params: Vec<_> = params.iter().map(|param| plain(param)).collect();
            (Some(plain(name)), Some(plain(language)), Some(Json(params)))
        }
        None => (None, None, None),
    };
    Ok(on_backend!(tx, conn => sqlx::query_as(MESSAGE_ACCEPT)
        .bind(new.conversation.get()).bind(target.contact_id.get()).bind(target.lead_id.map(LeadId::get))
        .bind(account.get()).bind(target.channel.as_str()).bind(kind)
        .bind(body.as_deref()).bind(body.as_deref().map(domain::text::folded))
        .bind(name.as_deref()).bind(language.as_deref()).bind(params)
        .bind(new.client_message_id).bind(new.request_hash).bind(new.origin.as_str())
        .bind(new.created_by.map(UserId::get)).bind(new.reply_to.map(MessageId::get)).bind(At(new.now))
        .fetch_optional(conn).await?))
}

/// The caller's key is taken: whoever took it has committed, since we hold the conversation's lock.
async fn find_by_key(tx: &mut Tx, new: &NewSend<'_>) -> Result<AcceptOutcome> {
    let row: Option<AcceptedRow> = on_backend!(tx, conn => sqlx::query_as(MESSAGE_BY_CLIENT_ID)
        .bind(new.conversation.get()).bind(new.client_message_id).fetch_optional(conn).await?);
    Ok(match row {
        Some(row) if row.request_hash.as_deref() == new.request_hash => AcceptOutcome::Duplicate(row),
        _ => AcceptOutcome::Conflict,
    })
}

/// Due times are the database's: what people's time says is carried over as a distance from now.
async fn insert_send(tx: &mut Tx, new: &NewSend<'_>, row: &AcceptedRow) -> Result<()> {
    let now = tx.database_now().await?;
    let state = if new.send_at.is_some() { SendState::Scheduled } else { SendState::Waiting };
    let wait = new.send_at.map_or(Duration::ZERO, |at| at.since(new.now)) + new.hold.unwrap_or_default();
    let due = now + wait;
    on_backend!(tx, conn => { sqlx::query(SEND_INSERT).bind(row.id.get()).bind(row.conversation_id.get())
        .bind(row.channel_account_id.get()).bind(state.as_str()).bind(new.bulk).bind(At(due))
        .bind(At(due + new.deadline)).bind(new.traceparent).bind(At(now)).execute(conn).await?; });
    Ok(())
}
