//! What providers say of our messages. Every receipt is kept; which of them raise a status is decided here, the same way
//! whether it comes early, late, twice or in the wrong order.
//!
//! A receipt finds its message by the message's provider id, then by the id of any attempt, then by our own correlation;
//! else it is parked under its id. Two transactions, one learning an id and one parking a receipt for it, can each miss the
//! other: so whoever learnt or parked an id looks once more after its commit ([`second_look`]). Whichever commits second sees
//! the first.
//!
//! **Beside an open call nothing is settled.** A receipt that finds its message while that message's send is IN_FLIGHT is
//! parked as well, and names the message it waits for; the report that ends the call takes it up in its own transaction
//! ([`look_for`]). Neither can miss the other: whether a call is open is asked in a statement of its own once the messages are
//! held, and a report holds the same messages. So either the receipt sees what the report has left, or the report, in a later
//! statement, sees the parked row. Asking holds the rows of `sends` too, so that nobody claims one meanwhile.

#[allow(unreachable_pub, reason = "rows! declares public structs")]
mod find;
mod judge;
#[allow(unreachable_pub, reason = "rows! declares public structs")]
mod parked;
#[allow(unreachable_pub, reason = "rows! declares public structs")]
mod record;

use crate::feed::{self, Change};
use crate::message::{self, Advance};
use crate::send::{Evidence, settle_by_evidence};
use crate::{Result, Tx, attempt, result};
use domain::{AccountId, ConversationId, MessageId, Status, Timestamp, WebhookEventId};
use judge::{Found, Judged};
use std::collections::{BTreeMap, BTreeSet, HashSet};

pub use parked::{look_for, parked_count, second_look, second_look_at_all};
pub(crate) use parked::{proof_waiting_for, wait_for_call, waiting_for};

/// Class of a failure that the provider reported after it had taken the message.
pub const FAILED_CLASS: &str = "REJECTED";

/// What a provider says of one of our messages.
#[derive(Clone, Debug, PartialEq)]
pub struct NewReceipt {
    /// The account the webhook names.
    pub account: AccountId,
    /// The provider's id of our message.
    pub provider_message_id: String,
    /// Our word for it; `None` for a value we do not map.
    pub status: Option<Status>,
    /// The provider's word.
    pub provider_status: String,
    /// The provider's time, or the arrival.
    pub occurred_at: Timestamp,
    /// When ingress had it.
    pub received_at: Timestamp,
    /// The string we gave when sending, as the provider returned it. Settles nothing unless it is this deployment's and the
    /// message is one we sent from this account.
    pub correlation: Option<String>,
    /// Provider's code of a failure.
    pub error_code: Option<String>,
    /// Provider's words for a failure.
    pub error_message: Option<String>,
    /// Price information.
    pub pricing: Option<serde_json::Value>,
    /// The item as it arrived.
    pub raw: Option<String>,
    /// The webhook it came in.
    pub webhook: Option<WebhookEventId>,
}

impl NewReceipt {
    /// What makes two receipts the same one told twice.
    fn key(&self) -> EventKey {
        (self.account.get(), self.provider_message_id.clone(), self.provider_status.clone(), self.occurred_at)
    }
}

/// Account, provider id, provider's word, provider's time.
type EventKey = (i64, String, String, Timestamp);

/// What receipts made of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which message.
    pub message: MessageId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Its account.
    pub account: AccountId,
    /// The status it has now.
    pub status: Status,
    /// Whether it rose to that.
    pub raised: bool,
    /// Whether its send is finished, so that its lane's next head may go.
    pub settled: bool,
}

/// What became of a batch of receipts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// Messages that the receipts found.
    pub applied: Vec<Applied>,
    /// How many wait: for a message that is not known yet, or for the end of their message's open call.
    pub parked: usize,
    /// How many were told before.
    pub duplicates: usize,
    /// Ids that were learnt, or parked for a message that is not known: hand them to [`second_look`] after the commit.
    pub look_again: Vec<(AccountId, String)>,
}

