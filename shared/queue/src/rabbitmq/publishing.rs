//! Publishing: four channels on one connection, each with one owner task and **exactly one outstanding publish**. With
//! two, lapin can hand a publish the confirm, or the return, of another, and an unroutable message would pass for
//! stored. Concurrency comes from the four and from batches.

use super::channel::OwnChannel;
use super::link::{Alive, Link, Settings, State};
use super::topology::{Topology, short};
use super::{STEP_DEADLINE, headers, words};
use crate::health::HealthBoard;
use crate::message::Head;
use crate::stats::Counters;
use crate::topics::{Kind, Target};
use crate::{PublishError, SLOTS, Timing};
use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Confirmation};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// The owner task answers by the deadline; whoever waits for it waits this much longer before giving up on it too.
const GRACE: Duration = Duration::from_millis(250);

/// After so long without a confirm, or half the time for it if that is shorter, another channel is opened, to see whether
/// the connection still answers.
const PATIENCE: Duration = Duration::from_millis(1_000);

/// The publishing side of this process.
#[derive(Debug)]
pub(super) struct Publishing {
    link: Arc<Link>,
    topology: Arc<Topology>,
    counters: Arc<Counters>,
    app: String,
    timing: Timing,
    closing: CancellationToken,
}

/// The free channels of one connection, and what was declared over it.
#[derive(Debug)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    lanes: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
    declared: Mutex<HashMap<String, watch::Receiver<Declared>>>,
}

/// What became of a declaration; `None` while it is under way.
type Declared = Option<Result<(), String>>;

/// One channel, taken. Free again when dropped: by the caller unused, or by the channel's task after the confirm.
#[derive(Debug)]
struct Seat {
    lane: Option<mpsc::Sender<Job>>,
    lanes: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
        }
    }
}

/// One publish on its way to a channel's task.
#[derive(Debug)]
struct Job {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), PublishError>>,
    seat: Seat,
}

/// The right to one publish.
#[derive(Debug)]
pub(crate) struct Slot {
    publishing: Arc<Publishing>,
    alive: Arc<Alive>,
    seat: Seat,
}

impl Slot {
    /// When a publish that begins now must be confirmed.
    pub(crate) fn publish_deadline(&self) -> Instant {
        self.publishing.timing.publish_deadline()
    }

    pub(crate) async fn publish(
        self,
        target: Target,
        head: Head,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let publishing = self.publishing.clone();
        let outcome = self.publish_as(&target, &target.queue, &head, body, deadline).await;
        publishing.counters.of(&target.queue).publish_ended(outcome.is_ok());
        outcome
    }

    async fn publish_as(
        self,
        target: &Target,
        routing_key: &str,
        head: &Head,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let Slot { publishing, alive, seat } = self;
        publishing.declared(&alive, target, deadline).await?;
        let lane = seat.lane.clone().ok_or(PublishError::Closed)?;
        let (reply, answered) = oneshot::channel();
        let job = Job {
            exchange: publishing.topology.exchange(target),
            routing_key: publishing.topology.routing_key(routing_key),
            properties: headers::write(head, target.family, &publishing.app),
            body,
            deadline,
            reply,
            seat,
        };
        if lane.send(job).await.is_err() {
            return Err(publishing.why_gone());
        }
        let outcome = match timeout_at(deadline + GRACE, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PublishError::Lost("the connection was dropped".into())),
            Err(_) => Err(PublishError::Timeout),
        };
        if matches!(outcome, Err(PublishError::Returned(_))) && target.kind != Kind::Elsewhere {
            // Deleted under us: the next publish to it declares it again.
            alive.seats.forget_declaration(&target.queue);
        }
        outcome
    }
}

