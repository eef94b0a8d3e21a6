//! Ingest's own sign of life, with how far it has come.
//!
//! Beats are told and judged by the database's clock, so it does not matter what the hosts believe. How far we have come is
//! told in arrival times, which are those of the ingress hosts. An empty queue therefore counts as *now* only by the
//! slower of two clocks, ours and the database's, less how far the clocks of hosts that are kept in step may be apart:
//! said too early, a webhook still on its way would count as heard; said late, a window ends a second later.

use crate::progress::{beat_every, holds_for};
use crate::{Context, Deps};
use domain::Timestamp;
use queue::topics::WEBHOOKS;
use serde_json::json;
use std::time::Duration;
use store::StoreError;
use store::heartbeat::{self, Heartbeat};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// What operators know this role as.
const ROLE: &str = "ingest";
/// How far the clocks of ingress, database and ingest may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(1);
/// Longest wait for the last word.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Says that this process listens from now on and cannot say yet how far it is. Before it takes its first webhook, and
/// before it takes one again after it had fallen silent: nobody must believe that there is nothing in its hands.
pub(crate) async fn announce(deps: &Deps, started_at: Timestamp) -> Result<(), StoreError> {
    let mut tx = deps.store.begin().await?;
    if deps.store.is_sqlite() {
        // One process at a time has the file: whoever else is named is gone, with the queue's file or without.
        heartbeat::end_others(&mut tx, ROLE, &deps.instance).await?;
    }
    let beat_at = tx.database_now().await?;
    heartbeat::beat(&mut tx, &of(deps, started_at, beat_at, None)).await?;
    tx.commit().await
}

fn of(deps: &Deps, started_at: Timestamp, beat_at: Timestamp, settled_until: Option<Timestamp>) -> Heartbeat<'_> {
    let stats = deps.queue.stats();
    let webhooks = stats.topics.get(WEBHOOKS.name()).cloned().unwrap_or_default();
    Heartbeat {
        role: ROLE,
        instance: &deps.instance,
        version: env!("CARGO_PKG_VERSION"),
        started_at,
        beat_at,
        settled_until,
        holds_for: holds_for(&deps.tuning),
        stats: json!({
            "delivered": webhooks.delivered,
            "redelivered": webhooks.redelivered,
            "unacked": webhooks.unacked,
        }),
    }
}

/// What is seen of the queue.
#[derive(Debug, Default)]
struct Seen {
    /// When the queue was seen empty, and how many batches had been taken by then: believed at the next beat, if none came
    /// in between. What the broker had handed out and we had not looked at yet is here by then.
    empty: Option<(Timestamp, u64)>,
    empty_at: Option<Timestamp>,
    /// What was told last.
    told: Option<Timestamp>,
}

/// Beats until `drained` is cancelled, which is when everything that was taken is written or given back.
pub(crate) async fn run(context: Context, drained: CancellationToken) {
    let mut ticks = tokio::time::interval(beat_every(&context.deps.tuning));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = drained.cancelled() => break,
        }
        let begun = Instant::now();
        match beat(&context, &mut seen).await {
            Ok(()) => context.progress.beaten(begun),
            Err(error) => tracing::debug!(%error, "A heartbeat could not be written"),
        }
    }
    if !matches!(tokio::time::timeout(LAST_WORD, end(&context, seen.told)).await, Ok(Ok(()))) {
        tracing::debug!("The last heartbeat could not be taken back; it grows old by itself");
    }
}

async fn beat(context: &Context, seen: &mut Seen) -> Result<(), StoreError> {
    let mut tx = context.deps.store.read().await?;
    let database_now = tx.database_now().await?;
    tx.commit().await?;
    let now = context.deps.clock.now().min(database_now);
    let idle = context.progress.idle_at();
    if let Some((at, taken)) = seen.empty
        && idle == Some(taken)
    {
        seen.empty_at = Some(at);
    }
    let empty = matches!(context.deps.queue.depth(&WEBHOOKS, None).await, Ok(depth) if depth.ready == 0);
    seen.empty = idle.filter(|_| empty).map(|taken| (now, taken));

    // A publish may take so long, and its batch may wait as long for a slot.
    let skew = context.deps.tuning.confirm_timeout * 2 + CLOCKS_APART;
    let heard = context.progress.take_heard();
    let settled_until = context.progress.settled_until(seen.empty_at, skew, now);
    let told = async {
        let mut tx = context.deps.store.begin().await?;
        heartbeat::beat(&mut tx, &of(&context.deps, context.started_at, database_now, settled_until)).await?;
        heartbeat::accounts_heard(&mut tx, &heard).await?;
        tx.commit().await
    };
    let told = told.await;
    match told {
        Ok(()) => seen.told = settled_until,
        // For the next beat.
        Err(_) => heard.into_iter().for_each(|(account, at)| context.progress.heard(account, at)),
    }
    told
}

/// The last word. When something went back to the queue, what was told before stands a little longer, until others have
/// taken that and say so themselves: they may have come further than what they get now.
async fn end(context: &Context, told: Option<Timestamp>) -> Result<(), StoreError> {
    let mut tx = context.deps.store.begin().await?;
    if context.progress.left_behind() {
        let beat_at = tx.database_now().await?;
        let last = of(&context.deps, context.started_at, beat_at, told);
        heartbeat::beat(&mut tx, &Heartbeat { holds_for: Duration::ZERO, ..last }).await?;
    } else {
        heartbeat::end(&mut tx, ROLE, &context.deps.instance).await?;
    }
    tx.commit().await
}
