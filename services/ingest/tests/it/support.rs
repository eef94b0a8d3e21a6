//! A fresh database and queue for each test, and an ingest that runs on them.

use crate::said::PHONE_NUMBER_ID;
use bytes::Bytes;
use dispatch::Dispatcher;
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead, Wire};
use domain::{Account, AccountName, Channel, OnUnknown, Secret, Source, TestClock, Timestamp};
use ingest::Deps;
use queue::topics::WEBHOOKS;
use queue::{Depth, Envelope, PublishError, Queue, QueueOptions, QueueUrl, Topic};
use runtime::blobs::Blobs;
use runtime::config::{BlobsPlace, Tuning};
use runtime::health::Health;
use runtime::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, StoreOptions, StoreUrl, Tx};
use tempfile::TempDir;
use testkit::amqp::{amqp_url, fresh_prefix};
use testkit::rows::NOON;
use testkit::{Database, TestDatabase, fresh_store, look, wait};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Publishes until the broker has it, as a provider would: a busy one may refuse, and so does one whose queue is so new that
/// it has no leader yet.
async fn until_kept<F: Future<Output = Result<(), PublishError>>>(publish: impl Fn() -> F) {
    let kept = async {
        while let Err(error) = publish().await {
            eprintln!("{error}; once more");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, kept).await.expect("the broker takes it");
}

/// How long anything may take that should happen at once.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What ingest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    SqliteEmbedded,
    PostgresRabbitMq,
}

/// A world of its own.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) url: StoreUrl,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) tuning: Tuning,
    pub(crate) accounts: Vec<Account>,
    _database: Option<TestDatabase>,
    folder: TempDir,
}

/// An ingest that runs.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), runtime::loops::LoopEnded>>,
}

impl Running {
    /// Stops it in good order.
    pub(crate) async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("it drains").unwrap().unwrap();
    }
}

fn quick() -> Tuning {
    Tuning {
        reconnect_first: Duration::from_millis(50),
        reconnect_most: Duration::from_millis(500),
        beat_interval: Duration::from_millis(200),
        statement_timeout: Duration::from_secs(2),
        ..Tuning::default()
    }
}

pub(crate) fn account(name: &str, phone_number_id: &str, source: &str) -> Account {
    Account {
        name: name.parse().unwrap(),
        channel: Channel::WhatsApp,
        source: source.parse().unwrap(),
        external_id: phone_number_id.into(),
        parent_external_id: Some("900000000000001".into()),
        portfolio_id: Some("portfolio".into()),
        display_address: Some("+971 4 000 0000".into()),
        api_base: "http://127.0.0.1:9".into(),
        access_token: Secret::new("token"),
        rate_per_second: 80.0,
        pair_interval: Duration::ZERO,
        pair_burst: 1,
        window: Some(Duration::from_secs(24 * 3600)),
        on_unknown: OnUnknown::Hold,
    }
}

fn source(name: &str) -> Source {
    Source {
        name: name.parse().unwrap(),
        kind: "meta".into(),
        secrets: vec![Secret::new("0123456789abcdef")],
        verify_token: None,
        max_body: 4 << 20,
        crm_alias: false,
    }
}

impl World {
    pub(crate) async fn fresh(stack: Stack) -> Self {
        let database = match stack {
            Stack::SqliteEmbedded => Database::Sqlite,
            Stack::PostgresRabbitMq => Database::Postgres,
        };
        let database = fresh_store(database).await.unwrap();
        let (store, url) = (database.store.clone(), database.options.url.clone());
        Self::of(stack, store, url, Some(database)).await
    }

    /// On a store that the test opened itself.
    pub(crate) async fn on(stack: Stack, options: &StoreOptions) -> Self {
        Self::of(stack, Store::open(options).await.unwrap(), options.url.clone(), None).await
    }

