//! Three verbs between the roles: **publish** (returns once the broker has the message safely), **consume**, **settle**.
//!
//! The queue is RabbitMQ (`amqp://…`) or embedded (its own SQLite file); nothing past [`Queue::open`] asks which. What
//! travels is in [`topics`], which reads top to bottom as the path of a message. Every promise made here is a test in
//! `tests/it/contract.rs`, run on both backends:
//!
//! * A publish that returned `Ok` survives `kill -9` of the broker and of this process.
//! * A publish that returned an error may still land later. Every message can be delivered more than once; consumers
//!   are idempotent.
//! * A publish is refused at once while the broker is known to be away or blocked, within [`Timing::confirm_timeout`]
//!   otherwise.
//! * A consumer rides through every outage by itself. A delivery nobody settled comes back, a hopeless one ends in
//!   [`topics::DEAD`] with its reason.

mod backoff;
mod dead;
mod delivery;
mod embedded;
mod error;
mod health;
mod message;
mod options;
mod rabbitmq;
mod stats;
pub mod topics;

pub use dead::{BrokerDeath, Dead};
pub use delivery::{Consumer, Delivery, Settle, Ticket};
pub use domain::wire::{Undecodable, Wire};
pub use error::{OpenError, PublishError, QueueError};
pub use health::QueueHealth;
pub use message::Envelope;
pub use options::{QueueOptions, QueueUrl, Timing};
pub use stats::{LinkStats, QueueStats, TopicStats};
pub use topics::Topic;

use bytes::Bytes;
use domain::AccountName;
use message::Head;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a publish may take until its confirm unless [`Timing::confirm_timeout`] says otherwise.
pub const CONFIRM_DEADLINE: Duration = Duration::from_secs(2);

/// How many batches may be on their way at once: one outstanding publish on each of so many channels.
pub const SLOTS: usize = 4;

/// Longest wait a consumer holds a delivery for ([`Settle::RetryIn`], [`Settle::SnoozeFor`]); longer ones are cut to it,
/// because whoever needs to wait longer keeps a row with a due time.
pub const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// After so many returns of an unsettled delivery the queue itself sets it aside.
pub const DELIVERY_LIMIT: u32 = 20;

/// The queue of this process, whichever backend it is.
#[derive(Clone)]
pub struct Queue(Backend);

#[derive(Clone)]
enum Backend {
    Embedded(Arc<embedded::Embedded>),
    RabbitMq(Arc<rabbitmq::RabbitMq>),
}

/// How much waits in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages nobody holds. Those delivered and not yet settled are not counted.
    pub ready: u64,
    /// Who consumes it, over all processes.
    pub consumers: u32,
}

impl Queue {
    /// Opens the queue. RabbitMQ: returns at once and connects in the background for as long as it takes, so that roles
    /// start in any order; [`Queue::health`] tells. Embedded: opens or creates the file.
    /// # Errors
    /// The URL cannot be read, or the embedded file cannot be opened or is in use by another process.
    pub async fn open(options: QueueOptions) -> Result<Queue, OpenError> {
        Ok(Queue(match options.url.clone() {
            QueueUrl::Embedded(path) => Backend::Embedded(embedded::Embedded::open(&path, options).await?),
            QueueUrl::Amqp(url) => Backend::RabbitMq(rabbitmq::RabbitMq::open(url.expose(), options)?),
        }))
    }

    /// A handle to publish through; cheap to clone.
    pub fn publisher(&self) -> Publisher {
        Publisher(self.0.clone())
    }

    /// Starts to consume: of `topic`, or of the topic's queue for `account`. At most `prefetch` deliveries are unsettled
    /// at a time. Returns at once; deliveries come as soon as the queue can be reached.
    pub async fn consume<T: Wire>(
        &self,
        topic: &Topic<T>,
        account: Option<&AccountName>,
        prefetch: u16,
    ) -> Consumer<T> {
        match &self.0 {
            Backend::Embedded(embedded) => embedded.consume(topic, account, prefetch),
            Backend::RabbitMq(rabbitmq) => rabbitmq.consume(topic, account, prefetch),
        }
    }