impl Publishing {
    pub(super) fn open(
        uri: &AMQPUri,
        name: &str,
        topology: Arc<Topology>,
        health: Arc<HealthBoard>,
        counters: Arc<Counters>,
        timing: Timing,
    ) -> Arc<Self> {
        let link = Link::open(Settings {
            uri: uri.clone(),
            name: format!("{name} publishing"),
            part: "publishing",
            health,
            lanes: SLOTS,
            timing,
        });
        Arc::new(Self { link, topology, counters, app: name.to_owned(), timing, closing: CancellationToken::new() })
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// A free channel.
    pub(super) async fn slot(self: &Arc<Self>, deadline: Instant) -> Result<Slot, PublishError> {
        let mut state = self.link.state();
        loop {
            if self.closing.is_cancelled() {
                return Err(PublishError::Closed);
            }
            let now = state.borrow_and_update().clone();
            let alive = match now {
                State::Up(alive) => alive,
                State::Down(reason) => return Err(PublishError::Down(reason)),
                State::Closed => return Err(PublishError::Closed),
                State::Connecting => {
                    if timeout_at(deadline, state.changed()).await.is_err() {
                        return Err(PublishError::Down("still connecting".into()));
                    }
                    continue;
                }
            };
            if let Some(reason) = alive.doomed_by() {
                return Err(PublishError::Down(reason));
            }
            let mut blocked = alive.blocked.clone();
            if let Some(reason) = blocked.borrow_and_update().clone() {
                return Err(PublishError::Blocked(reason));
            }
            tokio::select! {
                biased;
                () = alive.ended.cancelled() => {
                    // The state says why by now; should it still say Up, it is about to change.
                    if matches!(&*state.borrow(), State::Up(same) if same.generation == alive.generation) {
                        return Err(PublishError::Down("the connection was lost".into()));
                    }
                }
                permit = alive.seats.free.clone().acquire_owned() => {
                    let permit = permit.map_err(|_| PublishError::Closed)?;
                    let seat = alive.seats.take(permit);
                    return Ok(Slot { publishing: self.clone(), alive, seat });
                }
                _ = blocked.changed() => {}
                () = self.closing.cancelled() => {}
                () = sleep_until(deadline) => return Err(PublishError::Timeout),
            }
        }
    }

    pub(super) async fn publish(
        self: &Arc<Self>,
        target: Target,
        head: Head,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        match self.slot(deadline).await {
            Ok(slot) => slot.publish(target, head, body, deadline).await,
            Err(error) => {
                self.counters.of(&target.queue).publish_ended(false);
                Err(error)
            }
        }
    }

    /// Publishes a dead letter: to the dead letters' queue, under the routing key of its origin.
    pub(super) async fn bury(self: &Arc<Self>, origin: &Target, head: &Head, body: Bytes) -> Result<(), PublishError> {
        let deadline = self.timing.publish_deadline();
        let slot = self.slot(deadline).await?;
        slot.publish_as(&crate::topics::DEAD.target(None), &origin.queue, head, body, deadline).await
    }

    /// Lets the publishes under way finish, refuses others, closes.
    pub(super) async fn close(&self, deadline: Instant) {
        self.closing.cancel();
        if let Ok(alive) = self.link.connection(Instant::now()).await {
            let all = u32::try_from(SLOTS).unwrap_or(u32::MAX);
            let _ = timeout_at(deadline, alive.seats.free.acquire_many(all)).await;
        }
        self.link.close(deadline).await;
    }

    /// Declares the queue unless this connection has done so. Whoever comes first starts it and everybody waits for the
    /// same answer; one that is late is no fault of the connection and goes on without its callers.
    async fn declared(
        self: &Arc<Self>,
        alive: &Arc<Alive>,
        target: &Target,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let mut answer = {
            let mut declared = alive.seats.declared.lock().unwrap_or_else(PoisonError::into_inner);
            match declared.get(&target.queue) {
                Some(answer) => answer.clone(),
                None => {
                    let (answer_out, answer) = watch::channel(None);
                    declared.insert(target.queue.clone(), answer.clone());
                    let (this, alive, target) = (self.clone(), alive.clone(), target.clone());
                    tokio::spawn(async move {
                        let deadline = Instant::now() + STEP_DEADLINE;
                        let outcome = this.topology.declare(&alive, &target, deadline).await;
                        if outcome.is_err() {
                            let mut declared = alive.seats.declared.lock().unwrap_or_else(PoisonError::into_inner);
                            declared.remove(&target.queue);
                        }
                        answer_out.send_replace(Some(outcome));
                    });
                    answer
                }
            }
        };
        let answered = tokio::select! {
            answered = timeout_at(deadline, answer.wait_for(Option::is_some)) => answered,
            () = alive.ended.cancelled() => return Err(self.why_gone()),
        };
        match answered {
            Ok(Ok(outcome)) => match &*outcome {
                Some(Err(reason)) => Err(PublishError::Refused(reason.clone())),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(self.why_gone()),
            Err(_) => Err(PublishError::Timeout),
        }
    }

    /// Nothing was sent, the connection went first.
    fn why_gone(&self) -> PublishError {
        match &*self.link.state().borrow() {
            State::Down(reason) => PublishError::Down(reason.clone()),
            State::Closed => PublishError::Closed,
            _ => PublishError::Down("the connection was lost".into()),
        }
    }
}

impl Seats {
    pub(super) fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(0)), lanes: Arc::default(), declared: Mutex::default() }
    }

    /// Opens the channels of a new connection.
    pub(super) async fn open(alive: &Arc<Alive>, lanes: usize) -> Result<(), String> {
        for _ in 0..lanes {
            let channel = confirming(alive).await?;
            let (jobs, jobs_in) = mpsc::channel(1);
            tokio::spawn(lane(alive.clone(), channel, jobs_in));
            alive.seats.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(jobs);
            alive.seats.free.add_permits(1);
        }
        Ok(())
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Seat {
        // There are as many lanes as permits: a seat returns its lane before its permit.
        let lane = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Seat { lane, lanes: self.lanes.clone(), _permit: permit }
    }

    fn forget_declaration(&self, queue: &str) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }

    fn forget_declarations(&self) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn confirming(alive: &Alive) -> Result<OwnChannel, String> {
    let deadline = Instant::now() + STEP_DEADLINE;
    let channel = alive.channel(deadline).await?;
    match timeout_at(deadline, channel.confirm_select(ConfirmSelectOptions::default())).await {
        Ok(Ok(())) => Ok(channel),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err("confirms were not switched on in time".into()),
    }
}

