//! Plain ingest: consume one webhook a message, a transaction for each, acknowledge after its commit. The same schema, the
//! same rows, a pool of eight connections and as many handlers.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::sync::Arc;

/// Connections to the database, and messages in work at once.
const WRITERS: u32 = 8;

/// Consumes `queue` into the database at `url` until it is killed.
pub async fn run(amqp: &str, queue: &str, url: &str) -> Result<()> {
    let pool = PgPoolOptions::new()
        .max_connections(WRITERS)
        .after_connect(|conn, _| {
            Box::pin(async move {
                sqlx::query("SET search_path = roost, public").execute(conn).await?;
                Ok(())
            })
        })
        .connect(url)
        .await?;
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let consumer = channel
        .basic_consume(queue.into(), "plain".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let pool = Arc::new(pool);
    let work = consumer.map(|delivery| {
        let pool = pool.clone();
        async move {
            let delivery = delivery?;
            store(&pool, &delivery.data).await?;
            delivery.ack(BasicAckOptions::default()).await?;
            Ok::<_, anyhow::Error>(())
        }
    });
    let mut done = work.buffer_unordered(WRITERS as usize);
    while let Some(outcome) = done.next().await {
        outcome?;
    }
    Ok(())
}

/// One webhook with one text message, in one transaction.
async fn store(pool: &PgPool, body: &[u8]) -> Result<()> {
    let webhook: Value = serde_json::from_slice(body)?;
    let value = &webhook["entry"][0]["changes"][0]["value"];
    let message = &value["messages"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (from, wamid, said) = (text(&message["from"]), text(&message["id"]), text(&message["text"]["body"]));
    let name = text(&value["contacts"][0]["profile"]["name"]);
    let number = text(&value["metadata"]["phone_number_id"]);
    let seconds: i64 = text(&message["timestamp"]).parse()?;

    let mut tx = pool.begin().await?;
    let event: i64 = sqlx::query_scalar(
        "INSERT INTO webhook_events (request_id, source, received_at, body, items, outcome)
         VALUES ($1, 'meta', now(), $2, 1, 'PROCESSED') RETURNING id",
    )
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(body)
    .fetch_one(&mut *tx)
    .await?;
    let account: i64 = sqlx::query_scalar("SELECT id FROM channel_accounts WHERE channel = 'WHATSAPP' AND external_account_id = $1")
        .bind(&number)
        .fetch_one(&mut *tx)
        .await?;
    let known: Option<(i64, i64)> = sqlx::query_as("SELECT id, contact_id FROM contact_identities WHERE kind = 'WA_ID' AND scope_key = '' AND value = $1")
        .bind(&from)
        .fetch_optional(&mut *tx)
        .await?;
    let (identity, contact) = match known {
        Some(known) => known,
        None => {
            let contact: i64 = sqlx::query_scalar("INSERT INTO contacts (full_name, phone, phone_e164, created_at, updated_at) VALUES ($1, $2, $2, now(), now()) RETURNING id")
                .bind(&name)
                .bind(format!("+{from}"))
                .fetch_one(&mut *tx)
                .await?;
            sqlx::query_as("INSERT INTO contact_identities (contact_id, kind, value, value_raw, display_name, first_seen_at) VALUES ($1, 'WA_ID', $2, $2, $3, now())
                            ON CONFLICT (kind, scope_key, value) DO UPDATE SET display_name = excluded.display_name RETURNING id, contact_id")
                .bind(contact)
                .bind(&from)
                .bind(&name)
                .fetch_one(&mut *tx)
                .await?
        }
    };
    let lead: Option<i64> = sqlx::query_scalar("SELECT id FROM leads WHERE contact_id = $1 AND closed_at IS NULL AND created_at > now() - interval '30 days' ORDER BY created_at DESC LIMIT 1")
        .bind(contact)
        .fetch_optional(&mut *tx)
        .await?;
    let lead = match lead {
        Some(lead) => lead,
        None => {
            sqlx::query_scalar("INSERT INTO leads (contact_id, created_at, updated_at) VALUES ($1, now(), now()) RETURNING id")
                .bind(contact)
                .fetch_one(&mut *tx)
                .await?
        }
    };
    let conversation: i64 = sqlx::query_scalar(
        "INSERT INTO conversations (contact_id, contact_identity_id, lead_id, channel_account_id, channel, last_message_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 'WHATSAPP', to_timestamp($5), now(), now())
         ON CONFLICT (channel_account_id, contact_identity_id, thread_key) DO UPDATE SET updated_at = now() RETURNING id",
    )
    .bind(contact)
    .bind(identity)
    .bind(lead)
    .bind(account)
    .bind(seconds as f64)
    .fetch_one(&mut *tx)
    .await?;
    let inserted: Option<i64> = sqlx::query_scalar(
        "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel, type, body, search_text, status, provider_message_id, origin,
                               raw_payload, webhook_event_id, occurred_at, created_at)
         VALUES ($1, $2, $3, $4, 'INBOUND', 'WHATSAPP', 'text', $5, lower($5), 'RECEIVED', $6, 'CONTACT', $7, $8, to_timestamp($9), now())
         ON CONFLICT (provider_message_id, channel_account_id) DO NOTHING RETURNING id",
    )
    .bind(conversation)
    .bind(contact)
    .bind(lead)
    .bind(account)
    .bind(&said)
    .bind(&wamid)
    .bind(message.to_string())
    .bind(event)
    .bind(seconds as f64)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(id) = inserted {
        sqlx::query(
            "UPDATE conversations SET unread_count = unread_count + 1, last_message_id = $2, last_message_at = greatest(last_message_at, to_timestamp($3)),
                    last_message_preview = $4, last_message_direction = 'INBOUND', last_inbound_at = greatest(last_inbound_at, to_timestamp($3)),
                    window_expires_at = greatest(window_expires_at, to_timestamp($3) + interval '24 hours'), updated_at = now() WHERE id = $1",
        )
        .bind(conversation)
        .bind(id)
        .bind(seconds as f64)
        .bind(&said)
        .execute(&mut *tx)
        .await?;
        sqlx::query("INSERT INTO change_feed (kind, conversation_id, contact_id, entity_id, created_at) VALUES ('message', $1, $2, $3, now())")
            .bind(conversation)
            .bind(contact)
            .bind(id)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await.context("commit")
}
