//! The provider's word beside an open call: it waits, and the transaction that ends the call takes it up.

mod late;

use crate::sending::{World, execute, finished, lease_expired, number, report_of, seconds};
use crate::sql;
use domain::wire::SendEvent;
use domain::{AttemptOutcome, Correlation, MessageId, SendState, Status, Timestamp};
use rstest::rstest;
use std::time::Duration;
use store::decide::{self, Decided};
use store::promises::{PROMISES, SETTLED, audit};
use store::receipt::{self, NewReceipt, Receipts, parked_count};
use store::result::{self, Times};
use store::retention::purge_parked;
use store::send::{self, Claimed, Verdict};
use store::{Store, Tx};
use testkit::Database;
use testkit::rows::NOON;

fn told_at() -> Timestamp {
    NOON + seconds(401)
}

/// What the provider says of an attempt, under `id`, with or without what we gave it when sending.
fn said(world: &World, claim: &Claimed, id: &str, status: Status, named: bool) -> NewReceipt {
    let correlation = Correlation {
        deployment: claim.deployment.parse().unwrap(),
        message: claim.message_id,
        generation: claim.generation,
        attempt: claim.attempt,
    };
    NewReceipt {
        account: world.account,
        provider_message_id: id.into(),
        status: Some(status),
        provider_status: status.as_str().to_lowercase(),
        occurred_at: NOON + seconds(400),
        received_at: told_at(),
        correlation: named.then(|| correlation.to_string()),
        error_code: (status == Status::Failed).then(|| "131026".into()),
        error_message: (status == Status::Failed).then(|| "Message undeliverable".into()),
        pricing: None,
        raw: None,
        webhook: None,
    }
}

async fn tell(store: &Store, receipts: &[NewReceipt]) -> Receipts {
    let mut tx = store.begin().await.unwrap();
    let told = receipt::apply(&mut tx, receipts, told_at()).await.unwrap();
    tx.commit().await.unwrap();
    told
}

async fn conclude(world: &World, verdict: Verdict) {
    let mut tx = world.store().begin().await.unwrap();
    let silent = send::silences(&mut tx, 10).await.unwrap();
    send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), verdict, NOON).await.unwrap();
    tx.commit().await.unwrap();
}

/// A message of which nobody knows whether attempt 1 was taken, and whose attempt 2 is being called.
async fn second_call(world: &World) -> (Claimed, Claimed) {
    world.accept(0, "hello").await;
    let first = world.take("t1").await.pop().unwrap();
    world.report(&[finished(&first, AttemptOutcome::Unknown)]).await;
    conclude(world, Verdict::Resend).await;
    let second = world.take("t2").await.pop().unwrap();
    assert_eq!((first.attempt, second.attempt), (1, 2));
    (first, second)
}

async fn texts(world: &World, query: &'static str) -> Vec<String> {
    sql::texts(&mut world.store().read().await.unwrap(), query).await
}

async fn stands(world: &World, message: MessageId) -> (Status, Option<SendState>) {
    (world.message(message).await.status, world.state_of(message).await)
}

async fn is_all_settled(world: &World) {
    world.keeps_its_promises().await;
    nothing_waits(world).await;
}

async fn nothing_waits(world: &World) {
    let mut tx = world.store().read().await.unwrap();
    assert_eq!(audit(&mut tx, SETTLED).await.unwrap(), []);
    assert_eq!(parked_count(&mut tx).await.unwrap(), 0);
}

/// The provider took both attempts, as may happen where an account sends again after silence; everything else holds.
async fn is_all_settled_and_was_taken_twice(world: &World) {
    let mut tx = world.store().read().await.unwrap();
    let broken = audit(&mut tx, PROMISES).await.unwrap();
    assert_eq!(broken.iter().map(|one| one.promise).collect::<Vec<_>>(), ["one_acceptance_per_generation"]);
    drop(tx);
    nothing_waits(world).await;
}

const WAITING: &str = "SELECT count(*) FROM message_status_events e JOIN messages m ON m.id = e.waits_for_message_id
    WHERE e.message_id IS NULL AND e.conversation_id IS NULL";
const EVENTS: &str = "SELECT status || CASE WHEN applied THEN '+' ELSE '' END FROM message_status_events
    WHERE source = 'PROVIDER' ORDER BY id";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    OwnId,
    AttemptsId,
    Correlation,
}

