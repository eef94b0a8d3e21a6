//! How long to wait before a lost connection is tried again. For connections only: when a message is tried again is
//! arithmetic of its own (`domain::retry`).

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use std::time::Duration;

/// Waits that double, with jitter, and never end: an outage is over when it is over.
#[derive(Debug)]
pub struct Reconnect {
    waits: backoff::ExponentialBackoff,
    most: Duration,
}

impl Reconnect {
    /// Waits from about `first` up to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        let waits = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(most)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            // It gives up after 15 minutes unless told otherwise.
            .with_max_elapsed_time(None)
            .build();
        Self { waits, most }
    }

    /// The next wait: half to one and a half times the interval, never more than the longest.
    pub fn next_wait(&mut self) -> Duration {
        self.waits.next_backoff().unwrap_or(self.most).min(self.most)
    }

    /// The connection stands: the next loss starts from the first wait again.
    pub fn connected(&mut self) {
        self.waits.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_the_first_to_the_longest_and_never_end() {
        let first = Duration::from_millis(200);
        let most = Duration::from_secs(10);
        let mut reconnect = Reconnect::new(first, most);
        let waits = (0..1000).map(|_| reconnect.next_wait()).collect::<Vec<_>>();
        assert!(waits[0] >= first / 2 && waits[0] <= first * 3 / 2, "{:?}", waits[0]);
        assert!(waits.iter().all(|wait| *wait <= most));
        assert!(waits[20..].iter().all(|wait| *wait >= most / 2));
        reconnect.connected();
        assert!(reconnect.next_wait() <= first * 3 / 2);
    }

    #[test]
    fn two_processes_do_not_knock_at_the_same_time() {
        let mut waits = |_| Reconnect::new(Duration::from_secs(1), Duration::from_secs(10)).next_wait();
        let all = (0..20).map(&mut waits).collect::<std::collections::HashSet<_>>();
        assert!(all.len() > 15, "{all:?}");
    }
}