    async fn of(stack: Stack, store: Store, url: StoreUrl, database: Option<TestDatabase>) -> Self {
        let folder = tempfile::Builder::new().prefix("roost-test-").tempdir().unwrap();
        let queue = match stack {
            Stack::SqliteEmbedded => QueueUrl::Embedded(folder.path().join("queue.db")),
            Stack::PostgresRabbitMq => QueueUrl::Amqp(Secret::new(amqp_url().unwrap())),
        };
        let options = QueueOptions {
            url: queue,
            prefix: fresh_prefix(),
            role: "ingest".into(),
            instance: "test".into(),
            timing: queue::Timing::default(),
        };
        let queue = Queue::open(options).await.unwrap();
        let mut health = queue.health();
        tokio::time::timeout(DEADLINE, health.wait_for(queue::QueueHealth::is_up)).await.expect("a queue").unwrap();
        World {
            store,
            url,
            queue,
            blobs: Blobs::open(&BlobsPlace::Folder(folder.path().join("blobs"))).unwrap(),
            clock: Arc::new(TestClock::at(NOON + Duration::from_secs(60))),
            metrics: Metrics::new(),
            health: Health::new(),
            tuning: quick(),
            accounts: vec![account("sales", PHONE_NUMBER_ID, "meta")],
            _database: database,
            folder,
        }
    }

    /// Lets this world's clock start an hour before the database's, by which nothing counts as heard that has not come yet:
    /// for tests that let time pass faster than it does.
    pub(crate) fn lives_in_the_past(&mut self) {
        let now = domain::Clock::now(&domain::SystemClock::default());
        self.clock = Arc::new(TestClock::at(now - Duration::from_secs(3600)));
    }

    pub(crate) fn now(&self) -> Timestamp {
        domain::Clock::now(&*self.clock)
    }

    /// Starts an ingest process; several may run at once.
    pub(crate) fn start(&self, instance: &str) -> Running {
        let deps = Deps {
            queue: self.queue.clone(),
            store: self.store.clone(),
            sources: vec![source("meta"), source("other-app")].into(),
            accounts: self.accounts.clone().into(),
            clock: self.clock.clone(),
            blobs: self.blobs.clone(),
            tuning: self.tuning.clone(),
            instance: instance.into(),
            dispatcher: Dispatcher::new(self.queue.clone(), self.store.clone()),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
        };
        let stop = CancellationToken::new();
        Running { task: tokio::spawn(ingest::run(deps, stop.clone())), stop }
    }

    /// Publishes these webhooks in one queue message.
    pub(crate) async fn publish(&self, frames: Vec<Frame>) {
        self.publish_to(&WEBHOOKS, &WebhookBatch(frames)).await;
    }

    pub(crate) async fn publish_to<T: Wire>(&self, topic: &Topic<T>, message: &T) {
        self.publish_for(topic, None, message).await;
    }

    /// As [`Self::publish_to`], where each account has a queue of its own.
    pub(crate) async fn publish_for<T: Wire>(&self, topic: &Topic<T>, account: Option<&AccountName>, message: &T) {
        until_kept(|| async move { self.queue.publisher().publish(topic, account, message).await }).await;
    }

    /// Publishes bytes that need not be what the topic carries; each time under the same id.
    pub(crate) async fn publish_bytes<T: Wire>(&self, topic: &Topic<T>, bytes: Bytes) {
        let envelope = Envelope::holding(1);
        let (envelope, bytes) = (&envelope, &bytes);
        until_kept(|| async move {
            let slot = self.queue.publisher().slot().await?;
            slot.publish(topic, None, envelope.clone(), bytes.clone()).await
        })
        .await;
    }

    /// Publishes a webhook of the source `meta` for each body, all in one queue message.
    pub(crate) async fn post(&self, bodies: &[&str]) {
        self.publish(bodies.iter().map(|body| self.frame(body.as_bytes())).collect()).await;
    }

    pub(crate) fn frame(&self, body: &[u8]) -> Frame {
        self.frame_of("meta", body)
    }

    pub(crate) fn frame_of(&self, source: &str, body: &[u8]) -> Frame {
        let head = self.head(source);
        Frame::Webhook(WebhookFrame { head, body: Body::Inline(Bytes::copy_from_slice(body)) })
    }

    pub(crate) fn head(&self, source: &str) -> WebhookHead {
        WebhookHead {
            source: source.parse().unwrap(),
            received_at: self.now(),
            request_id: Uuid::now_v7(),
            traceparent: None,
            headers: vec![("content-type".into(), "application/json".into())],
            replay: false,
        }
    }

