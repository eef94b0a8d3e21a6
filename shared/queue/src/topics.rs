//! The queues, in the order a message meets them.

use crate::Dead;
use domain::AccountName;
use domain::wire::{SendRefs, SendResults, WebhookBatch, Wire};
use std::marker::PhantomData;

/// ingress → ingest: webhooks that were verified, many in one message, and ingress' signs of life.
pub const WEBHOOKS: Topic<WebhookBatch> = Topic::new("roost.webhooks");

/// dispatch → sender: references to due sends, one queue per account, so that a limited or paused account never blocks
/// another. The row is the truth: a reference the broker gives up on is dropped.
pub const OUTBOUND: Topic<SendRefs> = Topic::per_account("roost.outbound");

/// sender, keeper → ingest: what became of attempts to send.
pub const RESULTS: Topic<SendResults> = Topic::new("roost.results");

/// any queue → ingest: what could not be processed, with its origin and reason. Filled by
/// [`Settle::DeadLetter`](crate::Settle::DeadLetter) and by the broker, not by publishing to it.
pub const DEAD: Topic<Dead> = Topic::of_kind("roost.dead", Kind::Dead);

/// A queue, or a family of queues, and what it carries.
#[derive(Debug)]
pub struct Topic<T> {
    name: &'static str,
    kind: Kind,
    carries: PhantomData<fn() -> T>,
}

/// What a queue does with a message it gives up on, and who declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ends in the dead letters.
    Work,
    /// Dropped: it only refers to a row. One queue per account.
    References,
    /// The dead letters themselves; never given up on.
    Dead,
    /// Like `Work`, but somebody else declares it.
    Elsewhere,
}

impl<T: Wire> Topic<T> {
    /// One queue for everybody.
    pub const fn new(name: &'static str) -> Self {
        Self::of_kind(name, Kind::Work)
    }

    /// A queue of its own for each account, `<name>.<account>`, carrying references to rows.
    pub const fn per_account(name: &'static str) -> Self {
        Self::of_kind(name, Kind::References)
    }

    /// A queue that an operator or another program declares. While it is missing a publish to it comes back as
    /// [`PublishError::Returned`](crate::PublishError::Returned) and a consumer waits for it.
    pub const fn declared_elsewhere(name: &'static str) -> Self {
        Self::of_kind(name, Kind::Elsewhere)
    }

    const fn of_kind(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, carries: PhantomData }
    }

    /// The queue's name, or the family's.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn target(&self, account: Option<&AccountName>) -> Target {
        let queue = match account {
            Some(account) => format!("{}.{account}", self.name),
            None => self.name.to_owned(),
        };
        Target { queue, family: self.name, kind: self.kind }
    }
}

/// One queue, without the prefix that tests put before every name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) queue: String,
    /// The topic it belongs to.
    pub(crate) family: &'static str,
    pub(crate) kind: Kind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_queue_of_its_own() {
        let sales = "sales".parse().unwrap();
        assert_eq!(OUTBOUND.target(Some(&sales)).queue, "roost.outbound.sales");
        assert_eq!(WEBHOOKS.target(None).queue, "roost.webhooks");
    }
}
