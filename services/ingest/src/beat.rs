//! Ingest's own sign of life, with how far it has come.

use crate::Context;
use domain::Timestamp;
use queue::topics::WEBHOOKS;
use serde_json::json;
use store::StoreError;
use store::heartbeat::{self, Heartbeat};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// What operators know this role as.
pub(crate) const ROLE: &str = "ingest";

pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let started_at = context.deps.clock.now();
    let mut ticks = tokio::time::interval(context.deps.tuning.beat_interval.min(heartbeat::LIVES_FOR / 6));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // When the queue was seen empty, and how many batches had been taken by then: believed at the next beat, if none came
    // in between. What the broker had handed out and we had not looked at yet is here by then.
    let mut seen_empty: Option<(Timestamp, u64)> = None;
    let mut empty_at: Option<Timestamp> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let now = context.deps.clock.now();
        let idle = context.progress.idle_at();
        if let Some((at, taken)) = seen_empty
            && idle == Some(taken)
        {
            empty_at = Some(at);
        }
        let empty = matches!(context.deps.queue.depth(&WEBHOOKS, None).await, Ok(depth) if depth.ready == 0);
        seen_empty = idle.filter(|_| empty).map(|taken| (now, taken));
        if let Err(error) = beat(&context, started_at, now, empty_at).await {
            tracing::debug!(%error, "A heartbeat could not be written");
        }
    }
    let ended = async {
        let mut tx = context.deps.store.autocommit().await?;
        heartbeat::end(&mut tx, ROLE, &context.deps.instance).await?;
        tx.commit().await
    };
    if let Err(error) = ended.await {
        tracing::debug!(%error, "The last heartbeat could not be taken back; it grows old by itself");
    }
}

async fn beat(
    context: &Context,
    started_at: Timestamp,
    now: Timestamp,
    empty_at: Option<Timestamp>,
) -> Result<(), StoreError> {
    let stats = context.deps.queue.stats();
    let webhooks = stats.topics.get(WEBHOOKS.name()).cloned().unwrap_or_default();
    // A publish may take so long, and its batch may wait as long for a slot.
    let skew = context.deps.tuning.confirm_timeout * 2;
    let heard = context.progress.take_heard();
    let mut tx = context.deps.store.begin().await?;
    heartbeat::beat(
        &mut tx,
        &Heartbeat {
            role: ROLE,
            instance: &context.deps.instance,
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            beat_at: now,
            settled_until: context.progress.settled_until(empty_at, skew),
            stats: json!({
                "delivered": webhooks.delivered,
                "redelivered": webhooks.redelivered,
                "unacked": webhooks.unacked,
            }),
        },
    )
    .await?;
    heartbeat::accounts_heard(&mut tx, &heard).await?;
    tx.commit().await
}