#[rstest]
#[tokio::test]
async fn a_receipt_that_finds_a_message_whose_call_is_open_waits_whichever_way_it_found_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(Route::OwnId, Route::AttemptsId, Route::Correlation)] route: Route,
    #[values(Status::Sent, Status::Delivered, Status::Failed)] status: Status,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let mut claim = world.take("t").await.pop().unwrap();
    if route == Route::OwnId {
        execute(world.store(), "UPDATE messages SET provider_message_id = 'wamid.A' WHERE direction = 'OUTBOUND'")
            .await;
    }
    if route == Route::AttemptsId {
        let mut again = finished(&claim, AttemptOutcome::Retry);
        if let domain::wire::SendEvent::Finished(report) = &mut again {
            report.provider_message_id = Some("wamid.A".into());
        }
        world.report(&[again]).await;
        world.dispatch_at(world.now().await + seconds(6), 64).await;
        claim = world.claim("t2", &[message]).await.pop().unwrap();
    }
    let receipt = said(&world, &claim, "wamid.A", status, route == Route::Correlation);
    let told = tell(world.store(), std::slice::from_ref(&receipt)).await;
    assert_eq!((told.applied.len(), told.parked, told.look_again.len()), (0, 1, 0), "{told:?}");
    assert_eq!(number(world.store(), WAITING).await, 1);
    assert_eq!(stands(&world, message).await, (Status::Queued, Some(SendState::InFlight)), "the lane stays taken");
    assert_eq!(tell(world.store(), std::slice::from_ref(&receipt)).await.duplicates, 1);
    world.keeps_its_promises().await;

    world.report(&[finished(&claim, AttemptOutcome::Retry)]).await;
    assert_eq!(stands(&world, message).await, (status, None));
    assert_eq!(tell(world.store(), &[receipt]).await.duplicates, 1, "it is still the same one told again");
    assert_eq!(texts(&world, EVENTS).await, [format!("{status}+")]);
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn what_is_not_ours_waits_under_its_id_and_for_nobody(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    world.accept(0, "hello").await;
    let claim = world.take("t").await.pop().unwrap();
    let stranger = Claimed { deployment: "zzzzzzzzzz".into(), ..claim };
    let told = tell(world.store(), &[said(&world, &stranger, "wamid.A", Status::Sent, true)]).await;
    assert_eq!((told.parked, told.look_again), (1, vec![(world.account, "wamid.A".to_owned())]));
    assert_eq!(number(world.store(), WAITING).await, 0);
}

#[derive(Clone, Copy, Debug)]
enum End {
    Report(AttemptOutcome),
    GaveUp,
    Lease,
}

/// The report that ends this call.
fn ends(end: End, claim: &Claimed, token: &str) -> SendEvent {
    match end {
        End::Report(outcome) => finished(claim, outcome),
        End::Lease => lease_expired(claim, token),
        End::GaveUp => {
            let mut report = report_of(claim, AttemptOutcome::Retry);
            report.give_up_after = Some(1);
            SendEvent::Finished(Box::new(report))
        }
    }
}

