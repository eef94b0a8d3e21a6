//! What is known of each open connection, and the one task that watches their deadlines.
//!
//! A timer per request and deadline would cost about as much as answering the request. Instead everything that happens on a
//! connection notes the time of a coarse clock, which is one relaxed store, and one task per listener walks over all
//! connections every tick and wakes the ones that are late.

use super::limits::Limits;
use crate::metrics::Metrics;
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Part of a head has arrived.
    Head = 0,
    /// Between two requests.
    Idle = 1,
    /// The handler works, or waits for the body.
    Handling = 2,
    /// The response is on its way; an event stream stays here for hours.
    Responding = 3,
    /// Closing, while the client is still writing.
    Lingering = 4,
    /// Open, and nothing has arrived yet.
    Fresh = 5,
}

/// How long a connection that answered early listens on, so that the client gets to read the answer instead of a reset.
const LINGER: Duration = Duration::from_secs(3);

/// One open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) listener: Arc<Listener>,
    phase: AtomicU8,
    phase_since: AtomicU64,
    /// When the body began to be waited for, and since when its next piece is; 0: it is not.
    body_since: AtomicU64,
    piece_since: AtomicU64,
    /// Since when the client takes nothing; 0: it does.
    write_stuck_since: AtomicU64,
    body_late: AtomicBool,
    handler_late: AtomicBool,
    killed: AtomicBool,
    /// The body was not read to its end when the response was ready.
    unread: AtomicBool,
    /// Body bytes of the request at hand that count as in flight.
    held: AtomicUsize,
    /// The task that drives the connection.
    pub(super) waker: AtomicWaker,
    /// The task that waits for the body; usually the same.
    pub(super) body_waker: AtomicWaker,
}

/// What all connections of one listener share.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    started: Instant,
    /// Milliseconds since `started`, as of the last tick; never 0.
    now: AtomicU64,
    body_bytes: AtomicUsize,
    draining: AtomicBool,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<Connection>>,
    by_ip: HashMap<IpAddr, usize>,
}

/// A connection was one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Connections,
    PerAddress,
}

impl Full {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Full::Connections => "connections",
            Full::PerAddress => "connections_per_ip",
        }
    }
}

impl Listener {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            limits,
            metrics,
            started: Instant::now(),
            now: AtomicU64::new(1),
            body_bytes: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing that holds the lock can panic half-way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Admits a connection; it leaves when the guard is dropped.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Admitted, Full> {
        let mut open = self.open();
        if open.connections.len() >= self.limits.connections {
            return Err(Full::Connections);
        }
        let of_this_ip = open.by_ip.entry(peer.ip()).or_default();
        if *of_this_ip >= self.limits.connections_per_ip {
            return Err(Full::PerAddress);
        }
        *of_this_ip += 1;
        let id = open.next;
        open.next += 1;
        let connection = Arc::new(Connection {
            peer,
            listener: self.clone(),
            phase: AtomicU8::new(Phase::Fresh as u8),
            phase_since: AtomicU64::new(self.now()),
            body_since: AtomicU64::new(0),
            piece_since: AtomicU64::new(0),
            write_stuck_since: AtomicU64::new(0),
            body_late: AtomicBool::new(false),
            handler_late: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            waker: AtomicWaker::new(),
            body_waker: AtomicWaker::new(),
        });
        open.connections.insert(id, connection.clone());
        self.metrics.http_connections(open.connections.len());
        Ok(Admitted { id, connection })
    }

    fn leave(&self, id: u64, peer: SocketAddr) {
        let mut open = self.open();
        open.connections.remove(&id);
        if let Some(count) = open.by_ip.get_mut(&peer.ip()) {
            *count -= 1;
            if *count == 0 {
                open.by_ip.remove(&peer.ip());
            }
        }
        self.metrics.http_connections(open.connections.len());
    }

    /// Whether `announced` more body bytes would fit now. A body that would never fit is left to the handler's own limit.
    pub(super) fn has_room(&self, announced: usize) -> bool {
        announced > self.limits.body_bytes_in_flight
            || self.body_bytes.load(Relaxed).saturating_add(announced) <= self.limits.body_bytes_in_flight
    }

    /// From now on connections close after the request at hand.
    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.each(|connection| connection.waker.wake());
    }

    /// Ends every connection where it stands; returns how many there were.
    pub(super) fn kill_all(&self) -> usize {
        let mut cut = 0;
        self.each(|connection| {
            cut += 1;
            connection.kill();
        });
        cut
    }

    fn each(&self, act: impl FnMut(&Arc<Connection>)) {
        // Waking runs foreign code, so not under the lock.
        let connections = self.open().connections.values().cloned().collect::<Vec<_>>();
        connections.iter().for_each(act);
    }

    /// Watches every deadline of every connection, until dropped.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.limits.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            self.now.store(now, Relaxed);
            let late = {
                let open = self.open();
                open.connections.values().filter(|connection| connection.is_late(now)).cloned().collect::<Vec<_>>()
            };
            for connection in late {
                connection.act_on_deadlines(now);
            }
        }
    }
}

/// A connection's place among the open ones.
#[derive(Debug)]
pub(super) struct Admitted {
    id: u64,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connection.release();
        self.connection.listener.leave(self.id, self.connection.peer);
    }
}

