//! Consuming: one task per consumer, which alone owns its channel, hands deliveries out and carries verdicts back. A
//! stream that ends, an acknowledgement that fails, a queue that was deleted: whatever it is, the channel is dropped and
//! built again, and what was unsettled comes again.

use super::channel::OwnChannel;
use super::headers;
use super::link::{Alive, Link, State};
use super::publishing::Publishing;
use super::topology::Topology;
use super::{STEP_DEADLINE, words};
use crate::backoff::Backoff;
use crate::delivery::{Command, Desk, Incoming, Key, Settle};
use crate::health::{HealthBoard, QueueHealth};
use crate::message::Head;
use crate::stats::{count, count_by};
use crate::topics::{Kind, Target};
use crate::{LONGEST_HOLD, PublishError};
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Acker;
use lapin::message;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::FieldTable;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The task behind one consumer.
pub(super) struct Worker {
    desk: Desk,
    link: Arc<Link>,
    publishing: Arc<Publishing>,
    topology: Arc<Topology>,
    health: Arc<HealthBoard>,
    closing: CancellationToken,
    /// Its name on the health board and in the log.
    name: String,
    epoch: u64,
    troubled: bool,
}

/// One incarnation of the channel.
struct Subscription {
    alive: Arc<Alive>,
    channel: OwnChannel,
    stream: lapin::Consumer,
}

/// Why an incarnation ended.
enum End {
    /// To be built again.
    Fault(String),
    /// The connection is gone, which its supervisor has said already.
    ConnectionGone,
    /// Until resumed.
    Paused,
    /// For good.
    Over,
}

/// What was asked while nothing could be delivered.
enum Idle {
    Paused,
    Resumed,
    Over,
}

/// A delivery that is not settled.
struct Unacked {
    acker: Acker,
    head: Head,
    body: Bytes,
}

/// A held delivery's task is through: whether its copy is published, so that the original can be acknowledged.
struct Released {
    tag: u64,
    published: bool,
}

impl Worker {
    pub(super) fn new(
        desk: Desk,
        link: Arc<Link>,
        publishing: Arc<Publishing>,
        topology: Arc<Topology>,
        health: Arc<HealthBoard>,
        closing: CancellationToken,
    ) -> Self {
        let name = format!("consumer of {}", desk.target.queue);
        Self { desk, link, publishing, topology, health, closing, name, epoch: 0, troubled: false }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.publishing.timing().waits());
        let mut wait = Duration::ZERO;
        let mut paused = false;
        loop {
            if paused {
                match idle(&mut self.desk, &self.closing).await {
                    Idle::Resumed => (paused, wait) = (false, Duration::ZERO),
                    Idle::Paused => {}
                    Idle::Over => break,
                }
                continue;
            }
            let subscribing =
                subscribe(wait, self.link.clone(), self.topology.clone(), self.desk.target.clone(), self.desk.prefetch);
            let subscribed = tokio::select! {
                subscribed = subscribing => subscribed,
                asked = idle(&mut self.desk, &self.closing) => match asked {
                    Idle::Paused => { paused = true; continue; }
                    Idle::Resumed => continue,
                    Idle::Over => break,
                },
            };
            match subscribed {
                Ok(subscription) => {
                    self.works();
                    let since = Instant::now();
                    let end = Incarnation::new(&mut self).run(subscription).await;
                    backoff.lasted(since.elapsed());
                    match end {
                        End::Fault(reason) => warn!(
                            queue = self.desk.target.queue,
                            reason, "Consuming broke off: {reason}; starting again"
                        ),
                        End::ConnectionGone => {}
                        End::Paused => paused = true,
                        End::Over => break,
                    }
                }
                Err(reason) => self.fails(reason),
            }
            wait = backoff.next();
        }
        self.health.forget(&self.name);
    }

    fn works(&mut self) {
        if self.troubled {
            info!(queue = self.desk.target.queue, "Consuming {} again", self.desk.target.queue);
        }
        self.troubled = false;
        self.health.set(&self.name, QueueHealth::Up);
    }

    fn fails(&mut self, reason: String) {
        if self.troubled {
            debug!(queue = self.desk.target.queue, reason, "Still not consuming");
        } else {
            warn!(
                queue = self.desk.target.queue,
                reason, "Cannot consume {}: {reason}; trying again", self.desk.target.queue
            );
        }
        self.troubled = true;
        self.health.set(&self.name, QueueHealth::Down(reason));
    }
}

