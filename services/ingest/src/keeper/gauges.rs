//! What waits, as numbers for whoever watches. No lease: every ingest process looks for itself and shows the same, whereas
//! one that lost a lease would go on showing what was true then. A dashboard takes the maximum over processes.

use crate::Context;
use domain::SendState;
use queue::Topic;
use queue::Wire;
use queue::topics::{DEAD, OUTBOUND, RESULTS, WEBHOOKS};
use std::time::Duration;
use store::{StoreError, backlog};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Time between two looks: that of a usual scrape.
const EVERY: Duration = Duration::from_secs(15);

/// Looks until `stop` is cancelled. What cannot be asked keeps its last value: that a database or a broker is away is shown
/// elsewhere.
pub(super) async fn run(context: Context, stop: CancellationToken) {
    let looking = async {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = look_at_sends(&context).await {
                debug!(%error, "What waits to be sent cannot be counted now");
            }
            look_at_queues(&context).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

async fn look_at_sends(context: &Context) -> Result<(), StoreError> {
    let metrics = &context.deps.metrics;
    let mut tx = context.deps.store.read().await?;
    let now = tx.database_now().await?;
    let states = backlog::by_state(&mut tx).await?;
    let accounts = backlog::waiting(&mut tx, now).await?;
    drop(tx);
    for state in SendState::ALL {
        let sends = states.iter().find(|row| row.state == *state).map_or(0, |row| row.sends);
        metrics.sends(state.as_str(), whole(sends));
    }
    for waiting in accounts {
        let oldest = [waiting.oldest, waiting.oldest_bulk].into_iter().flatten().min();
        metrics.lane_heads_waiting(&waiting.account, whole(waiting.heads));
        metrics.oldest_due_age(&waiting.account, oldest.map_or(Duration::ZERO, |due| now.since(due)));
        metrics.account_paused(
            &waiting.account,
            match waiting.status.as_str() {
                "PAUSED" => Some("paused"),
                "BROKEN" => Some("broken"),
                _ => None,
            },
        );
    }
    Ok(())
}

async fn look_at_queues(context: &Context) {
    look_at(context, &WEBHOOKS).await;
    look_at(context, &RESULTS).await;
    look_at(context, &DEAD).await;
    for (_, account) in context.accounts.iter() {
        match context.deps.queue.depth(&OUTBOUND, Some(&account.name)).await {
            Ok(depth) => {
                context.deps.metrics.queue_depth(&format!("{}.{}", OUTBOUND.name(), account.name), depth.ready);
            }
            Err(error) => debug!(%error, "How much waits for {} cannot be asked now", account.name),
        }
    }
}

async fn look_at<T: Wire>(context: &Context, topic: &Topic<T>) {
    match context.deps.queue.depth(topic, None).await {
        Ok(depth) => context.deps.metrics.queue_depth(topic.name(), depth.ready),
        Err(error) => debug!(%error, "How much waits in {} cannot be asked now", topic.name()),
    }
}

fn whole(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
