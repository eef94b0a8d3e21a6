//! The queue into the store: parse, deduplicate, write in batches, acknowledge after the commit.
//!
//! One loop per queue: `webhooks` reads what ingress kept, `results` what senders report, `dead` what could not be
//! processed. The `keeper` owns every timer. Nothing is acknowledged before its commit, so whatever dies, dies before it
//! counts: everything comes again, and everything is written so that coming again changes nothing.

mod batch;
mod beat;
mod dead;
mod hold;
mod keeper;
mod progress;
mod results;
mod webhooks;

use crate::hold::Needs;
use crate::progress::Progress;
use dispatch::Dispatcher;
use domain::{Account, Clock, Source, Timestamp};
use queue::Queue;
use runtime::blobs::Blobs;
use runtime::config::Tuning;
use runtime::health::{Health, Part};
use runtime::loops::{LoopEnded, in_good_order};
use runtime::metrics::Metrics;
use runtime::reconnect::Reconnect;
use std::sync::Arc;
use store::account::Directory;
use store::start::when_ready;
use store::{Store, StoreError};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What ingest needs.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where webhooks and results come from.
    pub queue: Queue,
    /// Where they go.
    pub store: Store,
    /// Who may sign webhooks.
    pub sources: Arc<[Source]>,
    /// The accounts that webhooks may be for.
    pub accounts: Arc<[Account]>,
    /// Now, for what people see.
    pub clock: Arc<dyn Clock>,
    /// Bodies over 1 MiB.
    pub blobs: Blobs,
    /// Sizes and deadlines.
    pub tuning: Tuning,
    /// This process.
    pub instance: String,
    /// Sends a lane's next head when the one before is finished.
    pub dispatcher: Dispatcher,
    /// Counters.
    pub metrics: Metrics,
    /// Whether this role can do its job.
    pub health: Health,
}

/// What every loop of ingest has.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) deps: Deps,
    /// The accounts with their ids.
    pub(crate) accounts: Arc<Directory>,
    /// How far webhooks are committed.
    pub(crate) progress: Arc<Progress>,
    /// Whether what this role needs is there.
    pub(crate) needs: Arc<Needs>,
    /// Since when this process runs.
    pub(crate) started_at: Timestamp,
}

/// Runs ingest until `stop` is cancelled and what was at hand is finished. Broker and database may be away, and the schema
/// not migrated yet: it says that it is not ready, and keeps trying.
/// # Errors
/// Only when one of its loops ends by itself.
pub async fn run(deps: Deps, stop: CancellationToken) -> Result<(), LoopEnded> {
    let part = deps.health.part("ingest");
    let started_at = deps.clock.now();
    let progress = Arc::new(Progress::default());
    let Some((accounts, announced)) = prepare(&deps, &part, started_at, &stop).await else { return Ok(()) };
    progress.beaten(announced);
    part.ready();
    let needs = Arc::new(Needs::of(&part));
    let context = Context { deps, accounts: Arc::new(accounts), progress, needs, started_at };

    let mut loops = JoinSet::new();
    loops.spawn(webhooks::run(context.clone(), stop.clone()));
    loops.spawn(results::run(context.clone(), stop.clone()));
    loops.spawn(dead::run(context.clone(), stop.clone()));
    loops.spawn(keeper::run(context.clone(), stop.clone()));
    // Lives on until the others have written or given back what they hold. A set of its own, so that it ends with us.
    let drained = CancellationToken::new();
    let mut beating = JoinSet::new();
    beating.spawn(beat::run(context, drained.clone()));
    loop {
        let ended = tokio::select! {
            ended = loops.join_next() => ended,
            ended = beating.join_next() => ended,
        };
        match ended {
            Some(ended) => in_good_order("ingest", ended, &stop)?,
            None => break,
        }
    }
    drained.cancel();
    beating.join_next().await.map_or(Ok(()), |ended| in_good_order("ingest", ended, &stop))
}

/// Waits for the database and its schema, mirrors the accounts into it and says there that this process listens from now
/// on. `None`: stopped before that.
async fn prepare(
    deps: &Deps,
    part: &Part,
    started_at: Timestamp,
    stop: &CancellationToken,
) -> Option<(Directory, Instant)> {
    let mut waits = Reconnect::new(deps.tuning.reconnect_first, deps.tuning.reconnect_most);
    let work = || announced(deps, started_at);
    let ready = when_ready(&deps.store, |missing| part.not_ready(missing), || waits.next_wait(), work);
    stop.run_until_cancelled(ready).await
}

async fn announced(deps: &Deps, started_at: Timestamp) -> Result<(Directory, Instant), StoreError> {
    let mut tx = deps.store.begin().await?;
    let accounts = store::account::mirror(&mut tx, &deps.accounts, deps.clock.now()).await?;
    tx.commit().await?;
    let announced = Instant::now();
    beat::announce(deps, started_at).await?;
    Ok((accounts, announced))
}
