//! Publishes due heads of lanes to the senders.
//!
//! Used by the inbox after an accept and by ingest after results ([`Dispatcher::kick`]: at once, many calls become one
//! round), and by the keeper ([`Dispatcher::sweep`]: whatever a kick missed, due retries among it). A row is DISPATCHED
//! before its reference is published. A reference that cannot be published goes back to WAITING at once; one that got lost
//! on the way is published again after a minute ([`Dispatcher::republish`]).

use domain::wire::{SendRef, SendRefs};
use domain::{AccountId, AccountName, ConversationId, MessageId};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use queue::topics::OUTBOUND;
use queue::{PublishError, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use store::send::{self, Room, window};
use store::{Store, StoreError};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tracing::{debug, warn};

/// References in one queue message: enough to make a message's cost small, few enough that a slow one holds up little.
const REFS_PER_MESSAGE: usize = 16;
/// A round that takes longer is not waited for: what it still publishes must not hold up the accounts of the next.
const SLOW_AFTER: Duration = Duration::from_millis(500);
/// Rounds that may be under way.
const ROUNDS: usize = 4;

/// Publishes due heads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Queue,
    store: Store,
    kicked: Mutex<Kicked>,
    wake: Arc<Notify>,
    under_way: Arc<Semaphore>,
}

/// Where something may be due.
type Kicked = BTreeMap<AccountId, Where>;

#[derive(Debug)]
enum Where {
    /// Anywhere in the account.
    Anywhere,
    /// In these lanes.
    Lanes(BTreeSet<ConversationId>),
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
        let under_way = Arc::new(Semaphore::new(ROUNDS));
        let inner = Arc::new(Inner { queue, store, kicked: Mutex::default(), wake: Arc::default(), under_way });
        tokio::spawn(carry_out_kicks(Arc::downgrade(&inner), inner.wake.clone()));
        Self(inner)
    }

    /// Something may be due for these accounts: dispatches it now, in the background. Call it after the commit. A kick that
    /// fails or dies with the process costs no more than the time to the next sweep.
    pub fn kick(&self, accounts: &[AccountId]) {
        self.remember(|kicked| kicked.extend(accounts.iter().map(|account| (*account, Where::Anywhere))));
    }

    /// As [`Dispatcher::kick`], by who knows which lanes have a new head: nothing else of the account is looked at, as long as
    /// its window is so empty that nothing else can be waiting for room.
    pub fn kick_lanes(&self, lanes: impl IntoIterator<Item = (AccountId, ConversationId)>) {
        self.remember(|kicked| {
            for (account, lane) in lanes {
                if let Where::Lanes(lanes) = kicked.entry(account).or_insert_with(|| Where::Lanes(BTreeSet::new())) {
                    lanes.insert(lane);
                }
            }
        });
    }

    fn remember(&self, kick: impl FnOnce(&mut Kicked)) {
        let mut kicked = self.0.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        kick(&mut kicked);
        if !kicked.is_empty() {
            self.0.wake.notify_one();
        }
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
        let kicked = std::mem::take(&mut *inner.kicked.lock().unwrap_or_else(PoisonError::into_inner));
        if kicked.is_empty() {
            continue;
        }
        if let Err(error) = inner.round(Some(kicked)).await {
            debug!(%error, "Nothing could be dispatched now; the sweep will");
        }
    }
}

/// What goes into one account's queue.
#[derive(Debug)]
struct Batch {
    name: AccountName,
    refs: Vec<SendRef>,
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Published {
    count: usize,
    failed: Vec<MessageId>,
}

impl Inner {
    /// Marks what is due and publishes it, all accounts at the same time. Returns when that is done, or when it takes so long
    /// that others should not wait for it: then it goes on behind our back, and the rows it is about are nobody else's.
    async fn round(self: &Arc<Self>, only: Option<Kicked>) -> Result<Dispatched, DispatchError> {
        let place = self.under_way.clone().acquire_owned().await.map_err(|_| PublishError::Closed)?;
        let batches = self.mark(only).await?;
        if batches.is_empty() {
            return Ok(Dispatched::default());
        }
        let inner = self.clone();
        let publishing = tokio::spawn(async move {
            let _place = place;
            inner.publish(batches).await
        });
        match timeout(SLOW_AFTER, publishing).await {
            Ok(done) => done.unwrap_or_else(|error| {
                // It panicked: what it was about is published again in a minute.
                warn!(%error, "A round of dispatch was lost");
                Ok(Dispatched::default())
            }),
            Err(_) => Ok(Dispatched::default()),
        }
    }

