//! Whether the queue can be used right now.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Whether the queue can be used right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueHealth {
    /// It can.
    Up,
    /// The first connection is not there yet.
    Connecting,
    /// It is away, with the reason in words. It is being reconnected to.
    Down(String),
    /// It takes no publishes for now; consuming goes on.
    Blocked(String),
}

impl QueueHealth {
    /// Whether everything works.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

/// Gathers the health of the parts (two connections, each consumer) into one.
#[derive(Debug)]
pub(crate) struct HealthBoard {
    parts: Mutex<BTreeMap<String, QueueHealth>>,
    sum: watch::Sender<QueueHealth>,
}

impl HealthBoard {
    pub(crate) fn new() -> Self {
        Self { parts: Mutex::default(), sum: watch::Sender::new(QueueHealth::Connecting) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<QueueHealth> {
        self.sum.subscribe()
    }

    /// Notes a part's health.
    pub(crate) fn set(&self, part: &str, health: QueueHealth) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(part.to_owned(), health);
        self.publish(&parts);
    }

    /// Forgets a part that was closed.
    pub(crate) fn forget(&self, part: &str) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.remove(part);
        self.publish(&parts);
    }

    fn publish(&self, parts: &BTreeMap<String, QueueHealth>) {
        let rank = |health: &QueueHealth| match health {
            QueueHealth::Up => 0,
            QueueHealth::Connecting => 1,
            QueueHealth::Blocked(_) => 2,
            QueueHealth::Down(_) => 3,
        };
        let worst = parts.iter().max_by_key(|(_, health)| rank(health));
        let sum = match worst {
            Some((part, QueueHealth::Down(reason))) => QueueHealth::Down(format!("{part}: {reason}")),
            Some((_, health)) => health.clone(),
            None => QueueHealth::Connecting,
        };
        self.sum.send_if_modified(|now| {
            let changed = *now != sum;
            *now = sum;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_worst_part() {
        let board = HealthBoard::new();
        let sum = board.subscribe();
        assert_eq!(*sum.borrow(), QueueHealth::Connecting);
        board.set("publishing", QueueHealth::Up);
        board.set("consuming", QueueHealth::Down("refused".into()));
        assert_eq!(*sum.borrow(), QueueHealth::Down("consuming: refused".into()));
        board.set("publishing", QueueHealth::Blocked("memory".into()));
        board.set("consuming", QueueHealth::Up);
        assert_eq!(*sum.borrow(), QueueHealth::Blocked("memory".into()));
        board.forget("publishing");
        assert_eq!(*sum.borrow(), QueueHealth::Up);
    }
}
