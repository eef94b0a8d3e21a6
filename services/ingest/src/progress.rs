//! How far webhooks are committed: what the evidence windows of unknown sends are measured by. And until when the others
//! know that we may hold some: everybody counts a process for a while after its last beat, so one that cannot beat any more
//! must have given everything back by then.

use domain::{AccountId, Timestamp};
use runtime::config::Tuning;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::heartbeat::LIVES_FOR;
use tokio::time::Instant;

/// Time between two beats. Several fit into what [`LIVES_FOR`] adds, so that one may be late.
pub(crate) fn beat_every(tuning: &Tuning) -> Duration {
    tuning.beat_interval.min(LIVES_FOR / 6)
}

/// How long after its last beat this process may hold what it took: while the database is away, until patience ends.
pub(crate) fn holds_for(tuning: &Tuning) -> Duration {
    tuning.database_patience.max(beat_every(tuning) * 3)
}

/// What was taken from the queue and is not committed yet, and what is.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Oldest arrival of each batch that is under way.
    under_way: BTreeMap<u64, Timestamp>,
    /// Until when batches that failed count as not heard, and the oldest arrival of each.
    failed: Vec<(Instant, Timestamp)>,
    taken: u64,
    /// Latest arrival that is committed.
    committed: Option<Timestamp>,
    /// When accounts were last heard of, since it was last told.
    heard: HashMap<AccountId, Timestamp>,
    /// When the others were last told that we live.
    beat: Option<Instant>,
    /// Whether something went back to the queue when this process stopped.
    left_behind: bool,
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

    /// It failed, and comes again, perhaps at the end of the queue and one webhook at a time: for so long it counts as not
    /// heard, whoever writes it. After that the evidence windows have ended by themselves.
    pub(crate) fn failed(&self, batch: &UnderWay, counts_for: Duration) {
        let mut state = self.state();
        if let Some(oldest) = state.under_way.remove(&batch.0) {
            state.failed.push((Instant::now() + counts_for, oldest));
        }
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

    /// The others were told that we live; they were asked to at `begun`.
    pub(crate) fn beaten(&self, begun: Instant) {
        self.state().beat = Some(begun);
    }

    /// When the last beat was; now, if there was none.
    pub(crate) fn last_beat(&self) -> Instant {
        self.state().beat.unwrap_or_else(Instant::now)
    }

    /// Something of what this process took went back to the queue with its end.
    pub(crate) fn leaves_behind(&self) {
        self.state().left_behind = true;
    }

    pub(crate) fn left_behind(&self) -> bool {
        self.state().left_behind
    }

    /// Everything this process took that had arrived before this is committed. `empty_at`: when the queue was last seen
    /// empty with nothing under way since. `skew`: how long a webhook may be between its arrival and its place in the queue,
    /// where a later one may stand before it, and how far the clocks of the hosts may be apart. `latest`: the present;
    /// what arrived later than that arrived by a wrong clock.
    pub(crate) fn settled_until(
        &self,
        empty_at: Option<Timestamp>,
        skew: Duration,
        latest: Timestamp,
    ) -> Option<Timestamp> {
        let mut state = self.state();
        let now = Instant::now();
        state.failed.retain(|(until, _)| *until > now);
        let heard = state.committed.max(empty_at).map(|heard| heard.min(latest) - skew);
        let failed = state.failed.iter().map(|(_, oldest)| oldest);
        match (heard, state.under_way.values().chain(failed).min()) {
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
        let settled = |empty_at| progress.settled_until(empty_at, SKEW, at(1000));
        assert_eq!(settled(None), None, "nothing heard yet");
        let first = progress.taken(at(10));
        assert_eq!((settled(None), progress.idle_at()), (None, None));
        progress.committed(&first, at(20));
        assert_eq!(settled(None), Some(at(15)));
        let second = progress.taken(at(12));
        assert_eq!(settled(Some(at(100))), Some(at(12)), "an older one came: it goes back");
        progress.given_back(&second);
        assert_eq!((settled(Some(at(100))), progress.idle_at()), (Some(at(95)), Some(2)));
    }

    #[test]
    fn an_ingress_whose_clock_is_ahead_settles_nothing_of_the_future() {
        let progress = Progress::default();
        let taken = progress.taken(at(3600));
        progress.committed(&taken, at(3600));
        assert_eq!(progress.settled_until(Some(at(50)), SKEW, at(60)), Some(at(55)));
    }

    #[test]
    fn a_process_counts_for_longer_than_it_may_go_without_a_beat() {
        for (patience, beats) in [(300_000, 15_000), (100, 50), (100, 600_000)] {
            let tuning = Tuning {
                database_patience: Duration::from_millis(patience),
                beat_interval: Duration::from_millis(beats),
                ..Tuning::default()
            };
            assert!(beat_every(&tuning) * 2 < holds_for(&tuning), "{patience} {beats}");
            assert!(beat_every(&tuning) * 5 < LIVES_FOR, "{patience} {beats}");
        }
    }

    #[test]
    fn what_failed_holds_it_back_for_as_long_as_anybody_waits_for_evidence() {
        let progress = Progress::default();
        let settled = || progress.settled_until(Some(at(100)), SKEW, at(1000));
        progress.failed(&progress.taken(at(5)), Duration::ZERO);
        assert_eq!(settled(), Some(at(95)), "nobody waits any more");
        progress.failed(&progress.taken(at(10)), Duration::from_secs(600));
        assert_eq!((settled(), progress.idle_at()), (Some(at(10)), Some(2)), "it is nobody's here, and not heard");
    }
}