impl Receipts {
    /// What two looks found together.
    fn and(mut self, other: Receipts) -> Self {
        self.applied.extend(other.applied);
        self.parked += other.parked;
        self.duplicates += other.duplicates;
        self.look_again.extend(other.look_again);
        self
    }
}

/// Keeps receipts and lets those that may raise the status of their message. Locks the messages concerned first (in the
/// order of their ids), asks whose call is open, inserts the events per message in the order of rank, then updates: so that
/// applied events, read in the order of their ids, never go backwards. What had waited for a send that this finishes is
/// taken up with it.
/// # Errors
/// When the database cannot be reached, refuses a row, or two transactions lock each other out.
pub async fn apply(tx: &mut Tx, receipts: &[NewReceipt], now: Timestamp) -> Result<Receipts> {
    let heard = hear(tx, receipts, now).await?;
    let settled: Vec<MessageId> = heard.applied.iter().filter(|one| one.settled).map(|one| one.message).collect();
    let waiting = parked::waiting_for(tx, &settled).await?;
    if waiting.is_empty() {
        return Ok(heard);
    }
    let taken = parked::take(tx, &waiting).await?;
    let mut heard = heard.and(hear(tx, &taken.receipts, now).await?);
    heard.look_again.extend(result::tell_again(tx, taken.acceptances, now).await?);
    Ok(heard)
}

async fn hear(tx: &mut Tx, receipts: &[NewReceipt], now: Timestamp) -> Result<Receipts> {
    let mut seen = HashSet::with_capacity(receipts.len());
    let distinct: Vec<&NewReceipt> = receipts.iter().filter(|receipt| seen.insert(receipt.key())).collect();
    if distinct.is_empty() {
        return Ok(Receipts::default());
    }
    let matches = find::matches(tx, &distinct).await?;
    let ids: BTreeSet<MessageId> = matches.iter().flatten().map(|found| found.message).collect();
    let failed: BTreeSet<MessageId> = distinct
        .iter()
        .zip(&matches)
        .filter(|(receipt, _)| receipt.status == Some(Status::Failed))
        .filter_map(|(_, found)| found.map(|found| found.message))
        .collect();
    find::lock_conversations(tx, failed.iter().copied().collect()).await?;
    let locked = find::lock(tx, ids.into_iter().collect()).await?;
    let sends = find::unfinished(tx, &locked).await?;
    let older = matches
        .iter()
        .flatten()
        .filter(|found| locked.get(&found.message).is_some_and(|message| found.generation < message.send_generation))
        .map(|found| found.message);
    let told_apart: BTreeSet<MessageId> = older.chain(failed).collect();
    let history = match told_apart.is_empty() {
        true => Vec::new(),
        false => attempt::of(tx, &told_apart.into_iter().collect::<Vec<_>>()).await?,
    };

    let judged = judge::judge(&distinct, &matches, &judge::Known { locked: &locked, sends: &sends, history: &history });
    let inserted = record::insert(tx, &judged).await?;
    let kept: Vec<&Judged<'_>> = judged.iter().filter(|event| inserted.contains(&event.receipt.key())).collect();

    let mut outcome = Receipts {
        parked: kept.iter().filter(|event| event.found.is_none()).count(),
        duplicates: receipts.len() - kept.len(),
        ..Receipts::default()
    };
    let advances = advances(&kept, &locked);
    message::advance(tx, &advances).await?;
    let evidence = evidence(&kept);
    record::complete_attempts(tx, &kept).await?;
    // Nearly every receipt is about a message whose send was over long ago.
    let settled: HashSet<MessageId> = match evidence.iter().any(|said| sends.contains_key(&said.message)) {
        true => settle_by_evidence(tx, &evidence).await?.into_iter().map(|settled| settled.message_id).collect(),
        false => HashSet::new(),
    };

    let mut failed: Vec<(ConversationId, Timestamp)> = Vec::new();
    let mut changes = Vec::new();
    for advance in &advances {
        let Some(message) = locked.get(&advance.message) else { continue };
        let status = advance.status.unwrap_or(message.status);
        if advance.status.is_some() {
            changes.push(Change::MessageStatus { conversation: message.conversation_id, message: message.id, status });
        }
        if let (Some(Status::Failed), Some(at)) = (advance.status, advance.failed_at) {
            failed.push((message.conversation_id, at));
        }
        outcome.applied.push(Applied {
            message: message.id,
            conversation: message.conversation_id,
            account: message.channel_account_id,
            status,
            raised: advance.status.is_some(),
            settled: settled.contains(&message.id),
        });
    }
    record::note_failures(tx, &failed).await?;
    feed::write(tx, &changes, now).await?;

    // What is parked under its id, what taught us an id, and what was there before and may still be parked. What waits for
    // an open call is the business of the report that ends it.
    let learnt: HashSet<&str> = advances.iter().filter_map(|advance| advance.provider_message_id.as_deref()).collect();
    let again: BTreeSet<(AccountId, String)> = judged
        .iter()
        .filter(|event| {
            let kept = inserted.contains(&event.receipt.key());
            let nobodys = event.found.is_none() && event.waits_for.is_none();
            nobodys || !kept || learnt.contains(event.receipt.provider_message_id.as_str())
        })
        .map(|event| (event.receipt.account, event.receipt.provider_message_id.clone()))
        .collect();
    outcome.look_again = again.into_iter().collect();
    Ok(outcome)
}

