//! Consuming and settling, as the roles see it. Behind a [`Consumer`] stands one task of the backend, which alone owns
//! the channel (or the place in the file); deliveries come from it and verdicts go to it.

use crate::dead::Dead;
use crate::message::{Envelope, Head};
use crate::stats::{TopicCounters, count};
use crate::topics::{Kind, Target};
use bytes::Bytes;
use domain::Timestamp;
use domain::wire::{Undecodable, Wire};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

/// Longest wait for the backend's task to act on a verdict. It answers sooner, always; this is the belt to its braces.
const VERDICT_DEADLINE: Duration = Duration::from_secs(10);

/// What is to become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// It is processed: forget it.
    Done,
    /// It failed in a way that passes: deliver it again after so long (at most 30 s), with attempt + 1.
    RetryIn(Duration),
    /// It was not its turn: deliver it again after so long (at most 30 s), as the same attempt.
    SnoozeFor(Duration),
    /// Somebody else may have it, at once: this process stops, or cannot work. Not a way to wait: before RabbitMQ 4.3 each
    /// return counts towards the delivery limit.
    GiveBack,
    /// It will never work: into the dead letters.
    DeadLetter {
        /// Why, in one word, for counting and grouping.
        reason_code: String,
        /// Why, in words.
        reason: String,
    },
}

/// One message, delivered and not yet settled. Dropping it unsettled returns it to the queue as a failure, which counts
/// towards the delivery limit; so does the end of the consumer.
pub struct Delivery<T> {
    /// What it says, or why it cannot be read.
    pub item: Result<T, Undecodable>,
    /// Its bytes as published.
    pub raw: Bytes,
    /// What the publisher said of it.
    pub envelope: Envelope,
    /// When it was first published.
    pub published_at: Timestamp,
    /// Whether it may have been delivered before. `false` is no promise: after an outage one and the same delivery can
    /// come twice as new.
    pub redelivered: bool,
    /// The right to settle it.
    pub ticket: Ticket,
}

impl<T> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("envelope", &self.envelope)
            .field("bytes", &self.raw.len())
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

impl<T> Delivery<T> {
    /// Says what is to become of it. Returns once `Done` and `GiveBack` are on their way to the broker; the other
    /// verdicts are carried out in the background. If the connection it came over is gone it will be redelivered,
    /// whatever the verdict.
    pub async fn settle(self, how: Settle) {
        self.ticket.settle(how).await;
    }
}

/// The right to settle one delivery; separable from it, so that its contents can move elsewhere.
#[derive(Debug)]
pub struct Ticket {
    key: Key,
    commands: mpsc::UnboundedSender<Command>,
    armed: bool,
}

impl Ticket {
    /// As [`Delivery::settle`].
    pub async fn settle(mut self, how: Settle) {
        self.armed = false;
        let (reply, answered) = oneshot::channel();
        let command = Command::Settle { which: vec![self.key], how, reply };
        if self.commands.send(command).is_ok() {
            wait_for(answered).await;
        }
    }

    fn disarm(mut self) -> Key {
        self.armed = false;
        self.key
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.armed {
            // The task is gone only when the consumer is; then the delivery returns with it.
            let _ = self.commands.send(Command::Dropped(self.key));
        }
    }
}

async fn wait_for(answered: oneshot::Receiver<()>) {
    if tokio::time::timeout(VERDICT_DEADLINE, answered).await.is_err() {
        warn!("A verdict on a delivery was not taken in time; the delivery will come again");
    }
}

/// Which delivery: of which incarnation of the channel, and its number there. A verdict on an older incarnation is
/// stale and must never reach the present one, where the number means another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) epoch: u64,
    pub(crate) tag: u64,
}

/// What the consumer asks of the backend's task.
#[derive(Debug)]
pub(crate) enum Command {
    Settle { which: Vec<Key>, how: Settle, reply: oneshot::Sender<()> },
    Dropped(Key),
    Pause { reply: oneshot::Sender<()> },
    Resume,
    Close { reply: oneshot::Sender<()> },
}

/// A delivery on its way from the backend's task to the consumer.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) key: Key,
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    pub(crate) redelivered: bool,
}

/// The backend's side of a consumer.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) target: Target,
    pub(crate) prefetch: u16,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) deliveries: mpsc::UnboundedSender<Incoming>,
    /// The incarnation whose deliveries are still good.
    pub(crate) epoch: Arc<AtomicU64>,
    /// Cancelled when the consumer was dropped.
    pub(crate) dropped: CancellationToken,
    pub(crate) counters: Arc<TopicCounters>,
}

/// Consumes one queue. Dropping it without [`Consumer::close`] returns what is unsettled as a failure.
#[derive(Debug)]
pub struct Consumer<T> {
    deliveries: mpsc::UnboundedReceiver<Incoming>,
    commands: mpsc::UnboundedSender<Command>,
    epoch: Arc<AtomicU64>,
    dead_letters: bool,
    counters: Arc<TopicCounters>,
    _dropped: DropGuard,
    carries: std::marker::PhantomData<fn() -> T>,
}

