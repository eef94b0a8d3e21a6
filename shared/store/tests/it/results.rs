//! Reports: applied once, in any order, and never against what is known better.

use crate::sending::{World, finished, lease_expired, number, seconds};
use domain::wire::SendEvent;
use domain::{AttemptOutcome, SendState, Status};
use rstest::rstest;
use store::attempt;
use store::send::{self, Evidence, Silence, Verdict};
use testkit::Database;
use testkit::rows::NOON;

#[rstest]
#[tokio::test]
async fn an_acceptance_makes_the_message_sent_and_told_again_it_changes_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    let event = finished(&claimed[0], AttemptOutcome::Accepted);
    let id = format!("wamid.out.{message}.1");
    let applied = world.report(std::slice::from_ref(&event)).await;
    assert_eq!(
        (applied.learnt, applied.accounts, applied.changed),
        (vec![(world.account, id.clone())], vec![world.account], 1)
    );
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.provider_id.as_deref()), (Status::Sent, Some(id.as_str())));
    assert_eq!(world.send_of(message).await, None);

    let again = world.report(&[event.clone(), event]).await;
    assert_eq!((again.changed, again.accounts), (0, vec![world.account]), "the dispatch is repeated, nothing else");
    assert_eq!(number(world.store(), "SELECT count(*) FROM send_attempts").await, 1);
    assert_eq!(number(world.store(), "SELECT count(*) FROM message_status_events WHERE source = 'SENDER'").await, 1);
    assert_eq!(number(world.store(), "SELECT count(*) FROM change_feed WHERE status = 'SENT'").await, 1);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_batch_of_every_kind_is_applied_in_one_transaction(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 6).await;
    for n in 0..6 {
        world.accept(n, "hello").await;
    }
    let claimed = world.take("t").await;
    let kinds = [
        AttemptOutcome::Accepted,
        AttemptOutcome::Rejected,
        AttemptOutcome::Retry,
        AttemptOutcome::Throttled,
        AttemptOutcome::AccountBroken,
        AttemptOutcome::Unknown,
    ];
    let events: Vec<SendEvent> = claimed.iter().zip(kinds).map(|(claim, kind)| finished(claim, kind)).collect();
    assert_eq!(world.report(&events).await.changed, 6);
    let mut got = Vec::new();
    for claim in &claimed {
        got.push((world.message(claim.message_id).await.status, world.state_of(claim.message_id).await));
    }
    let want = [
        (Status::Sent, None),
        (Status::Failed, None),
        (Status::Queued, Some(SendState::Waiting)),
        (Status::Queued, Some(SendState::Waiting)),
        (Status::Queued, Some(SendState::Waiting)),
        (Status::Sending, Some(SendState::Unknown)),
    ];
    assert_eq!(got, want);
    let failed = world.message(claimed[1].message_id).await;
    assert_eq!(failed.error, Some(("REJECTED".to_owned(), "131026".to_owned())));
    assert_eq!(number(world.store(), "SELECT count(*) FROM send_attempts").await, 6);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_late_duplicate_of_the_first_attempt_does_not_touch_the_second(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let first = world.take("t1").await;
    let retry = finished(&first[0], AttemptOutcome::Retry);
    world.report(std::slice::from_ref(&retry)).await;
    world.dispatch_at(world.now().await + seconds(6), 64).await;
    let second = world.claim("t2", &[message]).await;
    let before = world.send_of(message).await;
    let untouched =
        world.report(&[retry, finished(&first[0], AttemptOutcome::Rejected), lease_expired(&first[0], "t1")]).await;
    assert_eq!(untouched.changed, 0);
    assert_eq!(world.send_of(message).await, before);
    assert_eq!(world.report(&[lease_expired(&second[0], "t1")]).await.changed, 0, "another lease's token");
    assert_eq!(world.report(&[lease_expired(&second[0], "t2")]).await.changed, 1);
    assert_eq!(world.state_of(message).await, Some(SendState::Unknown));
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_report_in_front_of_its_own_expired_lease_wins_in_the_same_batch(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    world.report(&[finished(&claimed[0], AttemptOutcome::Accepted), lease_expired(&claimed[0], "t")]).await;
    assert_eq!(world.message(message).await.status, Status::Sent);
    assert_eq!(number(world.store(), "SELECT count(*) FROM send_attempts WHERE outcome = 'ACCEPTED'").await, 1);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn an_acceptance_after_held_is_believed_completes_the_attempt_and_told_again_does_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    world.report(&[lease_expired(&claimed[0], "t")]).await;
    conclude(&world, Verdict::Hold).await;
    assert_eq!(world.state_of(message).await, Some(SendState::Held));
    let late = finished(&claimed[0], AttemptOutcome::Accepted);
    world.report(std::slice::from_ref(&late)).await;
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.unknown, world.send_of(message).await), (Status::Sent, false, None));
    let mut tx = world.store().read().await.unwrap();
    let attempts = attempt::of(&mut tx, &[message]).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].outcome, attempts[0].worker.as_deref()), (AttemptOutcome::Accepted, Some("sender-1")));
    drop(tx);
    assert_eq!(world.report(&[late]).await.changed, 0);
    assert_eq!(world.message(message).await, shown);
    world.keeps_its_promises().await;
}