/// Answers verdicts on deliveries of the past while there is no channel.
async fn idle(desk: &mut Desk, closing: &CancellationToken) -> Idle {
    loop {
        tokio::select! {
            command = desk.commands.recv() => match command {
                Some(Command::Settle { reply, .. }) => answer(reply),
                Some(Command::Dropped(_)) => {}
                Some(Command::Pause { reply }) => { answer(reply); return Idle::Paused; }
                Some(Command::Resume) => return Idle::Resumed,
                Some(Command::Close { reply }) => { answer(reply); return Idle::Over; }
                None => return Idle::Over,
            },
            () = closing.cancelled() => return Idle::Over,
            () = desk.dropped.cancelled() => return Idle::Over,
        }
    }
}

/// The asker may have stopped waiting, which is its right.
fn answer(reply: oneshot::Sender<()>) {
    let _ = reply.send(());
}

/// Waits for the connection for as long as it takes, then opens a channel that consumes.
async fn subscribe(
    wait: Duration,
    link: Arc<Link>,
    topology: Arc<Topology>,
    target: Target,
    prefetch: u16,
) -> Result<Subscription, String> {
    sleep(wait).await;
    let mut state = link.state();
    let alive = match state.wait_for(|state| matches!(state, State::Up(_))).await.map(|state| state.clone()) {
        Ok(State::Up(alive)) => alive,
        // Closed for good: whoever closed it ends this task as well.
        _ => return std::future::pending().await,
    };
    let deadline = Instant::now() + STEP_DEADLINE;
    let opened = timeout_at(deadline, async {
        topology.declare(&alive, &target, deadline).await?;
        let channel = alive.channel(deadline).await?;
        let consuming = async {
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let queue = topology.queue(&target);
            channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        let stream = consuming.await.map_err(|error| words(&error))?;
        Ok(Subscription { alive: alive.clone(), channel, stream })
    });
    // Not reported as a fault of the connection: perhaps only this queue hangs, and whether the connection still answers
    // is what its pings find out.
    opened.await.unwrap_or_else(|_| Err(format!("no answer within {} s", STEP_DEADLINE.as_secs())))
}

/// One incarnation at work.
struct Incarnation<'a> {
    worker: &'a mut Worker,
    epoch: u64,
    unacked: BTreeMap<u64, Unacked>,
    held: JoinSet<Released>,
    /// Cancelled when held deliveries are to be given back instead.
    release: CancellationToken,
}

impl<'a> Incarnation<'a> {
    fn new(worker: &'a mut Worker) -> Self {
        worker.epoch += 1;
        let epoch = worker.epoch;
        worker.desk.epoch.store(epoch, Ordering::Release);
        Self { worker, epoch, unacked: BTreeMap::new(), held: JoinSet::new(), release: CancellationToken::new() }
    }

    async fn run(mut self, mut subscription: Subscription) -> End {
        let end = self.serve(&mut subscription).await;
        // From here on every delivery of this incarnation is stale.
        self.worker.epoch += 1;
        self.worker.desk.epoch.store(self.worker.epoch, Ordering::Release);
        self.release.cancel();
        if subscription.alive.connected() {
            // What is unsettled returns with the channel.
            let _ = timeout(STEP_DEADLINE, subscription.channel.close(200, "done".into())).await;
        }
        self.forget_all();
        end
    }

    async fn serve(&mut self, subscription: &mut Subscription) -> End {
        let alive = subscription.alive.clone();
        let (closing, dropped) = (self.worker.closing.clone(), self.worker.desk.dropped.clone());
        loop {
            tokio::select! {
                delivery = subscription.stream.next() => match delivery {
                    Some(Ok(delivery)) => self.deliver(delivery),
                    Some(Err(error)) => return gone_or(&alive, words(&error)),
                    None => return gone_or(&alive, "the broker ended the subscription".into()),
                },
                command = self.worker.desk.commands.recv() => match command {
                    Some(Command::Settle { which, how, reply }) => {
                        let outcome = self.settle(which, how).await;
                        answer(reply);
                        if let Err(reason) = outcome {
                            return gone_or(&alive, reason);
                        }
                    }
                    Some(Command::Dropped(key)) => if let Err(reason) = self.reject(key).await {
                        return gone_or(&alive, reason);
                    },
                    Some(Command::Pause { reply }) => {
                        self.unsubscribe(subscription).await;
                        answer(reply);
                        return End::Paused;
                    }
                    Some(Command::Resume) => {}
                    Some(Command::Close { reply }) => {
                        self.unsubscribe(subscription).await;
                        answer(reply);
                        return End::Over;
                    }
                    None => return End::Over,
                },
                Some(released) = self.held.join_next() => if let Err(reason) = self.released(released).await {
                    return gone_or(&alive, reason);
                },
                () = alive.ended.cancelled() => return End::ConnectionGone,
                () = dropped.cancelled() => return End::Over,
                () = closing.cancelled() => {
                    self.unsubscribe(subscription).await;
                    return End::Over;
                }
            }
        }
    }

