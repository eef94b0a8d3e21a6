//! Sends that are over although nobody has said so to their row. An acceptance of an earlier attempt, or a receipt, has to
//! wait while a later call is open; when the sender gives that call back instead of reporting, nothing takes it up. Such a
//! row is not dispatched and not claimed; here it is settled, as a report would have settled it.

use super::decide::{Change, Standing, known};
use super::plan::Plan;
use super::{Applied, Times, lock_conversations, standing_of};
use crate::attempt::{self, AttemptRow};
use crate::send::{self, SendRow};
use crate::tx::on_backend;
use crate::{Result, Tx, receipt};
use domain::{AccountId, MessageId, SendState};
use std::collections::{BTreeSet, HashMap};

/// Few rows: what was tried and is not in flight, and what waits for a call. Asked row by row, because PostgreSQL answers
/// `EXISTS` here by reading all attempts there ever were into a hash table.
const SEND_UNSETTLED: &str = "SELECT s.message_id AS id FROM sends s WHERE s.attempt > 0 AND s.state <> 'IN_FLIGHT'
       AND ((SELECT m.id FROM messages m WHERE m.id = s.message_id AND m.status_rank >= 30) IS NOT NULL
         OR (SELECT a.id FROM send_attempts a WHERE a.message_id = s.message_id AND a.generation = s.generation
               AND a.outcome = 'ACCEPTED' AND a.provider_message_id IS NOT NULL LIMIT 1) IS NOT NULL)
     UNION
    SELECT e.waits_for_message_id FROM message_status_events e
     WHERE e.message_id IS NULL AND e.waits_for_message_id IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM sends s WHERE s.message_id = e.waits_for_message_id AND s.state = 'IN_FLIGHT')
     ORDER BY 1 LIMIT $1";

/// Messages whose call is not open and whose fate is known here: an attempt of the present generation was accepted, their
/// status says so, or receipts wait for them. Hand them to [`settle`].
/// # Errors
/// Only when the database cannot be reached.
pub async fn unsettled(tx: &mut Tx, limit: i64) -> Result<Vec<MessageId>> {
    let ids: Vec<i64> = on_backend!(tx, conn => sqlx::query_scalar(SEND_UNSETTLED).bind(limit).fetch_all(conn).await?);
    Ok(ids.into_iter().map(MessageId::new).collect())
}

/// Settles what is over of these messages' sends, and takes up the receipts that wait for them. After the commit: as after
/// [`super::apply`].
/// # Errors
/// When the database cannot be reached, or two transactions lock each other out.
pub async fn settle(tx: &mut Tx, messages: &[MessageId], times: Times) -> Result<Applied> {
    lock_conversations(tx, Vec::new(), messages).await?;
    let standings = standing_of(tx, messages).await?;
    let sends: HashMap<MessageId, SendRow> =
        send::lock(tx, messages).await?.into_iter().map(|row| (row.message_id, row)).collect();
    let attempts = attempt::of(tx, messages).await?;
    let (mut applied, mut plan) = (Applied::default(), Plan::default());
    let mut accounts: BTreeSet<AccountId> = BTreeSet::new();
    for message in standings.values() {
        accounts.insert(message.channel_account_id);
        let Some(send) = sends.get(&message.id).filter(|send| send.state != SendState::InFlight) else { continue };
        let attempts: Vec<AttemptRow> = attempts.iter().filter(|row| row.message_id == message.id).cloned().collect();
        let change = known(Standing { message, send: Some(send), attempts: &attempts, proof: &[] }, send.generation);
        if let Change::Sent { provider_message_id, .. } = &change {
            applied.learnt.push((message.channel_account_id, provider_message_id.clone()));
        }
        applied.changed += usize::from(change != Change::Nothing);
        plan.add(message, change);
    }
    plan.write(tx, times).await?;
    let heard = receipt::look_for(tx, messages, times.now).await?;
    applied.changed += heard.applied.iter().filter(|one| one.settled).count();
    applied.learnt.extend(heard.look_again);
    applied.accounts = accounts.into_iter().collect();
    Ok(applied)
}
