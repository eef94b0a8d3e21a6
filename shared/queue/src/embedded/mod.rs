//! The queue in a file of its own, for one process with all roles: SQLite in WAL mode with `synchronous=FULL`, so that a
//! confirmed publish survives `kill -9` and power loss. It is not the store's file: a publish never waits for an ingest
//! transaction.
//!
//! A message is a row until it is settled. What is delivered and unsettled is known in memory only, so a start delivers
//! it again, and it counts as redelivered then.

mod consuming;
mod file;
mod lines;
mod writer;

use crate::delivery::{Consumer, consumer};
use crate::health::{HealthBoard, QueueHealth};
use crate::message::Head;
use crate::stats::{Counters, QueueStats};
use crate::topics::{Kind, Target, Topic};
use crate::{Depth, OpenError, PublishError, QueueError, QueueOptions, SLOTS, Timing};
use bytes::Bytes;
use domain::AccountName;
use domain::wire::Wire;
use file::File;
use lines::Lines;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use writer::{NewItem, Writer};

/// Longest wait for the file to say how much it holds.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// This process' queue.
#[derive(Debug)]
pub(crate) struct Embedded {
    file: File,
    writer: Writer,
    lines: Arc<Lines>,
    slots: Arc<Semaphore>,
    prefix: String,
    timing: Timing,
    health: Arc<HealthBoard>,
    counters: Arc<Counters>,
    closing: CancellationToken,
    consumers: TaskTracker,
}

/// The right to one publish. Four as on RabbitMQ, so that batches form while they are taken.
#[derive(Debug)]
pub(crate) struct Slot {
    queue: Arc<Embedded>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    pub(crate) async fn publish(self, target: Target, head: Head, body: Bytes) -> Result<(), PublishError> {
        self.queue.publish(target, head, body).await
    }
}

impl Embedded {
    pub(crate) async fn open(path: &Path, options: QueueOptions) -> Result<Arc<Self>, OpenError> {
        let (file, connection) = File::open(path).await?;
        let health = Arc::new(HealthBoard::new());
        let lines = Arc::new(Lines::new(
            file.newest().await.map_err(|reason| OpenError::File { path: path.to_owned(), reason })?,
        ));
        let writer = Writer::start(connection, lines.clone(), health.clone());
        Ok(Arc::new(Self {
            file,
            writer,
            lines,
            slots: Arc::new(Semaphore::new(SLOTS)),
            prefix: options.prefix,
            timing: options.timing,
            health,
            counters: Arc::default(),
            closing: CancellationToken::new(),
            consumers: TaskTracker::new(),
        }))
    }

    pub(crate) fn consume<T: Wire>(
        self: &Arc<Self>,
        topic: &Topic<T>,
        account: Option<&AccountName>,
        prefetch: u16,
    ) -> Consumer<T> {
        let target = topic.target(account);
        let (consumer, desk) = consumer(target, prefetch, self.counters.of(&topic.target(account).queue));
        let line = self.lines.of(&self.name(&desk.target));
        let worker = consuming::Worker::new(
            desk,
            line,
            self.file.clone(),
            self.writer.clone(),
            self.name(&crate::topics::DEAD.target(None)),
            self.timing.waits(),
            self.closing.clone(),
        );
        self.consumers.spawn(worker.run());
        consumer
    }

    pub(crate) fn health(&self) -> watch::Receiver<QueueHealth> {
        self.health.subscribe()
    }

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats { topics: self.counters.snapshot(), ..QueueStats::default() }
    }

    pub(crate) async fn slot(self: &Arc<Self>) -> Result<Slot, PublishError> {
        if self.closing.is_cancelled() {
            return Err(PublishError::Closed);
        }
        match timeout(self.timing.confirm_timeout, self.slots.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Slot { queue: self.clone(), _permit: permit }),
            Ok(Err(_)) => Err(PublishError::Closed),
            Err(_) => Err(PublishError::Timeout),
        }
    }

    pub(crate) async fn publish(&self, target: Target, head: Head, body: Bytes) -> Result<(), PublishError> {
        let outcome = self.write(&target, &head, body).await;
        self.counters.of(&target.queue).publish_ended(outcome.is_ok());
        outcome
    }

    async fn write(&self, target: &Target, head: &Head, body: Bytes) -> Result<(), PublishError> {
        if self.closing.is_cancelled() {
            return Err(PublishError::Closed);
        }
        let queue = self.name(target);
        // Nobody but a consumer can have asked for a queue that is declared elsewhere.
        if target.kind == Kind::Elsewhere && !self.lines.exists(&queue) {
            return Err(PublishError::Returned("NO_ROUTE".into()));
        }
        match timeout(self.timing.confirm_timeout, self.writer.insert(NewItem::new(queue, head, body))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(PublishError::Refused(reason)),
            Err(_) => Err(PublishError::Timeout),
        }
    }

    pub(crate) async fn depth(&self, target: Target) -> Result<Depth, QueueError> {
        let queue = self.name(&target);
        match timeout(READ_DEADLINE, self.file.count(&queue)).await {
            Ok(Ok(stored)) => Ok(self.lines.depth(&queue, stored)),
            Ok(Err(reason)) => Err(QueueError::Refused(reason)),
            Err(_) => Err(QueueError::Timeout),
        }
    }

    pub(crate) async fn close(&self, within: Duration) {
        let deadline = tokio::time::Instant::now() + within;
        self.closing.cancel();
        self.consumers.close();
        let _ = timeout_at(deadline, self.consumers.wait()).await;
        let _ = timeout_at(deadline, self.writer.stop()).await;
        let _ = timeout_at(deadline, self.file.close()).await;
        self.health.set("file", QueueHealth::Down("closed".into()));
    }

    fn name(&self, target: &Target) -> String {
        format!("{}{}", self.prefix, target.queue)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
