//! What the tests share: a fresh queue on either backend, a message to send, waiting with a deadline.

use bytes::Bytes;
use queue::{Consumer, Delivery, Queue, QueueHealth, QueueOptions, QueueUrl, Timing, Topic, Undecodable, Wire};
use std::time::{Duration, Instant};
use testkit::amqp::{amqp_url, fresh_prefix};

/// Longest wait for what should come at once, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A message of the tests: any text; anything else cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note(pub(crate) String);

impl Wire for Note {
    fn to_bytes(&self) -> Bytes {
        Bytes::from(self.0.clone())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, Undecodable> {
        String::from_utf8(bytes.to_vec()).map(Note).map_err(|error| Undecodable(error.to_string()))
    }
}

pub(crate) const NOTES: Topic<Note> = Topic::new("roost.notes");
pub(crate) const NOWHERE: Topic<Note> = Topic::declared_elsewhere("roost.nowhere");

pub(crate) fn note(text: impl Into<String>) -> Note {
    Note(text.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Embedded,
    RabbitMq,
}

/// A queue nobody else uses.
pub(crate) struct Fresh {
    pub(crate) queue: Queue,
    options: QueueOptions,
    _folder: tempfile::TempDir,
}

impl Backend {
    pub(crate) async fn fresh(self) -> Fresh {
        self.fresh_with(Timing::default()).await
    }

    pub(crate) async fn fresh_with(self, timing: Timing) -> Fresh {
        let folder = tempfile::tempdir().unwrap();
        let url = match self {
            Backend::Embedded => "embedded".to_owned(),
            Backend::RabbitMq => amqp_url().unwrap(),
        };
        let url = QueueUrl::parse(&url, folder.path()).unwrap();
        let options = QueueOptions { url, prefix: fresh_prefix(), role: "test".into(), instance: "it".into(), timing };
        let queue = open(&options).await;
        Fresh { queue, options, _folder: folder }
    }
}

impl Fresh {
    /// The same queue, opened by the next process.
    pub(crate) async fn reopen(self) -> Fresh {
        self.queue.close(SOON).await;
        let Fresh { queue, options, _folder } = self;
        drop(queue);
        Fresh { queue: open(&options).await, options, _folder }
    }
}

async fn open(options: &QueueOptions) -> Queue {
    let queue = Queue::open(options.clone()).await.unwrap();
    until_up(&queue, SOON).await;
    queue
}

/// Options for a broker.
pub(crate) fn broker(url: &str, prefix: &str) -> QueueOptions {
    let url = QueueUrl::parse(url, std::path::Path::new("/nowhere")).unwrap();
    QueueOptions {
        url,
        prefix: prefix.to_owned(),
        role: "test".into(),
        instance: "it".into(),
        timing: Timing::default(),
    }
}

pub(crate) async fn until_up(queue: &Queue, within: Duration) {
    until_health(queue, within, QueueHealth::is_up).await;
}

pub(crate) async fn until_health(queue: &Queue, within: Duration, is: impl Fn(&QueueHealth) -> bool) -> QueueHealth {
    let mut health = queue.health();
    let reached = tokio::time::timeout(within, health.wait_for(&is)).await.map(|health| health.unwrap().clone());
    reached.unwrap_or_else(|_| panic!("health is {:?} after {within:?}", queue.health().borrow()))
}

pub(crate) async fn publish(queue: &Queue, text: impl Into<String>) {
    queue.publisher().publish(&NOTES, None, &note(text)).await.unwrap();
}

/// Publishes until it works, as a caller whose own caller tries again would.
pub(crate) async fn publish_in_the_end(queue: &Queue, text: &str, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        match queue.publisher().publish(&NOTES, None, &note(text)).await {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "still cannot publish after {within:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The next delivery, which must come soon.
pub(crate) async fn take<T: Wire>(consumer: &mut Consumer<T>) -> Delivery<T> {
    take_within(consumer, SOON).await
}

pub(crate) async fn take_within<T: Wire>(consumer: &mut Consumer<T>, within: Duration) -> Delivery<T> {
    let next = tokio::time::timeout(within, consumer.next()).await;
    next.unwrap_or_else(|_| panic!("nothing was delivered within {within:?}")).expect("the consumer ended")
}

/// Asserts that nothing is delivered for a while.
pub(crate) async fn nothing<T: Wire>(consumer: &mut Consumer<T>, for_so_long: Duration) {
    if let Ok(delivery) = tokio::time::timeout(for_so_long, consumer.next()).await {
        panic!("unexpected: {delivery:?}");
    }
}

pub(crate) fn text(delivery: &Delivery<Note>) -> &str {
    &delivery.item.as_ref().unwrap().0
}

/// Waits until a queue holds so many ready messages.
pub(crate) async fn until_ready<T: Wire>(queue: &Queue, topic: &Topic<T>, ready: u64) {
    eventually(SOON, async || {
        let depth = queue.depth(topic, None).await.unwrap();
        if depth.ready == ready { Ok(()) } else { Err(format!("{depth:?}, expected {ready} ready")) }
    })
    .await;
}

/// Polls until it is so.
pub(crate) async fn eventually(within: Duration, is_so: impl AsyncFn() -> Result<(), String>) {
    let deadline = Instant::now() + within;
    loop {
        match is_so().await {
            Ok(()) => return,
            Err(why) => assert!(Instant::now() < deadline, "not after {within:?}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
