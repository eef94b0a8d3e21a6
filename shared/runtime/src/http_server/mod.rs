//! The one accept loop: hyper's HTTP/1 with deadlines, caps and a drain, for whoever answers requests.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use runtime::http_server::{Limits, RequestBody, Server, read_body};
//! use http::{Request, Response};
//! use http_body_util::Full;
//!
//! let metrics = runtime::metrics::Metrics::new();
//! let server = Server::bind("127.0.0.1:0".parse()?, Limits::default(), metrics)?;
//! let echo = |request: Request<RequestBody>| async move {
//!     match read_body(request.into_body(), 1_000).await {
//!         Ok(body) => Response::new(Full::new(body)),
//!         Err(error) => {
//!             let mut response = Response::new(Full::default());
//!             *response.status_mut() = error.status();
//!             response
//!         }
//!     }
//! };
//! let stop = tokio_util::sync::CancellationToken::new();
//! server.serve(echo, stop, std::time::Duration::from_secs(25)).await;
//! # Ok(()) }
//! ```

mod body;
mod connection;
mod limits;
mod response;
mod wire;

pub use body::{BodyError, RequestBody, read_body};
pub use limits::{Limits, MAX_HEAD};
pub use response::BoxError;

use crate::metrics::Metrics;
use bytes::Bytes;
use connection::{Admitted, Connection, Listener, Phase};
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use response::ResponseBody;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::Wire;

/// Connections the kernel keeps for us while we are busy.
const BACKLOG: u32 = 1024;
/// After an accept that failed (out of file descriptors, mostly) the loop waits instead of spinning.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
/// Connections being told that there is no room; beyond so many they are just closed.
const MOST_REFUSALS_AT_ONCE: usize = 256;

/// Whoever answers requests. Any `Fn(Request<RequestBody>) -> impl Future<Output = Response<_>>` is one.
pub trait Handler: Send + Sync + 'static {
    /// The body of its responses.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static;
    /// Answers one request. It is dropped where it stands when the client goes away or its time is up.
    fn call(&self, request: Request<RequestBody>) -> impl Future<Output = Response<Self::Body>> + Send;
}

impl<F, Answer, B> Handler for F
where
    F: Fn(Request<RequestBody>) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Body = B;
    fn call(&self, request: Request<RequestBody>) -> impl Future<Output = Response<B>> + Send {
        self(request)
    }
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error("{0} is already in use")]
    Taken(SocketAddr),
    /// Any other reason.
    #[error("{address} cannot be listened on ({error})")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        error: io::Error,
    },
}

/// A bound address, not yet serving: connections wait in the kernel.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    metrics: Metrics,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the time was up, and were cut.
    pub cut: usize,
}

impl Server {
    /// Listens on `address`. Must be called inside a tokio runtime.
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(address: SocketAddr, limits: Limits, metrics: Metrics) -> Result<Self, BindError> {
        let listen = || -> io::Result<_> {
            let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        };
        match listen() {
            Ok((listener, address)) => Ok(Self { listener, address, limits, metrics }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(BindError::Taken(address)),
            Err(error) => Err(BindError::Other { address, error }),
        }
    }

    /// Where it listens: with the port the system chose when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then stops listening, lets the requests at hand finish for up to `drain`, and cuts the rest.
    /// Handlers of endless responses should end them on `stop` themselves.
    pub async fn serve<H: Handler>(self, handler: H, stop: CancellationToken, drain: Duration) -> Drained {
        let shared = Listener::new(self.limits, self.metrics);
        let handler = Arc::new(handler);
        let tasks = TaskTracker::new();
        let watch = AbortOnDrop(tokio::spawn(shared.clone().watch()));
        let http = builder();
        let refusing = Arc::new(AtomicUsize::new(0));
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match shared.admit(peer) {
                    Ok(admitted) => {
                        let _ = stream.set_nodelay(true);
                        tasks.spawn(serve_connection(http.clone(), stream, admitted, handler.clone()));
                    }
                    Err(full) => {
                        shared.metrics.http_refused(full.reason());
                        refuse(stream, &refusing);
                    }
                },
                Err(error) if is_about_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "A connection could not be accepted");
                    tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                }
            }
        }
        drop(self.listener);
        shared.drain();
        tasks.close();
        let mut cut = 0;
        if tokio::time::timeout(drain, tasks.wait()).await.is_err() {
            cut = shared.kill_all();
            tasks.wait().await;
        }
        drop(watch);
        Drained { cut }
    }
}

