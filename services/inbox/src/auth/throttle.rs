//! Counting: how often somebody may try to sign in, and how fast anybody may ask. Counters live in this process and are
//! bounded; behind several replicas the limits multiply by their number.

use domain::Timestamp;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most names counted at once; the stalest are forgotten first.
const MOST_KEYS: usize = 20_000;

/// Token buckets by name: `burst` at once, then `per_second`.
#[derive(Debug)]
pub(crate) struct Buckets {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Timestamp,
}

impl Buckets {
    pub(crate) fn new(burst: u32, per_second: f64) -> Self {
        Self { burst: f64::from(burst), per_second, buckets: Mutex::default() }
    }

    /// Takes one. `Err`: how long to wait until there is one.
    pub(crate) fn take(&self, key: &str, now: Timestamp) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_KEYS && !buckets.contains_key(key) {
            self.forget(&mut buckets, now);
        }
        let full = Bucket { level: self.burst, at: now };
        let bucket = buckets.entry(key.to_owned()).or_insert(full);
        bucket.level = (bucket.level + now.since(bucket.at).as_secs_f64() * self.per_second).min(self.burst);
        bucket.at = now.max(bucket.at);
        if bucket.level >= 1.0 {
            bucket.level -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.level) / self.per_second))
    }

    /// Gives back what a request took that should not have counted, such as a login that succeeded.
    pub(crate) fn give_back(&self, key: &str) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(key) {
            bucket.level = (bucket.level + 1.0).min(self.burst);
        }
    }

    /// A full bucket is the same as none. If all are in use, the half that asked longest ago starts anew.
    fn forget(&self, buckets: &mut HashMap<String, Bucket>, now: Timestamp) {
        let refilled = Duration::from_secs_f64(self.burst / self.per_second);
        buckets.retain(|_, bucket| now.since(bucket.at) < refilled);
        if buckets.len() >= MOST_KEYS {
            let mut times = buckets.values().map(|bucket| bucket.at).collect::<Vec<_>>();
            let middle = times.len() / 2;
            let median = *times.select_nth_unstable(middle).1;
            buckets.retain(|_, bucket| bucket.at > median);
        }
    }
}

/// Whole seconds for `Retry-After`, at least one.
pub(crate) fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0 || wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_795_339_800);

    #[test]
    fn a_burst_passes_then_one_at_a_time_and_others_do_not_notice() {
        let buckets = Buckets::new(3, 0.5);
        for _ in 0..3 {
            buckets.take("a", NOW).unwrap();
        }
        assert_eq!(buckets.take("a", NOW).unwrap_err(), Duration::from_secs(2));
        buckets.take("b", NOW).unwrap();
        buckets.take("a", NOW + Duration::from_secs(2)).unwrap();
        assert!(buckets.take("a", NOW + Duration::from_secs(2)).is_err());
        buckets.give_back("a");
        buckets.take("a", NOW + Duration::from_secs(2)).unwrap();
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing_away() {
        let buckets = Buckets::new(1, 1.0);
        buckets.take("a", NOW).unwrap();
        assert!(buckets.take("a", NOW - Duration::from_secs(100)).is_err());
        assert!(buckets.take("a", NOW).is_err());
    }

    #[test]
    fn a_flood_of_names_does_not_grow_without_end() {
        let buckets = Buckets::new(2, 1.0);
        for n in 0..MOST_KEYS + 50 {
            buckets.take(&n.to_string(), NOW).unwrap();
        }
        assert!(buckets.buckets.lock().unwrap().len() <= MOST_KEYS);
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_of_at_least_one() {
        assert_eq!([0, 1, 1000, 1001].map(|ms| seconds(Duration::from_millis(ms))), [1, 1, 1, 2]);
    }
}
