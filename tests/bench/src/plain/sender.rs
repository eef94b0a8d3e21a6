//! Plain sender: consume a reference, claim its row, call the provider, write the outcome, publish a status, acknowledge;
//! one by one, as many at once as asked for, over a pool of eight connections.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::sync::Arc;

struct Worker {
    pool: PgPool,
    channel: Channel,
    results: String,
    client: reqwest::Client,
    url: String,
    token: String,
}

/// Consumes message ids from `queue` and sends them until it is killed.
pub async fn run(amqp: &str, queue: &str, results: &str, url: &str, api: &str, token: &str, concurrency: u16) -> Result<()> {
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(std::time::Duration::from_secs(60))
        .after_connect(|conn, _| {
            Box::pin(async move {
                sqlx::query("SET search_path = roost, public").execute(conn).await?;
                Ok(())
            })
        })
        .connect(url)
        .await?;
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let (consuming, publishing) = (connection.create_channel().await?, connection.create_channel().await?);
    publishing.confirm_select(ConfirmSelectOptions::default()).await?;
    consuming.basic_qos(concurrency.saturating_mul(2), BasicQosOptions::default()).await?;
    let consumer = consuming
        .basic_consume(queue.into(), "plain".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let worker = Arc::new(Worker {
        pool,
        channel: publishing,
        results: results.to_owned(),
        client: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(usize::from(concurrency)).build()?,
        url: api.to_owned(),
        token: token.to_owned(),
    });
    let work = consumer.map(|delivery| {
        let worker = worker.clone();
        async move {
            let delivery = delivery?;
            let id: i64 = std::str::from_utf8(&delivery.data)?.parse()?;
            worker.send(id).await?;
            delivery.ack(BasicAckOptions::default()).await?;
            Ok::<_, anyhow::Error>(())
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
        let claimed: Option<(String, String)> = sqlx::query_as(
            "UPDATE sends s SET state = 'IN_FLIGHT', attempt = attempt + 1, lease_token = 'plain', lease_until = now() + interval '20 seconds'
               FROM messages m JOIN conversations c ON c.id = m.conversation_id JOIN contact_identities i ON i.id = c.contact_identity_id
              WHERE s.message_id = $1 AND s.state = 'DISPATCHED' AND m.id = s.message_id RETURNING i.value, m.body",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some((to, body)) = claimed else { return Ok(()) };
        let request = json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": to, "type": "text",
            "biz_opaque_callback_data": format!("plain.{id}"), "text": {"body": body, "preview_url": false}});
        let answer = self.client.post(&self.url).bearer_auth(&self.token).json(&request).send().await?;
        let answer: Value = answer.json().await?;
        let wamid = answer["messages"][0]["id"].as_str().context("no id")?.to_owned();
        sqlx::query(
            "WITH gone AS (DELETE FROM sends WHERE message_id = $1),
                  tried AS (INSERT INTO send_attempts (message_id, generation, attempt, outcome, provider_message_id, http_status, finished_at)
                            VALUES ($1, 0, 1, 'ACCEPTED', $2, 200, now()))
             UPDATE messages SET status = 'SENT', provider_message_id = $2, sent_at = now() WHERE id = $1",
        )
        .bind(id)
        .bind(&wamid)
        .execute(&self.pool)
        .await?;
        let status = json!({"message": id, "status": "SENT"}).to_string();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = self
            .channel
            .basic_publish("".into(), self.results.as_str().into(), BasicPublishOptions::default(), status.as_bytes(), properties)
            .await?;
        confirm.await?;
        Ok(())
    }
}
