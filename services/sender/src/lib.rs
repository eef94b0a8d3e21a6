//! References to due messages become calls to providers, and the answers become reports.
//!
//! ```text
//! [outbound.<account>] ─▶ intake ─▶ desk ─▶ claimer ─▶ call ─▶ reports ─▶ [results]
//!                                            │  slots, pace, claim   │
//!                                            └─◀ returns ◀───────────┘  claimed and not called
//! ```
//!
//! A message is called only while its row is IN_FLIGHT under this process' own token, at a slot of its account's rate, and
//! with enough of its lease left for the whole call. How it ended goes through the results queue: a sender never writes a
//! message's status. What it writes is the row in `sends`, the rates, the recipients' pace and the status of an account that
//! its provider calls broken.

mod call;
mod claimer;
mod database_clock;
mod desk;
mod fence;
mod intake;
mod lessons;
mod reports;
mod returns;
mod shares;
mod slots;

use claimer::{Claimer, Job};
use desk::{Desk, Taken};
use domain::{Account, AccountId, Clock};
use lessons::Lessons;
use queue::Queue;
use reports::Reports;
use returns::Return;
use runtime::config::Tuning;
use runtime::health::{Health, Part};
use runtime::http_client::Http;
use runtime::loops::{LoopEnded, in_good_order};
use runtime::metrics::Metrics;
use runtime::reconnect::Reconnect;
use sha2::{Digest as _, Sha256};
use shares::Shares;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use store::account::Directory;
use store::start::when_ready;
use store::{Store, StoreError};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// What a sender needs.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where references come from and reports go to.
    pub queue: Queue,
    /// Where the rows are.
    pub store: Store,
    /// From which accounts to send.
    pub accounts: Arc<[Account]>,
    /// Now, for what people see.
    pub clock: Arc<dyn Clock>,
    /// Makes the calls.
    pub http: Http,
    /// Sizes and deadlines.
    pub tuning: Tuning,
    /// This process.
    pub instance: String,
    /// Counters.
    pub metrics: Metrics,
    /// Whether this role can do its job.
    pub health: Health,
}

/// What every part of the sender has.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) deps: Deps,
    pub(crate) directory: Directory,
    /// SHA-256 of each account's access token, in hex.
    pub(crate) tokens: Vec<(AccountId, String)>,
    pub(crate) desk: Desk,
    pub(crate) shares: Arc<Shares>,
    pub(crate) lessons: Lessons,
    pub(crate) reports: Reports,
    returns: mpsc::UnboundedSender<Return>,
    /// Claims that are being given back.
    pub(crate) returning: AtomicUsize,
    late: mpsc::UnboundedSender<Box<Job>>,
    /// Told when there may be something to claim.
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    pub(crate) needs: Needs,
    database_away: AtomicBool,
}

/// What can be away, each with a say of its own: the return of one says nothing of the other.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Without it nothing can be claimed.
    pub(crate) database: Part,
    /// Without it nothing can be reported.
    pub(crate) results: Part,
}

impl Needs {
    fn of(part: &Part) -> Self {
        Self { database: part.cause("database"), results: part.cause("results") }
    }
}

impl Shared {
    /// A claim that was not called goes back without having counted.
    pub(crate) fn give_back(&self, job: Box<Job>) {
        let Job { claim, token, taken, .. } = *job;
        self.return_claim(token, taken, claim.channel_account_id);
    }

