//! Rows as ingest would have left them, for tests that begin with a filled database. Plain SQL on purpose: what is tested
//! here does not depend on the code that usually writes these rows.

use domain::{AccountId, ContactId, ConversationId, IdentityId, LeadId, MessageId, Timestamp};
use std::time::Duration;
use store::{At, Result, Tx};

/// 2026-11-22T09:30:00Z: where most tests begin.
pub const NOON: Timestamp = Timestamp::from_seconds(1_795_339_800);
/// How long free text may follow an inbound message.
pub const WINDOW: Duration = Duration::from_secs(24 * 3600);

/// One text on both databases, as the store's own statements have it.
macro_rules! on_both {
    ($tx:expr, $conn:ident => $query:expr) => {
        match $tx {
            Tx::Postgres(tx) => {
                let $conn = tx.conn();
                $query
            }
            Tx::Sqlite(tx) => {
                let $conn = &mut **tx;
                $query
            }
        }
    };
}

/// A conversation and what it hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeded {
    /// Our account.
    pub account: AccountId,
    /// The person.
    pub contact: ContactId,
    /// Their address.
    pub identity: IdentityId,
    /// Their lead.
    pub lead: LeadId,
    /// The conversation.
    pub conversation: ConversationId,
}

const ACCOUNT: &str =
    "INSERT INTO channel_accounts (channel, external_account_id, name, source, display_address, window_hours,
    rate_per_sec, created_at, updated_at) VALUES ('WHATSAPP', $1, $1, 'meta', '+971 4 000 0000', 24, 80, $2, $2)
    ON CONFLICT (channel, external_account_id) DO UPDATE SET name = excluded.name RETURNING id";

/// A WhatsApp account; the same name gives the same account.
/// # Errors
/// When the database refuses.
pub async fn account(tx: &mut Tx, name: &str) -> Result<AccountId> {
    let id: i64 = on_both!(tx, conn => sqlx::query_scalar(ACCOUNT).bind(name).bind(At(NOON)).fetch_one(conn).await?);
    Ok(AccountId::new(id))
}

const CONTACT: &str = "INSERT INTO contacts (full_name, phone, phone_e164, created_at, updated_at)
    VALUES ($1, '+' || $2, '+' || $2, $3, $3) RETURNING id";
const IDENTITY: &str = "INSERT INTO contact_identities (contact_id, kind, value, display_name, first_seen_at)
    VALUES ($1, 'WA_ID', $2, $3, $4) RETURNING id";
const LEAD: &str = "INSERT INTO leads (contact_id, created_at, updated_at) VALUES ($1, $2, $2) RETURNING id";
const CONVERSATION: &str =
    "INSERT INTO conversations (contact_id, contact_identity_id, lead_id, channel_account_id, channel,
    last_message_at, created_at, updated_at) VALUES ($1, $2, $3, $4, 'WHATSAPP', $5, $5, $5) RETURNING id";

/// A person who has never written, with an empty conversation: its window is closed.
/// # Errors
/// When the database refuses, such as a `wa_id` that is there already.
pub async fn conversation(tx: &mut Tx, account: AccountId, name: &str, wa_id: &str, at: Timestamp) -> Result<Seeded> {
    let contact: i64 = on_both!(tx, conn => sqlx::query_scalar(CONTACT)
        .bind(name).bind(wa_id).bind(At(at)).fetch_one(conn).await?);
    let identity: i64 = on_both!(tx, conn => sqlx::query_scalar(IDENTITY)
        .bind(contact).bind(wa_id).bind(name).bind(At(at)).fetch_one(conn).await?);
    let lead: i64 = on_both!(tx, conn => sqlx::query_scalar(LEAD).bind(contact).bind(At(at)).fetch_one(conn).await?);
    let conversation: i64 = on_both!(tx, conn => sqlx::query_scalar(CONVERSATION)
        .bind(contact).bind(identity).bind(lead).bind(account.get()).bind(At(at)).fetch_one(conn).await?);
    Ok(Seeded {
        account,
        contact: ContactId::new(contact),
        identity: IdentityId::new(identity),
        lead: LeadId::new(lead),
        conversation: ConversationId::new(conversation),
    })
}

const INBOUND: &str =
    "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel, type,
      body, search_text, status, origin, provider_message_id, raw_payload, occurred_at, created_at)
    VALUES ($1, $2, $3, $4, 'INBOUND', 'WHATSAPP', $5, $6, $7, 'RECEIVED', 'CONTACT', $8, $9, $10, $10) RETURNING id";
const INBOUND_COUNTS: &str =
    "UPDATE conversations SET unread_count = unread_count + 1, last_message_id = $2, last_message_at = $3,
      last_message_preview = $4, last_message_direction = 'INBOUND', last_inbound_at = $3, needs_reply_since = $3,
      window_expires_at = $5, status = 'OPEN' WHERE id = $1";

