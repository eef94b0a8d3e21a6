//! What is known of each queue in memory: how far it was delivered, what came back, who consumes.

use crate::Depth;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// All queues of the file.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Mutex<HashMap<String, Arc<Line>>>,
    /// The newest id when the file was opened: what is not newer may have been delivered before.
    newest_at_start: i64,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) queue: String,
    pub(super) newest_at_start: i64,
    /// Held while deliveries are fetched, so that two consumers never take the same.
    pub(super) fetching: tokio::sync::Mutex<()>,
    place: Mutex<Place>,
    /// Raised with every item that can be delivered.
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Place {
    /// The newest id that was delivered.
    delivered_to: i64,
    /// Older ones that came back.
    returned: BTreeSet<i64>,
    /// Delivered and not settled.
    taken: BTreeSet<i64>,
    /// How often one came back as a failure.
    failures: BTreeMap<i64, u32>,
    consumers: u32,
}

impl Lines {
    pub(super) fn new(newest_at_start: i64) -> Self {
        Self { lines: Mutex::default(), newest_at_start }
    }

    /// The queue of this name, known from now on.
    pub(super) fn of(&self, queue: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(queue) {
            return line.clone();
        }
        let line = Arc::new(Line {
            queue: queue.to_owned(),
            newest_at_start: self.newest_at_start,
            fetching: tokio::sync::Mutex::new(()),
            place: Mutex::default(),
            news: watch::Sender::new(0),
        });
        lines.insert(queue.to_owned(), line.clone());
        line
    }

    /// Whether anybody consumes it, or has.
    pub(super) fn exists(&self, queue: &str) -> bool {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).contains_key(queue)
    }

    /// How much of what is stored of a queue nobody holds, and who consumes it.
    pub(super) fn depth(&self, queue: &str, stored: u64) -> Depth {
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(queue).cloned();
        line.map_or(Depth { ready: stored, consumers: 0 }, |line| line.depth(stored))
    }

    /// Tells the consumers of a queue that something was published.
    pub(super) fn announce(&self, queue: &str) {
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(queue).cloned();
        if let Some(line) = line {
            line.announce();
        }
    }
}

impl Line {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn announce(&self) {
        self.news.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// What to fetch next: ids that came back, and how far delivery has gone.
    pub(super) fn next(&self, limit: usize) -> (Vec<i64>, i64) {
        let place = self.place();
        (place.returned.iter().take(limit).copied().collect(), place.delivered_to)
    }

    /// Notes that items are delivered. Those of `returned` that were not found are gone.
    pub(super) fn take(&self, returned: &[i64], ids: &[i64]) {
        let mut place = self.place();
        for id in returned {
            place.returned.remove(id);
        }
        for id in ids {
            place.delivered_to = place.delivered_to.max(*id);
            place.taken.insert(*id);
        }
    }

    /// Notes that an item is settled.
    pub(super) fn settled(&self, id: i64) {
        let mut place = self.place();
        place.taken.remove(&id);
        place.failures.remove(&id);
    }

    /// Puts an item back, as a failure or not. Returns how often it has failed.
    pub(super) fn put_back(&self, id: i64, failed: bool) -> u32 {
        let failures = {
            let mut place = self.place();
            if !place.taken.remove(&id) {
                return 0;
            }
            place.returned.insert(id);
            if failed { *place.failures.entry(id).and_modify(|failures| *failures += 1).or_insert(1) } else { 0 }
        };
        self.announce();
        failures
    }

    /// How often an item came back as a failure.
    pub(super) fn failures(&self, id: i64) -> u32 {
        self.place().failures.get(&id).copied().unwrap_or(0)
    }

    pub(super) fn joined(&self, consumers: i32) {
        let mut place = self.place();
        place.consumers = place.consumers.saturating_add_signed(consumers);
    }

    fn depth(&self, stored: u64) -> Depth {
        let place = self.place();
        let taken = u64::try_from(place.taken.len()).unwrap_or(u64::MAX);
        Depth { ready: stored.saturating_sub(taken), consumers: place.consumers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_delivered_before_what_is_new() {
        let line = Lines::new(0).of("q");
        line.take(&[], &[1, 2, 3]);
        assert_eq!(line.next(10), (vec![], 3));
        line.put_back(2, false);
        assert_eq!(line.next(10), (vec![2], 3));
        line.take(&[2], &[2]);
        assert_eq!(line.depth(5).ready, 2);
        line.settled(2);
        assert_eq!(line.depth(4).ready, 2);
    }

    #[test]
    fn only_failures_are_counted() {
        let line = Lines::new(0).of("q");
        for expected in [1, 2] {
            line.take(&[7], &[7]);
            assert_eq!(line.put_back(7, true), expected);
        }
        line.take(&[7], &[7]);
        assert_eq!(line.put_back(7, false), 0);
        assert_eq!(line.failures(7), 2);
        assert_eq!(line.put_back(7, true), 0, "not taken: nothing to put back");
    }
}
