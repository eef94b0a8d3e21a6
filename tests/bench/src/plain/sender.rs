//! Plain sender: consume a reference, claim its row, call the provider, write the outcome, publish a status, acknowledge;
//! one by one, as many at once as asked for, over a pool of eight connections.

use super::ingest::pool;
use crate::bed::ACCESS_TOKEN;
use crate::preload;
use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use std::net::SocketAddr;

/// Claims the row and reads what is to be sent.
const CLAIM: &str = "UPDATE sends s SET state = 'IN_FLIGHT', attempt = attempt + 1, lease_token = 'plain',
        lease_until = now() + interval '20 seconds'
    FROM messages m JOIN conversations c ON c.id = m.conversation_id JOIN contact_identities i ON i.id = c.contact_identity_id
    JOIN channel_accounts a ON a.id = c.channel_account_id
    WHERE s.message_id = $1 AND s.state = 'DISPATCHED' AND m.id = s.message_id
    RETURNING i.value, m.body, a.external_account_id";

/// Everything an accepted message changes, in one statement and one commit.
const ACCEPTED: &str = "WITH gone AS (DELETE FROM sends WHERE message_id = $1),
    tried AS (INSERT INTO send_attempts (message_id, generation, attempt, outcome, provider_message_id, http_status, finished_at)
              VALUES ($1, 0, 1, 'ACCEPTED', $2, 200, now())),
    sent AS (UPDATE messages SET status = 'SENT', provider_message_id = $2, sent_at = now() WHERE id = $1
             RETURNING id, conversation_id, contact_id, channel_account_id),
    told AS (INSERT INTO message_status_events (message_id, conversation_id, channel_account_id, provider_message_id, generation,
                    status, source, applied, occurred_at, received_at)
             SELECT id, conversation_id, channel_account_id, $2, 0, 'SENT', 'SENDER', true, now(), now() FROM sent)
    INSERT INTO change_feed (kind, conversation_id, contact_id, entity_id, status, created_at)
    SELECT 'message_status', conversation_id, contact_id, id, 'SENT', now() FROM sent";

struct Worker {
    pool: PgPool,
    channel: Channel,
    results: String,
    client: reqwest::Client,
    api: String,
}

/// Consumes message ids from `queue` and sends them until it is killed.
pub(crate) async fn run(
    amqp: &str,
    (queue, results): (&str, &str),
    url: &str,
    api: SocketAddr,
    concurrency: u16,
) -> Result<()> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let publishing = preload::open(&connection, results).await?;
    let consuming = connection.create_channel().await?;
    consuming.basic_qos(concurrency.saturating_mul(2), BasicQosOptions::default()).await?;
    let worker = Worker {
        pool: pool(url).await?,
        channel: publishing,
        results: results.to_owned(),
        client: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(usize::from(concurrency)).build()?,
        api: format!("http://{api}/v25.0"),
    };
    let consumer = consuming
        .basic_consume(queue.into(), "plain".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let work = consumer.map(|delivery| {
        let worker = &worker;
        async move {
            let delivery = delivery?;
            let id: i64 = std::str::from_utf8(&delivery.data)?.parse()?;
            worker.send(id).await?;
            delivery.ack(BasicAckOptions::default()).await?;
            anyhow::Ok(())
        }
    });
    let mut done = work.buffer_unordered(usize::from(concurrency));
    while let Some(outcome) = done.next().await {
        outcome?;
    }
    Ok(())
}

impl Worker {
    async fn send(&self, id: i64) -> Result<()> {
        let claimed: Option<(String, String, String)> =
            sqlx::query_as(CLAIM).bind(id).fetch_optional(&self.pool).await?;
        let Some((to, body, number)) = claimed else { return Ok(()) };
        let url = format!("{}/{number}/messages", self.api);
        let request = json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": to,
            "biz_opaque_callback_data": format!("plain.{id}"), "type": "text", "text": {"body": body, "preview_url": false}});
        let answer = self.client.post(url).bearer_auth(ACCESS_TOKEN).json(&request).send().await?;
        let answer: Value = answer.json().await?;
        let wamid = answer.pointer("/messages/0/id").and_then(Value::as_str).context("no id")?;
        sqlx::query(ACCEPTED).bind(id).bind(wamid).execute(&self.pool).await?;
        let status = json!({"message": id, "status": "SENT"}).to_string();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let results = self.results.as_str().into();
        self.channel.basic_publish("".into(), results, options, status.as_bytes(), properties).await?.await?;
        Ok(())
    }
}