/// A text from the person; opens the window for 24 hours.
/// # Errors
/// When the database refuses.
pub async fn inbound(tx: &mut Tx, to: &Seeded, key: &str, body: &str, at: Timestamp) -> Result<MessageId> {
    inbound_of_type(tx, to, key, "text", Some(body), None, at).await
}

/// Anything from the person: `kind` is the message type, `raw` the item as it arrived.
/// # Errors
/// When the database refuses.
pub async fn inbound_of_type(
    tx: &mut Tx,
    to: &Seeded,
    key: &str,
    kind: &str,
    body: Option<&str>,
    raw: Option<&str>,
    at: Timestamp,
) -> Result<MessageId> {
    let id: i64 = on_both!(tx, conn => sqlx::query_scalar(INBOUND)
        .bind(to.conversation.get()).bind(to.contact.get()).bind(to.lead.get()).bind(to.account.get()).bind(kind)
        .bind(body).bind(body.map(domain::text::folded)).bind(key).bind(raw).bind(At(at)).fetch_one(conn).await?);
    on_both!(tx, conn => sqlx::query(INBOUND_COUNTS)
        .bind(to.conversation.get()).bind(id).bind(At(at)).bind(body.map(domain::text::preview)).bind(At(at + WINDOW))
        .execute(conn).await?.rows_affected());
    Ok(MessageId::new(id))
}

const MEDIA: &str = "INSERT INTO message_media (message_id, kind, mime_type, filename, caption, provider_media_id,
    next_attempt_at, created_at) VALUES ($1, $2, $3, $4, NULL, 'media-1', $5, $5)";

/// A file of a message, not fetched yet.
/// # Errors
/// When the database refuses.
pub async fn pending_media(
    tx: &mut Tx,
    message: MessageId,
    kind: &str,
    mime: &str,
    filename: Option<&str>,
) -> Result<()> {
    on_both!(tx, conn => sqlx::query(MEDIA)
        .bind(message.get()).bind(kind).bind(mime).bind(filename).bind(At(NOON)).execute(conn).await?.rows_affected());
    Ok(())
}

const OUTBOUND: &str =
    "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel, type,
      body, status, origin, provider_message_id, error_class, error_code, error_message, outcome_unknown,
      occurred_at, created_at, sent_at, delivered_at, read_at, failed_at)
    VALUES ($1, $2, $3, $4, 'OUTBOUND', 'WHATSAPP', 'text', $5, $6, 'AGENT', $7, $8, $9, $10, $11, $12, $12,
      $13, $14, $15, $16) RETURNING id";
const SEND: &str = "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, state, due_at, deadline_at,
      lease_token, lease_until, unknown_since, attempt, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $6)";

/// A message of ours that has come to `status`: QUEUED and SENDING with a row in `sends` (WAITING and IN_FLIGHT), SENDING
/// with `held` as one whose outcome nobody knows.
/// # Errors
/// When the database refuses.
pub async fn outbound(
    tx: &mut Tx,
    to: &Seeded,
    body: &str,
    status: domain::Status,
    held: bool,
    at: Timestamp,
) -> Result<MessageId> {
    use domain::Status as S;
    let reached = |least: S| (status.rank() >= least.rank() && status != S::Failed).then_some(At(at));
    let failed = status == S::Failed;
    let proof = matches!(status, S::Sent | S::Delivered | S::Read);
    let provider_id = proof.then(|| format!("wamid.{}", uuid::Uuid::new_v4().simple()));
    let id: i64 = on_both!(tx, conn => sqlx::query_scalar(OUTBOUND)
        .bind(to.conversation.get()).bind(to.contact.get()).bind(to.lead.get()).bind(to.account.get()).bind(body)
        .bind(status.as_str()).bind(&provider_id)
        .bind(failed.then_some("REJECTED")).bind(failed.then_some("131026")).bind(failed.then_some("Message undeliverable"))
        .bind(held).bind(At(at)).bind(reached(S::Sent)).bind(reached(S::Delivered)).bind(reached(S::Read))
        .bind(failed.then_some(At(at))).fetch_one(conn).await?);
    if matches!(status, S::Queued | S::Sending) {
        let state = match (status, held) {
            (S::Queued, _) => "WAITING",
            (_, true) => "HELD",
            _ => "IN_FLIGHT",
        };
        let in_flight = state == "IN_FLIGHT";
        on_both!(tx, conn => sqlx::query(SEND)
            .bind(id).bind(to.conversation.get()).bind(to.account.get()).bind((state != "HELD").then_some(id)).bind(state)
            .bind(At(at)).bind(At(at + WINDOW)).bind(in_flight.then_some("lease")).bind(in_flight.then_some(At(at)))
            .bind(held.then_some(At(at))).bind(i16::from(state != "WAITING")).execute(conn).await?.rows_affected());
    }
    Ok(MessageId::new(id))
}