/// Stops the watching task with its server, also when `serve` itself is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// hyper's own head timer stays off: one task watches all deadlines, see `connection.rs`.
fn builder() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.header_read_timeout(None);
    http.max_header_size(MAX_HEAD);
    // Bounds what a head that never ends can make us keep; a body is read in pieces of up to this.
    http.max_buf_size(4 * MAX_HEAD);
    http
}

async fn serve_connection<H: Handler>(http: http1::Builder, stream: TcpStream, admitted: Admitted, handler: Arc<H>) {
    let connection = admitted.connection.clone();
    let service = service_fn({
        let connection = connection.clone();
        move |request| answer(request, handler.clone(), connection.clone())
    });
    let mut serving = pin!(http.serve_connection(TokioIo::new(Wire::new(stream, connection.clone())), service));
    let mut told = false;
    poll_fn(|cx| {
        connection.waker.register(cx.waker());
        if connection.is_killed() {
            return Poll::Ready(());
        }
        if !told && connection.listener.draining() {
            told = true;
            serving.as_mut().graceful_shutdown();
        }
        // An error here is the client's: it went away, or did not speak HTTP. hyper has answered what can be answered.
        serving.as_mut().poll(cx).map(|_| ())
    })
    .await;
    drop(admitted);
}

/// Bytes are given back however the request ends.
struct Release<'c>(&'c Connection);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

async fn answer<H: Handler>(
    request: Request<Incoming>,
    handler: Arc<H>,
    connection: Arc<Connection>,
) -> Result<Response<ResponseBody<H::Body>>, Infallible> {
    connection.request_begins();
    let _release = Release(&connection);
    let request = request.map(|incoming| RequestBody::new(incoming, connection.clone()));
    let announced = request.body().announced().and_then(|length| usize::try_from(length).ok());
    if !announced.is_none_or(|length| connection.listener.has_room(length)) {
        connection.listener.metrics.http_refused("body_bytes");
        return Ok(respond(response::busy(connection.clone()), &connection));
    }
    // The call stands inside the block, so that a panic before its first await is caught too.
    let call = async { handler.call(request).await };
    let mut call = pin!(AssertUnwindSafe(call).catch_unwind());
    let outcome = poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if connection.is_handler_late() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    let response = match outcome {
        Some(Ok(response)) => response.map(|body| ResponseBody::new(body, connection.clone())),
        Some(Err(_)) => {
            // The panic hook has told where; here it only becomes an answer.
            connection.listener.metrics.http_panic();
            response::broken(connection.clone())
        }
        None => response::late(connection.clone()),
    };
    Ok(respond(response, &connection))
}

fn respond<B>(response: Response<ResponseBody<B>>, connection: &Connection) -> Response<ResponseBody<B>> {
    connection.enter(Phase::Responding);
    response
}

/// Errors of `accept` that say something about one client only.
fn is_about_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Tells a client that there is no room, and listens for a moment so that it gets to read that.
fn refuse(mut stream: TcpStream, refusing: &Arc<AtomicUsize>) {
    const NO_ROOM: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if refusing.load(Relaxed) >= MOST_REFUSALS_AT_ONCE {
        return;
    }
    refusing.fetch_add(1, Relaxed);
    let refusing = refusing.clone();
    tokio::spawn(async move {
        let tell = async {
            stream.write_all(NO_ROOM).await?;
            stream.shutdown().await?;
            let mut bin = [0u8; 4096];
            while stream.read(&mut bin).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        // Whether it listened is its own affair.
        let _ = tokio::time::timeout(Duration::from_secs(1), tell).await;
        refusing.fetch_sub(1, Relaxed);
    });
}
