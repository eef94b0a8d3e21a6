//! Publishes due heads of lanes to the senders.
//!
//! Used by the inbox after an accept and by ingest after results ([`Dispatcher::kick`]: at once, many calls become one
//! round), and by the keeper ([`Dispatcher::sweep`]: whatever a kick missed, due retries among it). A row is DISPATCHED
//! before its reference is published. A reference that cannot be published goes back to WAITING at once; one that got lost
//! on the way is published again after a minute ([`Dispatcher::republish`]).

use domain::wire::{SendRef, SendRefs};
use domain::{AccountId, AccountName};
use futures_util::stream::{self, StreamExt as _};
use queue::topics::OUTBOUND;
use queue::{PublishError, Queue};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use store::send::{self, Room, window};
use store::{Store, StoreError};
use tokio::sync::Notify;
use tracing::{debug, warn};

/// References in one queue message: enough to make a message's cost small, few enough that a slow one holds up little.
const REFS_PER_MESSAGE: usize = 16;

/// Publishes due heads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Queue,
    store: Store,
    kicked: Mutex<BTreeSet<AccountId>>,
    wake: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The worker waits for this and finds that there is nobody left.
        self.wake.notify_one();
    }
}

/// Why nothing could be dispatched. What was due stays due.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue does not take publishes.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dispatched {
    /// References published.
    pub published: usize,
    /// References that could not be published; their rows are WAITING again.
    pub set_back: usize,
}

impl Dispatcher {
    /// A dispatcher with a task that carries out kicks. Must be called inside a tokio runtime.
    pub fn new(queue: Queue, store: Store) -> Self {
        let inner = Arc::new(Inner { queue, store, kicked: Mutex::default(), wake: Arc::default() });
        tokio::spawn(carry_out_kicks(Arc::downgrade(&inner), inner.wake.clone()));
        Self(inner)
    }

    /// Something may be due for these accounts: dispatches it now, in the background. Call it after the commit. A kick that
    /// fails or dies with the process costs no more than the time to the next sweep.
    pub fn kick(&self, accounts: &[AccountId]) {
        if accounts.is_empty() {
            return;
        }
        self.0.kicked.lock().unwrap_or_else(PoisonError::into_inner).extend(accounts);
        self.0.wake.notify_one();
    }

    /// Dispatches what is due, for all accounts.
    /// # Errors
    /// When the database or the queue is away.
    pub async fn sweep(&self) -> Result<Dispatched, DispatchError> {
        self.0.round(None).await
    }

    /// Publishes again what was dispatched `after` ago or earlier and nobody has claimed, for accounts whose queue has a
    /// consumer: without one the references wait where they are.
    /// # Errors
    /// When the database or the queue is away.
    pub async fn republish(&self, after: Duration) -> Result<Dispatched, DispatchError> {
        self.0.republish(after).await
    }
}

async fn carry_out_kicks(dispatcher: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        wake.notified().await;
        let Some(inner) = dispatcher.upgrade() else { return };
        let accounts: Vec<AccountId> = {
            let mut kicked = inner.kicked.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *kicked).into_iter().collect()
        };
        if accounts.is_empty() {
            continue;
        }
        if let Err(error) = inner.round(Some(accounts)).await {
            debug!(%error, "Nothing could be dispatched now; the sweep will");
        }
    }
}

impl Inner {
    async fn round(&self, only: Option<Vec<AccountId>>) -> Result<Dispatched, DispatchError> {
        let (now, rooms) = {
            let mut tx = self.store.read().await?;
            let now = tx.database_now().await?;
            (now, send::rooms(&mut tx, only.as_deref(), now).await?)
        };
        let mut done = Dispatched::default();
        for Room { account, name, rate, dispatched } in rooms {
            let room = window(rate) - dispatched;
            if room <= 0 {
                continue;
            }
            let Some(name) = queue_name(&name) else { continue };
            // Asked before rows are marked: with the broker away this would only move them back and forth.
            drop(self.queue.publisher().slot().await?);
            let mut tx = self.store.autocommit().await?;
            let refs = send::dispatch(&mut tx, account, room, now).await?;
            tx.commit().await?;
            done = self.publish(&name, refs, done).await?;
        }
        Ok(done)
    }

    async fn republish(&self, after: Duration) -> Result<Dispatched, DispatchError> {
        let (now, stale) = {
            let mut tx = self.store.read().await?;
            let now = tx.database_now().await?;
            (now, send::stale_accounts(&mut tx, now - after).await?)
        };
        let mut done = Dispatched::default();
        for send::Stale { account, name } in stale {
            let Some(name) = queue_name(&name) else { continue };
            match self.queue.depth(&OUTBOUND, Some(&name)).await {
                Ok(depth) if depth.consumers > 0 => {}
                Ok(_) => continue,
                Err(error) => {
                    debug!(%error, account = %name, "The queue of {name} cannot be asked for its consumers");
                    continue;
                }
            }
            let mut tx = self.store.autocommit().await?;
            let refs = send::republish(&mut tx, account, now - after, now).await?;
            tx.commit().await?;
            if !refs.is_empty() {
                warn!(account = %name, count = refs.len(), "{} references of {name} were not claimed; publishing them again", refs.len());
            }
            done = self.publish(&name, refs, done).await?;
        }
        Ok(done)
    }

    /// Publishes references; those that fail go back to the lane.
    async fn publish(
        &self,
        name: &AccountName,
        refs: Vec<SendRef>,
        mut done: Dispatched,
    ) -> Result<Dispatched, DispatchError> {
        let publisher = self.queue.publisher();
        let mut publishing = Vec::new();
        for chunk in refs.chunks(REFS_PER_MESSAGE) {
            let (publisher, name, message) = (publisher.clone(), name.clone(), SendRefs { items: chunk.to_vec() });
            publishing.push(async move { (publisher.publish(&OUTBOUND, Some(&name), &message).await, message) });
        }
        let outcomes: Vec<_> = stream::iter(publishing).buffer_unordered(queue::SLOTS).collect().await;
        let (mut failed, mut why) = (Vec::new(), None);
        for (outcome, message) in outcomes {
            match outcome {
                Ok(()) => done.published += message.items.len(),
                Err(error) => {
                    failed.extend(message.items.iter().map(|one| one.message));
                    why = Some(error);
                }
            }
        }
        let Some(error) = why else { return Ok(done) };
        warn!(%error, account = %name, count = failed.len(), "{} references of {name} could not be published", failed.len());
        let mut tx = self.store.autocommit().await?;
        let now = tx.database_now().await?;
        send::set_back(&mut tx, &failed, now).await?;
        tx.commit().await?;
        done.set_back += failed.len();
        Ok(done)
    }
}

/// The name comes from the mirror of the configuration, which takes no other.
fn queue_name(name: &str) -> Option<AccountName> {
    let parsed = name.parse().ok();
    if parsed.is_none() {
        warn!(account = name, "An account with an impossible name is left out of dispatch");
    }
    parsed
}