/// Whether something that began at `since` (0: not begun) has taken longer than `limit`.
fn over(since: u64, now: u64, limit: Duration) -> bool {
    since != 0 && Duration::from_millis(now.saturating_sub(since)) > limit
}

impl Connection {
    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Head,
            1 => Phase::Idle,
            2 => Phase::Handling,
            3 => Phase::Responding,
            4 => Phase::Lingering,
            _ => Phase::Fresh,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase_since.store(self.listener.now(), Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }

    /// A request's head is complete.
    pub(super) fn request_begins(&self) {
        self.handler_late.store(false, Relaxed);
        self.unread.store(false, Relaxed);
        self.enter(Phase::Handling);
    }

    /// Bytes arrived.
    pub(super) fn bytes_arrived(&self) {
        if matches!(self.phase(), Phase::Idle | Phase::Fresh) {
            self.enter(Phase::Head);
        }
    }

    /// The client takes nothing.
    pub(super) fn write_is_stuck(&self) {
        if self.write_stuck_since.load(Relaxed) == 0 {
            self.write_stuck_since.store(self.listener.now(), Relaxed);
        }
    }

    /// The client took something.
    pub(super) fn write_moves(&self) {
        self.write_stuck_since.store(0, Relaxed);
    }

    /// The next piece of the body is being waited for.
    pub(super) fn waits_for_body(&self) {
        let now = self.listener.now();
        if self.body_since.load(Relaxed) == 0 {
            self.body_since.store(now, Relaxed);
        }
        if self.piece_since.load(Relaxed) == 0 {
            self.piece_since.store(now, Relaxed);
        }
    }

    /// A piece of the body is there. Its bytes count as in flight until the request is answered; `false`: no room for them.
    pub(super) fn takes_piece(&self, bytes: usize) -> bool {
        self.piece_since.store(0, Relaxed);
        let before = self.listener.body_bytes.fetch_add(bytes, Relaxed);
        self.held.fetch_add(bytes, Relaxed);
        before.saturating_add(bytes) <= self.listener.limits.body_bytes_in_flight
    }

    /// Nobody waits for the body any more.
    pub(super) fn body_is_done(&self, read_to_its_end: bool) {
        self.body_since.store(0, Relaxed);
        self.piece_since.store(0, Relaxed);
        self.body_late.store(false, Relaxed);
        if !read_to_its_end {
            self.unread.store(true, Relaxed);
        }
    }

    pub(super) fn is_body_late(&self) -> bool {
        self.body_late.load(Relaxed)
    }

    pub(super) fn is_handler_late(&self) -> bool {
        self.handler_late.load(Relaxed)
    }

    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    pub(super) fn kill(&self) {
        self.killed.store(true, Relaxed);
        self.waker.wake();
    }

    /// Gives the body's bytes back: the request was answered, or is gone.
    pub(super) fn release(&self) {
        let held = self.held.swap(0, Relaxed);
        if held > 0 {
            self.listener.body_bytes.fetch_sub(held, Relaxed);
        }
    }

    /// Whether the client may still be writing something nobody will read, so that closing at once would be a reset.
    pub(super) fn wants_lingering(&self) -> bool {
        self.unread.load(Relaxed) || self.phase() == Phase::Head
    }

    fn phase_limit(&self) -> Option<Duration> {
        let limits = &self.listener.limits;
        match self.phase() {
            Phase::Head | Phase::Fresh => Some(limits.head_timeout),
            Phase::Idle => Some(limits.idle_timeout),
            Phase::Handling => Some(limits.request_timeout),
            Phase::Responding => None,
            Phase::Lingering => Some(LINGER),
        }
    }

    fn is_phase_late(&self, now: u64) -> bool {
        self.phase_limit().is_some_and(|limit| over(self.phase_since.load(Relaxed), now, limit))
    }

    fn is_body_overdue(&self, now: u64) -> bool {
        let limits = &self.listener.limits;
        over(self.body_since.load(Relaxed), now, limits.body_timeout)
            || over(self.piece_since.load(Relaxed), now, limits.body_idle_timeout)
    }

    fn is_write_late(&self, now: u64) -> bool {
        over(self.write_stuck_since.load(Relaxed), now, self.listener.limits.write_timeout)
    }

    fn is_late(&self, now: u64) -> bool {
        self.is_phase_late(now) || self.is_body_overdue(now) || self.is_write_late(now)
    }

    fn act_on_deadlines(&self, now: u64) {
        let metrics = &self.listener.metrics;
        if self.is_write_late(now) {
            metrics.http_timeout("write");
            return self.kill();
        }
        if self.is_body_overdue(now) && !self.body_late.swap(true, Relaxed) {
            metrics.http_timeout("body");
            self.body_waker.wake();
        }
        if !self.is_phase_late(now) {
            return;
        }
        match self.phase() {
            Phase::Handling => {
                if !self.handler_late.swap(true, Relaxed) {
                    metrics.http_timeout("request");
                    self.waker.wake();
                }
            }
            Phase::Head | Phase::Fresh => {
                metrics.http_timeout("head");
                self.kill();
            }
            Phase::Idle | Phase::Lingering => self.kill(),
            Phase::Responding => {}
        }
    }
}
