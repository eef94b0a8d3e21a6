//! Writing a batch whatever happens: whole if it can be, in halves until the bad item stands alone if it cannot, held while
//! the database is away.

use super::obituary::{Cause, of_webhook, of_work};
use super::transact::{self, Part, Written, settled_accounts, transact};
use super::{Batch, Known, Work};
use crate::Context;
use crate::hold::{NotWritten, patiently};
use domain::WebhookEventId;
use queue::topics::WEBHOOKS;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use store::dead_letter::{self, NewDeadLetter};
use store::receipt;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// A batch went unwritten because the database was away for too long, or this process stops: give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Away;

/// Writes batches. Cheap to clone; the clones share what they remember.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    context: Context,
    known: Arc<Mutex<Known>>,
    stop: CancellationToken,
}

impl Writer {
    pub(crate) fn new(context: Context, stop: CancellationToken) -> Self {
        let known = Arc::new(Mutex::new(Known::new(context.deps.tuning.ingest_identities)));
        Self { context, known, stop }
    }

    /// Writes a batch. Afterwards every item of it is stored or a dead letter.
    /// # Errors
    /// [`Away`]: some of it may not be written; all of it may be written again.
    pub(crate) async fn write(&self, mut batch: Batch) -> Result<(), Away> {
        for hook in &batch.hooks {
            self.count_dead(&hook.dead);
        }
        self.count_dead(&batch.dead);
        let work = std::mem::take(&mut batch.work);
        let all: Vec<&Work> = work.iter().collect();
        // A webhook may hold a thousand items and more; no transaction does.
        if all.len() <= self.context.deps.tuning.ingest_batch.saturating_mul(2) {
            match self.commit(Part { batch: &batch, work: &all, kept: None }).await {
                Ok(_) => return Ok(()),
                Err(NotWritten::Away) => return Err(Away),
                Err(NotWritten::Refused(error)) => {
                    warn!(%error, items = all.len(), "The database refuses a batch; looking for the item");
                }
            }
        }
        self.take_apart(batch, &all).await
    }

