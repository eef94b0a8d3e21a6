//! The loop of the webhooks: take what is there, read it, write it, acknowledge it. While one batch is written the next is
//! taken and read; nothing waits for a batch to fill, because the time that the one before takes fills it.

use crate::batch::{Batch, RawBody, Reader, Writer, of_bytes};
use crate::hold::{self, Away};
use crate::progress::{UnderWay, holds_for};
use crate::{Context, beat};
use domain::Timestamp;
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead};
use futures_util::future::join_all;
use queue::topics::WEBHOOKS;
use queue::{Consumer, Delivery};
use runtime::reconnect::Reconnect;
use serde_json::json;
use std::sync::Arc;
use store::dead_letter::Stage;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// Most queue messages in one batch.
const MOST_DELIVERIES: usize = 128;
/// A batch with so many bytes is full, however few webhooks they are. Bodies from the object store are read in portions of
/// about as much.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A webhook whose body is in the object store, under this key.
type Stored = (WebhookHead, String);

/// A batch on its way, with what must be acknowledged for it.
struct Taken {
    deliveries: Vec<Delivery<WebhookBatch>>,
    under_way: UnderWay,
    newest: Timestamp,
    batch: Batch,
    stored: Vec<Stored>,
}

/// A batch that is being written.
struct Writing {
    deliveries: Vec<Delivery<WebhookBatch>>,
    under_way: UnderWay,
    newest: Timestamp,
    task: JoinHandle<Outcome>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    /// Something was away for too long, or this process stops: give it back.
    Away(Away),
    /// It made us panic: it has failed.
    Died,
}

/// What reading and writing needs. Cheap to clone.
#[derive(Clone)]
struct Hands {
    context: Context,
    reader: Arc<Reader>,
    writer: Writer,
    writers: usize,
    stop: CancellationToken,
}

struct Loop {
    hands: Hands,
    context: Context,
    stop: CancellationToken,
    /// So many deliveries are taken alone from now on, each a batch of its own: one among those that failed together is
    /// guilty, and only that one may fail again.
    alone: usize,
}

pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let prefetch = u16::try_from(context.deps.tuning.ingest_prefetch).unwrap_or(u16::MAX);
    let mut consumer = context.deps.queue.consume(&WEBHOOKS, None, prefetch).await;
    // SQLite has one writer; a second would wait for it.
    let writers = if context.deps.store.is_sqlite() { 1 } else { context.deps.tuning.ingest_writers };
    let hands = Hands {
        reader: Arc::new(Reader::new(&context.deps.sources, context.accounts.clone())),
        writer: Writer::new(context.clone(), stop.clone()),
        context: context.clone(),
        writers,
        stop: stop.clone(),
    };
    let mut this = Loop { hands, context: context.clone(), stop, alone: 0 };
    let given_back = this.consume(&mut consumer).await;
    let unsettled = context.deps.queue.stats().topics.get(WEBHOOKS.name()).is_some_and(|topic| topic.unacked > 0);
    if unsettled || !given_back.is_empty() {
        context.progress.leaves_behind();
    }
    consumer.close(given_back).await;
}