    /// DISPATCHED is committed before anything is published.
    async fn mark(&self, only: Option<Kicked>) -> Result<Vec<Batch>, DispatchError> {
        let accounts: Option<Vec<AccountId>> = only.as_ref().map(|kicked| kicked.keys().copied().collect());
        let (now, rooms) = {
            let mut tx = self.store.look().await?;
            let now = tx.database_now().await?;
            (now, send::rooms(&mut tx, accounts.as_deref(), now).await?)
        };
        let mut names = BTreeMap::new();
        let (mut free, mut lanes) = (Vec::new(), Vec::new());
        for room in rooms {
            let left = window(room.rate) - room.dispatched;
            let Some(name) = queue_name(&room.name).filter(|_| left > 0) else { continue };
            names.insert(room.account, name);
            match only.as_ref().and_then(|kicked| kicked.get(&room.account)) {
                Some(Where::Lanes(moved)) if has_room_for_all(&room, moved.len()) => lanes.extend(moved),
                _ => free.push((room.account, left)),
            }
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // Asked before rows are marked: with the broker away this would only move them back and forth.
        drop(self.queue.publisher().slot().await?);
        let both = !free.is_empty() && !lanes.is_empty();
        let mut tx = if both { self.store.begin().await? } else { self.store.autocommit().await? };
        let mut refs = Vec::new();
        if !free.is_empty() {
            refs = send::dispatch_all(&mut tx, &free, now).await?;
        }
        if !lanes.is_empty() {
            refs.extend(send::dispatch_lanes(&mut tx, &lanes, now).await?);
        }
        tx.commit().await?;
        let mut batches: BTreeMap<AccountId, Batch> = BTreeMap::new();
        for (account, reference) in refs {
            let Some(name) = names.get(&account) else { continue };
            let batch = batches.entry(account).or_insert_with(|| Batch { name: name.clone(), refs: Vec::new() });
            batch.refs.push(reference);
        }
        Ok(batches.into_values().collect())
    }

    async fn republish(&self, after: Duration) -> Result<Dispatched, DispatchError> {
        let (now, stale) = {
            let mut tx = self.store.look().await?;
            let now = tx.database_now().await?;
            (now, send::stale_accounts(&mut tx, now - after).await?)
        };
        let heard: Vec<_> = stale.into_iter().map(|one| self.with_a_consumer(one)).collect();
        let mut batches = Vec::new();
        for (account, name) in join_all(heard).await.into_iter().flatten() {
            let mut tx = self.store.autocommit().await?;
            let refs = send::republish(&mut tx, account, now - after, now).await?;
            tx.commit().await?;
            if !refs.is_empty() {
                warn!(account = %name, count = refs.len(), "{} references of {name} were not claimed; publishing them again", refs.len());
                batches.push(Batch { name, refs });
            }
        }
        self.publish(batches).await
    }

    /// The account, if somebody takes what is in its queue.
    async fn with_a_consumer(&self, send::Stale { account, name }: send::Stale) -> Option<(AccountId, AccountName)> {
        let name = queue_name(&name)?;
        match self.queue.depth(&OUTBOUND, Some(&name)).await {
            Ok(depth) if depth.consumers > 0 => Some((account, name)),
            Ok(_) => None,
            Err(error) => {
                debug!(%error, account = %name, "The queue of {name} cannot be asked for its consumers");
                None
            }
        }
    }

    /// Publishes references; those that fail go back to the lane.
    async fn publish(&self, batches: Vec<Batch>) -> Result<Dispatched, DispatchError> {
        // A queue that does not answer must not have all the slots.
        let at_once = if batches.len() == 1 { queue::SLOTS } else { queue::SLOTS / 2 };
        let publishing: Vec<_> = batches.into_iter().map(|batch| self.publish_to(batch, at_once)).collect();
        let outcomes = join_all(publishing).await;
        let mut done = Dispatched::default();
        let mut failed = Vec::new();
        for outcome in outcomes {
            done.published += outcome.count;
            failed.extend(outcome.failed);
        }
        if !failed.is_empty() {
            let mut tx = self.store.autocommit().await?;
            let now = tx.database_now().await?;
            send::set_back(&mut tx, &failed, now).await?;
            tx.commit().await?;
            done.set_back = failed.len();
        }
        Ok(done)
    }

    /// Into one queue. Once it has refused, or not answered, the rest is not tried.
    async fn publish_to(&self, Batch { name, refs }: Batch, at_once: usize) -> Published {
        let (publisher, refused) = (self.queue.publisher(), AtomicBool::new(false));
        let mut publishing = Vec::new();
        for chunk in refs.chunks(REFS_PER_MESSAGE) {
            let (publisher, name, refused) = (&publisher, &name, &refused);
            let message = SendRefs { items: chunk.to_vec() };
            publishing.push(async move {
                if refused.load(Ordering::Relaxed) {
                    return (None, message);
                }
                let outcome = publisher.publish(&OUTBOUND, Some(name), &message).await;
                refused.fetch_or(outcome.is_err(), Ordering::Relaxed);
                (Some(outcome), message)
            });
        }
        let outcomes: Vec<_> = stream::iter(publishing).buffer_unordered(at_once).collect().await;
        let (mut published, mut why) = (Published::default(), None);
        for (outcome, message) in outcomes {
            match outcome {
                Some(Ok(())) => published.count += message.items.len(),
                other => {
                    published.failed.extend(message.items.iter().map(|one| one.message));
                    why = other.and_then(Result::err).or(why);
                }
            }
        }
        if let Some(error) = why {
            let count = published.failed.len();
            warn!(%error, account = %name, count, "{count} references of {name} could not be published");
        }
        published
    }
}

/// Whether an account's window is so empty that whatever was due before has found room long ago, and `more` find it too: who
/// goes first is then no question.
fn has_room_for_all(room: &Room, more: usize) -> bool {
    let half = window(room.rate) / 2;
    room.dispatched + i64::try_from(more).unwrap_or(i64::MAX) <= half
}

/// The name comes from the mirror of the configuration, which takes no other.
fn queue_name(name: &str) -> Option<AccountName> {
    let parsed = name.parse().ok();
    if parsed.is_none() {
        warn!(account = name, "An account with an impossible name is left out of dispatch");
    }
    parsed
}
