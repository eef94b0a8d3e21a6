//! What providers say of our messages. Every receipt is kept; which of them raise a status is decided here, the same way
//! whether it comes early, late, twice or in the wrong order.
//!
//! A receipt finds its message by the message's provider id, then by the id of any attempt, then by our own correlation;
//! else it is parked. Two transactions, one learning an id and one parking a receipt for it, can each miss the other: so
//! whoever learnt or parked an id looks once more after its commit ([`second_look`]). Whichever commits second sees the
//! first.

#[allow(unreachable_pub, reason = "rows! declares public structs")]
mod find;
mod judge;
#[allow(unreachable_pub, reason = "rows! declares public structs")]
mod record;

use crate::batch::json;
use crate::column::rows;
use crate::feed::{self, Change};
use crate::message::{self, Advance};
use crate::send::{self, Evidence, settle_by_evidence};
use crate::tx::on_backend;
use crate::{At, Result, Tx, attempt};
use domain::{AccountId, ConversationId, Correlation, MessageId, SendState, Status, Timestamp, WebhookEventId};
use judge::{Found, Judged};
use std::collections::{BTreeMap, BTreeSet, HashSet};

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
    /// How many wait for a message that is not known yet.
    pub parked: usize,
    /// How many were told before.
    pub duplicates: usize,
    /// Ids that were learnt or parked: hand them to [`second_look`] after the commit.
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
/// order of their ids), inserts the events per message in the order of rank, then updates: so that applied events, read in
/// the order of their ids, never go backwards.
/// # Errors
/// When the database cannot be reached, refuses a row, or two transactions lock each other out.
pub async fn apply(tx: &mut Tx, receipts: &[NewReceipt], now: Timestamp) -> Result<Receipts> {
    let mut seen = HashSet::with_capacity(receipts.len());
    let distinct: Vec<&NewReceipt> = receipts.iter().filter(|receipt| seen.insert(receipt.key())).collect();
    if distinct.is_empty() {
        return Ok(Receipts::default());
    }
    let matches = find::matches(tx, &distinct).await?;
    let ids: BTreeSet<MessageId> = matches.iter().flatten().map(|found| found.message).collect();
    let failed: Vec<MessageId> = distinct
        .iter()
        .zip(&matches)
        .filter(|(receipt, _)| receipt.status == Some(Status::Failed))
        .filter_map(|(_, found)| found.map(|found| found.message))
        .collect();
    find::lock_conversations(tx, &failed).await?;
    let locked = find::lock(tx, ids.iter().copied().collect()).await?;
    let older = matches
        .iter()
        .flatten()
        .any(|found| locked.get(&found.message).is_some_and(|message| found.generation < message.send_generation));
    let history = if older { attempt::of(tx, &ids.into_iter().collect::<Vec<_>>()).await? } else { Vec::new() };

    let judged = judge::judge(&distinct, &matches, &locked, &history);
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
    let settled: HashSet<MessageId> =
        settle_by_evidence(tx, &evidence).await?.into_iter().map(|settled| settled.message_id).collect();

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

    // What is parked, what taught us an id, and what was there before and may still be parked.
    let learnt: HashSet<&str> = advances.iter().filter_map(|advance| advance.provider_message_id.as_deref()).collect();
    let again: BTreeSet<(AccountId, String)> = judged
        .iter()
        .filter(|event| {
            let kept = inserted.contains(&event.receipt.key());
            event.found.is_none() || !kept || learnt.contains(event.receipt.provider_message_id.as_str())
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
        event.counts.then_some(Evidence {
            message: found.message,
            generation: found.generation,
            attempt: found.attempt,
            status,
        })
    };
    kept.iter().filter_map(said).collect()
}

macro_rules! parked_columns {
    () => {
        "channel_account_id, provider_message_id, status, provider_status, occurred_at, received_at, correlation, \
         error_code, error_message, pricing, raw_payload, webhook_event_id"
    };
}
/// What a parked receipt waits for: a message, or an attempt, that has its id. Asked row by row: PostgreSQL answers `EXISTS`
/// here by reading all attempts there ever were into a hash table.
macro_rules! has_a_message {
    () => {
        "((SELECT m.id FROM messages m WHERE m.provider_message_id = e.provider_message_id AND m.channel_account_id = e.channel_account_id
              AND m.direction = 'OUTBOUND' LIMIT 1) IS NOT NULL
          OR (SELECT a.id FROM send_attempts a JOIN messages m ON m.id = a.message_id AND m.channel_account_id = e.channel_account_id
               WHERE a.provider_message_id = e.provider_message_id LIMIT 1) IS NOT NULL)"
    };
}
const PARKED_TAKE_PG: &str =
    concat!(
    "DELETE FROM message_status_events WHERE id IN (SELECT e.id FROM unnest($1::bigint[], $2::text[]) AS i(account, id)
       JOIN message_status_events e ON e.channel_account_id = i.account AND e.provider_message_id = i.id
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND ", has_a_message!(), ")
     RETURNING ", parked_columns!()
);
const PARKED_TAKE_SQLITE: &str = concat!(
    "DELETE FROM message_status_events WHERE id IN (SELECT e.id FROM json_each($1) AS i
       JOIN message_status_events e ON e.channel_account_id = i.value ->> 0 AND e.provider_message_id = i.value ->> 1
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND ",
    has_a_message!(),
    ")
     RETURNING ",
    parked_columns!()
);
const PARKED_TAKE_OURS_PG: &str = concat!(
    "DELETE FROM message_status_events WHERE id IN (SELECT e.id FROM unnest($1::bigint[], $2::bigint[]) AS i(account, message)
       JOIN message_status_events e ON e.channel_account_id = i.account
        AND e.correlation LIKE 'r1.' || (SELECT id FROM deployment) || '.' || i.message || '.%'
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL)
     RETURNING ",
    parked_columns!()
);
const PARKED_TAKE_OURS_SQLITE: &str = concat!(
    "DELETE FROM message_status_events WHERE id IN (SELECT e.id FROM json_each($1) AS i
       JOIN message_status_events e ON e.channel_account_id = i.value ->> 0
        AND e.correlation LIKE 'r1.' || (SELECT id FROM deployment) || '.' || (i.value ->> 1) || '.%'
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL)
     RETURNING ",
    parked_columns!()
);
const PARKED_TAKE_ANY: &str = concat!(
    "DELETE FROM message_status_events WHERE id IN (SELECT e.id FROM message_status_events e
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND e.received_at > $1 AND ",
    has_a_message!(),
    "
      ORDER BY e.id LIMIT $2)
     RETURNING ",
    parked_columns!()
);

