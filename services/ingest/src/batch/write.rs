//! Writing a batch whatever happens: whole if it can be, in halves until the bad item stands alone if it cannot, held while
//! the database is away.

use super::obituary::{Cause, of_webhook, of_work};
use super::transact::{self, Part, Written, settled_accounts, transact};
use super::{Batch, Hook, Known, Work, bury, trace_id};
use crate::Context;
use crate::hold::{Away, NotWritten, patiently};
use domain::WebhookEventId;
use futures_util::FutureExt;
use queue::topics::WEBHOOKS;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use store::StoreError;
use store::dead_letter::NewDeadLetter;
use store::receipt;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Why a part of a batch was not written.
#[derive(Debug)]
enum Failed {
    /// The database was away for too long, or this process stops: give everything back.
    Away,
    /// It is at fault itself.
    ByItself(Fault),
}

/// What is wrong with a part of a batch.
#[derive(Debug)]
enum Fault {
    /// The database was there and refused it.
    Refused(StoreError),
    /// Writing it made us panic.
    Panicked,
}

impl From<NotWritten> for Failed {
    fn from(why: NotWritten) -> Self {
        match why {
            NotWritten::Away => Failed::Away,
            NotWritten::Refused(error) => Failed::ByItself(Fault::Refused(error)),
        }
    }
}

impl Fault {
    fn cause(&self) -> Cause {
        match self {
            Fault::Refused(error) => Cause::refused(error),
            Fault::Panicked => Cause::new("PANIC", "the writer failed on it"),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Refused(error) => error.fmt(f),
            Fault::Panicked => f.write_str("the writer panicked"),
        }
    }
}

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
                Err(Failed::Away) => return Err(Away::Database),
                Err(Failed::ByItself(fault)) => {
                    warn!(error = %fault, items = all.len(), "A batch cannot be written; looking for the item");
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
                (Err(Failed::Away), _) => return Err(Away::Database),
                (Err(Failed::ByItself(fault)), [one]) => {
                    if let Some(hook) = batch.hooks.get(one.hook) {
                        let (id, trace, item) = (hook.head.request_id, trace_id(&hook.head), one.item);
                        warn!(error = %fault, request.id = %id, trace.id = trace, item, "An item is set aside");
                        dead.push((one.hook, of_work(hook, one, fault.cause())));
                    }
                }
                (Err(Failed::ByItself(_)), many) => {
                    let (first, second) = many.split_at(many.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        self.bury_items(batch, dead).await
    }

    /// Keeps the raw webhooks with what died of them, all together or, if that cannot be, each alone. Returns their rows and
    /// which of them have none; those are dead letters as a whole.
    async fn keep_webhooks(&self, batch: &mut Batch) -> Result<(Vec<WebhookEventId>, Vec<usize>), Away> {
        match self.commit(Part { batch, work: &[], kept: None }).await {
            Ok(written) => return Ok((written.kept, Vec::new())),
            Err(Failed::Away) => return Err(Away::Database),
            Err(Failed::ByItself(fault)) => warn!(error = %fault, "Raw webhooks cannot be kept; looking for the one"),
        }
        let beats = Batch { beats: std::mem::take(&mut batch.beats), ..Batch::default() };
        match self.commit(Part { batch: &beats, work: &[], kept: None }).await {
            Ok(_) => {}
            Err(Failed::Away) => return Err(Away::Database),
            // The next one says the same and more.
            Err(Failed::ByItself(fault)) => error!(error = %fault, "Signs of life of ingress cannot be written"),
        }
        bury::messages(&self.context, &self.stop, &std::mem::take(&mut batch.dead)).await?;
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        for at in 0..batch.hooks.len() {
            match self.keep_webhook(batch, at).await? {
                Some(row) => kept.push(row),
                None => {
                    // Keeps the places of the others; nothing refers to it.
                    kept.push(WebhookEventId::new(0));
                    refused.push(at);
                }
            }
        }
        Ok((kept, refused))
    }

    /// Keeps one raw webhook with what died of it. `None`: it has no row; it is a dead letter as a whole.
    async fn keep_webhook(&self, batch: &mut Batch, at: usize) -> Result<Option<WebhookEventId>, Away> {
        let Some(place) = batch.hooks.get_mut(at) else { return Ok(None) };
        // Taken out for a moment, to stand alone.
        let hook = std::mem::replace(place, Hook::nothing(&place.head));
        let mut alone = Batch { hooks: vec![hook], ..Batch::default() };
        let mut row = None;
        match self.commit(Part { batch: &alone, work: &[], kept: None }).await {
            Ok(written) => row = written.kept.first().copied(),
            Err(Failed::Away) => return Err(Away::Database),
            Err(Failed::ByItself(fault)) => {
                // It may be a letter that is refused, and not the webhook.
                let letters = alone.hooks.first_mut().map(|hook| std::mem::take(&mut hook.dead)).unwrap_or_default();
                if !letters.is_empty() {
                    match self.commit(Part { batch: &alone, work: &[], kept: None }).await {
                        Ok(written) => row = written.kept.first().copied(),
                        Err(Failed::Away) => return Err(Away::Database),
                        Err(Failed::ByItself(_)) => {}
                    }
                }
                if row.is_some() {
                    bury::items(&self.context, &self.stop, &letters).await?;
                } else if let Some(hook) = alone.hooks.first() {
                    let (id, trace) = (hook.head.request_id, trace_id(&hook.head));
                    warn!(error = %fault, request.id = %id, trace.id = trace, "A webhook is set aside");
                    let whole = of_webhook(&hook.head, &hook.body, fault.cause());
                    self.count_dead(std::slice::from_ref(&whole));
                    bury::webhook(&self.context, &self.stop, hook, whole).await?;
                }
                if let Some(hook) = alone.hooks.first_mut() {
                    hook.dead = letters;
                }
            }
        }
        if let (Some(place), Some(hook)) = (batch.hooks.get_mut(at), alone.hooks.pop()) {
            *place = hook;
        }
        Ok(row)
    }

    /// Writes the dead letters of single items, and what became of their webhooks.
    async fn bury_items(&self, mut batch: Batch, dead: Vec<(usize, NewDeadLetter)>) -> Result<(), Away> {
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
        bury::items(&self.context, &self.stop, &letters).await?;
        let noted = patiently(&self.context, &self.stop, || async {
            let mut tx = self.context.deps.store.begin().await?;
            transact::keep(&mut tx, &batch).await?;
            tx.commit().await
        });
        match noted.await {
            Ok(()) => Ok(()),
            Err(NotWritten::Away) => Err(Away::Database),
            Err(NotWritten::Refused(error)) => {
                error!(%error, "What became of webhooks cannot be noted; their dead letters tell");
                Ok(())
            }
        }
    }

    /// As [`Writer::transacted`], and a panic is a fault of what was written: it must not come again and again with all that
    /// stands beside it.
    async fn commit(&self, part: Part<'_>) -> Result<Written, Failed> {
        match AssertUnwindSafe(self.transacted(part)).catch_unwind().await {
            Ok(outcome) => outcome.map_err(Failed::from),
            Err(_) => Err(Failed::ByItself(Fault::Panicked)),
        }
    }

    /// One transaction and what follows its commit: readers are woken, parked receipts looked for once more, lanes moved on.
    async fn transacted(&self, part: Part<'_>) -> Result<Written, NotWritten> {
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
