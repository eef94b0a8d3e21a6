//! What replies teach about the provider: too fast, broken, failing, well again. Kept where every replica sees it.

use crate::Shared;
use domain::outbound::ThrottleScope;
use domain::{Account, AccountId, ConversationId, SendError};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::rate_limit::{account_scope, app_scope, exhaust_pair, parent_scope, probe, raise, slow};
use store::{StoreError, Tx, account};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The breaker: so many failures in a row …
const FAILURES_IN_A_ROW: u32 = 8;
/// … over at least this time slow an account to one call a second.
const FAILING_FOR: Duration = Duration::from_secs(5);
/// How often what success taught is written down.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How often accounts that a wrong token broke are looked at.
const REVIVE_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for writing a lesson down before the report goes out.
const WRITE_WITHIN: Duration = Duration::from_secs(2);

/// What was learnt and not written down yet.
#[derive(Debug, Default)]
pub(crate) struct Lessons(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failing: HashMap<AccountId, Failing>,
    accepted: HashMap<AccountId, u32>,
    /// Scopes known to be slower than configured, with their rates.
    slowed: HashMap<String, f64>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    in_a_row: u32,
}

impl Lessons {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database says what a scope's rate is; `configured` is what it may be.
    pub(crate) fn rate_is(&self, scope: &str, rate: f64, configured: f64) {
        let mut state = self.state();
        if rate < configured {
            state.slowed.insert(scope.to_owned(), rate);
        } else {
            state.slowed.remove(scope);
        }
    }

    /// A call was accepted.
    pub(crate) fn succeeded(&self, account: AccountId) {
        let mut state = self.state();
        state.failing.remove(&account);
        *state.accepted.entry(account).or_default() += 1;
    }

    /// Whether this failure is one too many.
    fn failed(&self, account: AccountId, now: Instant) -> bool {
        let mut state = self.state();
        let failing = state.failing.entry(account).or_insert(Failing { since: now, in_a_row: 0 });
        failing.in_a_row += 1;
        let trips =
            failing.in_a_row >= FAILURES_IN_A_ROW && now.saturating_duration_since(failing.since) >= FAILING_FOR;
        if trips {
            state.failing.remove(&account);
        }
        trips
    }
}

/// Learns from a call that was not accepted. Returns once what others must know is written down, or could not be.
pub(crate) async fn learn(
    shared: &Shared,
    id: AccountId,
    configured: &Account,
    conversation: ConversationId,
    error: &SendError,
) {
    let name = configured.name.as_str();
    match error {
        SendError::Throttled { scope, code, retry_after, .. } => {
            warn!(account = name, code, scope = ?scope, "{name} was throttled by its provider ({code})");
            let (scope, wait) = (*scope, *retry_after);
            write(shared, async |tx| throttled(tx, id, configured, conversation, scope, wait).await).await;
        }
        SendError::AccountBroken { code, reason } => {
            let now = shared.deps.clock.now();
            let token = shared.token_hash(id);
            let broken = write(shared, async |tx| account::mark_broken(tx, id, &token, code, reason, now).await).await;
            if broken == Some(true) {
                warn!(account = name, code, "{name} is broken: {reason}. Its messages wait; nothing fails");
                shared.deps.metrics.account_paused(name, Some("broken"));
                shared.deps.store.wake_readers();
            }
        }
        SendError::Unreachable(_) | SendError::Transient { .. } | SendError::OutcomeUnknown(_) => {
            if shared.lessons.failed(id, Instant::now()) {
                warn!(
                    account = name,
                    "Nothing has got through for {name} for a while: one call a second finds out when it does"
                );
                write(shared, async |tx| probe(tx, &account_scope(id)).await).await;
            }
        }
        SendError::Rejected { .. } => {
            // The provider works; it does not want this message.
            shared.lessons.state().failing.remove(&id);
        }
    }
}

