//! When a moment of the database's clock is here. Slots are given out by the database's clock and used by ours; each answer
//! narrows down how the two stand to each other, so that one slow answer does not cost the slots it brings.

use domain::Timestamp;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long an observation counts: clocks drift, and the database's may be set.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What was observed lately.
#[derive(Debug)]
pub(crate) struct DatabaseClock {
    base: Instant,
    /// (when, least, most): our time minus the database's lies between, in microseconds.
    seen: VecDeque<(Instant, i64, i64)>,
}

impl DatabaseClock {
    pub(crate) fn new() -> Self {
        Self { base: Instant::now(), seen: VecDeque::new() }
    }

    fn ours(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.base).as_micros()).unwrap_or(i64::MAX)
    }

    /// The database's clock said `said` at some moment between `asked` and `answered`.
    pub(crate) fn observe(&mut self, asked: Instant, answered: Instant, said: Timestamp) {
        let bounds = (self.ours(asked) - said.micros(), self.ours(answered) - said.micros());
        while self.seen.front().is_some_and(|(at, ..)| answered.saturating_duration_since(*at) > REMEMBERED) {
            self.seen.pop_front();
        }
        // What contradicts this one was before the clock was set.
        self.seen.retain(|(_, least, most)| *least <= bounds.1 && *most >= bounds.0);
        // Bounded also at thousands of answers a second: what is no narrower than this one adds nothing.
        self.seen.retain(|(_, least, most)| *least > bounds.0 || *most < bounds.1);
        self.seen.push_back((answered, bounds.0, bounds.1));
    }

    /// When `at` is here, at the latest: who acts then is never early. `None` before the first observation.
    pub(crate) fn here(&self, at: Timestamp) -> Option<Instant> {
        let most = self.seen.iter().map(|(_, _, most)| *most).min()?;
        let micros = u64::try_from(at.micros().saturating_add(most)).unwrap_or(0);
        Some(self.base + Duration::from_micros(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_quickest_answer_counts_and_a_slow_one_spoils_nothing() {
        let mut clock = DatabaseClock::new();
        let (start, said) = (clock.base, Timestamp::from_seconds(1_795_339_800));
        assert_eq!(clock.here(said), None);
        // The database is exactly `said` when we are at `start + 100 ms`.
        clock.observe(start + ms(99), start + ms(103), said);
        assert_eq!(clock.here(said), Some(start + ms(103)));
        clock.observe(start + ms(199), start + ms(201), said + ms(100));
        assert_eq!(clock.here(said), Some(start + ms(101)), "narrower");
        clock.observe(start + ms(250), start + ms(600), said + ms(200));
        assert_eq!(clock.here(said + ms(500)), Some(start + ms(601)), "a slow answer changes nothing");
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let mut clock = DatabaseClock::new();
        let (start, said) = (clock.base, Timestamp::from_seconds(1_795_339_800));
        clock.observe(start + ms(99), start + ms(101), said);
        let later = said + Duration::from_secs(3600);
        clock.observe(start + ms(199), start + ms(201), later);
        assert_eq!(clock.here(later), Some(start + ms(201)));
    }

    #[test]
    fn old_observations_are_forgotten() {
        let mut clock = DatabaseClock::new();
        let (start, said) = (clock.base, Timestamp::from_seconds(1_795_339_800));
        clock.observe(start + ms(99), start + ms(101), said);
        let later = Duration::from_secs(31);
        clock.observe(start + later + ms(90), start + later + ms(110), said + later);
        assert_eq!(clock.here(said + later), Some(start + later + ms(110)));
        for n in 0..10_000u64 {
            let at = start + later + Duration::from_micros(200 * n);
            clock.observe(at, at + ms(1), said + later + Duration::from_micros(200 * n));
        }
        assert!(clock.seen.len() < 100, "{}", clock.seen.len());
    }
}