    fn deliver(&mut self, delivery: message::Delivery) {
        let message::Delivery { delivery_tag: tag, routing_key, redelivered, properties, data, acker, .. } = delivery;
        let head = headers::read(&properties, routing_key.as_str(), &self.worker.topology);
        let body = Bytes::from(data);
        self.unacked.insert(tag, Unacked { acker, head: head.clone(), body: body.clone() });
        self.worker.desk.counters.unacked(1);
        let key = Key { epoch: self.epoch, tag };
        // Fails when the consumer is gone, which ends this task in a moment.
        let _ = self.worker.desk.deliveries.send(Incoming { key, head, body, redelivered });
    }

    /// The tags among `which` that are of this incarnation and not settled yet.
    fn own(&self, which: Vec<Key>) -> BTreeSet<u64> {
        which
            .into_iter()
            .filter(|key| key.epoch == self.epoch && self.unacked.contains_key(&key.tag))
            .map(|key| key.tag)
            .collect()
    }

    fn forget(&mut self, tag: u64) -> Option<Unacked> {
        let unacked = self.unacked.remove(&tag)?;
        self.worker.desk.counters.unacked(-1);
        Some(unacked)
    }

    fn forget_all(&mut self) {
        while let Some((tag, _)) = self.unacked.first_key_value() {
            let tag = *tag;
            self.forget(tag);
        }
    }

    async fn settle(&mut self, which: Vec<Key>, how: Settle) -> Result<(), String> {
        let tags = self.own(which);
        let counters = self.worker.desk.counters.clone();
        match how {
            Settle::Done => {
                count_by(&counters.done, tags.len());
                self.ack(tags).await?;
            }
            Settle::GiveBack => {
                count_by(&counters.given_back, tags.len());
                for tag in tags {
                    self.nack(tag).await?;
                }
            }
            Settle::RetryIn(wait) => tags.into_iter().for_each(|tag| self.hold(tag, wait, true)),
            Settle::SnoozeFor(wait) => tags.into_iter().for_each(|tag| self.hold(tag, wait, false)),
            Settle::DeadLetter { reason_code, reason } => {
                for tag in tags {
                    counters.dead_lettered(&reason_code);
                    self.bury(tag, reason_code.clone(), reason.clone());
                }
            }
        }
        Ok(())
    }

    /// Acknowledges; the oldest unsettled ones that are all done with one frame. Each is awaited before the next, so
    /// that a single one never follows a `multiple` that covered it, which would close the channel.
    async fn ack(&mut self, mut tags: BTreeSet<u64>) -> Result<(), String> {
        let covered: Vec<u64> = self.unacked.keys().take_while(|tag| tags.contains(tag)).copied().collect();
        if let Some(last) = covered.last()
            && let Some(unacked) = self.unacked.get(last)
        {
            let acker = unacked.acker.clone();
            acknowledged(acker.ack(BasicAckOptions { multiple: covered.len() > 1 })).await?;
        }
        for tag in covered {
            tags.remove(&tag);
            self.forget(tag);
        }
        for tag in tags {
            if let Some(unacked) = self.forget(tag) {
                acknowledged(unacked.acker.ack(BasicAckOptions::default())).await?;
            }
        }
        Ok(())
    }

    async fn nack(&mut self, tag: u64) -> Result<(), String> {
        match self.forget(tag) {
            Some(unacked) => {
                acknowledged(unacked.acker.nack(BasicNackOptions { requeue: true, multiple: false })).await
            }
            None => Ok(()),
        }
    }

    /// Dropped unsettled: it failed here. On every version this counts towards the delivery limit.
    async fn reject(&mut self, key: Key) -> Result<(), String> {
        if key.epoch != self.epoch {
            return Ok(());
        }
        match self.forget(key.tag) {
            Some(unacked) => acknowledged(unacked.acker.reject(BasicRejectOptions { requeue: true })).await,
            None => Ok(()),
        }
    }

