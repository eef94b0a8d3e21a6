//! What a report about an attempt changes. Pure: the rows it concerns are read and locked before, written after.

use super::MessageStanding;
use crate::attempt::AttemptRow;
use crate::send::SendRow;
use domain::retry::{LEAVES_LANE_AFTER, RETRY_AFTER_CAP, retry_delay};
use domain::wire::{AttemptReport, SendEvent};
use domain::{AttemptOutcome, MessageId, SendState, Status, Timestamp};
use std::cmp::Ordering;
use std::time::Duration;

/// Class of a message the provider refused.
const REJECTED: &str = "REJECTED";
/// Class of a message whose provider kept failing in a way that may mean a wrong request.
const GAVE_UP: &str = "GAVE_UP";
/// Longest ladder step of a throttled send: the scope's rate does the slowing, the message only steps aside.
const THROTTLED_STEPS: u32 = 2;

/// How the retries of this process are paced.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What every wait is multiplied by; 1 outside of tests.
    pub scale: f64,
    /// A random number in [0, 1), for the jitter.
    pub random: fn() -> f64,
}

/// Everything known of the message an event is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing<'a> {
    pub(super) message: &'a MessageStanding,
    pub(super) send: Option<&'a SendRow>,
    pub(super) attempts: &'a [AttemptRow],
    /// Generations that the provider says it took, in receipts that wait for the call's end.
    pub(super) proof: &'a [i16],
}

impl Standing<'_> {
    /// Whether a receipt that waits will settle the message: it is about the generation reported, or about an older one of
    /// which nobody knew.
    fn is_proven(&self, generation: i16) -> bool {
        self.proof.iter().any(|proven| match proven.cmp(&generation) {
            Ordering::Equal => true,
            Ordering::Greater => false,
            Ordering::Less => {
                let of_it = self.attempts.iter().filter(|row| row.generation == *proven);
                of_it.max_by_key(|row| row.attempt).is_some_and(|row| row.outcome == AttemptOutcome::Unknown)
            }
        })
    }
}

/// What becomes of the message and its send.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// Nothing.
    Nothing,
    /// An acceptance that has to wait for the end of an open call: the report is kept as it is, and told again then.
    Waits,
    /// The provider has it: SENT by rank, the row goes.
    Sent { provider_message_id: String, at: Timestamp },
    /// Evidence was faster: only the row goes.
    Settled,
    /// FAILED, the row goes.
    Failed { class: &'static str, code: String, words: String, at: Timestamp },
    /// It goes again after `wait`.
    Again { wait: Duration, place: Place },
    /// Nobody knows: wait for evidence.
    Unknown,
}

/// Where in the lane a send waits that goes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where it was.
    Same,
    /// Outside: it is due so late that the conversation goes on without it.
    Outside,
    /// At the end: it had left the lane.
    End,
}

impl Place {
    pub(super) const fn code(self) -> i16 {
        match self {
            Place::Same => 0,
            Place::Outside => 1,
            Place::End => 2,
        }
    }
}

/// The attempt to record and the change to make.
pub(super) fn decide(event: &SendEvent, standing: Standing<'_>, pace: Pace) -> (Option<AttemptRow>, Change) {
    match event {
        SendEvent::Finished(report) => match finished(report, standing, pace) {
            // The attempt stays one of which nobody knows: that is why the acceptance will count.
            Change::Waits => (None, Change::Waits),
            change => (Some(attempt_of(report)), change),
        },
        SendEvent::LeaseExpired { message, generation, attempt, lease_token, at, .. } => {
            let ours = standing.send.filter(|send| {
                send.state == SendState::InFlight
                    && send.generation == *generation
                    && send.attempt == *attempt
                    && send.lease_token.as_deref() == Some(lease_token)
            });
            let Some(_) = ours else { return (None, Change::Nothing) };
            (
                Some(expired(*message, *generation, *attempt, *at)),
                unless_settled(standing, *generation, Change::Unknown),
            )
        }
    }
}

fn finished(report: &AttemptReport, standing: Standing<'_>, pace: Pace) -> Change {
    match (report.outcome, &report.provider_message_id) {
        (AttemptOutcome::Accepted, Some(id)) => accepted(report, id, standing),
        _ => not_accepted(report, standing, pace),
    }
}