    /// The first column of every row, which must be text and not NULL.
    pub(crate) async fn texts(&self, query: &'static str) -> Vec<String> {
        look::texts(&self.url, query).await.unwrap()
    }

    /// Waits until `query` says `want`.
    pub(crate) async fn until(&self, query: &'static str, want: &[&str]) {
        let mut said = Vec::new();
        let asked = async {
            loop {
                // The database may be on its way back.
                match look::texts(&self.url, query).await {
                    Ok(texts) => said = texts,
                    Err(error) => said = vec![error.to_string()],
                }
                if said == want {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, asked).await.is_err() {
            panic!("{query}\n says {said:?}, not {want:?}");
        }
    }

    /// Runs a statement that must succeed.
    pub(crate) async fn run(&self, statement: &'static str) {
        let mut tx = self.store.begin().await.unwrap();
        match &mut tx {
            Tx::Postgres(tx) => sqlx::query(statement).execute(tx.conn()).await.map(drop).unwrap(),
            Tx::Sqlite(tx) => sqlx::query(statement).execute(&mut **tx).await.map(drop).unwrap(),
        }
        tx.commit().await.unwrap();
    }

    /// How much waits, and for whom; a busy broker is asked again.
    pub(crate) async fn depth<T: Wire>(&self, topic: &Topic<T>) -> Depth {
        let asked = async {
            loop {
                match self.queue.depth(topic, None).await {
                    Ok(depth) => return depth,
                    Err(error) => eprintln!("{error}; once more"),
                }
            }
        };
        tokio::time::timeout(DEADLINE, asked).await.expect("the broker says how much waits")
    }

    /// Waits until nothing is in the queue or on its way, by the ingest's own word.
    pub(crate) async fn until_empty(&self) {
        let empty = async || {
            let depth = self.depth(&WEBHOOKS).await;
            let stats = self.queue.stats().topics.get(WEBHOOKS.name()).cloned().unwrap_or_default();
            depth.ready == 0 && stats.unacked == 0
        };
        wait::until_so("the queue runs empty", DEADLINE, empty).await;
    }

    /// How far the ingest processes say that webhooks are committed.
    pub(crate) async fn settled_until(&self) -> Option<Timestamp> {
        let mut tx = self.store.read().await.unwrap();
        store::heartbeat::settled_until(&mut tx, self.now()).await.unwrap()
    }

    /// Waits until a process has told once more that it lives.
    pub(crate) async fn until_next_beat(&self, instance: &str) {
        let beat_at = async || {
            let mut tx = self.store.read().await.unwrap();
            let processes = store::heartbeat::processes(&mut tx).await.unwrap();
            processes.into_iter().find(|process| process.instance == instance).map(|process| process.beat_at)
        };
        let before = beat_at().await;
        let beaten = async || beat_at().await.is_some_and(|now| Some(now) != before);
        wait::until_so("it beats", DEADLINE, beaten).await;
    }

    /// Waits until a job of the keeper has taken a whole turn that began after this was called: its lease is prolonged right
    /// before a turn, never during one.
    pub(crate) async fn until_turn(&self, job: &str) {
        let lease = async || {
            let leases = "SELECT job || ' ' || CAST(lease_until AS TEXT) FROM keeper_leases";
            let leases = self.texts(leases).await;
            leases.into_iter().find(|lease| lease.split(' ').next() == Some(job))
        };
        for _ in 0..3 {
            let before = lease().await;
            wait::until_so("the keeper takes its turns", DEADLINE, async || lease().await != before).await;
        }
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Every promise holds.
    pub(crate) async fn holds(&self) {
        let mut tx = self.store.read().await.unwrap();
        assert_eq!(store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap(), []);
    }
}

pub(crate) const MESSAGES: &str = "SELECT CAST(count(*) AS TEXT) FROM messages";
pub(crate) const DEAD_LETTERS: &str = "SELECT CAST(count(*) AS TEXT) FROM dead_letters WHERE state = 'OPEN'";
pub(crate) const UNREAD: &str = "SELECT CAST(unread_count AS TEXT) FROM conversations ORDER BY id";
