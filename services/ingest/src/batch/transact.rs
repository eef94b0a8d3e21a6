//! One transaction: the raw webhooks, what people wrote, what providers say, what died.

use super::resolve::{self, Incoming, Learnt};
use super::{Batch, HookBody, Known, Piece, Work};
use domain::inbound::InboundMessage;
use domain::{AccountId, Timestamp, WebhookEventId};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;
use store::dead_letter::{self, NewDeadLetter};
use store::feed::{self, Change};
use store::heartbeat;
use store::media::{self, NewMedia};
use store::message::{self, NewInbound, StoredMessage};
use store::receipt::{self, NewReceipt, Receipts};
use store::webhook_event::{self, NewWebhook, Outcome, RawBody};
use store::{Store, StoreError, Tx};
use tracing::debug;

/// A replayed message younger than this counts as if it had just come; an older one is stored and no more.
const REPLAY_COUNTS_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// What was remembered may be stale again when it was just asked for, but hardly this often in a row.
const STALE_IN_A_ROW: u32 = 5;

/// What a transaction is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) batch: &'a Batch,
    /// Which of the batch's work.
    pub(super) work: &'a [&'a Work],
    /// The raw webhooks' rows, when they are kept already; else they are kept here, with what died and the beats.
    pub(super) kept: Option<&'a [WebhookEventId]>,
}

/// What it wrote.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The raw webhooks' rows.
    pub(super) kept: Vec<WebhookEventId>,
    pub(super) messages: usize,
    pub(super) receipts: usize,
    pub(super) duplicates: usize,
    pub(super) parked: usize,
    /// Ids for the second look.
    pub(super) look_again: Vec<(AccountId, String)>,
    /// Accounts whose lanes may go on.
    pub(super) accounts: Vec<AccountId>,
    /// Whether anything is in the change feed.
    pub(super) changed: bool,
    /// From the provider's time to now, of each new message.
    pub(super) message_lags: Vec<Duration>,
    /// The same of receipts.
    pub(super) receipt_lags: Vec<Duration>,
    pub(super) learnt: Learnt,
}

/// The key of a message: the provider's, or one derived from account, kind and bytes, so that the same item is the same
/// message whichever request brings it.
pub(super) fn message_key(work: &Work, message: &InboundMessage) -> String {
    if let Some(id) = &message.provider_message_id {
        return super::without_nul(id);
    }
    let mut hash = Sha256::new();
    let account = format!("{}:{}", work.config.channel, work.config.external_id);
    let bytes = work.raw.as_deref().or(message.body.as_deref()).unwrap_or_default();
    for part in [account.as_bytes(), b"message", bytes.as_bytes()] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    format!("x:{}", hex::encode(hash.finalize()))
}

/// Writes a part of a batch and commits it.
/// # Errors
/// What the database says. Nothing is written then, or, when only the commit got no answer, perhaps everything: repeating
/// it changes nothing more.
pub(super) async fn transact(
    store: &Store,
    known: &Mutex<Known>,
    part: Part<'_>,
    now: Timestamp,
) -> Result<Written, StoreError> {
    #[cfg(test)]
    super::trap::in_a_transaction(part.work.iter().copied());
    let incoming = incoming(part.work);
    for _ in 0..STALE_IN_A_ROW {
        let mut tx = store.begin().await?;
        message::plan_once(&mut tx).await?;
        match write(&mut tx, known, part, &incoming, now).await {
            Ok(Some(mut written)) => {
                tx.commit().await?;
                std::mem::take(&mut written.learnt).remember(known);
                return Ok(written);
            }
            Ok(None) => debug!("What was remembered is stale; asking again"),
            Err(error) if error.is_missing_reference() => debug!(%error, "What was remembered is gone; asking again"),
            Err(error) => return Err(error),
        }
        drop(tx);
        resolve::forget(known, &incoming);
    }
    Err(StoreError::Stale)
}