/// An acceptance is always evidence, whatever its attempt.
fn accepted(report: &AttemptReport, id: &str, standing: Standing<'_>) -> Change {
    let sent = Change::Sent { provider_message_id: id.to_owned(), at: report.finished_at };
    if report.generation < standing.message.send_generation {
        // A person has sent it again since. That matters only if they did so because nobody knew how this attempt ended. A
        // call of the new one that is under way ends first; the acceptance waits for it where everybody asks what was heard.
        let was_unknown = standing.attempts.iter().any(|row| {
            row.generation == report.generation
                && row.attempt == report.attempt
                && row.outcome == AttemptOutcome::Unknown
        });
        let under_way = standing.send.is_some_and(|send| send.state == SendState::InFlight);
        return match (was_unknown, under_way) {
            (true, true) => Change::Waits,
            (true, false) => sent,
            (false, _) => Change::Nothing,
        };
    }
    let settled =
        standing.message.status.rank() >= Status::Sent.rank() && standing.message.provider_message_id.is_some();
    if settled && standing.send.is_none() {
        return Change::Nothing; // told again, or by a receipt before
    }
    // It was taken, and has failed since; what was tried after it decides.
    let has_failed = standing.attempts.iter().any(|row| {
        row.generation == report.generation
            && row.attempt == report.attempt
            && row.outcome == AttemptOutcome::Rejected
            && row.provider_message_id.as_deref() == Some(id)
    });
    if has_failed {
        return Change::Nothing;
    }
    // A later attempt in flight ends first; whatever it says, this acceptance is found then.
    let later_in_flight = standing.send.is_some_and(|send| {
        send.state == SendState::InFlight && send.generation == report.generation && send.attempt > report.attempt
    });
    if later_in_flight { Change::Nothing } else { sent }
}

fn not_accepted(report: &AttemptReport, standing: Standing<'_>, pace: Pace) -> Change {
    let Some(send) = standing.send.filter(|send| {
        send.generation == report.generation
            && send.attempt == report.attempt
            && matches!(send.state, SendState::InFlight | SendState::Unknown | SendState::Held)
    }) else {
        return Change::Nothing;
    };
    let change = match report.outcome {
        AttemptOutcome::Accepted | AttemptOutcome::Unknown if send.state == SendState::InFlight => Change::Unknown,
        AttemptOutcome::Accepted | AttemptOutcome::Unknown => return Change::Nothing,
        AttemptOutcome::Rejected => failed(REJECTED, report),
        AttemptOutcome::AccountBroken => again(send, Duration::ZERO, Duration::ZERO),
        AttemptOutcome::Retry => {
            let tried = 1 + count(standing.attempts, report, AttemptOutcome::Retry);
            match report.give_up_after {
                Some(most) if tried >= most => failed(GAVE_UP, report),
                _ => wait(send, tried, report, pace),
            }
        }
        AttemptOutcome::Throttled => {
            let throttled = 1 + count(standing.attempts, report, AttemptOutcome::Throttled);
            wait(send, throttled.min(THROTTLED_STEPS), report, pace)
        }
    };
    match unless_settled(standing, report.generation, change) {
        // The sender was refused and the provider says that it took the message: nobody knows, until the receipts that wait
        // are taken up, in this very transaction.
        Change::Failed { .. } if send.state == SendState::InFlight && standing.is_proven(report.generation) => {
            Change::Unknown
        }
        change => change,
    }
}

/// What is known of a send that is not in flight: that it is over, or nothing.
pub(super) fn known(standing: Standing<'_>, generation: i16) -> Change {
    unless_settled(standing, generation, Change::Nothing)
}

/// Evidence may have been faster than the report, and an acceptance may have had to wait for this attempt to end.
fn unless_settled(standing: Standing<'_>, generation: i16, change: Change) -> Change {
    let accepted = standing.attempts.iter().find(|row| {
        row.generation == generation && row.outcome == AttemptOutcome::Accepted && row.provider_message_id.is_some()
    });
    match accepted.and_then(|row| row.provider_message_id.clone().map(|id| (id, row.finished_at))) {
        Some((provider_message_id, at)) => Change::Sent { provider_message_id, at },
        None if standing.message.status.rank() >= Status::Sent.rank() => Change::Settled,
        None => change,
    }
}

fn count(attempts: &[AttemptRow], report: &AttemptReport, outcome: AttemptOutcome) -> u32 {
    let same = attempts
        .iter()
        .filter(|row| row.generation == report.generation && row.attempt != report.attempt && row.outcome == outcome);
    u32::try_from(same.count()).unwrap_or(u32::MAX)
}

fn wait(send: &SendRow, step: u32, report: &AttemptReport, pace: Pace) -> Change {
    let jittered = retry_delay(step, (pace.random)(), None);
    let asked = report.retry_after_ms.map(Duration::from_millis).unwrap_or_default().min(RETRY_AFTER_CAP);
    again(send, jittered.mul_f64(pace.scale).max(asked), jittered.max(asked))
}