/// The owner of one channel: one publish at a time, and the next only after the confirm of the last.
async fn lane(alive: Arc<Alive>, mut channel: OwnChannel, mut jobs: mpsc::Receiver<Job>) {
    loop {
        let job = tokio::select! {
            job = jobs.recv() => match job { Some(job) => job, None => return },
            () = alive.ended.cancelled() => return,
        };
        if !channel.status().connected() {
            match confirming(&alive).await {
                Ok(fresh) => channel = fresh,
                Err(reason) => {
                    let _ = job.reply.send(Err(PublishError::Down(reason.clone())));
                    alive.fault(reason);
                    return;
                }
            }
        }
        match publish(&alive, &channel, job).await {
            Fate::Usable if channel.status().connected() => {}
            // Most likely an exchange was deleted: everything is to be declared again.
            Fate::Usable => alive.seats.forget_declarations(),
            Fate::Replaced(fresh) => channel = fresh,
            Fate::Over => return,
        }
    }
}

/// What a publish left behind.
enum Fate {
    /// The channel can go on, or be opened again.
    Usable,
    /// The channel has a publish outstanding whose confirm does not come; here is another.
    Replaced(OwnChannel),
    /// The connection is over.
    Over,
}

/// One publish. The caller is answered by its deadline; the channel is waited for a little longer if need be, since a
/// publish may reach it late. When the confirm does not come, another channel is opened beside it: if that works, only
/// this queue hangs and the connection is good for all the others; if not, the connection is dead.
async fn publish(alive: &Alive, channel: &OwnChannel, job: Job) -> Fate {
    let Job { exchange, routing_key, properties, body, deadline, reply, seat } = job;
    let mut reply = Some(reply);
    let mut answer = |outcome: Result<(), PublishError>| {
        if let Some(reply) = reply.take() {
            // The caller may have stopped waiting, which changes nothing here.
            let _ = reply.send(outcome);
        }
    };
    let (sent, whole) = (Instant::now(), alive.confirm_timeout);
    let patience = PATIENCE.min(whole / 2);
    // A publish that reached the channel late is given the whole time for its confirm, though its caller is not.
    let judged = if deadline >= sent + patience + patience / 2 { deadline } else { sent + whole };
    let confirm = async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await
    };
    tokio::pin!(confirm);
    let opening = async {
        sleep_until(sent + patience).await;
        confirming(alive).await
    };
    tokio::pin!(opening);
    let mut fresh = None;
    let mut answered = false;
    let mut blocked = alive.blocked.clone();
    loop {
        tokio::select! {
            biased;
            confirmation = &mut confirm => {
                let (outcome, usable) = judge(confirmation);
                if let (false, Err(error)) = (usable, &outcome) {
                    alive.fault(error.to_string());
                }
                // Free the channel before the caller learns of it: its next publish finds it free.
                drop(seat);
                answer(outcome);
                return if usable { Fate::Usable } else { Fate::Over };
            }
            () = alive.ended.cancelled() => {
                answer(Err(PublishError::Lost("the connection was dropped".into())));
                return Fate::Over;
            }
            Ok(reason) = blocked.wait_for(Option::is_some) => {
                answer(Err(PublishError::Blocked(reason.clone().unwrap_or_default())));
                break;
            }
            () = sleep_until(deadline), if !answered && deadline < judged => {
                answered = true;
                answer(Err(PublishError::Timeout));
            }
            opened = &mut opening, if fresh.is_none() => match opened {
                Ok(channel) => fresh = Some(channel),
                Err(reason) => {
                    alive.fault(reason.clone());
                    answer(Err(PublishError::Lost(reason)));
                    return Fate::Over;
                }
            },
            () = sleep_until(judged) => {
                // Known before it is told, so that whoever asks next is refused at once.
                if fresh.is_none() {
                    alive.fault(format!("no confirm within {} ms", whole.as_millis()));
                }
                answer(Err(PublishError::Timeout));
                return fresh.map_or(Fate::Over, Fate::Replaced);
            }
        }
    }
    // Blocked with a publish outstanding. It is answered already, as an error; but the channel is free again only once
    // its confirm is in, which may be when the alarm is over.
    tokio::select! {
        biased;
        confirmation = &mut confirm => {
            let (outcome, usable) = judge(confirmation);
            if let (false, Err(error)) = (usable, &outcome) {
                alive.fault(error.to_string());
            }
            drop(seat);
            if usable { Fate::Usable } else { Fate::Over }
        }
        () = alive.ended.cancelled() => Fate::Over,
        () = unblocked_for(&mut blocked, whole) => {
            alive.fault("no confirm after the block was lifted");
            Fate::Over
        }
    }
}

