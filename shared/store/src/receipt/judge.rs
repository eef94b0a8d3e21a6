//! Which receipts count, and which of them raise the status. No database here.

use super::NewReceipt;
use super::find::{Locked, LockedMessage, Unfinished};
use crate::attempt::AttemptRow;
use crate::send::SendRow;
use domain::{AttemptOutcome, ConversationId, MessageId, SendState, Status};

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
    /// What it is about, when it is parked because that message's call is open.
    pub(super) waits_for: Option<Found>,
    /// Whether it says something about the message as it is now.
    pub(super) counts: bool,
    /// Whether it raises the status.
    pub(super) applied: bool,
}

/// What is known of the messages that receipts speak of, read while they are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) locked: &'a Locked,
    pub(super) sends: &'a Unfinished,
    /// Attempts, where they matter: of messages that failed, or that have a newer generation.
    pub(super) history: &'a [AttemptRow],
}

/// Judges receipts. The answer is in the order in which they are to be inserted: per message in the order of rank, what is
/// parked at the end.
pub(super) fn judge<'a>(receipts: &[&'a NewReceipt], matches: &[Option<Found>], known: &Known<'_>) -> Vec<Judged<'a>> {
    let mut judged: Vec<Judged<'a>> = receipts
        .iter()
        .zip(matches)
        .map(|(receipt, found)| {
            let parked = Judged { receipt, found: None, waits_for: None, counts: false, applied: false };
            let held = found.and_then(|found| known.locked.get(&found.message).map(|message| (found, message)));
            let Some((found, message)) = held else { return parked };
            let found = Found {
                conversation: Some(message.conversation_id),
                older: found.generation < message.send_generation,
                ..found
            };
            let send = known.sends.get(&message.id);
            if send.is_some_and(|send| send.state == SendState::InFlight) {
                return Judged { waits_for: Some(found), ..parked };
            }
            let counts = counts(receipt, found, message, send, known.history);
            Judged { found: Some(found), counts, ..parked }
        })
        .collect();
    let rank = |event: &Judged<'_>| event.receipt.status.map_or(-1, Status::rank);
    // What is parked goes in the order of its ids, so that two who park the same wait for each other in one direction.
    let place = |event: &Judged<'a>| {
        let message = event.found.map(|found| found.message);
        let id = message.is_none().then_some(event.receipt.provider_message_id.as_str());
        (message.is_none(), message, id, rank(event), event.receipt.occurred_at)
    };
    judged.sort_by(|a, b| place(a).cmp(&place(b)));
    let mut at: Option<(MessageId, i16)> = None;
    for event in &mut judged {
        let Some(message) = event.found.and_then(|found| known.locked.get(&found.message)) else { continue };
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

/// Of the present generation everything counts, but for the failure of one attempt where another one decides
/// ([`another_decides`]). Of an older one a DELIVERED or READ does; an acceptance only if that generation ended HELD, because
/// nobody knew; a late `sent` or `failed` of one that had FAILED was the reason for the retry and says nothing of it.
fn counts(
    receipt: &NewReceipt,
    found: Found,
    message: &LockedMessage,
    send: Option<&SendRow>,
    history: &[AttemptRow],
) -> bool {
    let Some(status) = receipt.status.filter(|status| status.rank() >= Status::Sent.rank()) else { return false };
    if found.generation == message.send_generation {
        return status != Status::Failed || !another_decides(receipt, found, send, history);
    }
    match status {
        _ if found.generation > message.send_generation => false,
        Status::Delivered | Status::Read => true,
        Status::Sent => ended_unknown(message.id, found.generation, history),
        _ => false,
    }
}

/// Whether a failure is of one attempt only: the provider took the message in another attempt of its generation, or a later
/// one may have been sent and waits for its own evidence. What the message has come to does not hang on it then.
fn another_decides(receipt: &NewReceipt, found: Found, send: Option<&SendRow>, history: &[AttemptRow]) -> bool {
    let of_it = || history.iter().filter(|row| row.message_id == found.message && row.generation == found.generation);
    let by_id = || {
        let id = Some(receipt.provider_message_id.as_str());
        of_it().find(|row| row.provider_message_id.as_deref() == id).map(|row| row.attempt)
    };
    let Some(failed) = found.attempt.or_else(by_id) else { return false };
    let taken = of_it().any(|row| row.attempt != failed && row.outcome == AttemptOutcome::Accepted);
    let awaited = send.is_some_and(|send| {
        send.generation == found.generation
            && send.attempt > failed
            && matches!(send.state, SendState::Unknown | SendState::Held)
    });
    taken || awaited
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

    fn attempt(generation: i16, attempt: i16, outcome: AttemptOutcome) -> AttemptRow {
        AttemptRow {
            message_id: MessageId::new(7),
            generation,
            attempt,
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
        let known = Known { locked: &locked, sends: &Unfinished::new(), history: &[] };
        let judged = judge(&told.iter().collect::<Vec<_>>(), &[Some(found); 4], &known);
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
        assert_eq!(counts(&receipt(status), found, &message, None, &[attempt(0, 1, ended)]), want);
    }

    fn send(state: SendState, attempt: i16) -> SendRow {
        let in_flight = state == SendState::InFlight;
        SendRow {
            message_id: MessageId::new(7),
            conversation_id: ConversationId::new(1),
            channel_account_id: AccountId::new(1),
            seq: Some(1),
            generation: 0,
            attempt,
            bulk: false,
            state,
            due_at: Timestamp::EPOCH,
            deadline_at: Timestamp::EPOCH,
            lease_token: in_flight.then(|| "token".to_owned()),
            lease_until: in_flight.then_some(Timestamp::EPOCH),
            dispatched_at: None,
            unknown_since: None,
            witness_at: None,
            traceparent: None,
        }
    }

    #[rstest]
    #[case::the_only_attempt(&[(1, AttemptOutcome::Accepted)], None, true)]
    #[case::of_another_that_was_refused(&[(1, AttemptOutcome::Unknown), (2, AttemptOutcome::Retry)], Some(SendState::Waiting), true)]
    #[case::a_later_one_was_taken(&[(1, AttemptOutcome::Unknown), (2, AttemptOutcome::Accepted)], None, false)]
    #[case::a_later_one_may_have_been_sent(&[(1, AttemptOutcome::Unknown), (2, AttemptOutcome::Unknown)], Some(SendState::Unknown), false)]
    #[case::a_later_one_is_a_persons_to_decide(&[(1, AttemptOutcome::Unknown), (2, AttemptOutcome::Unknown)], Some(SendState::Held), false)]
    fn a_failure_of_one_attempt_fails_the_message_unless_another_decides(
        #[values(true, false)] named: bool,
        #[case] past: &[(i16, AttemptOutcome)],
        #[case] state: Option<SendState>,
        #[case] want: bool,
    ) {
        let mut history: Vec<AttemptRow> = past.iter().map(|(n, outcome)| attempt(0, *n, *outcome)).collect();
        history[0].provider_message_id = Some("wamid.A".into());
        let found = Found {
            message: MessageId::new(7),
            conversation: None,
            generation: 0,
            attempt: named.then_some(1),
            older: false,
        };
        let send = state.map(|state| send(state, 2));
        let got = counts(&receipt(Status::Failed), found, &message(Status::Sending, 0), send.as_ref(), &history);
        assert_eq!(got, want);
    }

    #[test]
    fn whatever_finds_a_message_whose_call_is_open_waits_for_it() {
        let told = [receipt(Status::Sent), receipt(Status::Read), NewReceipt { status: None, ..receipt(Status::Sent) }];
        let found =
            Found { message: MessageId::new(7), conversation: None, generation: 0, attempt: None, older: false };
        let locked = Locked::from([(MessageId::new(7), message(Status::Queued, 0))]);
        let sends = Unfinished::from([(MessageId::new(7), send(SendState::InFlight, 1))]);
        let known = Known { locked: &locked, sends: &sends, history: &[] };
        let judged = judge(&told.iter().collect::<Vec<_>>(), &[Some(found), Some(found), None], &known);
        let waits: Vec<_> = judged.iter().map(|event| (event.found.is_none(), event.waits_for.is_some())).collect();
        assert_eq!(waits.iter().filter(|waits| **waits == (true, true)).count(), 2);
        assert_eq!(waits.iter().filter(|waits| **waits == (true, false)).count(), 1, "nobody's");
        assert!(judged.iter().all(|event| !event.counts && !event.applied));
    }
}