/// The messages among the work, each key once: what comes twice in a batch is one message.
fn incoming<'a>(work: &[&'a Work]) -> Vec<Incoming<'a>> {
    let mut seen: HashSet<(AccountId, String)> = HashSet::with_capacity(work.len());
    let mut incoming: Vec<Incoming<'a>> = work.iter().filter_map(|work| Incoming::of(work)).collect();
    incoming.retain(|one| seen.insert((one.work.account, one.key.clone())));
    incoming
}

/// `None`: what was remembered is stale.
async fn write(
    tx: &mut Tx,
    known: &Mutex<Known>,
    part: Part<'_>,
    incoming: &[Incoming<'_>],
    now: Timestamp,
) -> Result<Option<Written>, StoreError> {
    let mut written = Written {
        kept: match part.kept {
            Some(kept) => kept.to_vec(),
            None => keep(tx, part.batch).await?,
        },
        ..Written::default()
    };
    let row = |work: &Work| written.kept.get(work.hook).copied();
    let receipts: Vec<NewReceipt> =
        part.work.iter().filter_map(|work| new_receipt(part.batch, work, row(work))).collect();

    let mut changes = Vec::new();
    if !incoming.is_empty() {
        let arrivals: Vec<Timestamp> = incoming.iter().map(|one| arrival(part.batch, one.work)).collect();
        let (places, learnt) = resolve::places(tx, incoming, &arrivals, known, now).await?;
        let messages: Vec<NewInbound> = incoming
            .iter()
            .zip(&places)
            .zip(&arrivals)
            .map(|((one, place), arrived)| new_message(part.batch, one, *place, *arrived, row(one.work), now))
            .collect();
        let inserted = message::insert_inbound(tx, &messages, now).await?;
        if inserted.stale > 0 || places.len() != incoming.len() {
            return Ok(None);
        }
        media::insert(tx, &files(incoming, &inserted.stored), now).await?;
        changes = changed_conversations(&inserted.stored);
        written.messages = inserted.stored.len();
        let said = inserted.stored.iter().filter_map(|stored| messages.get(stored.at));
        written.message_lags = said.map(|message| now.since(message.occurred_at)).collect();
        written.learnt = learnt;
    }
    let heard: Receipts = receipt::apply(tx, &receipts, now).await?;
    feed::write(tx, &changes, now).await?;
    if part.kept.is_none() {
        bury(tx, part.batch, now).await?;
    }

    written.receipts = receipts.len().saturating_sub(heard.duplicates);
    written.receipt_lags = receipts.iter().map(|receipt| now.since(receipt.occurred_at)).collect();
    written.duplicates = part.work.len().saturating_sub(written.messages + written.receipts);
    written.parked = heard.parked;
    written.changed = !changes.is_empty() || heard.applied.iter().any(|applied| applied.raised);
    written.look_again = heard.look_again;
    written.accounts = settled_accounts(&heard.applied);
    Ok(Some(written))
}

/// Keeps the raw webhooks.
pub(super) async fn keep(tx: &mut Tx, batch: &Batch) -> Result<Vec<WebhookEventId>, StoreError> {
    let row = |hook: &'_ super::Hook| -> (usize, Outcome) { (hook.items, Outcome::of(hook.items, hook.dead.len())) };
    let webhooks: Vec<NewWebhook<'_>> = batch
        .hooks
        .iter()
        .map(|hook| {
            let (items, outcome) = row(hook);
            NewWebhook {
                request_id: hook.head.request_id,
                source: hook.head.source.as_str(),
                received_at: hook.head.received_at,
                headers: &hook.head.headers,
                body: match &hook.body {
                    HookBody::Bytes(bytes) => RawBody::Bytes(bytes),
                    HookBody::Stored(key) => RawBody::Stored(key),
                },
                items,
                outcome,
            }
        })
        .collect();
    webhook_event::upsert(tx, &webhooks).await
}

/// Writes what died, closes what a replay has put right, and takes down the signs of life.
async fn bury(tx: &mut Tx, batch: &Batch, now: Timestamp) -> Result<(), StoreError> {
    let dead: Vec<NewDeadLetter> = batch.hooks.iter().flat_map(|hook| &hook.dead).chain(&batch.dead).cloned().collect();
    dead_letter::insert(tx, &dead, now).await?;
    let replayed: Vec<_> =
        batch.hooks.iter().filter(|hook| hook.head.replay).map(|hook| hook.head.request_id).collect();
    let died_again: Vec<String> = dead.into_iter().map(|dead| dead.origin_key).collect();
    dead_letter::resolve(tx, &replayed, &died_again, now).await?;
    heartbeat::ingress_beats(tx, &batch.beats).await
}

fn arrival(batch: &Batch, work: &Work) -> Timestamp {
    batch.hooks.get(work.hook).map_or(Timestamp::EPOCH, |hook| hook.head.received_at)
}

fn new_message(
    batch: &Batch,
    one: &Incoming<'_>,
    place: resolve::Place,
    arrived: Timestamp,
    webhook: Option<WebhookEventId>,
    now: Timestamp,
) -> NewInbound {
    let message = one.message;
    let occurred_at = one.occurred_at(arrived);
    let replayed = batch.hooks.get(one.work.hook).is_some_and(|hook| hook.head.replay);
    let window = one.work.config.window.filter(|_| message.opens_window);
    NewInbound {
        conversation: place.conversation,
        account: one.work.account,
        contact: place.contact,
        channel: one.work.config.channel,
        lead: place.lead,
        key: one.key.clone(),
        kind: message.kind,
        body: message.body.clone(),
        media_mime_type: message.media.first().and_then(|media| media.mime_type.clone()),
        reply_to: message.reply_to.clone(),
        payload: message.payload.clone(),
        raw: one.work.raw.clone(),
        webhook,
        occurred_at,
        counts: !replayed || occurred_at > now - REPLAY_COUNTS_FOR,
        window_until: window.map(|window| occurred_at + window),
    }
}

fn new_receipt(batch: &Batch, work: &Work, webhook: Option<WebhookEventId>) -> Option<NewReceipt> {
    let Piece::Receipt(receipt) = &work.piece else { return None };
    let received_at = arrival(batch, work);
    Some(NewReceipt {
        account: work.account,
        provider_message_id: super::without_nul(&receipt.provider_message_id),
        status: receipt.status,
        provider_status: super::without_nul(&receipt.provider_status),
        occurred_at: receipt.occurred_at.unwrap_or(received_at),
        received_at,
        correlation: receipt.correlation.clone(),
        error_code: receipt.error_code.clone(),
        error_message: receipt.error_message.clone(),
        pricing: receipt.pricing.clone(),
        raw: work.raw.clone(),
        webhook,
    })
}

/// The files of the messages that were new.
fn files<'a>(incoming: &[Incoming<'a>], stored: &[StoredMessage]) -> Vec<NewMedia<'a>> {
    let of_message = |stored: &StoredMessage| {
        let message = incoming.get(stored.at).map(|one| one.message);
        let files = message.map(|message| message.media.as_slice()).unwrap_or_default();
        let at = stored.message;
        files
            .iter()
            .zip(0..)
            .map(move |(media, position)| NewMedia { message: at, position, media })
            .collect::<Vec<_>>()
    };
    stored.iter().flat_map(of_message).collect()
}

/// One change for each conversation of the batch.
fn changed_conversations(stored: &[StoredMessage]) -> Vec<Change> {
    let conversations: BTreeMap<_, _> = stored.iter().map(|stored| (stored.conversation, stored.contact)).collect();
    conversations
        .into_iter()
        .map(|(conversation, contact)| Change::Conversation { conversation, contact: Some(contact) })
        .collect()
}

/// The accounts in which a send was finished.
pub(super) fn settled_accounts(applied: &[receipt::Applied]) -> Vec<AccountId> {
    let mut accounts: Vec<AccountId> =
        applied.iter().filter(|applied| applied.settled).map(|applied| applied.account).collect();
    accounts.sort_unstable();
    accounts.dedup();
    accounts
}