/// Waits for `wait`. Whether the send leaves the lane meanwhile is judged by what the wait would be unscaled.
fn again(send: &SendRow, wait: Duration, unscaled: Duration) -> Change {
    let place = match send.seq {
        _ if unscaled > LEAVES_LANE_AFTER => Place::Outside,
        Some(_) => Place::Same,
        None => Place::End,
    };
    Change::Again { wait, place }
}

fn failed(class: &'static str, report: &AttemptReport) -> Change {
    let code = report.code.clone().unwrap_or_else(|| "unspecified".to_owned());
    let words = report.reason.clone().unwrap_or_else(|| "The provider gave no reason.".to_owned());
    Change::Failed { class, code, words, at: report.finished_at }
}

fn attempt_of(report: &AttemptReport) -> AttemptRow {
    AttemptRow {
        message_id: report.message,
        generation: report.generation,
        attempt: report.attempt,
        worker: Some(report.worker.clone()),
        provider_message_id: report.provider_message_id.clone(),
        outcome: match report.outcome {
            // An acceptance without an id is none.
            AttemptOutcome::Accepted if report.provider_message_id.is_none() => AttemptOutcome::Unknown,
            outcome => outcome,
        },
        http_status: report.http_status.and_then(|status| i16::try_from(status).ok()),
        provider_code: report.code.clone(),
        error_message: report.reason.clone(),
        retry_after_ms: report.retry_after_ms.map(|ms| i32::try_from(ms).unwrap_or(i32::MAX)),
        started_at: Some(report.started_at),
        finished_at: report.finished_at,
    }
}

