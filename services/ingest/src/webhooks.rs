//! The loop of the webhooks: take what is there, read it, write it, acknowledge it. While one batch is written the next is
//! taken and read; nothing waits for a batch to fill, because the time that the one before takes fills it.

use crate::Context;
use crate::batch::{Batch, RawBody, Reader, Writer, of_bytes};
use crate::hold;
use crate::progress::UnderWay;
use domain::Timestamp;
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead};
use futures_util::future::join_all;
use queue::topics::WEBHOOKS;
use queue::{Consumer, Delivery};
use runtime::blobs::BlobError;
use runtime::reconnect::Reconnect;
use serde_json::json;
use std::sync::Arc;
use store::dead_letter::Stage;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Most queue messages in one batch.
const MOST_DELIVERIES: usize = 128;
/// A batch with so many bytes is full, however few webhooks they are.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// How often a body is asked of an object store that fails.
const BODY_ATTEMPTS: u32 = 5;

/// A batch on its way, with what must be acknowledged for it.
struct Taken {
    deliveries: Vec<Delivery<WebhookBatch>>,
    under_way: UnderWay,
    newest: Timestamp,
    batch: Batch,
}

/// A batch that is being written.
struct Writing {
    deliveries: Vec<Delivery<WebhookBatch>>,
    under_way: UnderWay,
    newest: Timestamp,
    task: JoinHandle<bool>,
}

struct Loop {
    context: Context,
    reader: Arc<Reader>,
    writer: Writer,
    writers: usize,
    stop: CancellationToken,
}

pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let prefetch = u16::try_from(context.deps.tuning.ingest_prefetch).unwrap_or(u16::MAX);
    let mut consumer = context.deps.queue.consume(&WEBHOOKS, None, prefetch).await;
    // SQLite has one writer; a second would wait for it.
    let writers = if context.deps.store.is_sqlite() { 1 } else { context.deps.tuning.ingest_writers };
    let this = Loop {
        reader: Arc::new(Reader::new(&context.deps.sources, context.accounts.clone())),
        writer: Writer::new(context.clone(), stop.clone()),
        writers,
        context,
        stop,
    };
    let given_back = this.consume(&mut consumer).await;
    consumer.close(given_back).await;
}

impl Loop {
    /// Until it is stopped. Returns what must be given back.
    async fn consume(&self, consumer: &mut Consumer<WebhookBatch>) -> Vec<Delivery<WebhookBatch>> {
        let mut writing: Option<Writing> = None;
        let mut next: Option<Taken> = None;
        loop {
            if writing.is_none() {
                writing = next.take().map(|taken| self.begin(taken));
            }
            tokio::select! {
                biased;
                written = finished(&mut writing) => {
                    let Some(done) = writing.take() else { continue };
                    if written {
                        self.acknowledge(consumer, done).await;
                    } else {
                        let mut give_back = self.give_back(done.deliveries, &done.under_way);
                        if let Some(taken) = next.take() {
                            give_back.extend(self.give_back(taken.deliveries, &taken.under_way));
                        }
                        if self.stop.is_cancelled() {
                            return give_back;
                        }
                        warn!(deliveries = give_back.len(), "The database is away for long: giving back what was held, and waiting");
                        consumer.pause(give_back).await;
                        if !hold::until_back(&self.context, &self.stop).await {
                            return Vec::new();
                        }
                        info!("The database is back: taking webhooks again");
                        consumer.resume().await;
                    }
                }
                () = self.stop.cancelled(), if writing.is_none() => {
                    return next.map(|taken| self.give_back(taken.deliveries, &taken.under_way)).unwrap_or_default();
                }
                first = consumer.next(), if next.is_none() && !self.stop.is_cancelled() => match first {
                    Some(first) => next = self.take(first, consumer).await,
                    // The queue was closed under us; it has given everything back.
                    None => {
                        self.stop.cancelled().await;
                        return Vec::new();
                    }
                },
            }
        }
    }

