//! What senders report, into the store. A batch is one transaction, which also takes up what the provider said while the calls
//! were open; after its commit come the second look for receipts that were waiting for an id, the lanes' next heads, and only
//! then the acknowledgement. Whatever dies in between comes again,
//! and changes nothing the second time.

use crate::Context;
use crate::hold::{NotWritten, patiently, until_back};
use domain::AccountId;
use domain::wire::{SendEvent, SendResults};
use queue::topics::RESULTS;
use queue::{Consumer, Delivery, Settle};
use std::collections::BTreeSet;
use store::StoreError;
use store::receipt;
use store::result::{self, Applied, Pace, Times};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Queue messages held at once: two batches, since a sender puts up to 256 reports into one.
const PREFETCH: u16 = 64;

/// Reads reports until `stop` is cancelled and the batch at hand is written.
pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let mut consumer = context.deps.queue.consume(&RESULTS, None, PREFETCH).await;
    loop {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            delivery = consumer.next() => delivery,
        };
        let Some(first) = first else { break };
        let batch = gather(first, &mut consumer, context.deps.tuning.ingest_batch).await;
        let Err(batch) = process(&context, &stop, &consumer, batch).await else { continue };
        if stop.is_cancelled() {
            consumer.close(batch).await;
            return;
        }
        warn!("The database has been away for long; reports go back to the queue until it answers");
        consumer.pause(batch).await;
        if !until_back(&context, &stop).await {
            break;
        }
        consumer.resume().await;
    }
    consumer.close(Vec::new()).await;
}

/// What is there already, up to a batch. Nobody waits for more: while one batch is written the next one gathers by itself.
async fn gather(
    first: Delivery<SendResults>,
    consumer: &mut Consumer<SendResults>,
    most: usize,
) -> Vec<Delivery<SendResults>> {
    let (mut batch, mut reports) = (Vec::new(), 0);
    let mut next = Some(first);
    while let Some(delivery) = next {
        match &delivery.item {
            Ok(results) => {
                reports += results.items.len();
                batch.push(delivery);
            }
            Err(undecodable) => {
                // A newer sender's, or rubbish; the sends it was about end by their leases.
                let reason = undecodable.to_string();
                error!(reason, "A report cannot be read; it is set aside");
                delivery.settle(Settle::DeadLetter { reason_code: "UNDECODABLE".to_owned(), reason }).await;
            }
        }
        next = if reports < most { consumer.try_next() } else { None };
    }
    batch
}

/// Writes a batch and acknowledges it. Gives it back when the database is away for too long.
async fn process(
    context: &Context,
    stop: &CancellationToken,
    consumer: &Consumer<SendResults>,
    batch: Vec<Delivery<SendResults>>,
) -> Result<(), Vec<Delivery<SendResults>>> {
    let events: Vec<SendEvent> = batch
        .iter()
        .filter_map(|delivery| delivery.item.as_ref().ok())
        .flat_map(|results| results.items.clone())
        .collect();
    let mut outcome = Outcome::default();
    let written = write(context, stop, &events, &mut outcome).await;
    // What was committed is followed up even when the rest has to wait.
    let looked = second_look(context, stop, &mut outcome).await;
    context.deps.store.wake_readers();
    context.deps.dispatcher.kick_lanes(events.iter().filter_map(|event| match event {
        SendEvent::Finished(report) => Some((report.account, report.conversation)),
        SendEvent::LeaseExpired { .. } => None,
    }));
    context.deps.dispatcher.kick(&outcome.accounts.iter().copied().collect::<Vec<_>>());
    if written.is_err() || looked.is_err() {
        return Err(batch);
    }
    let (mut refused, mut done) = (Vec::new(), Vec::new());
    for delivery in batch {
        match delivery.item.as_ref().ok().and_then(|results| outcome.refusal_of(results)) {
            Some(why) => refused.push((why.to_owned(), delivery)),
            None => done.push(delivery),
        }
    }
    consumer.settle_all(done).await;
    for (reason, delivery) in refused {
        delivery.settle(Settle::DeadLetter { reason_code: "RESULT_REFUSED".to_owned(), reason }).await;
    }
    Ok(())
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Outcome {
    learnt: Vec<(AccountId, String)>,
    /// Where a lane may have moved that no report names.
    accounts: BTreeSet<AccountId>,
    /// Reports the database will not take, and why.
    refused: Vec<(SendEvent, String)>,
}

impl Outcome {
    fn add(&mut self, events: &[SendEvent], applied: Applied) {
        self.learnt.extend(applied.learnt);
        self.accounts.extend(events.iter().filter_map(|event| match event {
            SendEvent::Finished(_) => None,
            SendEvent::LeaseExpired { account, .. } => Some(*account),
        }));
    }

    /// Why the first refused report among these was refused, if one was.
    fn refusal_of(&self, results: &SendResults) -> Option<&str> {
        let why = |event| self.refused.iter().find(|(refused, _)| refused == event).map(|(_, why)| why.as_str());
        results.items.iter().find_map(why)
    }
}

/// The database was away for too long.
struct Away;

/// Applies events in their order. A batch the database refuses is halved until the guilty report stands alone; it is set
/// aside, the others are written.
async fn write(
    context: &Context,
    stop: &CancellationToken,
    events: &[SendEvent],
    outcome: &mut Outcome,
) -> Result<(), Away> {
    // The parts still to be written, the next one last.
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match patiently(context, stop, || apply(context, part)).await {
            Ok(applied) => outcome.add(part, applied),
            Err(NotWritten::Away) => return Err(Away),
            Err(NotWritten::Refused(why)) => match part {
                [one] => {
                    error!(error = %why, "The database refuses a report; it is set aside");
                    outcome.refused.push((one.clone(), why.to_string()));
                }
                _ => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            },
        }
    }
    Ok(())
}

