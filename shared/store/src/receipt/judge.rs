//! Which receipts count, and which of them raise the status. No database here.

use super::NewReceipt;
use super::find::{Locked, LockedMessage};
use crate::attempt::AttemptRow;
use domain::{AttemptOutcome, ConversationId, MessageId, Status};

/// Which message a receipt speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) message: MessageId,
    /// Known once the message is held.
    pub(super) conversation: Option<ConversationId>,
    pub(super) generation: i16,
    pub(super) attempt: Option<i16>,
    /// Whether the message has a newer generation by now.
    pub(super) older: bool,
}

/// A receipt and what follows from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged<'a> {
    pub(super) receipt: &'a NewReceipt,
    /// `None`: it is parked.
    pub(super) found: Option<Found>,
    /// Whether it says something about the message as it is now.
    pub(super) counts: bool,
    /// Whether it raises the status.
    pub(super) applied: bool,
}

/// Judges receipts. The answer is in the order in which they are to be inserted: per message in the order of rank, what is
/// parked at the end.
pub(super) fn judge<'a>(
    receipts: &[&'a NewReceipt],
    matches: &[Option<Found>],
    locked: &Locked,
    history: &[AttemptRow],
) -> Vec<Judged<'a>> {
    let mut judged: Vec<Judged<'a>> = receipts
        .iter()
        .zip(matches)
        .map(|(receipt, found)| {
            let held = found.and_then(|found| locked.get(&found.message).map(|message| (found, message)));
            let found = held.map(|(found, message)| Found {
                conversation: Some(message.conversation_id),
                older: found.generation < message.send_generation,
                ..found
            });
            let counts = held.is_some_and(|(found, message)| counts(receipt, found, message, history));
            Judged { receipt, found, counts, applied: false }
        })
        .collect();
    let rank = |event: &Judged<'_>| event.receipt.status.map_or(-1, Status::rank);
    judged.sort_by_key(|event| {
        let message = event.found.map(|found| found.message);
        (message.is_none(), message, rank(event), event.receipt.occurred_at)
    });
    let mut at: Option<(MessageId, i16)> = None;
    for event in &mut judged {
        let Some(message) = event.found.and_then(|found| locked.get(&found.message)) else { continue };
        let reached = match at {
            Some((id, rank)) if id == message.id => rank,
            _ => message.status.rank(),
        };
        let rank = rank(event);
        event.applied = event.counts && rank > reached;
        at = Some((message.id, if event.applied { rank } else { reached }));
    }
    judged
}

/// Of the present generation everything counts. Of an older one a DELIVERED or READ does; an acceptance only if that
/// generation ended HELD, because nobody knew; a late `sent` or `failed` of one that had FAILED was the reason for the
/// retry and says nothing of it.
fn counts(receipt: &NewReceipt, found: Found, message: &LockedMessage, history: &[AttemptRow]) -> bool {
    let Some(status) = receipt.status.filter(|status| status.rank() >= Status::Sent.rank()) else { return false };
    if found.generation == message.send_generation {
        return true;
    }
    match status {
        _ if found.generation > message.send_generation => false,
        Status::Delivered | Status::Read => true,
        Status::Sent => ended_unknown(message.id, found.generation, history),
        _ => false,
    }
}

/// Whether the last attempt of a generation has no known outcome: what a person then decided about was HELD.
fn ended_unknown(message: MessageId, generation: i16, history: &[AttemptRow]) -> bool {
    let of_it = history.iter().filter(|row| row.message_id == message && row.generation == generation);
    of_it.max_by_key(|row| row.attempt).is_some_and(|row| row.outcome == AttemptOutcome::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{AccountId, Timestamp};
    use rstest::rstest;

    fn receipt(status: Status) -> NewReceipt {
        NewReceipt {
            account: AccountId::new(1),
            provider_message_id: "wamid.A".into(),
            status: Some(status),
            provider_status: status.as_str().to_lowercase(),
            occurred_at: Timestamp::from_seconds(1_795_339_800),
            received_at: Timestamp::from_seconds(1_795_339_800),
            correlation: None,
            error_code: None,
            error_message: None,
            pricing: None,
            raw: None,
            webhook: None,
        }
    }

    fn message(status: Status, send_generation: i16) -> LockedMessage {
        LockedMessage {
            id: MessageId::new(7),
            conversation_id: ConversationId::new(1),
            channel_account_id: AccountId::new(1),
            status,
            send_generation,
            provider_message_id: None,
        }
    }

    fn attempt(generation: i16, outcome: AttemptOutcome) -> AttemptRow {
        AttemptRow {
            message_id: MessageId::new(7),
            generation,
            attempt: 1,
            worker: None,
            provider_message_id: None,
            outcome,
            http_status: None,
            provider_code: None,
            error_message: None,
            retry_after_ms: None,
            started_at: None,
            finished_at: Timestamp::EPOCH,
        }
    }

    #[test]
    fn applied_events_rise_whatever_the_order_they_came_in() {
        let told = [receipt(Status::Read), receipt(Status::Sent), receipt(Status::Failed), receipt(Status::Delivered)];
        let found =
            Found { message: MessageId::new(7), conversation: None, generation: 0, attempt: None, older: false };
        let locked = Locked::from([(MessageId::new(7), message(Status::Sent, 0))]);
        let judged = judge(&told.iter().collect::<Vec<_>>(), &[Some(found); 4], &locked, &[]);
        let order: Vec<_> = judged.iter().map(|event| (event.receipt.status.unwrap(), event.applied)).collect();
        let (s, f, d, r) = (Status::Sent, Status::Failed, Status::Delivered, Status::Read);
        assert_eq!(order, [(s, false), (f, true), (d, true), (r, true)]);
    }

    #[rstest]
    #[case::proof_of_delivery(Status::Delivered, AttemptOutcome::Rejected, true)]
    #[case::proof_of_reading(Status::Read, AttemptOutcome::Rejected, true)]
    #[case::acceptance_of_a_held_one(Status::Sent, AttemptOutcome::Unknown, true)]
    #[case::acceptance_of_a_failed_one(Status::Sent, AttemptOutcome::Accepted, false)]
    #[case::failure_of_a_held_one(Status::Failed, AttemptOutcome::Unknown, false)]
    #[case::failure_of_a_failed_one(Status::Failed, AttemptOutcome::Accepted, false)]
    fn what_an_older_generation_may_still_say(
        #[case] status: Status,
        #[case] ended: AttemptOutcome,
        #[case] want: bool,
    ) {
        let found =
            Found { message: MessageId::new(7), conversation: None, generation: 0, attempt: Some(1), older: true };
        let message = message(Status::Queued, 1);
        assert_eq!(counts(&receipt(status), found, &message, &[attempt(0, ended)]), want);
    }
}
