//! How long to wait before connecting again: full jitter, so that a fleet does not come back all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(5);
/// Never less, whatever the dice say: a broker that refuses at once must not be asked in a busy loop.
const FLOOR: Duration = Duration::from_millis(25);
/// What worked for so long starts from the beginning again when it breaks.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

/// A sequence of waits.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a failure.
    pub(crate) fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        delay(self.failures, rand::random())
    }

    /// To be told how long something worked before it failed.
    pub(crate) fn lasted(&mut self, how_long: Duration) {
        if how_long >= PROVEN_AFTER {
            self.failures = 0;
        }
    }
}

/// The wait after failure number `failures` (from 1): a point between the floor and a ceiling of 100 ms, 200 ms … 5 s.
/// `random` is in [0, 1).
fn delay(failures: u32, random: f64) -> Duration {
    let ceiling = FIRST.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(CAP);
    ceiling.mul_f64(random.clamp(0.0, 1.0)).max(FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_never_vanish() {
        assert_eq!(delay(1, 1.0), FIRST);
        assert_eq!(delay(3, 1.0), Duration::from_millis(400));
        assert_eq!(delay(u32::MAX, 1.0), CAP);
        assert_eq!(delay(u32::MAX, 0.0), FLOOR);
        assert_eq!(delay(7, 0.5), Duration::from_millis(2500));
    }

    #[test]
    fn only_what_worked_for_a_while_starts_afresh() {
        let mut backoff = Backoff { failures: 9 };
        backoff.lasted(Duration::from_secs(1));
        assert_eq!(backoff.failures, 9);
        backoff.lasted(PROVEN_AFTER);
        assert_eq!(backoff.failures, 0);
    }
}
