//! Plain ingest: consume one webhook a message, a transaction for each, acknowledge after its commit. The same schema, the
//! same rows, a pool of eight connections and as many handlers.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::str::FromStr;
use std::time::Duration;

/// Connections to the database, and messages in work at once. With these two cores more are no faster.
pub(crate) const WRITERS: u32 = 8;

/// A pool of [`WRITERS`] connections that sees Roost's schema.
pub(crate) async fn pool(url: &str) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)?.options([("search_path", "roost,public")]);
    let pool = PgPoolOptions::new()
        .max_connections(WRITERS)
        .min_connections(WRITERS)
        .acquire_timeout(Duration::from_secs(60))
        .test_before_acquire(false);
    Ok(pool.connect_with(options).await?)
}

/// Consumes `queue` into the database at `url` until it is killed.
pub(crate) async fn run(amqp: &str, queue: &str, url: &str) -> Result<()> {
    let pool = pool(url).await?;
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let consumer = channel
        .basic_consume(queue.into(), "plain".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let work = consumer.map(|delivery| {
        let pool = pool.clone();
        async move {
            let delivery = delivery?;
            store(&pool, &delivery.data).await?;
            delivery.ack(BasicAckOptions::default()).await?;
            anyhow::Ok(())
        }
    });
    let mut done = work.buffer_unordered(WRITERS as usize);
    while let Some(outcome) = done.next().await {
        outcome?;
    }
    Ok(())
}

/// One text message as the webhook has it.
struct Text {
    account: String,
    from: String,
    name: String,
    id: String,
    body: String,
    seconds: f64,
    raw: String,
}

impl Text {
    fn read(body: &[u8]) -> Result<Self> {
        let webhook: Value = serde_json::from_slice(body)?;
        let value = webhook.pointer("/entry/0/changes/0/value").context("no value")?;
        let message = value.pointer("/messages/0").context("no message")?;
        let text = |part: &Value, at: &str| Some(part.pointer(at)?.as_str()?.to_owned());
        Ok(Self {
            account: text(value, "/metadata/phone_number_id").context("no account")?,
            from: text(message, "/from").context("no sender")?,
            name: text(value, "/contacts/0/profile/name").unwrap_or_default(),
            id: text(message, "/id").context("no id")?,
            body: text(message, "/text/body").unwrap_or_default(),
            seconds: text(message, "/timestamp").context("no time")?.parse()?,
            raw: message.to_string(),
        })
    }
}

/// Where a message belongs: conversation, contact, lead, account.
type Place = (i64, i64, Option<i64>, i64);

const WEBHOOK_INSERT: &str = "INSERT INTO webhook_events (request_id, source, received_at, body, items, outcome)
    VALUES ($1, 'meta', now(), $2, 1, 'PROCESSED') RETURNING id";
const PLACE: &str = "SELECT c.id, c.contact_id, c.lead_id, c.channel_account_id FROM contact_identities i
    JOIN conversations c ON c.contact_identity_id = i.id AND c.thread_key = ''
    JOIN channel_accounts a ON a.id = c.channel_account_id
    WHERE i.kind = 'WA_ID' AND i.scope_key = '' AND i.value = $1 AND a.channel = 'WHATSAPP' AND a.external_account_id = $2";
const MESSAGE_INSERT: &str = "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel,
        type, body, search_text, status, provider_message_id, origin, raw_payload, webhook_event_id, occurred_at, created_at)
    VALUES ($1, $2, $3, $4, 'INBOUND', 'WHATSAPP', 'text', $5, lower($5), 'RECEIVED', $6, 'CONTACT', $7, $8, to_timestamp($9), now())
    ON CONFLICT (provider_message_id, channel_account_id) DO NOTHING RETURNING id";
const CONVERSATION_COUNT: &str = "UPDATE conversations SET unread_count = unread_count + 1, last_message_id = $2,
        last_message_at = greatest(last_message_at, to_timestamp($3)), last_message_preview = $4,
        last_message_direction = 'INBOUND', last_inbound_at = greatest(last_inbound_at, to_timestamp($3)),
        window_expires_at = greatest(window_expires_at, to_timestamp($3) + interval '24 hours'),
        needs_reply_since = coalesce(needs_reply_since, to_timestamp($3)), updated_at = now() WHERE id = $1";
