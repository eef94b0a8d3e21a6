//! What senders report, written down: the attempt, the message's status, and what becomes of the row in `sends`. Many
//! reports in one transaction; a report that comes twice, late, or about an attempt that was overtaken changes nothing that
//! it should not.
//!
//! What the provider itself has said meanwhile waits until the call is over ([`crate::receipt`]), and is taken up in the very
//! transaction that ends it, acceptances included: another attempt's receipts may wait there too. So a send that is to go
//! again is never committed while the provider's word lies here that it arrived. An acceptance of an older generation that
//! comes while the newer one is being called waits in the same place, and is told again when that call is over.

mod decide;
mod plan;
mod settle;

pub use decide::Pace;
pub use settle::{settle, unsettled};

use crate::attempt::{self, AttemptRow};
use crate::batch::json;
use crate::column::rows;
use crate::send::{self, SendRow};
use crate::set::{Both, numbers};
use crate::{Result, Tx, receipt};
use decide::{Change, Standing, decide};
use domain::wire::{AttemptReport, SendEvent};
use domain::{AccountId, AttemptOutcome, ConversationId, MessageId, Status, Timestamp};
use plan::Plan;
use std::collections::{BTreeSet, HashMap, HashSet};

rows! {
    /// A message, as far as a report may change it.
    pub struct MessageStanding {
        /// The message.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// How far it has come.
        pub status: Status,
        /// The provider's id, if it is known.
        pub provider_message_id: Option<String>,
        /// Its present generation.
        pub send_generation: i16,
        /// Whether nobody knows what became of its attempt.
        pub outcome_unknown: bool,
        /// Highest watermark of the conversation: delivered until then.
        pub delivered_until: Option<Timestamp>,
        /// Highest watermark of the conversation: read until then.
        pub read_until: Option<Timestamp>,
    }
}

/// What a batch of reports changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Provider ids that were learnt: receipts may be parked under them, see [`crate::receipt::second_look`].
    pub learnt: Vec<(AccountId, String)>,
    /// Accounts in which a lane may have moved, those of reports told again included: something may be due.
    pub accounts: Vec<AccountId>,
    /// Messages that came to an end or another state.
    pub changed: usize,
}

/// The times of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// People's.
    pub now: Timestamp,
    /// The database's, by which due times are kept.
    pub database_now: Timestamp,
}

fn message_of(event: &SendEvent) -> MessageId {
    match event {
        SendEvent::Finished(report) => report.message,
        SendEvent::LeaseExpired { message, .. } => *message,
    }
}

/// Applies reports in their order, and then what the provider had said of their messages while their calls were open. After
/// the commit: the second look for what was learnt, dispatch of the accounts, and only then the acknowledgement.
/// # Errors
/// When the database cannot be reached, or one of the events cannot be written; apply them one by one then.
pub async fn apply(tx: &mut Tx, events: &[SendEvent], times: Times, pace: Pace) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut accounts = BTreeSet::new();
    let reported: Vec<MessageId> = events.iter().map(message_of).collect::<BTreeSet<_>>().into_iter().collect();
    lock_conversations(tx, conversations_of(events), &reported).await?;
    apply_waves(tx, events, times, pace, &mut applied, &mut accounts).await?;
    let heard = receipt::look_for(tx, &reported, times.now).await?;
    applied.learnt.extend(heard.look_again);
    applied.accounts = accounts.into_iter().collect();
    Ok(applied)
}

/// A message's reports are judged one after the other, each by what the one before has left.
async fn apply_waves(
    tx: &mut Tx,
    events: &[SendEvent],
    times: Times,
    pace: Pace,
    applied: &mut Applied,
    accounts: &mut BTreeSet<AccountId>,
) -> Result<()> {
    let mut rest: Vec<&SendEvent> = events.iter().collect();
    while !rest.is_empty() {
        let mut seen = HashSet::new();
        let (wave, later): (Vec<&SendEvent>, Vec<&SendEvent>) =
            rest.into_iter().partition(|event| seen.insert(message_of(event)));
        apply_wave(tx, &wave, times, pace, applied, accounts).await?;
        rest = later;
    }
    Ok(())
}

/// Acceptances that had to wait for the end of a call, told again. They change no conversation and make nothing go again, so
/// neither the database's clock nor a pace is asked. The caller holds the messages. Returns the provider ids that were learnt.
pub(crate) async fn tell_again(
    tx: &mut Tx,
    accepted: Vec<AttemptReport>,
    now: Timestamp,
) -> Result<Vec<(AccountId, String)>> {
    let events: Vec<SendEvent> = accepted.into_iter().map(|report| SendEvent::Finished(Box::new(report))).collect();
    let times = Times { now, database_now: now };
    let pace = Pace { scale: 1.0, random: || 0.0 };
    let mut applied = Applied::default();
    apply_waves(tx, &events, times, pace, &mut applied, &mut BTreeSet::new()).await?;
    Ok(applied.learnt)
}

/// The conversations that reports change. Acceptances change none.
fn conversations_of(events: &[SendEvent]) -> Vec<i64> {
    let changing = events.iter().filter_map(|event| match event {
        SendEvent::Finished(report) if report.outcome != AttemptOutcome::Accepted => Some(report.conversation.get()),
        _ => None,
    });
    changing.collect::<BTreeSet<i64>>().into_iter().collect()
}