impl Loop {
    /// Until it is stopped. Returns what must be given back.
    async fn consume(&mut self, consumer: &mut Consumer<WebhookBatch>) -> Vec<Delivery<WebhookBatch>> {
        let mut writing: Option<Writing> = None;
        let mut next: Option<Taken> = None;
        loop {
            if writing.is_none() {
                writing = next.take().map(|taken| self.begin(taken));
            }
            tokio::select! {
                biased;
                outcome = finished(&mut writing) => {
                    let Some(done) = writing.take() else { continue };
                    match outcome {
                        Outcome::Written => self.acknowledge(consumer, done).await,
                        Outcome::Died => self.fail(done.deliveries, &done.under_way),
                        Outcome::Away(away) => {
                            let mut give_back = self.give_back(done.deliveries, &done.under_way);
                            give_back.extend(self.give_back_taken(next.take()));
                            if let Some(end) = self.wait(consumer, give_back, away).await {
                                return end;
                            }
                        }
                    }
                }
                () = self.stop.cancelled(), if writing.is_none() => return self.give_back_taken(next),
                () = self.silent_for_too_long(), if writing.is_none() => {
                    let give_back = self.give_back_taken(next.take());
                    if let Some(end) = self.wait(consumer, give_back, Away::Database).await {
                        return end;
                    }
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

    /// Gives back what is held and waits until what was away is back. Returns what is left to give back at the end, when
    /// this process is to stop.
    async fn wait(
        &self,
        consumer: &mut Consumer<WebhookBatch>,
        give_back: Vec<Delivery<WebhookBatch>>,
        away: Away,
    ) -> Option<Vec<Delivery<WebhookBatch>>> {
        if self.stop.is_cancelled() {
            return Some(give_back);
        }
        warn!(deliveries = give_back.len(), ?away, "Giving back what was held, and waiting");
        consumer.pause(give_back).await;
        let back = match away {
            Away::Database => self.until_heard().await,
            Away::ObjectStore => hold::until_object_store_back(&self.context, &self.stop).await,
        };
        if !back {
            return Some(Vec::new());
        }
        info!(?away, "Taking webhooks again");
        consumer.resume().await;
        None
    }

    /// Waits until the others have not heard of this process for so long that they are about to count without it.
    async fn silent_for_too_long(&self) {
        loop {
            let until = self.context.progress.last_beat() + holds_for(&self.context.deps.tuning);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Waits for the database and says there that this process listens again. `false`: stopped before that.
    async fn until_heard(&self) -> bool {
        let tuning = &self.context.deps.tuning;
        let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
        while hold::until_back(&self.context, &self.stop).await {
            let begun = Instant::now();
            match beat::announce(&self.context.deps, self.context.started_at).await {
                Ok(()) => {
                    self.context.progress.beaten(begun);
                    return true;
                }
                Err(error) => debug!(%error, "The database is back, and takes no heartbeat"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(waits.next_wait()) => {}
            }
        }
        false
    }

    /// Takes what is there and reads it. `None`: the reader died, which was logged; the deliveries come again.
    async fn take(&mut self, first: Delivery<WebhookBatch>, consumer: &mut Consumer<WebhookBatch>) -> Option<Taken> {
        let most_frames = self.context.deps.tuning.ingest_batch.saturating_mul(self.hands.writers).max(1);
        let most_deliveries = if self.alone > 0 { 1 } else { MOST_DELIVERIES };
        self.alone = self.alone.saturating_sub(1);
        let size = |delivery: &Delivery<WebhookBatch>| delivery.item.as_ref().map_or(1, |batch| batch.0.len());
        let (mut frames, mut bytes) = (size(&first), first.raw.len());
        let mut deliveries = vec![first];
        while frames < most_frames && bytes < MOST_BYTES && deliveries.len() < most_deliveries {
            let Some(more) = consumer.try_next() else { break };
            (frames, bytes) = (frames + size(&more), bytes + more.raw.len());
            deliveries.push(more);
        }
        for delivery in deliveries.iter().filter(|delivery| delivery.redelivered) {
            self.context.deps.metrics.redelivered(WEBHOOKS.name());
            debug!(queue.message_id = %delivery.envelope.message_id, "Delivered again");
        }

        let mut batch = Batch::default();
        let mut webhooks: Vec<(WebhookHead, RawBody)> = Vec::with_capacity(frames);
        let mut stored: Vec<Stored> = Vec::new();
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
                                match body {
                                    Body::Inline(bytes) => webhooks.push((head, RawBody::Inline(bytes))),
                                    Body::Stored(key) => stored.push((head, key)),
                                }
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
        // From here on it counts as under way, whatever takes how long.
        let under_way = self.context.progress.taken(oldest);
        if self.hands.read(webhooks, &mut batch).await {
            Some(Taken { deliveries, under_way, newest, batch, stored })
        } else {
            self.fail(deliveries, &under_way);
            None
        }
    }

    /// Begins to write.
    fn begin(&self, taken: Taken) -> Writing {
        let Taken { deliveries, under_way, newest, batch, stored } = taken;
        let hands = self.hands.clone();
        let task = tokio::spawn(async move { hands.write_all(batch, stored).await });
        Writing { deliveries, under_way, newest, task }
    }

    async fn acknowledge(&self, consumer: &Consumer<WebhookBatch>, done: Writing) {
        self.context.progress.committed(&done.under_way, done.newest);
        consumer.settle_all(done.deliveries).await;
    }

    /// Returns deliveries to the queue as a failure of theirs, which it counts: after so many it sets them aside. They are
    /// taken one by one meanwhile.
    fn fail(&mut self, deliveries: Vec<Delivery<WebhookBatch>>, under_way: &UnderWay) {
        self.context.progress.failed(under_way, self.context.deps.tuning.witness_timeout);
        if deliveries.len() > 1 {
            self.alone += deliveries.len();
        }
        drop(deliveries);
    }

    fn give_back(&self, deliveries: Vec<Delivery<WebhookBatch>>, under_way: &UnderWay) -> Vec<Delivery<WebhookBatch>> {
        self.context.progress.given_back(under_way);
        deliveries
    }

    fn give_back_taken(&self, taken: Option<Taken>) -> Vec<Delivery<WebhookBatch>> {
        taken.map(|taken| self.give_back(taken.deliveries, &taken.under_way)).unwrap_or_default()
    }
}

impl Hands {
    /// Reads webhooks into a batch. `false`: the reader died, which is logged.
    async fn read(&self, webhooks: Vec<(WebhookHead, RawBody)>, batch: &mut Batch) -> bool {
        let reader = self.reader.clone();
        // Off the runtime's threads: a body of 3 MB keeps its reader busy for a while.
        match tokio::task::spawn_blocking(move || reader.read(webhooks)).await {
            Ok((hooks, work)) => {
                (batch.hooks, batch.work) = (hooks, work);
                true
            }
            Err(error) => {
                error!(%error, "Reading webhooks failed; they come again");
                false
            }
        }
    }

    /// Writes a batch, then its webhooks whose bodies are in the object store, as many at a time as fit into the memory.
    async fn write_all(&self, batch: Batch, stored: Vec<Stored>) -> Outcome {
        let mut outcome = self.write(batch).await;
        let mut stored = stored.into_iter().peekable();
        while outcome == Outcome::Written && stored.peek().is_some() {
            let (mut webhooks, mut bytes) = (Vec::new(), 0);
            while bytes < MOST_BYTES
                && let Some((head, key)) = stored.next()
            {
                match hold::body(&self.context, &self.stop, &key).await {
                    Ok(body) => {
                        bytes += body.len();
                        webhooks.push((head, body));
                    }
                    Err(away) => return Outcome::Away(away),
                }
            }
            let mut portion = Batch::default();
            outcome = if self.read(webhooks, &mut portion).await { self.write(portion).await } else { Outcome::Died };
        }
        outcome
    }

    /// Writes a batch, shared out to the writers.
    async fn write(&self, batch: Batch) -> Outcome {
        #[cfg(test)]
        crate::batch::trap::outside(&batch.work);
        let write = |share: Batch| {
            let writer = self.writer.clone();
            tokio::spawn(async move { Box::pin(writer.write(share)).await })
        };
        let mut outcome = Outcome::Written;
        for written in join_all(batch.shared_out(self.writers).into_iter().map(write)).await {
            match written {
                Ok(Ok(())) => {}
                Ok(Err(away)) => outcome = Outcome::Away(away),
                Err(error) => {
                    error!(%error, "A writer died; its webhooks come again");
                    return Outcome::Died;
                }
            }
        }
        outcome
    }
}

/// Waits until what is being written is written; for ever when nothing is.
async fn finished(writing: &mut Option<Writing>) -> Outcome {
    match writing {
        Some(writing) => (&mut writing.task).await.unwrap_or(Outcome::Died),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use crate::Deps;
    use crate::batch::trap;
    use dispatch::Dispatcher;
    use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead};
    use domain::{Account, Channel, OnUnknown, Secret, Source, TestClock};
    use queue::topics::WEBHOOKS;
    use queue::{Queue, QueueOptions, QueueUrl};
    use rstest::rstest;
    use runtime::blobs::Blobs;
    use runtime::config::{BlobsPlace, Tuning};
    use runtime::health::Health;
    use runtime::metrics::Metrics;
    use serde_json::json;
    use std::sync::Arc;
    use std::time::Duration;
    use testkit::amqp::{amqp_url, fresh_prefix};
    use testkit::rows::NOON;
    use testkit::{Database, fresh_store, look};
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    const NUMBER: &str = "106540352242922";

    fn account() -> Account {
        Account {
            name: "sales".parse().unwrap(),
            channel: Channel::WhatsApp,
            source: "meta".parse().unwrap(),
            external_id: NUMBER.into(),
            parent_external_id: None,
            portfolio_id: None,
            display_address: None,
            api_base: "http://127.0.0.1:9".into(),
            access_token: Secret::new("token"),
            rate_per_second: 80.0,
            pair_interval: Duration::ZERO,
            pair_burst: 1,
            window: None,
            on_unknown: OnUnknown::Hold,
        }
    }

    fn frame(n: usize, words: &str) -> Frame {
        let body = json!({ "object": "whatsapp_business_account", "entry": [{ "id": "1", "changes": [{ "field": "messages", "value": {
            "messaging_product": "whatsapp", "metadata": { "phone_number_id": NUMBER },
            "messages": [{ "from": format!("3519120000{n:02}"), "id": format!("wamid.{n}"), "timestamp": "1795339800",
                "type": "text", "text": { "body": words } }],
        } }] }] });
        let head = WebhookHead {
            source: "meta".parse().unwrap(),
            received_at: NOON,
            request_id: Uuid::now_v7(),
            traceparent: None,
            headers: Vec::new(),
            replay: false,
        };
        Frame::Webhook(WebhookFrame { head, body: Body::Inline(body.to_string().into()) })
    }

    #[rstest]
    #[case::a_bug_in_a_transaction(trap::IN_A_TRANSACTION, "PANIC")]
    #[case::a_bug_elsewhere(trap::OUTSIDE, "DIED")]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_webhook_that_makes_the_writer_panic_ends_as_a_dead_letter_and_its_neighbours_are_stored(
        #[values(false, true)] rabbitmq: bool,
        #[case] bug: &str,
        #[case] class: &str,
    ) {
        let database = fresh_store(Database::Sqlite).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let url = if rabbitmq {
            QueueUrl::Amqp(Secret::new(amqp_url().unwrap()))
        } else {
            QueueUrl::Embedded(folder.path().join("queue.db"))
        };
        let options = QueueOptions {
            url,
            prefix: fresh_prefix(),
            role: "ingest".into(),
            instance: "test".into(),
            timing: queue::Timing::default(),
        };
        let queue = Queue::open(options).await.unwrap();
        queue.health().wait_for(queue::QueueHealth::is_up).await.unwrap();
        // Neighbours in the same queue message, and in others.
        for batch in [0..3, 3..6, 6..9] {
            let frames = batch.map(|n| frame(n, if n == 4 { bug } else { "hello" })).collect();
            queue.publisher().publish(&WEBHOOKS, None, &WebhookBatch(frames)).await.unwrap();
        }
        let deps = Deps {
            dispatcher: Dispatcher::new(queue.clone(), database.store.clone()),
            queue,
            store: database.store.clone(),
            sources: vec![Source {
                name: "meta".parse().unwrap(),
                kind: "meta".into(),
                secrets: vec![Secret::new("0123456789abcdef")],
                verify_token: None,
                max_body: 4 << 20,
                crm_alias: false,
            }]
            .into(),
            accounts: vec![account()].into(),
            clock: Arc::new(TestClock::at(NOON)),
            blobs: Blobs::open(&BlobsPlace::Folder(folder.path().join("blobs"))).unwrap(),
            tuning: Tuning::default(),
            instance: "a".into(),
            metrics: Metrics::new(),
            health: Health::new(),
        };
        let stop = CancellationToken::new();
        let ingest = tokio::spawn(crate::run(deps, stop.clone()));
        let stored = async {
            loop {
                let url = &database.options.url;
                let messages = look::texts(url, "SELECT provider_message_id FROM messages ORDER BY 1").await.unwrap();
                let dead = look::texts(url, "SELECT error_class FROM dead_letters").await.unwrap();
                if (messages.len(), dead.as_slice()) == (8, &[class.to_owned()]) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), stored).await.expect("eight messages and a dead letter");
        stop.cancel();
        ingest.await.unwrap().unwrap();
    }
}