async fn apply(context: &Context, events: &[SendEvent]) -> Result<Applied, StoreError> {
    let mut tx = context.deps.store.begin().await?;
    let times = Times { now: context.deps.clock.now(), database_now: tx.database_now().await? };
    let pace = Pace { scale: context.deps.tuning.retry_scale, random: rand::random::<f64> };
    let applied = result::apply(&mut tx, events, times, pace).await?;
    tx.commit().await?;
    Ok(applied)
}

/// Receipts may have come before the id they speak of was known, and may have missed this commit by a moment.
async fn second_look(context: &Context, stop: &CancellationToken, outcome: &mut Outcome) -> Result<(), Away> {
    if outcome.learnt.is_empty() {
        return Ok(());
    }
    let looked = patiently(context, stop, || look(context, &outcome.learnt)).await;
    match looked {
        Ok(settled) => {
            outcome.accounts.extend(settled);
            Ok(())
        }
        Err(NotWritten::Away) => Err(Away),
        Err(NotWritten::Refused(why)) => {
            // The keeper looks again in a few seconds.
            error!(error = %why, "Receipts that wait for an id could not be applied");
            Ok(())
        }
    }
}

/// The second look for ids that were learnt. Returns accounts in which a lane moved.
pub(crate) async fn look(context: &Context, learnt: &[(AccountId, String)]) -> Result<Vec<AccountId>, StoreError> {
    if learnt.is_empty() {
        return Ok(Vec::new());
    }
    let mut tx = context.deps.store.begin().await?;
    let found = receipt::second_look(&mut tx, learnt, context.deps.clock.now()).await?;
    tx.commit().await?;
    Ok(found.applied.into_iter().filter(|one| one.settled).map(|one| one.account).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{MessageId, Timestamp};

    fn about(message: i64) -> SendEvent {
        SendEvent::LeaseExpired {
            message: MessageId::new(message),
            account: AccountId::new(1),
            generation: 1,
            attempt: 1,
            lease_token: "t".to_owned(),
            at: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn each_refused_delivery_is_told_why_its_own_report_was_refused() {
        let refused = vec![(about(2), "the second's fault".to_owned()), (about(5), "the fifth's fault".to_owned())];
        let outcome = Outcome { refused, ..Outcome::default() };
        let refusal_of = |items: &[i64]| {
            let items = items.iter().map(|message| about(*message)).collect();
            outcome.refusal_of(&SendResults { items }).map(str::to_owned)
        };
        assert_eq!(refusal_of(&[1, 2]).as_deref(), Some("the second's fault"));
        assert_eq!(refusal_of(&[4, 5]).as_deref(), Some("the fifth's fault"));
        assert_eq!(refusal_of(&[3]), None);
    }
}