/// Every path locks conversations, then messages, then sends, each in the order of the ids. A failure that waits for one of
/// the messages will be noted on its conversation, so those are held too.
async fn lock_conversations(tx: &mut Tx, conversations: Vec<i64>, messages: &[MessageId]) -> Result<()> {
    const CONVERSATION_LOCK: &str = "SELECT id FROM conversations WHERE id IN (
        SELECT unnest($1::bigint[]) UNION
        SELECT m.conversation_id FROM message_status_events e JOIN messages m ON m.id = e.waits_for_message_id
         WHERE e.message_id IS NULL AND e.waits_for_message_id IS NOT NULL AND e.waits_for_message_id = ANY($2)
           AND e.status = 'FAILED') ORDER BY id FOR NO KEY UPDATE";
    // SQLite has one writer.
    let Tx::Postgres(tx) = tx else { return Ok(()) };
    sqlx::query(CONVERSATION_LOCK).bind(conversations).bind(numbers(messages)).execute(tx.conn()).await?;
    Ok(())
}

macro_rules! standing {
    ($ids:literal, $lock:literal) => {
        concat!(
            "SELECT m.id, m.conversation_id, m.channel_account_id, m.status, m.provider_message_id, m.send_generation,
    m.outcome_unknown, c.delivered_until, c.read_until
  FROM messages m JOIN conversations c ON c.id = m.conversation_id
 WHERE m.direction = 'OUTBOUND' AND m.channel_account_id IS NOT NULL AND m.id IN ",
            $ids,
            " ORDER BY m.id",
            $lock
        )
    };
}
const MESSAGE_STANDING: Both = Both {
    postgres: standing!("(SELECT unnest($1::bigint[]))", " FOR NO KEY UPDATE OF m"),
    sqlite: standing!("(SELECT value FROM json_each($1))", ""),
};

async fn standing_of(tx: &mut Tx, messages: &[MessageId]) -> Result<HashMap<MessageId, MessageStanding>> {
    let rows: Vec<MessageStanding> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(MESSAGE_STANDING.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(MESSAGE_STANDING.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    };
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// The attempts made so far, of the messages for which they matter: not for an acceptance of the last attempt of the present
/// generation, which is nearly all there is.
async fn attempts_of(
    tx: &mut Tx,
    wave: &[&SendEvent],
    messages: &HashMap<MessageId, MessageStanding>,
    sends: &HashMap<MessageId, SendRow>,
) -> Result<HashMap<MessageId, Vec<AttemptRow>>> {
    let needed: Vec<MessageId> = wave
        .iter()
        .filter(|event| match event {
            SendEvent::Finished(report) => {
                report.outcome != AttemptOutcome::Accepted
                    || messages.get(&report.message).is_some_and(|m| m.send_generation != report.generation)
                    || sends.get(&report.message).is_some_and(|send| send.attempt > report.attempt)
            }
            SendEvent::LeaseExpired { .. } => true,
        })
        .map(|event| message_of(event))
        .collect();
    let mut attempts: HashMap<MessageId, Vec<AttemptRow>> = HashMap::new();
    if !needed.is_empty() {
        for row in attempt::of(tx, &needed).await? {
            attempts.entry(row.message_id).or_default().push(row);
        }
    }
    Ok(attempts)
}

/// Generations of which the provider says, in receipts that wait for the call's end, that it took them; of the messages that
/// a report may fail. A failure has to know, because a status never goes back from it to SENT.
async fn proofs_of(tx: &mut Tx, wave: &[&SendEvent]) -> Result<HashMap<MessageId, Vec<i16>>> {
    let failing: Vec<MessageId> = wave
        .iter()
        .filter_map(|event| match event {
            SendEvent::Finished(report)
                if report.outcome == AttemptOutcome::Rejected || report.give_up_after.is_some() =>
            {
                Some(report.message)
            }
            _ => None,
        })
        .collect();
    let mut proofs: HashMap<MessageId, Vec<i16>> = HashMap::new();
    for (message, generation) in receipt::proof_waiting_for(tx, &failing).await? {
        proofs.entry(message).or_default().push(generation);
    }
    Ok(proofs)
}

async fn apply_wave(
    tx: &mut Tx,
    wave: &[&SendEvent],
    times: Times,
    pace: Pace,
    applied: &mut Applied,
    accounts: &mut BTreeSet<AccountId>,
) -> Result<()> {
    let ids: Vec<MessageId> = wave.iter().map(|event| message_of(event)).collect();
    let messages = standing_of(tx, &ids).await?;
    let sends: HashMap<MessageId, SendRow> =
        send::lock(tx, &ids).await?.into_iter().map(|row| (row.message_id, row)).collect();
    let attempts = attempts_of(tx, wave, &messages, &sends).await?;
    let proofs = proofs_of(tx, wave).await?;

    let (mut records, mut waits, mut plan) = (Vec::new(), Vec::new(), Plan::default());
    for event in wave {
        // A message that was erased meanwhile leaves nothing to write.
        let Some(message) = messages.get(&message_of(event)) else { continue };
        let attempts = attempts.get(&message.id).map(Vec::as_slice).unwrap_or_default();
        let proof = proofs.get(&message.id).map(Vec::as_slice).unwrap_or_default();
        let standing = Standing { message, send: sends.get(&message.id), attempts, proof };
        let (record, change) = decide(event, standing, pace);
        records.extend(record);
        // Whoever applied it before may have died before the dispatch.
        accounts.insert(message.channel_account_id);
        applied.changed += usize::from(!matches!(change, Change::Nothing | Change::Waits));
        if let (Change::Waits, SendEvent::Finished(report)) = (&change, event) {
            waits.push(&**report);
        }
        plan.add(message, change);
    }
    attempt::record(tx, &records).await?;
    receipt::wait_for_call(tx, &waits, times.now).await?;
    plan.write(tx, times).await?;
    for record in &records {
        let Some(message) = messages.get(&record.message_id) else { continue };
        if let (Some(id), AttemptOutcome::Accepted) = (&record.provider_message_id, record.outcome) {
            applied.learnt.push((message.channel_account_id, id.clone()));
        }
    }
    Ok(())
}