    /// Whether the queue can be used right now; changes are seen through the receiver.
    pub fn health(&self) -> tokio::sync::watch::Receiver<QueueHealth> {
        match &self.0 {
            Backend::Embedded(embedded) => embedded.health(),
            Backend::RabbitMq(rabbitmq) => rabbitmq.health(),
        }
    }

    /// How much waits in a queue. A queue that does not exist yet holds nothing and has no consumers.
    /// # Errors
    /// The queue cannot be asked.
    pub async fn depth<T: Wire>(&self, topic: &Topic<T>, account: Option<&AccountName>) -> Result<Depth, QueueError> {
        match &self.0 {
            Backend::Embedded(embedded) => embedded.depth(topic.target(account)).await,
            Backend::RabbitMq(rabbitmq) => rabbitmq.depth(topic.target(account)).await,
        }
    }

    /// What happened since the start, for metrics.
    pub fn stats(&self) -> QueueStats {
        match &self.0 {
            Backend::Embedded(embedded) => embedded.stats(),
            Backend::RabbitMq(rabbitmq) => rabbitmq.stats(),
        }
    }

    /// Stops consuming, gives unsettled deliveries back, lets publishes under way finish, and closes, all `within` the
    /// given time. Afterwards every [`Consumer::next`] says `None` and every publish is refused.
    pub async fn close(&self, within: Duration) {
        match &self.0 {
            Backend::Embedded(embedded) => embedded.close(within).await,
            Backend::RabbitMq(rabbitmq) => rabbitmq.close(within).await,
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Embedded(_) => "Embedded",
            Backend::RabbitMq(_) => "RabbitMq",
        })
    }
}

/// Publishes.
#[derive(Clone, Debug)]
pub struct Publisher(Backend);

impl Publisher {
    /// Waits for a free slot, at most [`Timing::confirm_timeout`]. Hold it, gather the batch, publish through it: what arrives while no
    /// slot is free becomes the next batch. A slot dropped unused is free again.
    /// # Errors
    /// At once when the broker is known to be away or blocked.
    pub async fn slot(&self) -> Result<Slot, PublishError> {
        Ok(Slot(match &self.0 {
            Backend::Embedded(embedded) => SlotOf::Embedded(embedded.slot().await?),
            Backend::RabbitMq(rabbitmq) => SlotOf::RabbitMq(rabbitmq.slot(rabbitmq.publish_deadline()).await?),
        }))
    }

    /// Publishes one message: [`Publisher::slot`] and [`Slot::publish`] in one, within one deadline. `account` says whose
    /// queue when the topic has one per account.
    /// # Errors
    /// As [`Slot::publish`].
    pub async fn publish<T: Wire>(
        &self,
        topic: &Topic<T>,
        account: Option<&AccountName>,
        message: &T,
    ) -> Result<(), PublishError> {
        let head = Head::new(Envelope::holding(message.count()));
        let (target, body) = (topic.target(account), message.to_bytes());
        match &self.0 {
            Backend::Embedded(embedded) => embedded.publish(target, head, body).await,
            Backend::RabbitMq(rabbitmq) => rabbitmq.publish(target, head, body, rabbitmq.publish_deadline()).await,
        }
    }
}

/// The right to one publish.
#[derive(Debug)]
pub struct Slot(SlotOf);

#[derive(Debug)]
enum SlotOf {
    Embedded(embedded::Slot),
    RabbitMq(rabbitmq::Slot),
}

impl Slot {
    /// Publishes `body`, the bytes of a `T`, and returns once it is stored safely.
    /// # Errors
    /// Anything but a plain confirm within [`Timing::confirm_timeout`]. [`PublishError::may_have_landed`] says whether the message can
    /// turn up nevertheless.
    pub async fn publish<T: Wire>(
        self,
        topic: &Topic<T>,
        account: Option<&AccountName>,
        envelope: Envelope,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let (target, head) = (topic.target(account), Head::new(envelope));
        match self.0 {
            SlotOf::Embedded(slot) => slot.publish(target, head, body).await,
            SlotOf::RabbitMq(slot) => {
                let deadline = slot.publish_deadline();
                slot.publish(target, head, body, deadline).await
            }
        }
    }
}
