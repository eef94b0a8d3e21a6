//! A client that does to a server exactly what a test says, byte by byte.

use runtime::http_server::{Drained, Handler, Limits, Server};
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A server under test.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    ended: JoinHandle<Drained>,
}

impl Serving {
    pub(crate) fn start(handler: impl Handler, limits: Limits) -> Self {
        Self::with_drain(handler, limits, PATIENCE)
    }

    pub(crate) fn with_drain(handler: impl Handler, limits: Limits, drain: Duration) -> Self {
        let metrics = Metrics::new();
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), limits, metrics.clone()).unwrap();
        let address = server.local_addr();
        let stop = CancellationToken::new();
        let ended = tokio::spawn(server.serve(handler, stop.clone(), drain));
        Self { address, metrics, stop, ended }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), left: Vec::new() }
    }

    /// Stops it and waits for its end.
    pub(crate) async fn end(self) -> Drained {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> Drained {
        tokio::time::timeout(PATIENCE, self.ended).await.expect("the server did not end").unwrap()
    }

    /// Waits until the metrics hold a line.
    pub(crate) async fn until_metric(&self, line: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let text = self.metrics.render();
            if text.lines().any(|found| found == line) {
                return;
            }
            assert!(Instant::now() < until, "never saw {line} in\n{text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    left: Vec<u8>,
}

/// A response as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Writes what the other side may refuse to take.
    pub(crate) async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    pub(crate) async fn post(&mut self, path: &str, body: &[u8]) {
        self.say(format!("POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", body.len())).await;
        self.say(body).await;
    }

    pub(crate) async fn get(&mut self, path: &str) {
        self.say(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n")).await;
    }

    /// Reads one response with a content length.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("the connection closed without an answer")
    }

    /// Reads one response; `None` when the connection closes first.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.left.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if self.read_more().await == 0 {
                return None;
            }
        };
        let head = String::from_utf8(self.left.drain(..end).collect()).unwrap().to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        while self.left.len() < length {
            assert!(self.read_more().await > 0, "the body broke off");
        }
        let body = self.left.drain(..length).collect();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { status, head, body })
    }

    async fn read_more(&mut self) -> usize {
        let mut piece = [0u8; 4096];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut piece)).await.expect("nothing came");
        let count = read.unwrap_or(0);
        self.left.extend_from_slice(&piece[..count]);
        count
    }

    /// Waits until the other side closes; returns what came before.
    pub(crate) async fn until_closed(&mut self) -> Vec<u8> {
        while self.read_more().await > 0 {}
        std::mem::take(&mut self.left)
    }
}
