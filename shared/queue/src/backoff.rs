//! How long to wait before connecting again: full jitter, so that a fleet does not come back all at once.
//!
//! `runtime::reconnect` makes waits as well, with the crate `backoff`. The two have no home to share: this crate may use
//! `domain` only, and `backoff`, which nobody maintains any more, stays behind its one door in `runtime`; the architecture
//! test holds both. What they do share is what an operator sets: the first wait and the longest.

use std::time::Duration;

/// Never less, whatever the dice say: a broker that refuses at once must not be asked in a busy loop.
const FLOOR: Duration = Duration::from_millis(25);
/// What worked for so long starts from the beginning again when it breaks.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

/// The bounds of a sequence of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waits {
    /// The ceiling of the first wait; doubles from there.
    pub(crate) first: Duration,
    /// The ceiling of every wait.
    pub(crate) most: Duration,
}

/// A sequence of waits.
#[derive(Debug)]
pub(crate) struct Backoff {
    waits: Waits,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(waits: Waits) -> Self {
        Self { waits, failures: 0 }
    }

    /// The wait after a failure.
    pub(crate) fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        delay(self.waits, self.failures, rand::random())
    }

    /// To be told how long something worked before it failed.
    pub(crate) fn lasted(&mut self, how_long: Duration) {
        if how_long >= PROVEN_AFTER {
            self.failures = 0;
        }
    }
}

/// The wait after failure number `failures` (from 1): a point between the floor and a ceiling that doubles from the first
/// wait to the longest. `random` is in [0, 1).
fn delay(waits: Waits, failures: u32, random: f64) -> Duration {
    let ceiling = waits.first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(waits.most);
    ceiling.mul_f64(random.clamp(0.0, 1.0)).max(FLOOR.min(ceiling))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { first: Duration::from_millis(100), most: Duration::from_secs(5) };

    #[test]
    fn waits_grow_to_a_cap_and_never_vanish() {
        assert_eq!(delay(WAITS, 1, 1.0), WAITS.first);
        assert_eq!(delay(WAITS, 3, 1.0), Duration::from_millis(400));
        assert_eq!(delay(WAITS, u32::MAX, 1.0), WAITS.most);
        assert_eq!(delay(WAITS, u32::MAX, 0.0), FLOOR);
        assert_eq!(delay(WAITS, 7, 0.5), Duration::from_millis(2500));
    }

    #[test]
    fn no_wait_is_longer_than_the_longest() {
        let short = Waits { first: Duration::from_millis(10), most: Duration::from_millis(10) };
        assert_eq!(delay(short, 1, 0.0), short.most);
        assert_eq!(delay(short, u32::MAX, 1.0), short.most);
    }

    #[test]
    fn only_what_worked_for_a_while_starts_afresh() {
        let mut backoff = Backoff { waits: WAITS, failures: 9 };
        backoff.lasted(Duration::from_secs(1));
        assert_eq!(backoff.failures, 9);
        backoff.lasted(PROVEN_AFTER);
        assert_eq!(backoff.failures, 0);
    }
}