const PARKED_NAMED_PG: &str =
    "SELECT DISTINCT e.channel_account_id, e.correlation FROM unnest($1::bigint[], $2::text[]) AS i(account, id)
       JOIN message_status_events e ON e.channel_account_id = i.account AND e.provider_message_id = i.id
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL
        AND e.correlation LIKE 'r1.' || (SELECT id FROM deployment) || '.%'";
const PARKED_NAMED_SQLITE: &str = "SELECT DISTINCT e.channel_account_id, e.correlation FROM json_each($1) AS i
       JOIN message_status_events e ON e.channel_account_id = i.value ->> 0 AND e.provider_message_id = i.value ->> 1
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL
        AND e.correlation LIKE 'r1.' || (SELECT id FROM deployment) || '.%'";
const PARKED_NAMED_ANY: &str = "SELECT DISTINCT e.channel_account_id, e.correlation FROM message_status_events e
      WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND e.received_at > $1
        AND e.correlation LIKE 'r1.' || (SELECT id FROM deployment) || '.%' LIMIT $2";

rows! {
    /// What a parked receipt says of itself: our own correlation.
    pub struct NamedRow {
        /// The account.
        pub channel_account_id: AccountId,
        /// Deployment, message, generation and attempt.
        pub correlation: String,
    }

    /// A receipt that was parked.
    pub struct ParkedRow {
        /// The account.
        pub channel_account_id: AccountId,
        /// The provider's id.
        pub provider_message_id: String,
        /// Our word for it.
        pub status: Option<Status>,
        /// The provider's word.
        pub provider_status: String,
        /// The provider's time.
        pub occurred_at: Timestamp,
        /// When it arrived.
        pub received_at: Timestamp,
        /// The string we gave when sending.
        pub correlation: Option<String>,
        /// Code of a failure.
        pub error_code: Option<String>,
        /// Words of a failure.
        pub error_message: Option<String>,
        /// Price information.
        pub pricing: Option<serde_json::Value>,
        /// The item as it arrived.
        pub raw_payload: Option<String>,
        /// The webhook it came in.
        pub webhook_event_id: Option<WebhookEventId>,
    }
}

impl From<ParkedRow> for NewReceipt {
    fn from(row: ParkedRow) -> Self {
        NewReceipt {
            account: row.channel_account_id,
            provider_message_id: row.provider_message_id,
            status: row.status,
            provider_status: row.provider_status,
            occurred_at: row.occurred_at,
            received_at: row.received_at,
            correlation: row.correlation,
            error_code: row.error_code,
            error_message: row.error_message,
            pricing: row.pricing,
            raw: row.raw_payload,
            webhook: row.webhook_event_id,
        }
    }
}

