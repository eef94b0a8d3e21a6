//! Whether callers keep to the provider's limits.

use crate::options::PairLimit;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// Counts calls in the second that ends now.
#[derive(Debug, Default)]
pub(crate) struct SlidingSecond {
    calls: VecDeque<Instant>,
    pub(crate) most: usize,
}

impl SlidingSecond {
    /// Notes a call and returns how many the last second holds, this one included.
    pub(crate) fn note(&mut self, now: Instant) -> usize {
        while self.calls.front().is_some_and(|first| now.duration_since(*first) >= SECOND) {
            self.calls.pop_front();
        }
        self.calls.push_back(now);
        self.most = self.most.max(self.calls.len());
        self.calls.len()
    }
}

/// Whether `calls` in one second break a rate. One more than the rate is let pass: a network may bunch two calls.
#[expect(clippy::cast_precision_loss, reason = "calls within a second")]
pub(crate) fn breaks_rate(calls: usize, per_second: f64) -> bool {
    per_second > 0.0 && calls as f64 > per_second + 1.0
}

/// The theoretical arrival time of one pair (GCRA): how far its messages have run ahead of the interval.
#[derive(Debug, Default)]
pub(crate) struct PairPace(Option<Instant>);

impl PairPace {
    /// Notes a message; whether it is one too many. One more than the burst is let pass, as above.
    pub(crate) fn note(&mut self, now: Instant, limit: PairLimit) -> bool {
        let next = self.0.map_or(now, |tat| tat.max(now)) + limit.interval;
        if next.duration_since(now) > limit.interval * (limit.burst + 1) {
            return true; // a refused message is not paid for
        }
        self.0 = Some(next);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_slides() {
        let start = Instant::now();
        let mut window = SlidingSecond::default();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((window.note(at(0)), window.note(at(600)), window.note(at(999))), (1, 2, 3));
        assert_eq!(window.note(at(1000)), 3, "the call at 0 has left the second");
        assert_eq!(window.most, 3);
        assert!(!breaks_rate(3, 2.0), "one more than the rate is let pass");
        assert!(breaks_rate(4, 2.0));
        assert!(!breaks_rate(1_000_000, 0.0), "0 means no limit");
    }

    #[test]
    fn a_pair_has_a_burst_and_then_an_interval() {
        let start = Instant::now();
        let limit = PairLimit { interval: Duration::from_secs(6), burst: 3, enforce: false };
        let mut pace = PairPace::default();
        let too_many: Vec<bool> = (0..6).map(|_| pace.note(start, limit)).collect();
        assert_eq!(too_many, [false, false, false, false, true, true]);
        assert!(!pace.note(start + Duration::from_secs(6), limit));
    }
}
