//! A TCP proxy that misbehaves on demand: cuts lines, falls silent, cuts when it sees certain bytes.

use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What happens when the bytes looked for pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Where to look.
    pub way: Way,
    /// What to look for, such as `00 3c 00 50` for an AMQP `basic.ack`.
    pub bytes: Vec<u8>,
    /// Whether the bytes still reach the other side before the line is cut.
    pub forward: bool,
}

/// What the proxy does at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mood {
    silent_up: bool,
    silent_down: bool,
    refusing: bool,
    /// Raised to cut everything that is open.
    cuts: u64,
}

/// The proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mood: watch::Sender<Mood>,
    trap: Arc<Mutex<Option<Trap>>>,
    accepted: Arc<AtomicU64>,
    trapped: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy before what listens on `upstream` of this machine.
    /// # Errors
    /// When there is no port for it.
    pub async fn start(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let mood = watch::Sender::new(Mood::default());
        let trap = Arc::new(Mutex::new(None));
        let (accepted, trapped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let state = State { mood: mood.clone(), trap: trap.clone(), trapped: trapped.clone() };
        let task = tokio::spawn(accept(listener, upstream, state, accepted.clone()));
        Ok(Self { port, mood, trap, accepted, trapped, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// How often the trap has snapped.
    pub fn trapped(&self) -> u64 {
        self.trapped.load(Ordering::SeqCst)
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        self.mood.send_modify(|mood| mood.cuts += 1);
    }

    /// Cuts every open connection and closes new ones at once, until told otherwise.
    pub fn refuse(&self, refusing: bool) {
        self.mood.send_modify(|mood| {
            mood.refusing = refusing;
            mood.cuts += u64::from(refusing);
        });
    }

    /// Lets nothing pass that way; connections stay open, and bytes wait.
    pub fn silence(&self, way: Way, silent: bool) {
        self.mood.send_modify(|mood| match way {
            Way::Up => mood.silent_up = silent,
            Way::Down => mood.silent_down = silent,
        });
    }

    /// Both ways.
    pub fn stall(&self, silent: bool) {
        self.silence(Way::Up, silent);
        self.silence(Way::Down, silent);
    }

    /// Cuts the connection that carries the given bytes next, once.
    pub fn set_trap(&self, trap: Trap) {
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(trap);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

#[derive(Clone)]
struct State {
    mood: watch::Sender<Mood>,
    trap: Arc<Mutex<Option<Trap>>>,
    trapped: Arc<AtomicU64>,
}

async fn accept(listener: TcpListener, upstream: u16, state: State, accepted: Arc<AtomicU64>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        accepted.fetch_add(1, Ordering::SeqCst);
        if state.mood.borrow().refusing {
            continue;
        }
        tokio::spawn(carry(client, upstream, state.clone()));
    }
}

async fn carry(client: TcpStream, upstream: u16, state: State) {
    let mut mood = state.mood.subscribe();
    let cuts = mood.borrow().cuts;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
    let Ok(server) = TcpStream::connect(address).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = pump(client_in, server_out, Way::Up, state.clone()) => {}
        () = pump(server_in, client_out, Way::Down, state.clone()) => {}
        _ = mood.wait_for(|mood| mood.cuts != cuts) => {}
    }
}

/// Carries bytes until either side ends, or the trap snaps.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, state: State) {
    let mut mood = state.mood.subscribe();
    let mut buffer = vec![0; 64 << 10];
    // The end of what has passed, so that bytes split over two reads are still found.
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let Some(bytes) = buffer.get(..read) else { return };
        let passing = |mood: &Mood| !if way == Way::Up { mood.silent_up } else { mood.silent_down };
        if mood.wait_for(passing).await.map(drop).is_err() {
            return;
        }
        if let Some(forward) = snaps(&state, way, &mut tail, bytes) {
            if forward {
                let _ = to.write_all(bytes).await;
                let _ = to.flush().await;
            }
            return;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Whether the trap snaps on these bytes, and if so whether they pass.
fn snaps(state: &State, way: Way, tail: &mut Vec<u8>, bytes: &[u8]) -> Option<bool> {
    let mut trap = state.trap.lock().unwrap_or_else(PoisonError::into_inner);
    let looking = trap.as_ref().filter(|trap| trap.way == way)?;
    tail.extend_from_slice(bytes);
    let found = tail.windows(looking.bytes.len().max(1)).any(|window| window == looking.bytes);
    let forward = looking.forward;
    let keep = looking.bytes.len().saturating_sub(1);
    tail.drain(..tail.len().saturating_sub(keep));
    if !found {
        return None;
    }
    *trap = None;
    state.trapped.fetch_add(1, Ordering::SeqCst);
    Some(forward)
}