    /// Writes the raw webhooks first and the items in ever smaller parts.
    async fn take_apart(&self, mut batch: Batch, work: &[&Work]) -> Result<(), Away> {
        let (kept, refused) = self.keep_webhooks(&mut batch).await?;
        let mut dead: Vec<(usize, NewDeadLetter)> = Vec::new();
        let work: Vec<&Work> = work.iter().copied().filter(|work| !refused.contains(&work.hook)).collect();
        let chunk = self.context.deps.tuning.ingest_batch.max(1);
        // The last is taken first, so the parts go in the order of arrival.
        let mut parts: Vec<&[&Work]> = work.chunks(chunk).rev().collect();
        while let Some(part) = parts.pop() {
            match (self.commit(Part { batch: &batch, work: part, kept: Some(&kept) }).await, part) {
                (Ok(_), _) => {}
                (Err(NotWritten::Away), _) => return Err(Away),
                (Err(NotWritten::Refused(error)), [one]) => {
                    if let Some(hook) = batch.hooks.get(one.hook) {
                        warn!(%error, request.id = %hook.head.request_id, item = one.item, "An item is set aside");
                        dead.push((one.hook, of_work(hook, one, &error)));
                    }
                }
                (Err(NotWritten::Refused(_)), many) => {
                    let (first, second) = many.split_at(many.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        self.bury(batch, dead).await
    }

    /// Keeps the raw webhooks, all together or, if one is refused, each alone. Returns their rows and which of them were
    /// refused; those are dead letters as a whole.
    async fn keep_webhooks(&self, batch: &mut Batch) -> Result<(Vec<WebhookEventId>, Vec<usize>), Away> {
        match self.commit(Part { batch, work: &[], kept: None }).await {
            Ok(written) => return Ok((written.kept, Vec::new())),
            Err(NotWritten::Away) => return Err(Away),
            Err(NotWritten::Refused(error)) => warn!(%error, "The database refuses a raw webhook; looking for it"),
        }
        let mut rest = Batch { beats: std::mem::take(&mut batch.beats), ..Batch::default() };
        self.commit_or_lose(&rest).await?;
        rest.beats.clear();
        for dead in std::mem::take(&mut batch.dead) {
            rest.dead = vec![dead];
            self.commit_or_lose(&rest).await?;
        }
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        for (at, hook) in std::mem::take(&mut batch.hooks).into_iter().enumerate() {
            let one = Batch { hooks: vec![hook], ..Batch::default() };
            match self.commit(Part { batch: &one, work: &[], kept: None }).await {
                Ok(written) => kept.extend(written.kept),
                Err(NotWritten::Away) => return Err(Away),
                Err(NotWritten::Refused(error)) => {
                    // Keeps the places of the others; nothing refers to it.
                    kept.push(WebhookEventId::new(0));
                    refused.push(at);
                    let hook = one.hooks.first();
                    let dead = hook.map(|hook| of_webhook(&hook.head, &hook.body, Cause::refused(&error)));
                    let alone = Batch { dead: dead.into_iter().collect(), ..Batch::default() };
                    self.count_dead(&alone.dead);
                    self.commit_or_lose(&alone).await?;
                }
            }
            batch.hooks.extend(one.hooks);
        }
        Ok((kept, refused))
    }

    /// Writes the dead letters of single items, and what became of their webhooks.
    async fn bury(&self, mut batch: Batch, dead: Vec<(usize, NewDeadLetter)>) -> Result<(), Away> {
        if dead.is_empty() {
            return Ok(());
        }
        let mut touched = vec![false; batch.hooks.len()];
        let mut letters = Vec::with_capacity(dead.len());
        for (hook, letter) in dead {
            if let (Some(hook), Some(touched)) = (batch.hooks.get_mut(hook), touched.get_mut(hook)) {
                *touched = true;
                // Counted by the outcome of the webhook below.
                hook.dead.push(letter.clone());
            }
            letters.push(letter);
        }
        self.count_dead(&letters);
        let mut touched = touched.into_iter();
        batch.hooks.retain(|_| touched.next().unwrap_or(false));
        let buried = patiently(&self.context, &self.stop, || async {
            let now = self.context.deps.clock.now();
            let mut tx = self.context.deps.store.begin().await?;
            transact::keep(&mut tx, &batch).await?;
            dead_letter::insert(&mut tx, &letters, now).await?;
            tx.commit().await
        });
        match buried.await {
            Ok(()) => Ok(()),
            Err(NotWritten::Away) => Err(Away),
            Err(NotWritten::Refused(error)) => {
                error!(%error, letters = letters.len(), "Dead letters cannot be written; their webhooks are kept");
                Ok(())
            }
        }
    }

    /// Writes what has no other place to go to; refused, it is lost, and said so.
    async fn commit_or_lose(&self, batch: &Batch) -> Result<(), Away> {
        match self.commit(Part { batch, work: &[], kept: None }).await {
            Ok(_) => Ok(()),
            Err(NotWritten::Away) => Err(Away),
            Err(NotWritten::Refused(error)) => {
                error!(%error, dead_letters = batch.dead.len(), beats = batch.beats.len(), "This cannot be written");
                Ok(())
            }
        }
    }

    /// One transaction and what follows its commit: readers are woken, parked receipts looked for once more, lanes moved on.
    async fn commit(&self, part: Part<'_>) -> Result<Written, NotWritten> {
        let deps = &self.context.deps;
        let mut began = Instant::now();
        let mut written = patiently(&self.context, &self.stop, || {
            began = Instant::now();
            // Boxed: it is large, and `patiently` keeps it while it waits.
            Box::pin(transact(&deps.store, &self.known, part, deps.clock.now()))
        })
        .await?;
        self.count(part, &written, began.elapsed());
        if written.changed {
            deps.store.wake_readers();
        }
        if !written.look_again.is_empty() {
            let looked = self.second_look(&written).await?;
            written.accounts.extend(looked);
        }
        if !written.accounts.is_empty() {
            deps.dispatcher.kick(&written.accounts);
        }
        Ok(written)
    }

    /// The second look, until it is committed. Refused for good it is left to the keeper, which repeats it.
    async fn second_look(&self, written: &Written) -> Result<Vec<domain::AccountId>, NotWritten> {
        let deps = &self.context.deps;
        let looked = patiently(&self.context, &self.stop, || {
            Box::pin(async {
                let mut tx = deps.store.begin().await?;
                let heard = receipt::second_look(&mut tx, &written.look_again, deps.clock.now()).await?;
                tx.commit().await?;
                Ok(heard)
            })
        });
        match looked.await {
            Ok(heard) => {
                if heard.applied.iter().any(|applied| applied.raised) {
                    deps.store.wake_readers();
                }
                Ok(settled_accounts(&heard.applied))
            }
            Err(NotWritten::Refused(error)) => {
                warn!(%error, "A second look at parked receipts failed; the keeper repeats it");
                Ok(Vec::new())
            }
            Err(away) => Err(away),
        }
    }

    fn count(&self, part: Part<'_>, written: &Written, took: std::time::Duration) {
        let metrics = &self.context.deps.metrics;
        let whole = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        metrics.ingest_batch(part.work.len(), took);
        metrics.ingest_items("message", whole(written.messages));
        metrics.ingest_items("receipt", whole(written.receipts));
        metrics.ingest_duplicates(whole(written.duplicates));
        metrics.receipts_parked(whole(written.parked));
        for lag in &written.message_lags {
            metrics.ingest_lag(*lag);
        }
        for lag in &written.receipt_lags {
            metrics.receipt_lag(*lag);
        }
        for work in part.work {
            if let Some(hook) = part.batch.hooks.get(work.hook) {
                self.context.progress.heard(work.account, hook.head.received_at);
            }
        }
    }

    fn count_dead(&self, dead: &[NewDeadLetter]) {
        for dead in dead {
            self.context.deps.metrics.dead_letter(WEBHOOKS.name(), &dead.error_class);
        }
    }
}