/// Applies what is parked under these ids, for messages that have them by now, and for messages that the receipts name by
/// our correlation and whose call has ended meanwhile. In a transaction of its own, after the commit that learnt or parked
/// the ids and before the acknowledgement. A parked event moves to a new id.
/// # Errors
/// As [`apply`].
pub async fn second_look(tx: &mut Tx, ids: &[(AccountId, String)], now: Timestamp) -> Result<Receipts> {
    if ids.is_empty() {
        return Ok(Receipts::default());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let taken: Vec<ParkedRow> = match tx {
        Tx::Postgres(tx) => {
            let (accounts, ids): (Vec<i64>, Vec<&str>) =
                ids.iter().map(|(account, id)| (account.get(), id.as_str())).unzip();
            sqlx::query_as(PARKED_TAKE_PG).bind(accounts).bind(ids).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_TAKE_SQLITE).bind(json(ids)?).fetch_all(&mut **tx).await?,
    };
    let by_id = apply_taken(tx, taken, now).await?;
    let named: Vec<NamedRow> = match tx {
        Tx::Postgres(tx) => {
            let (accounts, ids): (Vec<i64>, Vec<&str>) =
                ids.iter().map(|(account, id)| (account.get(), id.as_str())).unzip();
            sqlx::query_as(PARKED_NAMED_PG).bind(accounts).bind(ids).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_NAMED_SQLITE).bind(json(ids)?).fetch_all(&mut **tx).await?,
    };
    Ok(by_id.and(look_for_named(tx, &named, now).await?))
}

/// As [`look_for`], for those of the messages named whose call is not open.
async fn look_for_named(tx: &mut Tx, named: &[NamedRow], now: Timestamp) -> Result<Receipts> {
    let messages: BTreeSet<(AccountId, MessageId)> = named
        .iter()
        .filter_map(|row| Some((row.channel_account_id, row.correlation.parse::<Correlation>().ok()?.message)))
        .collect();
    if messages.is_empty() {
        return Ok(Receipts::default());
    }
    let ids: Vec<MessageId> = messages.iter().map(|(_, message)| *message).collect();
    let open: HashSet<MessageId> = send::of(tx, &ids)
        .await?
        .into_iter()
        .filter(|row| row.state == SendState::InFlight)
        .map(|row| row.message_id)
        .collect();
    let ended: Vec<_> = messages.into_iter().filter(|(_, message)| !open.contains(message)).collect();
    look_for(tx, &ended, now).await
}

/// Applies what is parked under the correlation of these messages: it came while their call was open. For every report
/// that is not an acceptance (that one teaches an id, see [`second_look`]), before the message may go again, and for sends
/// of unknown outcome before their silence is judged.
/// # Errors
/// As [`apply`].
pub async fn look_for(tx: &mut Tx, messages: &[(AccountId, MessageId)], now: Timestamp) -> Result<Receipts> {
    if messages.is_empty() {
        return Ok(Receipts::default());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let taken: Vec<ParkedRow> = match tx {
        Tx::Postgres(tx) => {
            let (accounts, messages): (Vec<i64>, Vec<i64>) =
                messages.iter().map(|(account, message)| (account.get(), message.get())).unzip();
            sqlx::query_as(PARKED_TAKE_OURS_PG).bind(accounts).bind(messages).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_TAKE_OURS_SQLITE).bind(json(messages)?).fetch_all(&mut **tx).await?,
    };
    apply_taken(tx, taken, now).await
}

/// As [`second_look`], for whatever has been parked since `since`: what the keeper repeats, should a process have died
/// between its commit and its second look. At most `limit` receipts.
/// # Errors
/// As [`apply`].
pub async fn second_look_at_all(tx: &mut Tx, since: Timestamp, limit: i64, now: Timestamp) -> Result<Receipts> {
    let taken: Vec<ParkedRow> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(PARKED_TAKE_ANY).bind(At(since)).bind(limit).fetch_all(conn).await?);
    let by_id = apply_taken(tx, taken, now).await?;
    let named: Vec<NamedRow> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(PARKED_NAMED_ANY).bind(At(since)).bind(limit).fetch_all(conn).await?);
    Ok(by_id.and(look_for_named(tx, &named, now).await?))
}

async fn apply_taken(tx: &mut Tx, taken: Vec<ParkedRow>, now: Timestamp) -> Result<Receipts> {
    let receipts: Vec<NewReceipt> = taken.into_iter().map(NewReceipt::from).collect();
    apply(tx, &receipts, now).await
}

const PARKED_COUNT: &str =
    "SELECT count(*) FROM message_status_events WHERE message_id IS NULL AND conversation_id IS NULL";

/// How many receipts wait for their message.
/// # Errors
/// Only when the database cannot be reached.
pub async fn parked_count(tx: &mut Tx) -> Result<i64> {
    Ok(on_backend!(tx, conn => sqlx::query_scalar(PARKED_COUNT).fetch_one(conn).await?))
}