const LEAD_TOUCH: &str = "UPDATE leads SET last_contact_at = greatest(last_contact_at, to_timestamp($2)),
        last_inbound_at = greatest(last_inbound_at, to_timestamp($2)), last_contact_channel = 'WHATSAPP', updated_at = now()
    WHERE id = $1";
const FEED_INSERT: &str = "INSERT INTO change_feed (kind, conversation_id, contact_id, entity_id, created_at)
    VALUES ('conversation', $1, $2, $1, now())";

/// One webhook with one text message, in one transaction.
async fn store(pool: &PgPool, body: &[u8]) -> Result<()> {
    let text = Text::read(body)?;
    let mut tx = pool.begin().await?;
    let webhook: i64 = sqlx::query_scalar(WEBHOOK_INSERT)
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(body)
        .fetch_one(&mut *tx)
        .await?;
    let known: Option<Place> =
        sqlx::query_as(PLACE).bind(&text.from).bind(&text.account).fetch_optional(&mut *tx).await?;
    let (conversation, contact, lead, account) = match known {
        Some(place) => place,
        None => make_place(&mut tx, &text).await?,
    };
    let inserted: Option<i64> = sqlx::query_scalar(MESSAGE_INSERT)
        .bind(conversation)
        .bind(contact)
        .bind(lead)
        .bind(account)
        .bind(&text.body)
        .bind(&text.id)
        .bind(&text.raw)
        .bind(webhook)
        .bind(text.seconds)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(id) = inserted {
        sqlx::query(CONVERSATION_COUNT)
            .bind(conversation)
            .bind(id)
            .bind(text.seconds)
            .bind(&text.body)
            .execute(&mut *tx)
            .await?;
        sqlx::query(LEAD_TOUCH).bind(lead).bind(text.seconds).execute(&mut *tx).await?;
        sqlx::query(FEED_INSERT).bind(conversation).bind(contact).execute(&mut *tx).await?;
    }
    tx.commit().await.context("commit")
}

const CONTACT_INSERT: &str = "INSERT INTO contacts (full_name, phone, phone_e164, created_at, updated_at)
    VALUES ($1, '+' || $2, '+' || $2, now(), now()) RETURNING id";
const IDENTITY_INSERT: &str =
    "INSERT INTO contact_identities (contact_id, kind, value, value_raw, display_name, first_seen_at)
    VALUES ($1, 'WA_ID', $2, $2, $3, now()) RETURNING id";
const LEAD_INSERT: &str = "INSERT INTO leads (contact_id, source, created_at, updated_at)
    VALUES ($1, 'whatsapp', now(), now()) RETURNING id";
const CONVERSATION_INSERT: &str =
    "INSERT INTO conversations (contact_id, contact_identity_id, lead_id, channel_account_id, channel,
        last_message_at, created_at, updated_at)
    SELECT $1, $2, $3, a.id, 'WHATSAPP', to_timestamp($4), now(), now() FROM channel_accounts a
     WHERE a.channel = 'WHATSAPP' AND a.external_account_id = $5
    RETURNING id, contact_id, lead_id, channel_account_id";

/// Somebody who has not written before.
async fn make_place(conn: &mut PgConnection, text: &Text) -> Result<Place> {
    let contact: i64 =
        sqlx::query_scalar(CONTACT_INSERT).bind(&text.name).bind(&text.from).fetch_one(&mut *conn).await?;
    let identity: i64 = sqlx::query_scalar(IDENTITY_INSERT)
        .bind(contact)
        .bind(&text.from)
        .bind(&text.name)
        .fetch_one(&mut *conn)
        .await?;
    let lead: i64 = sqlx::query_scalar(LEAD_INSERT).bind(contact).fetch_one(&mut *conn).await?;
    let place = sqlx::query_as(CONVERSATION_INSERT)
        .bind(contact)
        .bind(identity)
        .bind(lead)
        .bind(text.seconds)
        .bind(&text.account)
        .fetch_one(&mut *conn)
        .await?;
    Ok(place)
}
