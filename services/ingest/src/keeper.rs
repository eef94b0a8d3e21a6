//! Every timer of Roost. Each job runs in one ingest process at a time, under a lease row; whoever holds the lease does the
//! job, and when it dies another one goes on within half a minute. So senders may scale to zero, and nothing stops but
//! calls.

mod accounts;
mod bodies;
mod evidence;
mod gauges;
mod lanes;
mod leased;
mod receipts;
mod retention;

use crate::Context;
use leased::keep;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time between two purges.
const PURGE_EVERY: Duration = Duration::from_secs(600);
/// Time between two looks at the object store.
const CLEAR_EVERY: Duration = Duration::from_secs(3600);

/// Runs all jobs until `stop` is cancelled. A job that fails is tried again at its next turn.
pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let tuning = context.deps.tuning.clone();
    let look = tuning.keeper_interval;
    let mut jobs = JoinSet::new();
    jobs.spawn(keep(context.clone(), stop.clone(), "sweep", tuning.sweep, lanes::Sweep));
    jobs.spawn(keep(context.clone(), stop.clone(), "republish", tuning.redispatch, lanes::Republish));
    jobs.spawn(keep(context.clone(), stop.clone(), "due", look, lanes::FallDue));
    jobs.spawn(keep(context.clone(), stop.clone(), "deadlines", look, lanes::Deadlines));
    jobs.spawn(keep(context.clone(), stop.clone(), "leases", look, lanes::Leases::default()));
    jobs.spawn(keep(context.clone(), stop.clone(), "evidence", look, evidence::Evidence::default()));
    jobs.spawn(keep(context.clone(), stop.clone(), "pauses", look, accounts::Pauses));
    jobs.spawn(keep(context.clone(), stop.clone(), "receipts", tuning.receipts_interval, receipts::Parked));
    jobs.spawn(keep(context.clone(), stop.clone(), "retention", PURGE_EVERY, retention::Retention));
    jobs.spawn(keep(context.clone(), stop.clone(), "bodies", CLEAR_EVERY, bodies::Bodies));
    jobs.spawn(gauges::run(context, stop));
    while let Some(ended) = jobs.join_next().await {
        if let Err(error) = ended {
            // Ends this loop, and with it the process: another one keeps the time meanwhile.
            tracing::error!(%error, "A job of the keeper panicked");
            return;
        }
    }
}
