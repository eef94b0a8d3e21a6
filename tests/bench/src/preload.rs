//! Fills the queues before the clock starts.

use crate::bed::PLAIN_WEBHOOKS;
use crate::webhooks::Webhook;
use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead};
use domain::{Clock, Secret, SystemClock};
use futures_util::{StreamExt, TryStreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use queue::topics::WEBHOOKS;
use queue::{Envelope, Queue, QueueOptions, QueueUrl};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Webhooks in one queue message: what ingress makes of about ten thousand requests a second.
pub(crate) const BATCH: usize = 32;

/// The broker.
pub(crate) fn rabbitmq(url: &str) -> QueueUrl {
    QueueUrl::Amqp(Secret::new(url))
}

/// The file of a Roost that does not run.
pub(crate) fn embedded(data_dir: &Path) -> QueueUrl {
    QueueUrl::Embedded(data_dir.join("queue.db"))
}

/// Publishes webhooks as ingress does: many in one message.
pub(crate) async fn for_roost(url: QueueUrl, webhooks: &[Webhook]) -> Result<()> {
    let options = QueueOptions {
        url,
        prefix: String::new(),
        role: "bench".into(),
        instance: "bench".into(),
        timing: queue::Timing::default(),
    };
    let queue = Queue::open(options).await?;
    let publisher = queue.publisher();
    let batches: Vec<_> = webhooks.chunks(BATCH).collect();
    let publishes = futures_util::stream::iter(batches).map(|batch| {
        let publisher = publisher.clone();
        async move {
            let mut body = BytesMut::new();
            for webhook in batch {
                WebhookBatch::append(&mut body, &Frame::Webhook(frame(webhook)?));
            }
            let slot = publisher.slot().await?;
            slot.publish(&WEBHOOKS, None, Envelope::holding(batch.len()), body.freeze()).await?;
            anyhow::Ok(())
        }
    });
    publishes.buffer_unordered(4).try_collect::<Vec<()>>().await?;
    queue.close(Duration::from_secs(5)).await;
    Ok(())
}

fn frame(webhook: &Webhook) -> Result<WebhookFrame> {
    let head = WebhookHead {
        source: "meta".parse().ok().context("a source's name")?,
        received_at: SystemClock::default().now(),
        request_id: Uuid::now_v7(),
        traceparent: None,
        headers: Vec::new(),
        replay: false,
    };
    Ok(WebhookFrame { head, body: Body::Inline(webhook.body.clone()) })
}

/// Publishes webhooks one a message.
pub(crate) async fn for_plain(amqp: &str, webhooks: &[Webhook]) -> Result<()> {
    let bodies = webhooks.iter().map(|webhook| webhook.body.to_vec());
    publish_each(amqp, PLAIN_WEBHOOKS, bodies).await
}

/// Publishes one message for each body and waits for all confirms.
pub(crate) async fn publish_each(amqp: &str, queue: &str, bodies: impl Iterator<Item = Vec<u8>>) -> Result<()> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = open(&connection, queue).await?;
    // Many at once on one channel: which confirm is whose does not matter here, only that none is missing.
    let publishes = futures_util::stream::iter(bodies).map(|body| {
        let channel = &channel;
        async move {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let confirm = channel.basic_publish("".into(), queue.into(), options, &body, properties).await?.await?;
            ensure!(confirm.is_ack(), "a publish was refused");
            Ok(())
        }
    });
    publishes.buffer_unordered(256).try_collect::<Vec<()>>().await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// A channel with confirms, and a quorum queue.
pub(crate) async fn open(connection: &Connection, queue: &str) -> Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(channel)
}