fn expired(message: MessageId, generation: i16, attempt: i16, at: Timestamp) -> AttemptRow {
    AttemptRow {
        message_id: message,
        generation,
        attempt,
        worker: None,
        provider_message_id: None,
        outcome: AttemptOutcome::Unknown,
        http_status: None,
        provider_code: Some("lease_expired".to_owned()),
        error_message: Some("The sender neither reported nor gave it back in time.".to_owned()),
        retry_after_ms: None,
        started_at: None,
        finished_at: at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{AccountId, ConversationId};
    use rstest::rstest;

    const NOW: Timestamp = Timestamp::from_seconds(1_795_339_800);
    const HALF: Pace = Pace { scale: 1.0, random: || 0.5 };

    fn message(status: Status, generation: i16) -> MessageStanding {
        MessageStanding {
            id: MessageId::new(1),
            conversation_id: ConversationId::new(2),
            channel_account_id: AccountId::new(3),
            status,
            provider_message_id: None,
            send_generation: generation,
            outcome_unknown: status == Status::Sending,
            delivered_until: None,
            read_until: None,
        }
    }

    fn send(state: SendState, generation: i16, attempt: i16) -> SendRow {
        let outside = matches!(state, SendState::Held | SendState::Scheduled);
        let in_flight = state == SendState::InFlight;
        SendRow {
            message_id: MessageId::new(1),
            conversation_id: ConversationId::new(2),
            channel_account_id: AccountId::new(3),
            seq: (!outside).then_some(1),
            generation,
            attempt,
            bulk: false,
            state,
            due_at: NOW,
            deadline_at: NOW,
            lease_token: in_flight.then(|| "token".to_owned()),
            lease_until: in_flight.then_some(NOW),
            dispatched_at: None,
            unknown_since: None,
            witness_at: None,
            traceparent: None,
        }
    }

    fn report(outcome: AttemptOutcome, generation: i16, attempt: i16) -> AttemptReport {
        AttemptReport {
            message: MessageId::new(1),
            conversation: ConversationId::new(2),
            account: AccountId::new(3),
            generation,
            attempt,
            worker: "sender-1".into(),
            started_at: NOW,
            finished_at: NOW,
            outcome,
            provider_message_id: (outcome == AttemptOutcome::Accepted).then(|| "wamid.A".to_owned()),
            http_status: None,
            code: None,
            reason: None,
            retry_after_ms: None,
            throttle_scope: None,
            give_up_after: None,
            traceparent: None,
        }
    }

    fn change(
        report: AttemptReport,
        message: &MessageStanding,
        send: Option<&SendRow>,
        attempts: &[AttemptRow],
    ) -> Change {
        decide(&SendEvent::Finished(Box::new(report)), Standing { message, send, attempts, proof: &[] }, HALF).1
    }

    fn past(outcome: AttemptOutcome, generation: i16, attempt: i16) -> AttemptRow {
        attempt_of(&report(outcome, generation, attempt))
    }

    #[rstest]
    #[case::first(1, 2_500)]
    #[case::second(2, 15_000)]
    #[case::third(3, 60_000)]
    #[case::fourth(4, 300_000)]
    fn a_retry_keeps_its_place_and_waits_longer_each_time(#[case] attempt: i16, #[case] wait_ms: u64) {
        let before: Vec<AttemptRow> = (1..attempt).map(|n| past(AttemptOutcome::Retry, 0, n)).collect();
        let row = send(SendState::InFlight, 0, attempt);
        let got = change(report(AttemptOutcome::Retry, 0, attempt), &message(Status::Queued, 0), Some(&row), &before);
        assert_eq!(got, Change::Again { wait: Duration::from_millis(wait_ms), place: Place::Same });
    }

    #[test]
    fn a_retry_that_is_due_in_more_than_15_minutes_leaves_the_lane() {
        let before: Vec<AttemptRow> = (1..7).map(|n| past(AttemptOutcome::Retry, 0, n)).collect();
        let row = send(SendState::InFlight, 0, 7);
        let got = change(report(AttemptOutcome::Retry, 0, 7), &message(Status::Queued, 0), Some(&row), &before);
        assert_eq!(got, Change::Again { wait: Duration::from_secs(3600), place: Place::Outside });
    }

    #[test]
    fn throttling_costs_no_attempt_and_retry_after_only_lengthens() {
        let before = [past(AttemptOutcome::Throttled, 0, 1), past(AttemptOutcome::Throttled, 0, 2)];
        let row = send(SendState::InFlight, 0, 3);
        let mut told = report(AttemptOutcome::Retry, 0, 3);
        let got = change(told.clone(), &message(Status::Queued, 0), Some(&row), &before);
        assert_eq!(got, Change::Again { wait: Duration::from_millis(2500), place: Place::Same }, "the first retry");
        told.outcome = AttemptOutcome::Throttled;
        told.retry_after_ms = Some(60_000);
        let got = change(told, &message(Status::Queued, 0), Some(&row), &before);
        assert_eq!(got, Change::Again { wait: Duration::from_secs(60), place: Place::Same });
    }

    #[test]
    fn a_code_that_may_mean_a_wrong_request_is_given_up_after_its_attempts() {
        let row = send(SendState::InFlight, 0, 3);
        let mut told = report(AttemptOutcome::Retry, 0, 3);
        told.give_up_after = Some(3);
        told.code = Some("1".into());
        let before = [past(AttemptOutcome::Retry, 0, 1), past(AttemptOutcome::Retry, 0, 2)];
        let got = change(told, &message(Status::Queued, 0), Some(&row), &before);
        assert!(matches!(got, Change::Failed { class: GAVE_UP, ref code, .. } if code == "1"), "{got:?}");
    }

    #[test]
    fn a_report_of_an_earlier_attempt_changes_nothing_unless_it_is_an_acceptance() {
        let (queued, row) = (message(Status::Queued, 0), send(SendState::Waiting, 0, 2));
        for outcome in [AttemptOutcome::Retry, AttemptOutcome::Rejected, AttemptOutcome::Unknown] {
            assert_eq!(change(report(outcome, 0, 1), &queued, Some(&row), &[]), Change::Nothing, "{outcome}");
        }
        let got = change(report(AttemptOutcome::Accepted, 0, 1), &queued, Some(&row), &[]);
        assert!(matches!(got, Change::Sent { .. }), "{got:?}");
    }

    #[test]
    fn an_acceptance_waits_for_a_later_attempt_in_flight_and_is_found_when_that_ends() {
        let (queued, row) = (message(Status::Queued, 0), send(SendState::InFlight, 0, 2));
        assert_eq!(change(report(AttemptOutcome::Accepted, 0, 1), &queued, Some(&row), &[]), Change::Nothing);
        let known = [past(AttemptOutcome::Accepted, 0, 1)];
        for outcome in [AttemptOutcome::Retry, AttemptOutcome::Rejected, AttemptOutcome::Unknown] {
            let got = change(report(outcome, 0, 2), &queued, Some(&row), &known);
            assert!(
                matches!(got, Change::Sent { ref provider_message_id, .. } if provider_message_id == "wamid.A"),
                "{got:?}"
            );
        }
    }

    #[rstest]
    #[case::of_this_generation(1, &[], true)]
    #[case::of_one_that_was_held(0, &[(1, AttemptOutcome::Unknown)], true)]
    #[case::of_one_that_failed(0, &[(1, AttemptOutcome::Unknown), (2, AttemptOutcome::Rejected)], false)]
    #[case::of_one_to_come(2, &[], false)]
    fn a_refusal_fails_nothing_while_the_providers_own_word_waits(
        #[case] proven: i16,
        #[case] before: &[(i16, AttemptOutcome)],
        #[case] want: bool,
    ) {
        let (queued, row) = (message(Status::Queued, 1), send(SendState::InFlight, 1, 2));
        let attempts: Vec<AttemptRow> = before.iter().map(|(n, outcome)| past(*outcome, 0, *n)).collect();
        let standing = Standing { message: &queued, send: Some(&row), attempts: &attempts, proof: &[proven] };
        let refused = SendEvent::Finished(Box::new(report(AttemptOutcome::Rejected, 1, 2)));
        let (_, change) = decide(&refused, standing, HALF);
        assert_eq!(change == Change::Unknown, want, "{change:?}");
        assert_eq!(matches!(change, Change::Failed { .. }), !want);
    }

    #[test]
    fn an_expired_lease_is_unknown_only_under_its_own_token_and_while_in_flight() {
        let expiry = |token: &str| SendEvent::LeaseExpired {
            message: MessageId::new(1),
            account: AccountId::new(3),
            generation: 0,
            attempt: 1,
            lease_token: token.into(),
            at: NOW,
        };
        let queued = message(Status::Queued, 0);
        let decide = |event: &SendEvent, row: &SendRow| {
            decide(event, Standing { message: &queued, send: Some(row), attempts: &[], proof: &[] }, HALF)
        };
        let (attempt, change) = decide(&expiry("token"), &send(SendState::InFlight, 0, 1));
        assert_eq!((attempt.unwrap().outcome, change), (AttemptOutcome::Unknown, Change::Unknown));
        for (token, row) in [
            ("other", send(SendState::InFlight, 0, 1)),
            ("token", send(SendState::InFlight, 0, 2)),
            ("token", send(SendState::Waiting, 0, 1)),
            ("token", send(SendState::Unknown, 0, 1)),
        ] {
            assert_eq!(decide(&expiry(token), &row), (None, Change::Nothing));
        }
    }

    #[test]
    fn a_late_report_on_a_held_send_is_believed() {
        let (sending, held) = (message(Status::Sending, 0), send(SendState::Held, 0, 1));
        assert!(matches!(
            change(report(AttemptOutcome::Accepted, 0, 1), &sending, Some(&held), &[]),
            Change::Sent { .. }
        ));
        assert!(matches!(
            change(report(AttemptOutcome::Rejected, 0, 1), &sending, Some(&held), &[]),
            Change::Failed { .. }
        ));
        assert_eq!(change(report(AttemptOutcome::Unknown, 0, 1), &sending, Some(&held), &[]), Change::Nothing);
        let again = change(report(AttemptOutcome::Retry, 0, 1), &sending, Some(&held), &[]);
        assert_eq!(again, Change::Again { wait: Duration::from_millis(2500), place: Place::End });
    }

    #[test]
    fn an_acceptance_of_an_older_generation_counts_only_if_that_ended_held_and_waits_while_the_newer_is_in_flight() {
        let (queued, fresh, calling) =
            (message(Status::Queued, 1), send(SendState::Waiting, 1, 0), send(SendState::InFlight, 1, 1));
        let tried = send(SendState::Waiting, 1, 1);
        let (unknown, rejected) = ([past(AttemptOutcome::Unknown, 0, 1)], [past(AttemptOutcome::Rejected, 0, 1)]);
        let told = || report(AttemptOutcome::Accepted, 0, 1);
        assert!(matches!(change(told(), &queued, Some(&fresh), &unknown), Change::Sent { .. }));
        assert_eq!(change(told(), &queued, Some(&fresh), &rejected), Change::Nothing);
        assert!(
            matches!(change(told(), &queued, Some(&tried), &unknown), Change::Sent { .. }),
            "it must not go once more"
        );
        assert_eq!(change(told(), &queued, Some(&calling), &rejected), Change::Nothing);
        let standing = Standing { message: &queued, send: Some(&calling), attempts: &unknown, proof: &[] };
        let (record, change) = decide(&SendEvent::Finished(Box::new(told())), standing, HALF);
        assert_eq!((record, change), (None, Change::Waits), "the attempt is still one of which nobody knows");
    }

    #[test]
    fn a_broken_account_fails_nothing_and_costs_no_wait() {
        let row = send(SendState::InFlight, 0, 1);
        let got = change(report(AttemptOutcome::AccountBroken, 0, 1), &message(Status::Queued, 0), Some(&row), &[]);
        assert_eq!(got, Change::Again { wait: Duration::ZERO, place: Place::Same });
    }
}
