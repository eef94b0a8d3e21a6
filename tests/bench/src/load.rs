//! A load generator small enough to leave the cores to what is measured: raw keep-alive connections, one request at a time
//! each, a body made before the clock starts.

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a run of load came to.
#[derive(Clone, Debug)]
pub struct LoadResult {
    /// Requests answered 200.
    pub ok: u64,
    /// Requests answered anything else.
    pub refused: u64,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Latencies, sorted.
    pub latencies: Vec<Duration>,
}

impl LoadResult {
    /// Answered 200 a second.
    pub fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let ok = self.ok as f64;
        ok / self.took.as_secs_f64()
    }

    /// The latency below which `share` of the requests stayed.
    pub fn quantile(&self, share: f64) -> Duration {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = ((self.latencies.len().saturating_sub(1)) as f64 * share) as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

/// A complete HTTP/1.1 request, signed as Meta signs.
pub fn signed_post(path: &str, secret: &str, body: &[u8]) -> Vec<u8> {
    use hmac::{KeyInit, Mac};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap_or_else(|_| unreachable!("any length is a key"));
    mac.update(body);
    let signature = hex::encode(mac.finalize().into_bytes());
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-hub-signature-256: sha256={signature}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Closed loop: `connections` keep one request open each for `time`. `request(n)` makes the n-th request of a connection.
pub async fn closed_loop(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    request: impl Fn(usize, u64) -> Arc<Vec<u8>> + Send + Sync + Clone + 'static,
) -> Result<LoadResult> {
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..connections {
        let (stop, request) = (stop.clone(), request.clone());
        tasks.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (mut ok, mut refused, mut latencies) = (0u64, 0u64, Vec::with_capacity(16_384));
            let mut buffer = vec![0u8; 4096];
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let bytes = request(connection, n);
                n += 1;
                let sent = Instant::now();
                stream.write_all(&bytes).await?;
                if read_answer(&mut stream, &mut buffer).await? { ok += 1 } else { refused += 1 }
                latencies.push(sent.elapsed());
            }
            Ok::<_, anyhow::Error>((ok, refused, latencies))
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut result = LoadResult { ok: 0, refused: 0, took: Duration::ZERO, latencies: Vec::new() };
    for task in tasks {
        let (ok, refused, latencies) = task.await??;
        result.ok += ok;
        result.refused += refused;
        result.latencies.extend(latencies);
    }
    result.took = begun.elapsed();
    result.latencies.sort_unstable();
    Ok(result)
}

/// Reads one answer with a known length and says whether it was 200.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<bool> {
    let mut have = 0;
    loop {
        let space = buffer.get_mut(have..).filter(|space| !space.is_empty()).context("an answer over 4 KB")?;
        let read = stream.read(space).await?;
        if read == 0 {
            bail!("the connection was closed");
        }
        have += read;
        let got = buffer.get(..have).unwrap_or_default();
        let Some(head) = got.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(got.get(..head).unwrap_or_default())?;
        let length = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse::<usize>().ok())
            .unwrap_or(0);
        if have >= head + 4 + length {
            return Ok(got.starts_with(b"HTTP/1.1 200"));
        }
    }
}
