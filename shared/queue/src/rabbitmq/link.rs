//! One supervised connection: connect, run until any fault, drop everything, wait, again. For ever, because a broker
//! that comes back after an hour must find us; gently, with full jitter; and with one log line per change of state, not
//! per attempt.

use super::channel::OwnChannel;
use super::publishing::Seats;
use super::socket::{self, Lifeline};
use super::{STEP_DEADLINE, words};
use crate::Timing;
use crate::backoff::Backoff;
use crate::health::{HealthBoard, QueueHealth};
use crate::stats::LinkStats;
use futures_util::{Stream, StreamExt};
use lapin::options::BasicQosOptions;
use lapin::uri::AMQPUri;
use lapin::{ConnectionProperties, Event};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How often a message is sent round to see that the broker still answers. An open socket proves nothing.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How often lapin's own view of the connection is looked at, in case its events missed something.
const GLANCE_EVERY: Duration = Duration::from_millis(500);
/// How long a polite goodbye may take.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// What a link needs to connect.
pub(super) struct Settings {
    pub(super) uri: AMQPUri,
    /// Shown to the broker's operators.
    pub(super) name: String,
    /// Its name on the health board.
    pub(super) part: &'static str,
    pub(super) health: Arc<HealthBoard>,
    /// How many channels to publish over.
    pub(super) lanes: usize,
    pub(super) timing: Timing,
}

/// A supervised connection.
#[derive(Debug)]
pub(super) struct Link {
    part: &'static str,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

/// What a link is doing.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// The first attempts.
    Connecting,
    /// There.
    Up(Arc<Alive>),
    /// Away; being reconnected to.
    Down(String),
    /// Closed for good.
    Closed,
}

/// One incarnation of a connection.
#[derive(Debug)]
pub(super) struct Alive {
    connection: lapin::Connection,
    /// Which one, from 1.
    pub(super) generation: u64,
    /// Set while the broker blocks us.
    pub(super) blocked: watch::Receiver<Option<String>>,
    /// Cancelled when this incarnation is over.
    pub(super) ended: CancellationToken,
    /// The channels to publish over.
    pub(super) seats: Seats,
    /// How long a publish may take.
    pub(super) confirm_timeout: Duration,
    faults: mpsc::UnboundedSender<Fault>,
    /// Set with the first fault, so that nobody uses it until the supervisor has dropped it.
    doom: OnceLock<String>,
    lifeline: Lifeline,
}

#[derive(Debug)]
struct Fault {
    generation: u64,
    reason: String,
}

#[derive(Debug, Default)]
struct Counts {
    attempts: AtomicU64,
    connects: AtomicU64,
    connected: AtomicBool,
    blocked: AtomicBool,
}

impl Alive {
    /// Reports that this connection is no good. The supervisor drops it and builds another.
    pub(super) fn fault(&self, reason: impl Into<String>) {
        let reason = reason.into();
        let _ = self.doom.set(reason.clone());
        let _ = self.faults.send(Fault { generation: self.generation, reason });
    }

    /// Why it is about to be dropped, if it is.
    pub(super) fn doomed_by(&self) -> Option<String> {
        self.doom.get().cloned()
    }

    /// Opens a channel.
    pub(super) async fn channel(&self, deadline: Instant) -> Result<OwnChannel, String> {
        match timeout_at(deadline, self.connection.create_channel()).await {
            Ok(Ok(channel)) => Ok(OwnChannel::new(channel, self.ended.clone())),
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => Err("no channel in time".into()),
        }
    }

    /// Whether lapin still believes in it.
    pub(super) fn connected(&self) -> bool {
        self.connection.status().connected() && !self.ended.is_cancelled()
    }

    /// Why the broker blocks us, if it does.
    pub(super) fn blocked_by(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }
}