#[rstest]
#[case::retry(End::Report(AttemptOutcome::Retry))]
#[case::throttled(End::Report(AttemptOutcome::Throttled))]
#[case::account_broken(End::Report(AttemptOutcome::AccountBroken))]
#[case::unknown(End::Report(AttemptOutcome::Unknown))]
#[case::rejected(End::Report(AttemptOutcome::Rejected))]
#[case::gave_up(End::GaveUp)]
#[case::lease_expired(End::Lease)]
#[tokio::test]
async fn what_waited_is_taken_up_by_the_transaction_that_ends_the_call(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(Status::Sent, Status::Delivered)] status: Status,
    #[case] end: End,
) {
    let world = World::with(database, 1).await;
    let (message, behind) = (world.accept(0, "hello").await, world.accept(0, "behind").await);
    let claim = world.take("t").await.pop().unwrap();
    tell(world.store(), &[said(&world, &claim, "wamid.A", status, true)]).await;
    // Under the same id without a correlation: found once the first has taught us whose it is.
    let nameless =
        NewReceipt { provider_status: "sent".into(), ..said(&world, &claim, "wamid.A", Status::Sent, false) };
    tell(world.store(), &[NewReceipt { occurred_at: NOON + seconds(399), ..nameless }]).await;
    let applied = world.report(&[ends(end, &claim, "t")]).await;
    // Nothing but that one transaction: no state in between was ever to be seen.
    assert_eq!(stands(&world, message).await, (status, None));
    assert!(!world.message(message).await.unknown);
    assert_eq!(world.dispatch().await, [behind]);
    assert_eq!(applied.learnt, [(world.account, "wamid.A".to_owned())]);
    let mut tx = world.store().begin().await.unwrap();
    receipt::second_look(&mut tx, &applied.learnt, told_at()).await.unwrap();
    tx.commit().await.unwrap();
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn an_acceptance_takes_up_what_waited_under_another_attempts_id(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    tell(world.store(), &[said(&world, &first, "wamid.A", Status::Read, true)]).await;
    world.report(&[finished(&second, AttemptOutcome::Accepted)]).await;
    let shown = world.message(first.message_id).await;
    assert_eq!((shown.status, shown.provider_id), (Status::Read, Some(format!("wamid.out.{}.2", first.message_id))));
    is_all_settled_and_was_taken_twice(&world).await;
}

#[rstest]
#[case::failure_first(true)]
#[case::acceptance_first(false)]
#[tokio::test]
async fn the_failure_of_one_attempt_does_not_fail_a_message_that_another_attempt_brought(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(true, false)] named: bool,
    #[case] failure_first: bool,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    if !named {
        // Its own report came late: the id is known, and that it was taken.
        world.report(&[finished(&first, AttemptOutcome::Accepted)]).await;
    }
    let id = format!("wamid.out.{}.1", first.message_id);
    let failure = said(&world, &first, &id, Status::Failed, named);
    let accepted = finished(&second, AttemptOutcome::Accepted);
    if failure_first {
        assert_eq!(tell(world.store(), &[failure]).await.parked, 1);
        world.report(&[accepted]).await;
    } else {
        world.report(&[accepted]).await;
        assert!(!tell(world.store(), &[failure]).await.applied[0].raised);
    }
    assert_eq!(stands(&world, first.message_id).await, (Status::Sent, None));
    assert_eq!(texts(&world, EVENTS).await, ["FAILED"], "stored, not applied");
    if named {
        let mut tx = world.store().read().await.unwrap();
        assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
        let outcomes = "SELECT outcome FROM send_attempts ORDER BY attempt";
        assert_eq!(texts(&world, outcomes).await, ["REJECTED", "ACCEPTED"]);
    }
}

#[rstest]
#[tokio::test]
async fn the_failure_of_an_earlier_attempt_says_nothing_of_a_later_one_that_nobody_knows_of(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(true, false)] held: bool,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    let message = first.message_id;
    let id = format!("wamid.out.{message}.1");
    tell(world.store(), &[said(&world, &first, &id, Status::Failed, true)]).await;
    world.report(&[finished(&second, AttemptOutcome::Unknown)]).await;
    assert_eq!(stands(&world, message).await, (Status::Sending, Some(SendState::Unknown)), "it may have been sent");
    if held {
        conclude(&world, Verdict::Hold).await;
    }
    world.report(&[finished(&first, AttemptOutcome::Accepted)]).await;
    assert_eq!(result_of_keeper(&world).await, [], "neither does its own late report that it was taken");
    world.keeps_its_promises().await;
    tell(world.store(), &[said(&world, &second, "wamid.B", Status::Delivered, true)]).await;
    assert_eq!(stands(&world, message).await, (Status::Delivered, None));
    is_all_settled(&world).await;
}

/// What the keeper does at each turn. Returns what there was to settle.
async fn result_of_keeper(world: &World) -> Vec<MessageId> {
    let mut tx = world.store().begin().await.unwrap();
    let unsettled = result::unsettled(&mut tx, 100).await.unwrap();
    let times = Times { now: told_at(), database_now: tx.database_now().await.unwrap() };
    let settled = result::settle(&mut tx, &unsettled, times).await.unwrap();
    assert_eq!(settled.accounts.is_empty(), unsettled.is_empty());
    tx.commit().await.unwrap();
    unsettled
}