/// Returns once the broker has not blocked us for so long without a break.
async fn unblocked_for(blocked: &mut watch::Receiver<Option<String>>, how_long: Duration) {
    loop {
        if blocked.wait_for(Option::is_none).await.is_err() {
            return std::future::pending().await;
        }
        let again = tokio::time::timeout(how_long, blocked.wait_for(Option::is_some)).await;
        if again.is_err() {
            return;
        }
    }
}

/// What a confirmation means for the caller, and whether the connection can go on. Success is a plain ack and nothing
/// else: an unroutable message is acked too, with the returned message attached.
fn judge(confirmation: lapin::Result<Confirmation>) -> (Result<(), PublishError>, bool) {
    match confirmation {
        Ok(Confirmation::Ack(None)) => (Ok(()), true),
        Ok(Confirmation::Ack(Some(returned))) => (Err(PublishError::Returned(returned.reply_text.to_string())), true),
        Ok(Confirmation::Nack(_)) => (Err(PublishError::Refused("the broker did not store it".into())), true),
        Ok(Confirmation::NotRequested) => (Err(PublishError::Lost("confirms are off on this channel".into())), false),
        // The channel is closed, the connection is not: a missing exchange, a missing permission.
        Err(error) if error.is_amqp_soft_error() => (Err(PublishError::Refused(words(&error))), true),
        Err(error) => (Err(PublishError::Lost(words(&error))), false),
    }
}

impl Topology {
    fn routing_key(&self, queue: &str) -> ShortString {
        short(&format!("{}{queue}", self.prefix()))
    }
}