impl Link {
    /// Starts to connect in the background.
    pub(super) fn open(settings: Settings) -> Arc<Self> {
        let (faults, faults_in) = mpsc::unbounded_channel();
        let (state_out, state) = watch::channel(State::Connecting);
        let stop = CancellationToken::new();
        let counts = Arc::new(Counts::default());
        let part = settings.part;
        settings.health.set(part, QueueHealth::Connecting);
        let supervisor =
            Supervisor { settings, state: state_out, faults, faults_in, stop: stop.clone(), counts: counts.clone() };
        tokio::spawn(supervisor.run());
        Arc::new(Self { part, state, stop, counts })
    }

    /// The state, to be watched.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The connection: at once when it is there, and at once an error when it is known to be away; waits only while
    /// the first attempt is under way.
    pub(super) async fn connection(&self, deadline: Instant) -> Result<Arc<Alive>, String> {
        let mut state = self.state();
        loop {
            match &*state.borrow_and_update() {
                State::Up(alive) => return Ok(alive.clone()),
                State::Down(reason) => return Err(reason.clone()),
                State::Closed => return Err("closed".into()),
                State::Connecting => {}
            }
            match timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err("closed".into()),
                Err(_) => return Err("still connecting".into()),
            }
        }
    }

    pub(super) fn stats(&self) -> LinkStats {
        LinkStats {
            attempts: self.counts.attempts.load(Ordering::Relaxed),
            connects: self.counts.connects.load(Ordering::Relaxed),
            connected: self.counts.connected.load(Ordering::Relaxed),
            blocked: self.counts.blocked.load(Ordering::Relaxed),
        }
    }

    /// Says goodbye and stays closed.
    pub(super) async fn close(&self, deadline: Instant) {
        self.stop.cancel();
        let mut state = self.state();
        let closed = state.wait_for(|state| matches!(state, State::Closed));
        if timeout_at(deadline, closed).await.is_err() {
            debug!(part = self.part, "The broker did not say goodbye in time");
        }
    }

    /// Stops without waiting.
    pub(super) fn abandon(&self) {
        self.stop.cancel();
    }
}

