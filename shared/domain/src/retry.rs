//! When to try again. Pure arithmetic: the random number is handed in.

use std::time::Duration;

/// Waits before the attempts of one message, without jitter; the last one repeats until the message's deadline.
const LADDER: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(2 * 60 * 60),
];

/// Longest `Retry-After` we believe (`docs/sending.md`): a provider that says more is asked again after an hour.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(60 * 60);

/// A due time further away than this leaves the lane, so that the conversation's next message need not wait.
pub const LEAVES_LANE_AFTER: Duration = Duration::from_secs(15 * 60);

/// How long a message may be tried by default.
pub const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait after failed attempt number `attempt` (from 1), without jitter: 5 s, 30 s, 2 min, 10 min, 30 min, 1 h, 2 h, 2 h …
pub fn retry_ceiling(attempt: u32) -> Duration {
    let step = usize::try_from(attempt.max(1) - 1).unwrap_or(usize::MAX).min(LADDER.len() - 1);
    LADDER.get(step).copied().unwrap_or(Duration::from_secs(2 * 60 * 60))
}

/// The wait after failed attempt number `attempt`, with full jitter: `random` in [0, 1) chooses a point between half a
/// second and the ceiling. `retry_after` can only lengthen it.
pub fn retry_delay(attempt: u32, random: f64, retry_after: Option<Duration>) -> Duration {
    let ceiling = retry_ceiling(attempt);
    let jittered = ceiling.mul_f64(random.clamp(0.0, 1.0)).max(Duration::from_millis(500));
    jittered.max(retry_after.unwrap_or(Duration::ZERO).min(RETRY_AFTER_CAP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_delay_stays_between_its_floor_and_its_ceiling(attempt in 0..1000u32, random in 0.0..1.0f64) {
            let delay = retry_delay(attempt, random, None);
            prop_assert!(delay >= Duration::from_millis(500) && delay <= retry_ceiling(attempt));
        }

        #[test]
        fn retry_after_only_lengthens(attempt in 1..20u32, random in 0.0..1.0f64, seconds in 0..10_000u64) {
            let asked = Duration::from_secs(seconds);
            let delay = retry_delay(attempt, random, Some(asked));
            prop_assert!(delay >= retry_delay(attempt, random, None));
            prop_assert!(delay >= asked.min(RETRY_AFTER_CAP));
        }
    }

    #[test]
    fn ceilings_only_grow() {
        assert!((1..20).all(|n| retry_ceiling(n) <= retry_ceiling(n + 1)));
        assert_eq!(retry_ceiling(1), Duration::from_secs(5));
        assert_eq!(retry_ceiling(50), Duration::from_secs(7200));
    }
}