async fn give_back(world: &World, claim: &Claimed, token: &str) {
    let mut tx = world.store().begin().await.unwrap();
    assert_eq!(send::give_back(&mut tx, token, &[claim.message_id]).await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert_eq!(world.state_of(claim.message_id).await, Some(SendState::Waiting));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Report,
    Receipt(Status),
}

#[rstest]
#[case::its_own_late_report(Word::Report, Status::Sent)]
#[case::sent(Word::Receipt(Status::Sent), Status::Sent)]
#[case::read(Word::Receipt(Status::Read), Status::Read)]
#[case::failed(Word::Receipt(Status::Failed), Status::Failed)]
#[tokio::test]
async fn a_word_on_the_first_attempt_settles_the_send_when_the_second_is_given_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] word: Word,
    #[case] want: Status,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    let behind = world.accept(0, "behind").await;
    match word {
        Word::Report => drop(world.report(&[finished(&first, AttemptOutcome::Accepted)]).await),
        Word::Receipt(status) => drop(tell(world.store(), &[said(&world, &first, "wamid.A", status, true)]).await),
    }
    assert_eq!(result_of_keeper(&world).await, [], "not beside the open call");
    give_back(&world, &second, "t2").await;
    assert!(world.dispatch().await.is_empty(), "it does not go again before the keeper comes");
    world.keeps_its_promises().await;
    assert_eq!(result_of_keeper(&world).await, [first.message_id]);
    assert_eq!(stands(&world, first.message_id).await, (want, None));
    assert_eq!(world.dispatch().await, [behind], "the lane goes on");
    assert_eq!(result_of_keeper(&world).await, []);
    is_all_settled(&world).await;
}

/// A message of which nobody knew whether it was sent, that a person then sent again, and that is being called anew.
async fn second_generation(world: &World) -> (Claimed, Claimed) {
    let message = world.accept(0, "hello").await;
    let first = world.take("t1").await.pop().unwrap();
    world.report(&[finished(&first, AttemptOutcome::Unknown)]).await;
    conclude(world, Verdict::Hold).await;
    let again = decide::Again { now: told_at(), deadline: seconds(3600), traceparent: None };
    let mut tx = world.store().begin().await.unwrap();
    decide::send_again(&mut tx, world.conversations[0].conversation, message, again).await.unwrap();
    tx.commit().await.unwrap();
    let second = world.take("t2").await.pop().unwrap();
    assert_eq!((first.generation, second.generation, second.attempt), (0, 1, 1));
    (first, second)
}

/// The first sender's own report, which the broker had kept from us.
fn late_acceptance(first: &Claimed) -> SendEvent {
    let mut report = report_of(first, AttemptOutcome::Accepted);
    report.provider_message_id = Some("wamid.old".into());
    SendEvent::Finished(Box::new(report))
}

const ATTEMPTS: &str =
    "SELECT generation || '.' || attempt || ' ' || outcome || ' ' || coalesce(provider_message_id, '-')
    FROM send_attempts ORDER BY generation, attempt";

