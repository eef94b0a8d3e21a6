//! How far webhooks are committed: what the evidence windows of unknown sends are measured by.

use domain::{AccountId, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was taken from the queue and is not committed yet, and what is.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Oldest arrival of each batch that is under way.
    under_way: BTreeMap<u64, Timestamp>,
    taken: u64,
    /// Latest arrival that is committed.
    committed: Option<Timestamp>,
    /// When accounts were last heard of, since it was last told.
    heard: HashMap<AccountId, Timestamp>,
}

/// A batch that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(u64);

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch was taken whose oldest frame arrived then.
    pub(crate) fn taken(&self, oldest: Timestamp) -> UnderWay {
        let mut state = self.state();
        state.taken += 1;
        let number = state.taken;
        state.under_way.insert(number, oldest);
        UnderWay(number)
    }

    /// It is committed; its newest frame arrived then.
    pub(crate) fn committed(&self, batch: &UnderWay, newest: Timestamp) {
        let mut state = self.state();
        state.under_way.remove(&batch.0);
        state.committed = Some(state.committed.map_or(newest, |known| known.max(newest)));
    }

    /// It went back to the queue.
    pub(crate) fn given_back(&self, batch: &UnderWay) {
        self.state().under_way.remove(&batch.0);
    }

    /// Webhooks of an account were committed, the newest of which arrived then.
    pub(crate) fn heard(&self, account: AccountId, at: Timestamp) {
        let mut state = self.state();
        let known = state.heard.entry(account).or_insert(at);
        *known = (*known).max(at);
    }

    /// What [`Progress::heard`] was told since the last time.
    pub(crate) fn take_heard(&self) -> Vec<(AccountId, Timestamp)> {
        let mut heard: Vec<_> = self.state().heard.drain().collect();
        heard.sort_unstable();
        heard
    }

    /// How many batches were ever taken, while none is under way.
    pub(crate) fn idle_at(&self) -> Option<u64> {
        let state = self.state();
        state.under_way.is_empty().then_some(state.taken)
    }

    /// Everything this process took that had arrived before this is committed. `empty_at`: when the queue was last seen
    /// empty with nothing under way since. `skew`: how long a webhook may be between its arrival and its place in the queue,
    /// where a later one may stand before it.
    pub(crate) fn settled_until(&self, empty_at: Option<Timestamp>, skew: Duration) -> Option<Timestamp> {
        let state = self.state();
        let heard = state.committed.max(empty_at).map(|heard| heard - skew);
        match (heard, state.under_way.values().min()) {
            (Some(heard), Some(oldest)) => Some(heard.min(*oldest)),
            (heard, _) => heard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_secs(5);

    fn at(second: u64) -> Timestamp {
        Timestamp::from_seconds(1_795_339_800) + Duration::from_secs(second)
    }

    #[test]
    fn what_is_under_way_holds_it_back_and_an_empty_queue_moves_it_on() {
        let progress = Progress::default();
        assert_eq!(progress.settled_until(None, SKEW), None, "nothing heard yet");
        let first = progress.taken(at(10));
        assert_eq!((progress.settled_until(None, SKEW), progress.idle_at()), (None, None));
        progress.committed(&first, at(20));
        assert_eq!(progress.settled_until(None, SKEW), Some(at(15)));
        let second = progress.taken(at(12));
        assert_eq!(progress.settled_until(Some(at(100)), SKEW), Some(at(12)), "an older one came: it goes back");
        progress.given_back(&second);
        assert_eq!((progress.settled_until(Some(at(100)), SKEW), progress.idle_at()), (Some(at(95)), Some(2)));
    }
}
