//! Plain counters, for whoever exports metrics.

use crate::message::now;
use domain::Timestamp;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Per queue, by its name without prefix.
    pub topics: BTreeMap<String, TopicStats>,
    /// The connection for publishing; stays at its defaults on the embedded queue.
    pub publishing: LinkStats,
    /// The connection for consuming.
    pub consuming: LinkStats,
}

/// What happened in one queue, seen from this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// Publishes begun, those that waited for a slot in vain included.
    pub published: u64,
    /// Publishes confirmed.
    pub confirmed: u64,
    /// Publishes that failed, whatever the reason.
    pub failed: u64,
    /// Deliveries handed out.
    pub delivered: u64,
    /// Deliveries that had been handed out before, as far as the queue can tell.
    pub redelivered: u64,
    /// Deliveries that could not be decoded.
    pub undecodable: u64,
    /// Deliveries settled as done.
    pub done: u64,
    /// Deliveries put back for later.
    pub retried: u64,
    /// Deliveries given back.
    pub given_back: u64,
    /// Deliveries set aside, by reason code.
    pub dead_lettered: BTreeMap<String, u64>,
    /// Deliveries held and not yet settled, right now.
    pub unacked: u64,
    /// How old the last delivery was when it was handed out, counted from its first publish.
    pub last_age: Option<Duration>,
}

/// How one connection fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Attempts to connect.
    pub attempts: u64,
    /// Attempts that succeeded.
    pub connects: u64,
    /// Whether it is there.
    pub connected: bool,
    /// Whether the broker has blocked it.
    pub blocked: bool,
}

/// The live counters of one queue.
#[derive(Debug, Default)]
pub(crate) struct TopicCounters {
    pub(crate) published: AtomicU64,
    pub(crate) confirmed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) redelivered: AtomicU64,
    pub(crate) undecodable: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) given_back: AtomicU64,
    unacked: AtomicI64,
    /// Microseconds, -1 before the first delivery.
    last_age: AtomicI64,
    dead_lettered: Mutex<BTreeMap<String, u64>>,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(crate) fn count_by(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Relaxed);
}

impl TopicCounters {
    pub(crate) fn publish_ended(&self, ok: bool) {
        count(&self.published);
        count(if ok { &self.confirmed } else { &self.failed });
    }

    pub(crate) fn handed_out(&self, published_at: Timestamp, redelivered: bool) {
        count(&self.delivered);
        if redelivered {
            count(&self.redelivered);
        }
        let age = now().since(published_at);
        self.last_age.store(i64::try_from(age.as_micros()).unwrap_or(i64::MAX), Relaxed);
    }

    pub(crate) fn dead_lettered(&self, reason_code: &str) {
        let mut reasons = self.dead_lettered.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.entry(reason_code.to_owned()).or_default() += 1;
    }

    /// Moves the gauge of unsettled deliveries.
    pub(crate) fn unacked(&self, by: i64) {
        self.unacked.fetch_add(by, Relaxed);
    }

    fn snapshot(&self) -> TopicStats {
        let age = self.last_age.load(Relaxed);
        TopicStats {
            published: self.published.load(Relaxed),
            confirmed: self.confirmed.load(Relaxed),
            failed: self.failed.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            redelivered: self.redelivered.load(Relaxed),
            undecodable: self.undecodable.load(Relaxed),
            done: self.done.load(Relaxed),
            retried: self.retried.load(Relaxed),
            given_back: self.given_back.load(Relaxed),
            dead_lettered: self.dead_lettered.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            unacked: u64::try_from(self.unacked.load(Relaxed)).unwrap_or(0),
            last_age: (self.delivered.load(Relaxed) > 0)
                .then(|| Duration::from_micros(u64::try_from(age).unwrap_or(0))),
        }
    }
}

/// The live counters of all queues.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<String, Arc<TopicCounters>>>);

impl Counters {
    pub(crate) fn of(&self, queue: &str) -> Arc<TopicCounters> {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = topics.get(queue) {
            return counters.clone();
        }
        topics.entry(queue.to_owned()).or_default().clone()
    }

    pub(crate) fn snapshot(&self) -> BTreeMap<String, TopicStats> {
        let topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        topics.iter().map(|(name, counters)| (name.clone(), counters.snapshot())).collect()
    }
}