    /// Keeps a delivery for a while, then publishes it again.
    fn hold(&mut self, tag: u64, wait: Duration, raise_attempt: bool) {
        let Some(unacked) = self.unacked.get(&tag) else { return };
        count(&self.worker.desk.counters.retried);
        let successor = Successor {
            publishing: self.worker.publishing.clone(),
            queue: self.worker.desk.target.clone(),
            head: unacked.head.again(raise_attempt),
            body: unacked.body.clone(),
        };
        let release = self.release.clone();
        self.held.spawn(async move {
            tokio::select! {
                () = sleep(wait.min(LONGEST_HOLD)) => {}
                () = release.cancelled() => return Released { tag, published: false },
            }
            Released { tag, published: successor.insist(&release).await }
        });
    }

    /// Publishes a delivery to the dead letters.
    fn bury(&mut self, tag: u64, reason_code: String, reason: String) {
        let Some(unacked) = self.unacked.get(&tag) else { return };
        let queue = self.worker.desk.target.clone();
        let successor = Successor {
            publishing: self.worker.publishing.clone(),
            head: unacked.head.died(&queue.queue, reason_code, reason),
            body: unacked.body.clone(),
            queue,
        };
        let release = self.release.clone();
        self.held.spawn(async move { Released { tag, published: successor.insist(&release).await } });
    }

    async fn released(&mut self, released: Result<Released, tokio::task::JoinError>) -> Result<(), String> {
        match released {
            Ok(Released { tag, published: true }) => self.ack(BTreeSet::from([tag])).await,
            // Stays unsettled: it is given back with the rest, or returns with the channel.
            Ok(Released { published: false, .. }) => Ok(()),
            Err(error) => Err(format!("a held delivery was lost: {error}")),
        }
    }

    /// Stops deliveries and gives everything unsettled back.
    async fn unsubscribe(&mut self, subscription: &mut Subscription) {
        self.release.cancel();
        // Held verdicts that are being published have the time of a publish.
        let deadline = self.worker.publishing.timing().publish_deadline();
        while let Ok(Some(released)) = timeout_at(deadline, self.held.join_next()).await {
            if self.released(released).await.is_err() {
                return;
            }
        }
        let deadline = Instant::now() + STEP_DEADLINE;
        let cancelling = subscription.channel.basic_cancel(subscription.stream.tag(), BasicCancelOptions::default());
        if !matches!(timeout_at(deadline, cancelling).await, Ok(Ok(()))) {
            return;
        }
        // What was on its way comes before the end of the stream.
        while let Ok(Some(Ok(delivery))) = timeout_at(deadline, subscription.stream.next()).await {
            self.deliver(delivery);
        }
        if let Some((_, newest)) = self.unacked.last_key_value() {
            let acker = newest.acker.clone();
            count_by(&self.worker.desk.counters.given_back, self.unacked.len());
            let _ = acknowledged(acker.nack(BasicNackOptions { requeue: true, multiple: true })).await;
            self.forget_all();
        }
    }
}

/// A broken channel on a lost connection is the connection's affair.
fn gone_or(alive: &Alive, reason: String) -> End {
    if alive.connected() { End::Fault(reason) } else { End::ConnectionGone }
}

/// Waits until an acknowledgement is written. `Ok(false)` means that its channel is gone: the delivery comes again, and
/// the end of the stream says the rest.
async fn acknowledged(writing: impl Future<Output = lapin::Result<bool>>) -> Result<(), String> {
    match timeout(STEP_DEADLINE, writing).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err("an acknowledgement could not be written in time".into()),
    }
}

/// The copy that takes a delivery's place: in its queue, or among the dead letters.
struct Successor {
    publishing: Arc<Publishing>,
    queue: Target,
    head: Head,
    body: Bytes,
}

impl Successor {
    /// Publishes until it works or `release` says stop. The delivery stays unsettled meanwhile, so nothing can be lost.
    async fn insist(&self, release: &CancellationToken) -> bool {
        let mut backoff = Backoff::new(self.publishing.timing().waits());
        loop {
            match self.publish().await {
                Ok(()) => return true,
                Err(PublishError::Closed) => return false,
                Err(error) => debug!(code = error.code(), "A held delivery waits for the broker"),
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = release.cancelled() => return false,
            }
        }
    }

    async fn publish(&self) -> Result<(), PublishError> {
        if self.head.dead.is_some() && self.queue.kind != Kind::Dead {
            return self.publishing.bury(&self.queue, &self.head, self.body.clone()).await;
        }
        let deadline = self.publishing.timing().publish_deadline();
        self.publishing.publish(self.queue.clone(), self.head.clone(), self.body.clone(), deadline).await
    }
}