#[rstest]
#[case::retry(Some(End::Report(AttemptOutcome::Retry)))]
#[case::throttled(Some(End::Report(AttemptOutcome::Throttled)))]
#[case::account_broken(Some(End::Report(AttemptOutcome::AccountBroken)))]
#[case::rejected(Some(End::Report(AttemptOutcome::Rejected)))]
#[case::gave_up(Some(End::GaveUp))]
#[case::unknown(Some(End::Report(AttemptOutcome::Unknown)))]
#[case::accepted(Some(End::Report(AttemptOutcome::Accepted)))]
#[case::lease_expired(Some(End::Lease))]
#[case::given_back(None)]
#[tokio::test]
async fn a_late_acceptance_of_what_was_held_ends_the_newer_generation_however_its_call_ends(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(false, true)] in_one_batch: bool,
    #[case] end: Option<End>,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_generation(&world).await;
    let (message, behind) = (first.message_id, world.accept(0, "behind").await);
    let late = late_acceptance(&first);
    let last = end.map(|end| ends(end, &second, "t2"));
    match &last {
        Some(last) if in_one_batch => drop(world.report(&[late.clone(), late.clone(), last.clone()]).await),
        _ => {
            assert_eq!(world.report(std::slice::from_ref(&late)).await.changed, 0);
            assert_eq!(world.report(std::slice::from_ref(&late)).await.changed, 0, "told again");
            assert_eq!(number(world.store(), WAITING).await, 1, "once");
            assert_eq!(stands(&world, message).await, (Status::Queued, Some(SendState::InFlight)));
            assert_eq!(texts(&world, ATTEMPTS).await, ["0.1 UNKNOWN -"], "it still counts as what nobody knew");
            assert_eq!(result_of_keeper(&world).await, [], "not beside the open call");
            world.keeps_its_promises().await;
            match &last {
                Some(last) => drop(world.report(std::slice::from_ref(last)).await),
                None => {
                    give_back(&world, &second, "t2").await;
                    assert!(world.dispatch().await.is_empty(), "it does not go again before the keeper comes");
                    world.keeps_its_promises().await;
                    assert_eq!(result_of_keeper(&world).await, [message]);
                }
            }
        }
    }
    let accepted = matches!(end, Some(End::Report(AttemptOutcome::Accepted)));
    let known = if accepted { format!("wamid.out.{message}.1") } else { "wamid.old".to_owned() };
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.provider_id, shown.unknown), (Status::Sent, Some(known.clone()), false));
    assert_eq!((world.state_of(message).await, shown.error), (None, None));
    let attempts = texts(&world, ATTEMPTS).await;
    assert_eq!(attempts[0], "0.1 ACCEPTED wamid.old");
    if accepted {
        assert_eq!(attempts[1], format!("1.1 ACCEPTED {known}"), "both were taken, and both are known");
    }
    assert_eq!(world.dispatch_at(world.now().await + seconds(600), 64).await, [behind], "no further call");
    let before = texts(&world, ATTEMPTS).await;
    assert_eq!(world.report(&[late]).await.changed, 0, "and told once more it changes nothing");
    assert_eq!(texts(&world, ATTEMPTS).await, before);
    assert_eq!(number(world.store(), SAID_SENT).await, 1, "the history says it once");
    is_all_settled(&world).await;
}

const SAID_SENT: &str = "SELECT count(*) FROM message_status_events WHERE status = 'SENT'";

#[rstest]
#[tokio::test]
async fn a_late_acceptance_and_the_receipts_of_what_was_held_are_taken_up_together(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(Status::Sent, Status::Delivered)] status: Status,
    #[values(true, false)] receipt_settles: bool,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_generation(&world).await;
    let message = first.message_id;
    world.report(&[late_acceptance(&first)]).await;
    let receipt = said(&world, &first, "wamid.old", status, true);
    if receipt_settles {
        give_back(&world, &second, "t2").await;
        assert!(tell(world.store(), &[receipt]).await.applied[0].settled);
    } else {
        assert_eq!(tell(world.store(), &[receipt]).await.parked, 1);
        world.report(&[finished(&second, AttemptOutcome::Retry)]).await;
    }
    assert_eq!(stands(&world, message).await, (status, None));
    assert_eq!(texts(&world, ATTEMPTS).await[0], "0.1 ACCEPTED wamid.old");
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn what_an_acceptance_waits_for_is_neither_given_up_nor_taken_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_generation(&world).await;
    let message = first.message_id;
    world.report(&[late_acceptance(&first)]).await;
    give_back(&world, &second, "t2").await;
    // As a dispatch that began before the acceptance was there leaves it.
    execute(world.store(), "UPDATE sends SET state = 'DISPATCHED', dispatched_at = due_at").await;
    world.keeps_its_promises().await;
    assert!(world.claim("t3", &[message]).await.is_empty(), "no claim takes it");
    let mut tx = world.store().begin().await.unwrap();
    let tomorrow = tx.database_now().await.unwrap() + seconds(25 * 3600);
    assert_eq!(send::expire(&mut tx, tomorrow, NOON, 10).await.unwrap(), []);
    let conversation = world.conversations[0].conversation;
    let cancelled = decide::cancel(&mut tx, conversation, message, told_at()).await.unwrap();
    assert!(matches!(cancelled, Decided::WrongState(_)), "{cancelled:?}");
    tx.commit().await.unwrap();
    let mut tx = world.store().begin().await.unwrap();
    let times = Times { now: told_at(), database_now: told_at() };
    let learnt = result::settle(&mut tx, &[message], times).await.unwrap().learnt;
    tx.commit().await.unwrap();
    assert_eq!(learnt, [(world.account, "wamid.old".to_owned())], "receipts may be parked under it");
    assert_eq!(stands(&world, message).await, (Status::Sent, None));
    is_all_settled(&world).await;
}