async fn throttled(
    tx: &mut Tx,
    id: AccountId,
    configured: &Account,
    conversation: ConversationId,
    scope: ThrottleScope,
    retry_after: Option<Duration>,
) -> Result<bool, StoreError> {
    let scope = match (scope, &configured.parent_external_id) {
        (ThrottleScope::Pair, _) => {
            // The burst counts as used up: one message per interval from here on, and none before Retry-After.
            let now = tx.database_now().await?;
            let burst = configured.pair_interval * configured.pair_burst;
            exhaust_pair(tx, conversation, now + burst + retry_after.unwrap_or_default()).await?;
            return Ok(true);
        }
        (ThrottleScope::App, _) => app_scope(configured.source.as_str()),
        (ThrottleScope::Parent, Some(parent)) => parent_scope(parent),
        (ThrottleScope::Account | ThrottleScope::Parent, _) => account_scope(id),
    };
    slow(tx, &scope, retry_after).await
}

/// Writes a lesson down. One that cannot be written is learnt again from the next reply.
async fn write<T>(shared: &Shared, lesson: impl AsyncFnOnce(&mut Tx) -> Result<T, StoreError>) -> Option<T> {
    let written = async {
        let mut tx = shared.deps.store.begin().await?;
        let done = lesson(&mut tx).await?;
        tx.commit().await?;
        Ok::<T, StoreError>(done)
    };
    match tokio::time::timeout(WRITE_WITHIN, written).await {
        Ok(Ok(done)) => Some(done),
        Ok(Err(error)) => {
            warn!(%error, "What a reply taught could not be written down");
            None
        }
        Err(_) => {
            warn!("What a reply taught could not be written down in time");
            None
        }
    }
}

/// Raises rates after successes, and revives accounts whose token was exchanged, until `stop` is cancelled.
pub(crate) async fn run(shared: std::sync::Arc<Shared>, stop: CancellationToken) {
    let mut revive_at = Instant::now();
    loop {
        if Instant::now() >= revive_at {
            revive(&shared).await;
            revive_at = Instant::now() + REVIVE_EVERY;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WRITE_EVERY) => {}
        }
        raise_rates(&shared).await;
    }
}

async fn raise_rates(shared: &Shared) {
    let (accepted, slowed) = {
        let mut state = shared.lessons.state();
        (std::mem::take(&mut state.accepted), state.slowed.clone())
    };
    let mut raised: HashMap<String, (f64, u32)> = HashMap::new();
    for (id, count) in accepted {
        let Some(configured) = shared.directory.account(id) else { continue };
        let own = (account_scope(id), configured.rate_per_second);
        for (scope, rate) in std::iter::once(own).chain(shared.directory.shared_scopes(configured)) {
            if slowed.contains_key(&scope) {
                raised.entry(scope).or_insert((rate, 0)).1 += count;
            }
        }
    }
    for (scope, (configured, count)) in raised {
        write(shared, async |tx| raise(tx, &scope, configured, count).await).await;
    }
}

async fn revive(shared: &Shared) {
    let now = shared.deps.clock.now();
    for (id, token) in &shared.tokens {
        let revived = write(shared, async |tx| account::revive(tx, *id, token, now).await).await;
        if revived == Some(true)
            && let Some(configured) = shared.directory.account(*id)
        {
            let name = configured.name.as_str();
            info!(account = name, "{name} has another token than the one that was refused: trying again");
            shared.deps.metrics.account_paused(name, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_trips_on_failures_that_last_and_success_forgets_them() {
        let (lessons, account, begun) = (Lessons::default(), AccountId::new(1), Instant::now());
        for _ in 0..20 {
            assert!(!lessons.failed(account, begun), "many at once may be one hiccup");
        }
        let later = begun + FAILING_FOR;
        assert!(lessons.failed(account, later));
        assert!(!lessons.failed(account, later), "once");
        for _ in 0..FAILURES_IN_A_ROW {
            lessons.failed(account, later);
        }
        lessons.succeeded(account);
        assert!(!lessons.failed(account, later + FAILING_FOR));
    }
}
