//! A load generator small enough to leave the cores to what is measured: raw keep-alive connections, one request at a time
//! on each, the bytes made before the clock starts.

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What a run of load came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadResult {
    /// Requests answered 200.
    pub(crate) ok: u64,
    /// Requests answered anything else.
    pub(crate) refused: u64,
    /// How long answers were counted.
    pub(crate) took: Duration,
    /// Latencies of every answer, sorted.
    pub(crate) latencies: Vec<Duration>,
}

impl LoadResult {
    /// The latency that `share` of the requests did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        #[expect(clippy::cast_possible_truncation, reason = "an index")]
        let index = (last as f64 * share).round() as usize;
        self.latencies.get(index.min(last)).copied().unwrap_or_default()
    }

    fn add(&mut self, ok: bool, latency: Duration) {
        if ok {
            self.ok += 1;
        } else {
            self.refused += 1;
        }
        self.latencies.push(latency);
    }

    fn merge(&mut self, other: LoadResult) {
        self.ok += other.ok;
        self.refused += other.refused;
        self.latencies.extend(other.latencies);
    }
}

/// A complete HTTP/1.1 request, signed as Meta signs.
pub(crate) fn signed_post(path: &str, secret: &str, body: &[u8]) -> Arc<[u8]> {
    let signature = providers::meta::sign(secret, body);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-hub-signature-256: {signature}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat().into()
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Closed loop: so many connections keep one request open each.
#[derive(Debug)]
pub(crate) struct ClosedLoop {
    phase: Arc<AtomicU8>,
    connections: JoinSet<Result<LoadResult>>,
    counting_since: Instant,
}

impl ClosedLoop {
    /// Opens the connections and begins; nothing is counted yet.
    pub(crate) async fn start(address: SocketAddr, connections: usize, request: Arc<[u8]>) -> Result<Self> {
        let phase = Arc::new(AtomicU8::new(WARMING));
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let mut line = Line::open(address).await?;
            let (phase, request) = (phase.clone(), request.clone());
            tasks.spawn(async move {
                let mut result = LoadResult { latencies: Vec::with_capacity(16_384), ..LoadResult::default() };
                loop {
                    let sent = Instant::now();
                    let ok = line.ask(&request).await?;
                    match phase.load(Ordering::Relaxed) {
                        WARMING => {}
                        COUNTING => result.add(ok, sent.elapsed()),
                        _ => return Ok(result),
                    }
                }
            });
        }
        Ok(Self { phase, connections: tasks, counting_since: Instant::now() })
    }

    /// From here on answers count.
    pub(crate) fn count(&mut self) {
        self.counting_since = Instant::now();
        self.phase.store(COUNTING, Ordering::Relaxed);
    }

    /// Stops counting, lets the open requests finish, and sums up.
    pub(crate) async fn stop(self) -> Result<LoadResult> {
        self.phase.store(OVER, Ordering::Relaxed);
        let took = self.counting_since.elapsed();
        let mut result = gather(self.connections).await?;
        result.took = took;
        Ok(result)
    }
}

/// Open loop: `rate` requests a second whatever the answers do, for `time`; latency counts from the moment a request was
/// due, so that a server that falls behind cannot hide it. The first `warm_up` is not counted. Timers here are accurate to
/// a millisecond, which is in every latency.
pub(crate) async fn open_loop(
    address: SocketAddr,
    connections: usize,
    rate: f64,
    warm_up: Duration,
    time: Duration,
    request: Arc<[u8]>,
) -> Result<LoadResult> {
    let mut tasks = JoinSet::new();
    let begin = Instant::now() + Duration::from_millis(200);
    let hopeless = Arc::new(AtomicBool::new(false));
    for connection in 0..connections {
        let mut line = Line::open(address).await?;
        let (request, hopeless) = (request.clone(), hopeless.clone());
        tasks.spawn(async move {
            let mut result = LoadResult::default();
            // The n-th request of all is due at n / rate; connections take turns.
            for n in (connection..).step_by(connections) {
                let due_in = Duration::from_secs_f64(n as f64 / rate);
                if due_in > warm_up + time || hopeless.load(Ordering::Relaxed) {
                    break;
                }
                let due = begin + due_in;
                tokio::time::sleep_until(due.into()).await;
                let ok = line.ask(&request).await?;
                let latency = due.elapsed();
                if due_in >= warm_up {
                    result.add(ok, latency);
                }
                // Far behind, and it will not catch up: the latencies so far say so.
                if latency > time {
                    hopeless.store(true, Ordering::Relaxed);
                }
            }
            Ok(result)
        });
    }
    let mut result = gather(tasks).await?;
    result.took = begin.elapsed().saturating_sub(warm_up);
    Ok(result)
}

async fn gather(mut tasks: JoinSet<Result<LoadResult>>) -> Result<LoadResult> {
    let mut all = LoadResult::default();
    while let Some(result) = tasks.join_next().await {
        all.merge(result??);
    }
    all.latencies.sort_unstable();
    Ok(all)
}

/// One keep-alive connection.
struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Length of the last 200: all of them are alike, so one of that length needs no second look.
    length_of_200: usize,
}

impl Line {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 4096], length_of_200: 0 })
    }

    /// Sends a request, reads its answer, and says whether that was 200.
    async fn ask(&mut self, request: &[u8]) -> Result<bool> {
        self.stream.write_all(request).await?;
        let mut have = 0;
        loop {
            let space = self.buffer.get_mut(have..).filter(|space| !space.is_empty()).context("an answer over 4 KB")?;
            let read = self.stream.read(space).await?;
            if read == 0 {
                bail!("the connection was closed");
            }
            have += read;
            let got = self.buffer.get(..have).unwrap_or_default();
            let is_200 = got.starts_with(b"HTTP/1.1 200");
            if is_200 && have == self.length_of_200 {
                return Ok(true);
            }
            let Some(length) = whole_length(got)? else { continue };
            if have >= length {
                if is_200 {
                    self.length_of_200 = length;
                }
                return Ok(is_200);
            }
        }
    }
}

/// Length of head and body together, once the head is complete.
fn whole_length(got: &[u8]) -> Result<Option<usize>> {
    let Some(head) = got.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(got.get(..head).unwrap_or_default())?;
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    Ok(Some(head + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_announced_end() {
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n").unwrap(), None);
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").unwrap(), Some(43));
        assert_eq!(whole_length(b"HTTP/1.1 503 -\r\n\r\n").unwrap(), Some(18));
    }

    #[test]
    fn quantiles_are_of_the_sorted_latencies() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let result = LoadResult { latencies, ..LoadResult::default() };
        assert_eq!(result.quantile(0.5), Duration::from_millis(51));
        assert_eq!(result.quantile(0.99), Duration::from_millis(99));
        assert_eq!(LoadResult::default().quantile(0.5), Duration::ZERO);
    }
}