async fn silences(world: &World) -> Vec<Silence> {
    let mut tx = world.store().begin().await.unwrap();
    send::note_witnesses(&mut tx).await.unwrap();
    let found = send::silences(&mut tx, 10).await.unwrap();
    tx.commit().await.unwrap();
    found
}

async fn conclude(world: &World, verdict: Verdict) {
    let silent = silences(world).await;
    let mut tx = world.store().begin().await.unwrap();
    let ended = send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), verdict, NOON).await.unwrap();
    assert_eq!(ended.len(), silent.len());
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_resend_goes_again_at_its_old_place_and_a_late_acceptance_of_the_first_waits_for_the_second(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (message, behind) = (world.accept(0, "hello").await, world.accept(0, "behind").await);
    let first = world.take("t1").await;
    world.report(&[finished(&first[0], AttemptOutcome::Unknown)]).await;
    conclude(&world, Verdict::Resend).await;
    let row = world.send_of(message).await.unwrap();
    assert_eq!((row.state, row.seq, row.attempt), (SendState::Waiting, Some(1), 1));
    assert_eq!(world.message(message).await.status, Status::Queued);
    let second = world.take("t2").await;
    assert_eq!((second[0].message_id, second[0].attempt), (message, 2));

    world.report(&[finished(&first[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(world.state_of(message).await, Some(SendState::InFlight), "the later attempt ends first");
    world.keeps_its_promises().await;
    world.report(&[finished(&second[0], AttemptOutcome::Retry)]).await;
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.provider_id), (Status::Sent, Some(format!("wamid.out.{message}.1"))));
    assert_eq!(world.dispatch().await, [behind]);
    world.keeps_its_promises().await;
}

#[rstest]
#[case::unknown_and_sent(SendState::Unknown, Status::Sent, true)]
#[case::unknown_and_failed(SendState::Unknown, Status::Failed, true)]
#[case::queued_says_nothing(SendState::Unknown, Status::Queued, false)]
#[case::beside_an_open_call(SendState::InFlight, Status::Read, false)]
#[tokio::test]
async fn evidence_finishes_a_send_unless_a_call_is_open(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] state: SendState,
    #[case] status: Status,
    #[case] finishes: bool,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    if state == SendState::Unknown {
        world.report(&[finished(&claimed[0], AttemptOutcome::Unknown)]).await;
    }
    let mut tx = world.store().begin().await.unwrap();
    let evidence = Evidence { message, generation: 0, status };
    let settled = send::settle_by_evidence(&mut tx, &[evidence]).await.unwrap();
    assert_eq!(settled.len(), usize::from(finishes));
    if finishes {
        assert_eq!((settled[0].message_id, settled[0].channel_account_id), (message, world.account));
    }
}

#[rstest]
#[tokio::test]
async fn evidence_of_an_older_generation_stops_a_newer_one_only_when_it_proves_delivery_and_was_not_claimed(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    crate::sending::execute(world.store(), "UPDATE sends SET generation = 1").await;
    let settle = async |status: Status| {
        let mut tx = world.store().begin().await.unwrap();
        let evidence = Evidence { message, generation: 0, status };
        send::settle_by_evidence(&mut tx, &[evidence]).await.unwrap().len()
    };
    assert_eq!((settle(Status::Sent).await, settle(Status::Failed).await), (0, 0));
    assert_eq!((settle(Status::Delivered).await, settle(Status::Read).await), (1, 1));
    world.take("t").await;
    assert_eq!(settle(Status::Read).await, 0, "the newer one is claimed");
}

#[rstest]
#[tokio::test]
async fn an_id_that_an_echo_brought_first_folds_the_echo_into_our_message(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    const ECHO: &str =
        "INSERT INTO messages (conversation_id, channel_account_id, direction, channel, type, body, status,
        provider_message_id, origin, occurred_at, created_at)
        SELECT conversation_id, channel_account_id, 'OUTBOUND', channel, 'text', body, 'SENT',
               'wamid.out.' || id || '.1', 'ECHO', occurred_at, created_at FROM messages WHERE origin = 'AGENT'";
    crate::sending::execute(world.store(), ECHO).await;
    world.report(&[finished(&claimed[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(number(world.store(), "SELECT count(*) FROM messages WHERE origin = 'ECHO'").await, 0);
    assert_eq!(world.message(message).await.status, Status::Sent);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_watermark_that_passed_before_the_id_was_known_raises_the_message(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let (delivered, read) = (world.accept(0, "hello").await, world.accept(1, "hello").await);
    let claimed = world.take("t").await;
    crate::sending::execute(
        world.store(),
        "UPDATE conversations SET delivered_until = (SELECT max(deadline_at) FROM sends),
           read_until = CASE WHEN id = (SELECT max(id) FROM conversations) THEN (SELECT max(deadline_at) FROM sends) END",
    )
    .await;
    let events: Vec<SendEvent> = claimed.iter().map(|claim| finished(claim, AttemptOutcome::Accepted)).collect();
    world.report(&events).await;
    assert_eq!(world.message(delivered).await.status, Status::Delivered);
    assert_eq!(world.message(read).await.status, Status::Read);
    world.keeps_its_promises().await;
}