    pub(crate) fn return_claim(&self, token: Arc<str>, taken: Taken, account: AccountId) {
        self.returning.fetch_add(1, Ordering::Relaxed);
        if self.returns.send(Return { token, taken, account }).is_err() {
            // The other side ends last of all; what comes still later ends by its lease.
            self.returning.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A claim that missed its slot waits for another one, as long as its lease allows.
    pub(crate) fn again(&self, job: Box<Job>) {
        match self.late.send(job) {
            Ok(()) => self.wake.notify_one(),
            Err(mpsc::error::SendError(job)) => self.give_back(job),
        }
    }

    /// SHA-256 of the account's access token, in hex.
    pub(crate) fn token_hash(&self, account: AccountId) -> String {
        self.tokens.iter().find(|(id, _)| *id == account).map(|(_, hash)| hash.clone()).unwrap_or_default()
    }

    pub(crate) fn database_is_away(&self, error: &StoreError) {
        if !self.database_away.swap(true, Ordering::Relaxed) {
            warn!(%error, "Nothing can be claimed: {error}");
            self.needs.database.not_ready("nothing can be claimed: the database does not answer");
        }
    }

    pub(crate) fn database_answers(&self) {
        if self.database_away.swap(false, Ordering::Relaxed) {
            info!("The database answers again");
            self.needs.database.ready();
        }
    }
}

/// Runs the sender until `stop` is cancelled and what was called is reported. Broker and database may be away, and the
/// schema not migrated yet: it says that it is not ready, and keeps trying.
/// # Errors
/// Only when one of its loops ends by itself.
pub async fn run(deps: Deps, stop: CancellationToken) -> Result<(), LoopEnded> {
    let part = deps.health.part("sender");
    let Some(directory) = prepare(&deps, &part, &stop).await else { return Ok(()) };
    part.ready();
    let drain = deps.tuning.drain;
    let wake = Arc::new(Notify::new());
    let (reports, outgoing) = Reports::channel();
    let (returns, returned) = mpsc::unbounded_channel();
    let (late, late_jobs) = mpsc::unbounded_channel();
    let accounts: Vec<AccountId> = directory.iter().map(|(id, _)| id).collect();
    let tokens = directory.iter().map(|(id, account)| (id, token_hash(account))).collect();
    let shared = Arc::new(Shared {
        shares: Shares::new(deps.tuning.sender_concurrency, accounts.len(), wake.clone()),
        desk: Desk::new(wake.clone()),
        deps,
        directory,
        tokens,
        lessons: Lessons::default(),
        reports,
        returns,
        returning: AtomicUsize::new(0),
        late,
        wake,
        stop: stop.clone(),
        needs: Needs::of(&part),
        database_away: AtomicBool::new(false),
    });

    let calls = TaskTracker::new();
    let mut loops = JoinSet::new();
    for account in accounts {
        loops.spawn(intake::run(shared.clone(), account, stop.clone()));
    }
    loops.spawn(lessons::run(shared.clone(), stop.clone()));
    loops.spawn(Claimer::new(shared.clone(), late_jobs, calls.clone()).run());
    // These two outlive the others: what was called is reported, what was not is given back.
    let mut last = JoinSet::new();
    let ending = CancellationToken::new();
    last.spawn(until(ending.clone(), reports::run(shared.clone(), outgoing)));
    last.spawn(until(ending.clone(), returns::run(shared.clone(), returned)));

    // The budget of the whole process, with something left for the others.
    let budget = drain.mul_f64(0.9);
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(budget).await;
    };
    // Both parts under one deadline: whichever it finds pending is the last.
    let in_order = async {
        while let Some(ended) = loops.join_next().await {
            in_good_order("sender", ended, &stop)?;
        }
        finish(&shared, &calls).await;
        Ok(())
    };
    let ended = tokio::select! {
        biased;
        ended = in_order => Some(ended),
        () = over => None,
    };
    if let Some(ended) = ended {
        ended?;
    } else {
        loops.abort_all();
        shared.desk.clear();
        warn!("Not every call could be finished and reported in time; their leases end them");
    }
    ending.cancel();
    while last.join_next().await.is_some() {}
    Ok(())
}

/// Waits until no call is under way, every report is published and every claim given back.
async fn finish(shared: &Shared, calls: &TaskTracker) {
    shared.desk.clear();
    calls.close();
    calls.wait().await;
    while shared.reports.is_stuck(0) || shared.returning.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until(ending: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = ending.cancelled() => {}
        () = work => {}
    }
}

fn token_hash(account: &Account) -> String {
    hex::encode(Sha256::digest(account.access_token.expose().as_bytes()))
}

/// Waits for the database and its schema, and mirrors the accounts into it. `None`: stopped before that.
async fn prepare(deps: &Deps, part: &Part, stop: &CancellationToken) -> Option<Directory> {
    let mut waits = Reconnect::new(deps.tuning.reconnect_first, deps.tuning.reconnect_most);
    let work = || mirrored(deps);
    let ready = when_ready(&deps.store, |missing| part.not_ready(missing), || waits.next_wait(), work);
    stop.run_until_cancelled(ready).await
}

async fn mirrored(deps: &Deps) -> Result<Directory, StoreError> {
    let mut tx = deps.store.begin().await?;
    let accounts = store::account::mirror(&mut tx, &deps.accounts, deps.clock.now()).await?;
    tx.commit().await?;
    Ok(accounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_answers_does_not_make_a_sender_ready_whose_results_cannot_be_published() {
        let health = Health::new();
        let part = health.part("sender");
        part.ready();
        let needs = Needs::of(&part);
        needs.results.not_ready("results cannot be published");
        needs.database.not_ready("the database does not answer");
        needs.database.ready();
        assert_eq!(health.reasons().into_keys().collect::<Vec<_>>(), ["sender: results"]);
        needs.database.not_ready("the database does not answer");
        needs.results.ready();
        assert_eq!(health.reasons().into_keys().collect::<Vec<_>>(), ["sender: database"]);
        needs.database.ready();
        assert!(health.is_ready());
    }
}