    /// Takes what is there and reads it. `None`: the reader died, which was logged; the deliveries come again.
    async fn take(&self, first: Delivery<WebhookBatch>, consumer: &mut Consumer<WebhookBatch>) -> Option<Taken> {
        let most_frames = self.context.deps.tuning.ingest_batch.saturating_mul(self.writers).max(1);
        let size = |delivery: &Delivery<WebhookBatch>| delivery.item.as_ref().map_or(1, |batch| batch.0.len());
        let (mut frames, mut bytes) = (size(&first), first.raw.len());
        let mut deliveries = vec![first];
        while frames < most_frames && bytes < MOST_BYTES && deliveries.len() < MOST_DELIVERIES {
            let Some(more) = consumer.try_next() else { break };
            (frames, bytes) = (frames + size(&more), bytes + more.raw.len());
            deliveries.push(more);
        }
        for delivery in deliveries.iter().filter(|delivery| delivery.redelivered) {
            self.context.deps.metrics.redelivered(WEBHOOKS.name());
            tracing::debug!(queue.message_id = %delivery.envelope.message_id, "Delivered again");
        }

        let mut batch = Batch::default();
        let mut webhooks: Vec<(WebhookHead, RawBody)> = Vec::with_capacity(frames);
        let mut times: Option<(Timestamp, Timestamp)> = None;
        let mut at = |time: Timestamp| {
            times = Some(times.map_or((time, time), |(oldest, newest)| (oldest.min(time), newest.max(time))));
        };
        for delivery in &mut deliveries {
            match std::mem::replace(&mut delivery.item, Ok(WebhookBatch(Vec::new()))) {
                Ok(frames) => {
                    for frame in frames.0 {
                        match frame {
                            Frame::Webhook(WebhookFrame { head, body }) => {
                                at(head.received_at);
                                let body = self.fetch(body).await;
                                webhooks.push((head, body));
                            }
                            Frame::Beat(beat) => {
                                at(beat.at);
                                batch.beats.push(beat);
                            }
                        }
                    }
                }
                Err(error) => {
                    at(delivery.published_at);
                    let headers =
                        json!({ "message_id": delivery.envelope.message_id, "published_at": delivery.published_at });
                    let cause = crate::batch::undecodable(&error);
                    batch.dead.push(of_bytes(Stage::Ingest, WEBHOOKS.name(), &delivery.raw, headers, cause));
                }
            }
        }
        let (oldest, newest) = times.unwrap_or((Timestamp::EPOCH, Timestamp::EPOCH));
        let under_way = self.context.progress.taken(oldest);
        let reader = self.reader.clone();
        // Off the runtime's threads: a body of 3 MB keeps its reader busy for a while.
        match tokio::task::spawn_blocking(move || reader.read(webhooks)).await {
            Ok((hooks, work)) => {
                (batch.hooks, batch.work) = (hooks, work);
                Some(Taken { deliveries, under_way, newest, batch })
            }
            Err(error) => {
                error!(%error, "Reading webhooks failed; they come again");
                self.context.progress.given_back(&under_way);
                None
            }
        }
    }

    /// The bytes of a webhook.
    async fn fetch(&self, body: Body) -> RawBody {
        let key = match body {
            Body::Inline(bytes) => return RawBody::Inline(bytes),
            Body::Stored(key) => key,
        };
        let tuning = &self.context.deps.tuning;
        let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
        let mut attempt = 1;
        loop {
            match self.context.deps.blobs.get(&key).await {
                Ok(bytes) => return RawBody::Fetched { key, bytes },
                Err(error @ BlobError::Io(_)) if attempt < BODY_ATTEMPTS => {
                    warn!(%error, attempt, "A body cannot be read from the object store; trying again");
                    attempt += 1;
                    tokio::time::sleep(waits.next_wait()).await;
                }
                Err(BlobError::Missing(_)) => return RawBody::Lost { key, reason: "it is not there".to_owned() },
                Err(error) => return RawBody::Lost { key, reason: error.to_string() },
            }
        }
    }

    /// Begins to write.
    fn begin(&self, taken: Taken) -> Writing {
        let shares = taken.batch.shared_out(self.writers);
        let writer = self.writer.clone();
        let task = tokio::spawn(async move {
            let write = |share: Batch| {
                let writer = writer.clone();
                tokio::spawn(async move { Box::pin(writer.write(share)).await })
            };
            let written = join_all(shares.into_iter().map(write)).await;
            written.into_iter().all(|written| match written {
                Ok(written) => written.is_ok(),
                Err(error) => {
                    error!(%error, "A writer died; its webhooks come again");
                    false
                }
            })
        });
        Writing { deliveries: taken.deliveries, under_way: taken.under_way, newest: taken.newest, task }
    }

    async fn acknowledge(&self, consumer: &Consumer<WebhookBatch>, done: Writing) {
        self.context.progress.committed(&done.under_way, done.newest);
        consumer.settle_all(done.deliveries).await;
    }

    fn give_back(&self, deliveries: Vec<Delivery<WebhookBatch>>, under_way: &UnderWay) -> Vec<Delivery<WebhookBatch>> {
        self.context.progress.given_back(under_way);
        deliveries
    }
}

/// Waits until what is being written is written; for ever when nothing is. `false`: it was not.
async fn finished(writing: &mut Option<Writing>) -> bool {
    match writing {
        Some(writing) => (&mut writing.task).await.unwrap_or(false),
        None => std::future::pending().await,
    }
}