/// Both sides of a new consumer. The channel of deliveries needs no bound of its own: the task never holds more than
/// `prefetch` unsettled ones.
pub(crate) fn consumer<T: Wire>(target: Target, prefetch: u16, counters: Arc<TopicCounters>) -> (Consumer<T>, Desk) {
    let (commands, commands_in) = mpsc::unbounded_channel();
    let (deliveries_out, deliveries) = mpsc::unbounded_channel();
    let epoch = Arc::new(AtomicU64::new(0));
    let dropped = CancellationToken::new();
    let consumer = Consumer {
        deliveries,
        commands,
        epoch: epoch.clone(),
        dead_letters: target.kind == Kind::Dead,
        counters: counters.clone(),
        _dropped: dropped.clone().drop_guard(),
        carries: std::marker::PhantomData,
    };
    let desk = Desk {
        target,
        prefetch: prefetch.max(1),
        commands: commands_in,
        deliveries: deliveries_out,
        epoch,
        dropped,
        counters,
    };
    (consumer, desk)
}

impl<T: Wire> Consumer<T> {
    /// The next delivery; waits through every outage. `None` only after [`Queue::close`](crate::Queue::close). May be
    /// cancelled without losing anything.
    pub async fn next(&mut self) -> Option<Delivery<T>> {
        loop {
            let incoming = self.deliveries.recv().await?;
            if let Some(delivery) = self.hand_out(incoming) {
                return Some(delivery);
            }
        }
    }

    /// A delivery that is already here.
    pub fn try_next(&mut self) -> Option<Delivery<T>> {
        loop {
            let incoming = self.deliveries.try_recv().ok()?;
            if let Some(delivery) = self.hand_out(incoming) {
                return Some(delivery);
            }
        }
    }

    /// Settles all as done, with one acknowledgement where possible. Those that came over a connection that is gone are
    /// redelivered later.
    pub async fn settle_all(&self, deliveries: Vec<Delivery<T>>) {
        self.settle_tickets(deliveries.into_iter().map(|delivery| delivery.ticket).collect()).await;
    }

    /// As [`Consumer::settle_all`], for tickets taken out of their deliveries.
    pub async fn settle_tickets(&self, tickets: Vec<Ticket>) {
        let which: Vec<Key> = tickets.into_iter().map(Ticket::disarm).collect();
        if !which.is_empty() {
            self.ask(|reply| Command::Settle { which, how: Settle::Done, reply }).await;
        }
    }

    /// Gives everything unsettled back, those handed in and any other, and stops consuming until
    /// [`Consumer::resume`]: for when the database is away too long to hold on.
    pub async fn pause(&mut self, give_back: Vec<Delivery<T>>) {
        disarm_all(give_back);
        self.ask(|reply| Command::Pause { reply }).await;
        // What had been delivered but not taken is given back too.
        while self.deliveries.try_recv().is_ok() {}
    }

    /// Consumes again after [`Consumer::pause`].
    pub async fn resume(&mut self) {
        let _ = self.commands.send(Command::Resume);
    }

    /// Gives everything unsettled back and ends.
    pub async fn close(self, give_back: Vec<Delivery<T>>) {
        disarm_all(give_back);
        self.ask(|reply| Command::Close { reply }).await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (reply, answered) = oneshot::channel();
        if self.commands.send(command(reply)).is_ok() {
            wait_for(answered).await;
        }
    }

    /// `None` for a delivery of an earlier incarnation: the broker delivers it again by itself.
    fn hand_out(&self, incoming: Incoming) -> Option<Delivery<T>> {
        let Incoming { key, head, body, redelivered } = incoming;
        if key.epoch != self.epoch.load(Ordering::Acquire) {
            return None;
        }
        self.counters.handed_out(head.published_at, redelivered);
        let item = if self.dead_letters && head.dead.is_some() {
            T::from_bytes(&Dead::delivered(&head, body.clone()).to_bytes())
        } else {
            T::from_bytes(&body).or_else(|error| match self.dead_letters {
                true => T::from_bytes(&Dead::delivered(&head, body.clone()).to_bytes()),
                false => Err(error),
            })
        };
        if item.is_err() {
            count(&self.counters.undecodable);
        }
        Some(Delivery {
            item,
            raw: body,
            envelope: head.envelope,
            published_at: head.published_at,
            redelivered,
            ticket: Ticket { key, commands: self.commands.clone(), armed: true },
        })
    }
}

fn disarm_all<T>(deliveries: Vec<Delivery<T>>) {
    for delivery in deliveries {
        delivery.ticket.disarm();
    }
}
