//! References that were taken from the queues and not claimed yet, in a line per account, and the deliveries they came in.

use domain::{AccountId, MessageId};
use queue::Ticket;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// A delivery in work: acknowledged once every reference in it is done with.
#[derive(Debug)]
struct Delivered {
    left: AtomicUsize,
    ticket: Mutex<Option<Ticket>>,
    settle: mpsc::UnboundedSender<Ticket>,
}

/// One reference, in work.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) message: MessageId,
    delivery: Arc<Delivered>,
}

impl Taken {
    /// The references of one delivery. Its ticket goes to `settle` when all of them are done with.
    pub(crate) fn all(
        messages: impl ExactSizeIterator<Item = MessageId>,
        ticket: Ticket,
        settle: &mpsc::UnboundedSender<Ticket>,
    ) -> Vec<Self> {
        let left = AtomicUsize::new(messages.len());
        let delivery = Arc::new(Delivered { left, ticket: Mutex::new(Some(ticket)), settle: settle.clone() });
        messages.map(|message| Self { message, delivery: delivery.clone() }).collect()
    }

    /// The row says all there is to say: the reference may be forgotten.
    pub(crate) fn done(self) {
        if self.delivery.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let ticket = self.delivery.ticket.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ticket) = ticket {
            // The account's consumer is gone only while stopping; the delivery then went back with it.
            let _ = self.delivery.settle.send(ticket);
        }
    }
}

#[derive(Debug, Default)]
struct Line {
    refs: VecDeque<Taken>,
    held_until: Option<Instant>,
}

/// The lines.
#[derive(Debug)]
pub(crate) struct Desk {
    lines: Mutex<BTreeMap<AccountId, Line>>,
    wake: Arc<Notify>,
}

impl Desk {
    /// Empty lines; `wake` is told when one gets longer.
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Self { lines: Mutex::default(), wake }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<AccountId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts new references at the end of an account's line.
    pub(crate) fn add(&self, account: AccountId, refs: Vec<Taken>) {
        self.lines().entry(account).or_default().refs.extend(refs);
        self.wake.notify_one();
    }

    /// Puts references back to where they were: in front.
    pub(crate) fn put_back(&self, account: AccountId, refs: Vec<Taken>) {
        if refs.is_empty() {
            return;
        }
        let mut lines = self.lines();
        let line = lines.entry(account).or_default();
        for taken in refs.into_iter().rev() {
            line.refs.push_front(taken);
        }
        drop(lines);
        self.wake.notify_one();
    }

    /// Nothing of this account is asked for before `until`.
    pub(crate) fn hold(&self, account: AccountId, until: Instant) {
        self.lines().entry(account).or_default().held_until = Some(until);
    }

    /// The accounts with references that are not held, and how many.
    pub(crate) fn ready(&self) -> Vec<(AccountId, usize)> {
        let now = Instant::now();
        let ready = |line: &Line| !line.refs.is_empty() && line.held_until.is_none_or(|until| until <= now);
        self.lines().iter().filter(|(_, line)| ready(line)).map(|(account, line)| (*account, line.refs.len())).collect()
    }

    /// Until when an account is held, if it is.
    pub(crate) fn held_until(&self, account: AccountId) -> Option<Instant> {
        let until = self.lines().get(&account).and_then(|line| line.held_until);
        until.filter(|until| *until > Instant::now())
    }

    /// When the next held line may go on.
    pub(crate) fn next_ready_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let lines = self.lines();
        let waiting = lines.values().filter(|line| !line.refs.is_empty());
        waiting.filter_map(|line| line.held_until).filter(|until| *until > now).min()
    }

    /// Takes up to `most` references from the front of an account's line.
    pub(crate) fn take(&self, account: AccountId, most: usize) -> Vec<Taken> {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&account) else { return Vec::new() };
        let count = most.min(line.refs.len());
        line.refs.drain(..count).collect()
    }

    /// Forgets everything: the deliveries go back to the queue.
    pub(crate) fn clear(&self) {
        self.lines().clear();
    }
}
