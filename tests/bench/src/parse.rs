//! What it costs to understand one webhook, in this process alone: part of what the ingest row measures with all around it.

use crate::webhooks;
use anyhow::{Context, Result};
use domain::{Clock, SystemClock};
use providers::{Arrived, source_kind};
use std::hint::black_box;
use std::time::Instant;

/// Webhooks in a round.
const WEBHOOKS: usize = 5_000;
/// The best of so many counts: everything else that runs only adds.
const ROUNDS: usize = 20;

/// A line with the size of a webhook and what parsing it takes at best.
/// # Errors
/// When the webhooks are not such as the provider understands.
pub(crate) fn run() -> Result<String> {
    let meta = source_kind("meta").context("a kind of source called meta")?;
    let hooks = webhooks::traffic(WEBHOOKS, 1);
    let received_at = SystemClock::default().now();
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for hook in &hooks {
            let arrived = Arrived { headers: &[], body: black_box(&hook.body), received_at };
            let items = meta.parse(&arrived).ok().context("a webhook that is none")?;
            anyhow::ensure!(black_box(items).len() == 1, "one message in each");
        }
        best = best.min(begun.elapsed().as_secs_f64() / hooks.len() as f64 * 1e6);
    }
    let bytes: usize = hooks.iter().map(|hook| hook.body.len()).sum();
    Ok(format!("parsing a webhook of {} bytes on average: {best:.2} µs", bytes / hooks.len().max(1)))
}