struct Supervisor {
    settings: Settings,
    state: watch::Sender<State>,
    faults: mpsc::UnboundedSender<Fault>,
    faults_in: mpsc::UnboundedReceiver<Fault>,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::new(self.settings.timing.waits());
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            self.counts.attempts.fetch_add(1, Ordering::Relaxed);
            let connected = tokio::select! {
                connected = self.connect() => connected,
                () = stop.cancelled() => break,
            };
            match connected {
                Ok(connected) => {
                    let since = Instant::now();
                    self.serve(connected).await;
                    backoff.lasted(since.elapsed());
                }
                Err(reason) => self.down(reason),
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = stop.cancelled() => {}
            }
        }
        self.settings.health.set(self.settings.part, QueueHealth::Down("closed".into()));
        self.state.send_replace(State::Closed);
    }

    async fn connect(&self) -> Result<Connected, String> {
        let timing = self.settings.timing;
        let properties = ConnectionProperties::default().with_connection_name(self.settings.name.as_str().into());
        let (connection, lifeline) =
            socket::connect(self.settings.uri.clone(), properties, timing.connect_timeout).await?;
        let events = connection.events_listener();
        let (blocked_out, blocked) = watch::channel(None);
        // The listener hears only what comes after it.
        if connection.status().blocked() {
            blocked_out.send_replace(Some("blocked".to_owned()));
        }
        let generation = self.counts.connects.fetch_add(1, Ordering::Relaxed) + 1;
        let alive = Arc::new(Alive {
            connection,
            generation,
            blocked,
            ended: CancellationToken::new(),
            seats: Seats::new(),
            confirm_timeout: timing.confirm_timeout,
            faults: self.faults.clone(),
            doom: OnceLock::new(),
            lifeline,
        });
        if let Err(reason) = Seats::open(&alive, self.settings.lanes).await {
            alive.ended.cancel();
            return Err(reason);
        }
        let control = alive.channel(Instant::now() + STEP_DEADLINE).await.inspect_err(|_| alive.ended.cancel())?;
        Ok(Connected { alive, control, events: Box::pin(events), blocked: blocked_out })
    }

    /// Runs until a fault or the end. Everything of this incarnation is gone when it returns.
    async fn serve(&mut self, connected: Connected) {
        let Connected { alive, control, mut events, blocked } = connected;
        self.up();
        self.state.send_replace(State::Up(alive.clone()));
        let mut glance = interval(GLANCE_EVERY);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pinging = None;
        let reason = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => self.set_blocked(&blocked, Some(why)),
                    Some(Event::ConnectionUnblocked) => self.set_blocked(&blocked, None),
                    // Also told for a channel that was closed, which is its owner's affair.
                    Some(Event::Error(error)) if !alive.connected() => break words(&error),
                    Some(_) => {}
                    None => break "the connection ended".to_owned(),
                },
                _ = glance.tick() => if !alive.connected() { break "the connection is gone".to_owned() },
                _ = ping.tick(), if pinging.is_none() && alive.blocked_by().is_none() => {
                    pinging = Some(Box::pin(ask(&control)));
                }
                answer = async { match pinging.as_mut() { Some(asked) => asked.await, None => std::future::pending().await } } => {
                    pinging = None;
                    // Blocked meanwhile: lapin writes nothing then, so silence means nothing.
                    if let Err(reason) = answer && alive.blocked_by().is_none() {
                        break reason;
                    }
                }
                Some(fault) = self.faults_in.recv() => if fault.generation == alive.generation { break fault.reason },
                () = self.stop.cancelled() => break String::new(),
            }
        };
        self.counts.connected.store(false, Ordering::Relaxed);
        self.counts.blocked.store(false, Ordering::Relaxed);
        if self.stop.is_cancelled() {
            alive.ended.cancel();
            let _ = timeout(GOODBYE_DEADLINE, alive.connection.close(200, "goodbye".into())).await;
        } else {
            self.down(reason);
            alive.ended.cancel();
        }
        alive.lifeline.cut();
    }

    fn up(&self) {
        let was_down = matches!(&*self.state.borrow(), State::Down(_));
        info!(
            part = self.settings.part,
            "Connected to the broker for {}{}",
            self.settings.part,
            if was_down { " again" } else { "" }
        );
        self.counts.connected.store(true, Ordering::Relaxed);
        self.settings.health.set(self.settings.part, QueueHealth::Up);
    }

    fn down(&self, reason: String) {
        if !matches!(&*self.state.borrow(), State::Down(_)) {
            warn!(
                part = self.settings.part,
                reason, "No connection to the broker for {}: {reason}; trying again", self.settings.part
            );
        } else {
            debug!(part = self.settings.part, reason, "Still no connection to the broker");
        }
        self.settings.health.set(self.settings.part, QueueHealth::Down(reason.clone()));
        self.state.send_replace(State::Down(reason));
    }

    fn set_blocked(&self, blocked: &watch::Sender<Option<String>>, why: Option<String>) {
        self.counts.blocked.store(why.is_some(), Ordering::Relaxed);
        match &why {
            Some(why) => {
                warn!(part = self.settings.part, reason = why, "The broker takes no publishes: {why}");
                self.settings.health.set(self.settings.part, QueueHealth::Blocked(why.clone()));
            }
            None => {
                info!(part = self.settings.part, "The broker takes publishes again");
                self.settings.health.set(self.settings.part, QueueHealth::Up);
            }
        }
        blocked.send_replace(why);
    }
}

struct Connected {
    alive: Arc<Alive>,
    control: OwnChannel,
    events: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
    blocked: watch::Sender<Option<String>>,
}

/// Sends a question round: setting a prefetch on a channel that consumes nothing changes nothing and needs no permission.
async fn ask(control: &OwnChannel) -> Result<(), String> {
    match timeout(STEP_DEADLINE, control.basic_qos(1, BasicQosOptions::default())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer within {} s", STEP_DEADLINE.as_secs())),
    }
}
