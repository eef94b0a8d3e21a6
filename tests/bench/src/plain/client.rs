//! The ceiling of the sender: a bare HTTP client that makes the same calls and does nothing with the answers.

use crate::bed::ACCESS_TOKEN;
use crate::cpu;
use crate::webhooks::{ACCOUNTS, phone_number_id};
use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

/// What it prints at its end, in JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Calls {
    /// Answered, without the first one, at which the clock starts.
    pub(crate) calls: u64,
    /// Seconds from the first answer to the last.
    pub(crate) seconds: f64,
    /// Microseconds of processor time in that time.
    pub(crate) cpu_us: u64,
    /// Resident memory at the end.
    pub(crate) resident_mb: f64,
}

/// Makes `calls` calls, `concurrency` of them at a time.
pub(crate) async fn run(api: SocketAddr, concurrency: usize, calls: usize) -> Result<Calls> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(concurrency).build(connector);
    let (next, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::OnceLock::new()));
    let me = std::process::id();
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (client, next, begun) = (client.clone(), next.clone(), begun.clone());
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= calls {
                    return anyhow::Ok(());
                }
                let response = client.request(request(api, n)?).await?;
                ensure!(response.status().is_success(), "the provider answered {}", response.status());
                response.into_body().collect().await?;
                begun.get_or_init(|| (Instant::now(), cpu::used(me).unwrap_or_default()));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (since, used) = begun.get().copied().unwrap_or_else(|| (Instant::now(), std::time::Duration::ZERO));
    Ok(Calls {
        calls: u64::try_from(calls.saturating_sub(1))?,
        seconds: since.elapsed().as_secs_f64(),
        cpu_us: u64::try_from(cpu::used(me)?.saturating_sub(used).as_micros())?,
        resident_mb: cpu::resident_mb(me)?,
    })
}

fn request(api: SocketAddr, n: usize) -> Result<Request<Full<Bytes>>> {
    let number = phone_number_id(u32::try_from(n % ACCOUNTS as usize)?);
    let body = json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": format!("9715000{:05}", n % 10_000),
        "biz_opaque_callback_data": format!("bare.{n}"), "type": "text",
        "text": {"body": format!("an answer of about as many words as people write, number {n}"), "preview_url": false}});
    let request = Request::post(format!("http://{api}/v25.0/{number}/messages"))
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {ACCESS_TOKEN}"));
    Ok(request.body(Full::new(Bytes::from(body.to_string())))?)
}