/// What the receipts that were new make of each message.
fn advances(kept: &[&Judged<'_>], locked: &find::Locked) -> Vec<Advance> {
    let mut by_message: BTreeMap<MessageId, Advance> = BTreeMap::new();
    for event in kept {
        let Some(found) = event.found else { continue };
        let Some(message) = locked.get(&found.message) else { continue };
        let advance = by_message.entry(message.id).or_insert_with(|| Advance {
            message: message.id,
            status: None,
            provider_message_id: None,
            sent_at: None,
            delivered_at: None,
            read_at: None,
            failure: None,
            failed_at: None,
        });
        let (Some(status), true) = (event.receipt.status, event.counts) else { continue };
        let at = event.receipt.occurred_at;
        let earliest = |known: Option<Timestamp>| Some(known.map_or(at, |known| known.min(at)));
        if matches!(status, Status::Sent | Status::Delivered | Status::Read) {
            advance.sent_at = earliest(advance.sent_at);
        }
        if matches!(status, Status::Delivered | Status::Read) {
            advance.delivered_at = earliest(advance.delivered_at);
        }
        if status == Status::Read {
            advance.read_at = earliest(advance.read_at);
        }
        if message.provider_message_id.is_none() && advance.provider_message_id.is_none() {
            advance.provider_message_id = Some(event.receipt.provider_message_id.clone());
        }
        if event.applied {
            // In the order of rank: the last one stands.
            advance.status = Some(status);
            (advance.failure, advance.failed_at) = match status {
                Status::Failed => (Some(failure(event.receipt)), Some(at)),
                _ => (None, None),
            };
        }
    }
    by_message.into_values().collect()
}

/// Why it failed, in class, code and words; there is always a word.
fn failure(receipt: &NewReceipt) -> (String, Option<String>, Option<String>) {
    let words = match (&receipt.error_code, &receipt.error_message) {
        (None, None) => Some("the provider reports a failure and gives no reason".to_owned()),
        (_, words) => words.clone(),
    };
    (FAILED_CLASS.to_owned(), receipt.error_code.clone(), words)
}

/// What the receipts that count say to the rows of `sends`.
fn evidence(kept: &[&Judged<'_>]) -> Vec<Evidence> {
    let said = |event: &&Judged<'_>| {
        let (found, status) = (event.found?, event.receipt.status?);
        // An older generation that ended HELD and turns out to have been taken is as good as delivered: the newer one must
        // not go out as well.
        let status = if found.older && status == Status::Sent { Status::Delivered } else { status };
        event.counts.then_some(Evidence { message: found.message, generation: found.generation, status })
    };
    kept.iter().filter_map(said).collect()
}
