//! A person decides: every state in which something can be decided, every one in which it cannot, and what late words of
//! the provider's still do afterwards.

use crate::sending::{World, execute, finished, lease_expired, number, seconds};
use crate::sql;
use domain::{AttemptOutcome, Correlation, MessageId, Role, SendState, Status, Timestamp, UserId};
use rstest::rstest;
use store::decide::{self, Again, Decided, Standing};
use store::receipt::{self, NewReceipt, Receipts};
use store::send::{self, Claimed};
use store::user::{self, Declared};
use testkit::Database;
use testkit::rows::NOON;

/// People's time of every decision.
fn later() -> Timestamp {
    NOON + seconds(300)
}

fn again() -> Again<'static> {
    Again { now: later(), deadline: seconds(3600), traceparent: Some("00-trace") }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    ItArrived,
    SendAgain,
    Retry,
    Cancel,
}

const CHOICES: [Choice; 4] = [Choice::ItArrived, Choice::SendAgain, Choice::Retry, Choice::Cancel];

impl World {
    async fn decide(&self, choice: Choice, message: MessageId) -> Decided {
        let conversation = self.conversations[0].conversation;
        let mut tx = self.store().begin().await.unwrap();
        let sara = Declared { email: "sara@example.com".into(), name: "Sara".into(), role: Role::Agent };
        let by: UserId = user::mirror(&mut tx, &[sara], NOON).await.unwrap()[0].id;
        let decided = match choice {
            Choice::ItArrived => decide::it_arrived(&mut tx, conversation, message, by, later()).await,
            Choice::SendAgain => decide::send_again(&mut tx, conversation, message, again()).await,
            Choice::Retry => decide::retry(&mut tx, conversation, message, again()).await,
            Choice::Cancel => decide::cancel(&mut tx, conversation, message, later()).await,
        };
        tx.commit().await.unwrap();
        decided.unwrap()
    }

    async fn decided(&self, choice: Choice, message: MessageId) {
        let conversation = self.conversations[0].conversation;
        let status = match choice {
            Choice::ItArrived => Status::Sent,
            Choice::SendAgain | Choice::Retry => Status::Queued,
            Choice::Cancel => Status::Failed,
        };
        let want = Decided::Done { conversation, account: self.account, status };
        assert_eq!(self.decide(choice, message).await, want, "{choice:?}");
    }

    /// A message whose sender never said how its call ended, and of which the provider has said nothing since.
    async fn held(&self) -> Claimed {
        let message = self.accept(0, "hello").await;
        let claim = self.take("t").await.pop().unwrap();
        assert_eq!(claim.message_id, message);
        self.report(&[finished(&claim, AttemptOutcome::Unknown)]).await;
        let mut tx = self.store().begin().await.unwrap();
        let silent = send::silences(&mut tx, 10).await.unwrap();
        send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), send::Verdict::Hold, NOON).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(self.state_of(message).await, Some(SendState::Held));
        claim
    }

    /// A message that the provider refused.
    async fn failed(&self) -> Claimed {
        self.accept(0, "hello").await;
        let claim = self.take("t").await.pop().unwrap();
        self.report(&[finished(&claim, AttemptOutcome::Rejected)]).await;
        claim
    }

    /// The provider speaks of an attempt, under `id`, by what we gave it when sending.
    async fn told(&self, claim: &Claimed, id: &str, status: Status, by_correlation: bool) -> Receipts {
        let correlation = Correlation {
            deployment: claim.deployment.parse().unwrap(),
            message: claim.message_id,
            generation: claim.generation,
            attempt: claim.attempt,
        };
        let receipt = NewReceipt {
            account: self.account,
            provider_message_id: id.into(),
            status: Some(status),
            provider_status: status.as_str().to_lowercase(),
            occurred_at: NOON + seconds(400),
            received_at: NOON + seconds(401),
            correlation: by_correlation.then(|| correlation.to_string()),
            error_code: (status == Status::Failed).then(|| "131026".into()),
            error_message: (status == Status::Failed).then(|| "Message undeliverable".into()),
            pricing: None,
            raw: None,
            webhook: None,
        };
        let mut tx = self.store().begin().await.unwrap();
        let told = receipt::apply(&mut tx, &[receipt], NOON + seconds(401)).await.unwrap();
        tx.commit().await.unwrap();
        told
    }

    async fn texts(&self, query: &'static str) -> Vec<String> {
        sql::texts(&mut self.store().read().await.unwrap(), query).await
    }

    async fn status(&self, message: MessageId) -> Status {
        self.message(message).await.status
    }
}

/// Status, whether it was raised, who said so, generation.
const HISTORY: &str = "SELECT status || CASE WHEN applied THEN '+ ' ELSE ' ' END || source || ' ' || generation
    FROM message_status_events ORDER BY id";

#[rstest]
#[tokio::test]
async fn it_arrived_is_sent_on_a_named_persons_word_and_no_more_than_that(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::ItArrived, claim.message_id).await;
    let shown = world.message(claim.message_id).await;
    assert_eq!((shown.status, shown.unknown, shown.provider_id), (Status::Sent, false, None));
    assert_eq!(world.send_of(claim.message_id).await, None);
    let named = "SELECT name FROM users u JOIN messages m ON m.confirmed_by_user_id = u.id WHERE m.sent_at IS NOT NULL";
    assert_eq!(world.texts(named).await, ["Sara"]);
    assert_eq!(world.texts(HISTORY).await, ["SENT+ OPERATOR 0"]);
    assert_eq!(number(world.store(), "SELECT count(*) FROM change_feed WHERE status = 'SENT'").await, 1);
    world.keeps_its_promises().await;

    // The provider's own words still count for more.
    world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await;
    let id = world.message(claim.message_id).await.provider_id;
    assert_eq!(id, Some(format!("wamid.out.{}.1", claim.message_id)));
    world.told(&claim, &id.unwrap(), Status::Delivered, false).await;
    assert_eq!(world.status(claim.message_id).await, Status::Delivered);
    assert_eq!(world.texts(HISTORY).await, ["SENT+ OPERATOR 0", "DELIVERED+ PROVIDER 0"]);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn what_did_not_arrive_after_all_fails_although_somebody_vouched_for_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::ItArrived, claim.message_id).await;
    world.told(&claim, "wamid.late", Status::Failed, true).await;
    let shown = world.message(claim.message_id).await;
    assert_eq!((shown.status, shown.error.map(|error| error.1)), (Status::Failed, Some("131026".to_owned())));
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn send_again_opens_a_generation_at_the_end_of_the_lane(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    let (second, third) = (world.accept(0, "second").await, world.accept(0, "third").await);
    world.decided(Choice::SendAgain, claim.message_id).await;
    let row = world.send_of(claim.message_id).await.unwrap();
    assert_eq!((row.state, row.generation, row.attempt), (SendState::Waiting, 1, 0));
    assert_eq!((row.unknown_since, row.witness_at, row.lease_token), (None, None, None));
    assert_eq!(row.traceparent.as_deref(), Some("00-trace"));
    assert_eq!(row.deadline_at.since(row.due_at), seconds(3600), "the deadline begins anew");
    let last = world.send_of(third).await.unwrap().seq;
    assert!(row.seq > last, "{:?} is behind {last:?}", row.seq);
    let shown = world.message(claim.message_id).await;
    assert_eq!((shown.status, shown.unknown, shown.provider_id), (Status::Queued, false, None));
    assert_eq!(world.texts(HISTORY).await, ["QUEUED OPERATOR 1"]);
    world.keeps_its_promises().await;

    for (n, message) in [second, third, claim.message_id].into_iter().enumerate() {
        let next = world.take(&format!("t{n}")).await.pop().unwrap();
        assert_eq!((next.message_id, next.attempt), (message, 1));
        let of_second = finished(&next, AttemptOutcome::Accepted);
        world.report(&[of_second]).await;
    }
    assert_eq!(world.status(claim.message_id).await, Status::Sent);
    let attempts = "SELECT generation || '.' || attempt || ' ' || outcome FROM send_attempts a
        WHERE message_id = (SELECT min(message_id) FROM send_attempts) ORDER BY generation, attempt";
    assert_eq!(world.texts(attempts).await, ["0.1 UNKNOWN", "1.1 ACCEPTED"]);
    world.keeps_its_promises().await;
}

#[rstest]
#[case::as_a_report(None)]
#[case::as_a_receipt(Some(Status::Sent))]
#[case::as_a_later_receipt(Some(Status::Read))]
#[tokio::test]
async fn a_late_acceptance_of_what_was_held_takes_the_new_generation_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(false, true)] dispatched: bool,
    #[case] receipt: Option<Status>,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::SendAgain, claim.message_id).await;
    if dispatched {
        assert_eq!(world.dispatch().await, [claim.message_id]);
    }
    match receipt {
        None => {
            world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await;
        }
        Some(status) => {
            let told = world.told(&claim, "wamid.late", status, true).await;
            assert!(told.applied[0].raised && told.applied[0].settled, "{told:?}");
        }
    }
    let want = receipt.unwrap_or(Status::Sent);
    assert_eq!((world.status(claim.message_id).await, world.send_of(claim.message_id).await), (want, None));
    assert!(world.dispatch().await.is_empty());
    assert!(world.claim("t2", &[claim.message_id]).await.is_empty(), "nothing goes twice");
    world.keeps_its_promises().await;

    // Its later receipts find it under the id that was learnt late.
    let id = world.message(claim.message_id).await.provider_id.unwrap();
    world.told(&claim, &id, Status::Read, false).await;
    assert_eq!(world.status(claim.message_id).await, Status::Read);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn late_bad_news_of_the_old_generation_is_kept_and_changes_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::SendAgain, claim.message_id).await;
    let before = world.send_of(claim.message_id).await;
    let told = world.told(&claim, "wamid.late", Status::Failed, true).await;
    assert!(!told.applied[0].raised && !told.applied[0].settled, "{told:?}");
    assert_eq!((told.parked, told.duplicates), (0, 0), "it is kept with its message");
    for outcome in [AttemptOutcome::Rejected, AttemptOutcome::Retry, AttemptOutcome::Unknown] {
        assert_eq!(world.report(&[finished(&claim, outcome)]).await.changed, 0, "{outcome}");
    }
    assert_eq!(world.report(&[lease_expired(&claim, "t")]).await.changed, 0);
    assert_eq!((world.status(claim.message_id).await, world.send_of(claim.message_id).await), (Status::Queued, before));
    assert_eq!(world.texts(HISTORY).await, ["QUEUED OPERATOR 1", "FAILED PROVIDER 0"]);
    world.keeps_its_promises().await;

    let next = world.take("t2").await.pop().unwrap();
    assert_eq!((next.generation, next.attempt), (1, 1));
    world.report(&[finished(&next, AttemptOutcome::Accepted)]).await;
    assert_eq!(world.status(claim.message_id).await, Status::Sent);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_late_acceptance_leaves_a_new_generation_alone_that_is_under_way(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::SendAgain, claim.message_id).await;
    let next = world.take("t2").await.pop().unwrap();
    assert_eq!(world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await.changed, 0);
    assert_eq!(world.state_of(claim.message_id).await, Some(SendState::InFlight));
    world.keeps_its_promises().await;
    world.report(&[finished(&next, AttemptOutcome::Accepted)]).await;
    let ids = "SELECT provider_message_id FROM send_attempts ORDER BY generation";
    assert_eq!(world.texts(ids).await.len(), 2, "both are known");
    assert_eq!((world.status(claim.message_id).await, world.send_of(claim.message_id).await), (Status::Sent, None));
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn ac_21_a_retry_makes_one_new_call_and_the_history_shows_both(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.failed().await;
    let red = "SELECT count(*) FROM conversations WHERE last_failed_at >= last_outbound_at";
    assert_eq!(number(world.store(), red).await, 1);
    world.decided(Choice::Retry, claim.message_id).await;
    assert_eq!(number(world.store(), red).await, 0, "it does not stand there as failed any more");
    let shown = world.message(claim.message_id).await;
    assert_eq!((shown.status, shown.error), (Status::Queued, None));
    let twice = world.decide(Choice::Retry, claim.message_id).await;
    let waiting = Standing { status: Status::Queued, state: Some(SendState::Waiting) };
    assert_eq!(twice, Decided::WrongState(waiting), "pressed twice");
    let next = world.take("t2").await;
    assert_eq!((next.len(), next[0].generation, next[0].attempt), (1, 1, 1));
    world.report(&[finished(&next[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(number(world.store(), "SELECT count(*) FROM send_attempts").await, 2);
    let history = ["FAILED+ SENDER 0", "QUEUED OPERATOR 1", "SENT+ SENDER 1"];
    assert_eq!(world.texts(HISTORY).await, history);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_retry_of_what_the_provider_took_and_then_failed_leaves_the_old_id_with_its_attempt(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(false, true)] learnt_from_a_receipt: bool,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claim = world.take("t").await.pop().unwrap();
    let id = format!("wamid.out.{message}.1");
    if learnt_from_a_receipt {
        // The report says that it was not taken; the provider knows better.
        world.report(&[finished(&claim, AttemptOutcome::Retry)]).await;
        world.told(&claim, &id, Status::Failed, true).await;
    } else {
        world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await;
        world.told(&claim, &id, Status::Failed, false).await;
    }
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.provider_id), (Status::Failed, Some(id.clone())));
    world.decided(Choice::Retry, message).await;
    assert_eq!(world.message(message).await.provider_id, None);
    assert_eq!(world.texts("SELECT provider_message_id FROM send_attempts").await, [id.as_str()]);
    world.keeps_its_promises().await;

    // A late `sent` of what had failed revives nothing; that it reached the phone does, and then nothing goes again.
    let told = world.told(&claim, &id, Status::Sent, false).await;
    assert!(!told.applied[0].raised && told.parked == 0, "{told:?}");
    let told = world.told(&claim, &id, Status::Delivered, false).await;
    assert!(told.applied[0].raised && told.applied[0].settled, "{told:?}");
    assert!(world.take("t2").await.is_empty());
    assert_eq!(world.status(message).await, Status::Delivered);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_retry_is_refused_where_the_account_is_gone_and_waits_where_it_is_paused(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let claim = world.failed().await;
    execute(world.store(), "UPDATE channel_accounts SET status = 'DISABLED'").await;
    assert_eq!(world.decide(Choice::Retry, claim.message_id).await, Decided::AccountDisabled);
    assert_eq!((world.status(claim.message_id).await, world.send_of(claim.message_id).await), (Status::Failed, None));
    execute(world.store(), "UPDATE channel_accounts SET status = 'PAUSED'").await;
    world.decided(Choice::Retry, claim.message_id).await;
    assert!(world.dispatch().await.is_empty());
    world.keeps_its_promises().await;
}

#[rstest]
#[case::scheduled(SendState::Scheduled)]
#[case::waiting(SendState::Waiting)]
#[case::dispatched(SendState::Dispatched)]
#[tokio::test]
async fn what_has_not_left_yet_can_be_taken_back_and_tried_again(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] state: SendState,
) {
    let world = World::with(database, 1).await;
    let accepted = world
        .accept_as(0, "hello", |mut new| {
            new.send_at = (state == SendState::Scheduled).then(|| new.now + seconds(60));
            new.client_message_id = Some("k-1");
            new
        })
        .await;
    let message = accepted.id;
    if state == SendState::Dispatched {
        world.dispatch().await;
    }
    assert_eq!(world.state_of(message).await, Some(state));
    let waits = "SELECT count(*) FROM conversations WHERE needs_reply_since = last_inbound_at";
    assert_eq!(number(world.store(), waits).await, i64::from(state == SendState::Scheduled));
    world.decided(Choice::Cancel, message).await;
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.unknown), (Status::Failed, false));
    assert_eq!(shown.error, Some((decide::CANCELLED.to_owned(), "cancelled".to_owned())));
    assert_eq!(world.texts(HISTORY).await, ["FAILED+ OPERATOR 0"]);
    assert_eq!(number(world.store(), waits).await, 1, "whoever waited for the answer waits on");
    assert_eq!(
        number(world.store(), "SELECT count(*) FROM conversations WHERE last_failed_at IS NOT NULL").await,
        0,
        "nothing went wrong"
    );
    assert!(world.claim("t", &[message]).await.is_empty(), "a reference under way claims nothing");
    assert_eq!(number(world.store(), "SELECT count(*) FROM messages WHERE client_message_id = 'k-1'").await, 1);
    world.keeps_its_promises().await;
    world.decided(Choice::Retry, message).await;
    assert_eq!(world.take("t2").await.len(), 1);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn taking_a_message_back_lets_the_next_one_go_and_does_not_undo_another_answer(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (first, second) = (world.accept(0, "first").await, world.accept(0, "second").await);
    assert_eq!(world.dispatch().await, [first]);
    world.decided(Choice::Cancel, first).await;
    let waits = "SELECT count(*) FROM conversations WHERE needs_reply_since IS NOT NULL";
    assert_eq!(number(world.store(), waits).await, 0, "the second answers as well");
    assert_eq!(world.dispatch().await, [second]);
}

#[rstest]
#[tokio::test]
async fn what_was_given_up_at_its_deadline_can_be_tried_again(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let mut tx = world.store().begin().await.unwrap();
    let tomorrow = tx.database_now().await.unwrap() + seconds(25 * 3600);
    assert_eq!(send::expire(&mut tx, tomorrow, NOON, 10).await.unwrap().len(), 1);
    tx.commit().await.unwrap();
    world.decided(Choice::Retry, message).await;
    assert_eq!(world.take("t").await.len(), 1);
    world.keeps_its_promises().await;
}

/// Puts a message where it is to stand, and says so.
async fn at(world: &World, place: &str) -> (MessageId, Standing) {
    let standing = |status, state| Standing { status, state };
    if place == "held" {
        return (world.held().await.message_id, standing(Status::Sending, Some(SendState::Held)));
    }
    let message = world.accept(0, "hello").await;
    if place == "waiting" {
        return (message, standing(Status::Queued, Some(SendState::Waiting)));
    }
    let claim = world.take("t").await.pop().unwrap();
    let outcome = match place {
        "in flight" => return (message, standing(Status::Queued, Some(SendState::InFlight))),
        "unknown" => AttemptOutcome::Unknown,
        "failed" => AttemptOutcome::Rejected,
        _ => AttemptOutcome::Accepted,
    };
    world.report(&[finished(&claim, outcome)]).await;
    let id = format!("wamid.out.{message}.1");
    let stands = match place {
        "unknown" => standing(Status::Sending, Some(SendState::Unknown)),
        "failed" => standing(Status::Failed, None),
        "sent" => standing(Status::Sent, None),
        _ => {
            world.told(&claim, &id, Status::Delivered, false).await;
            standing(Status::Delivered, None)
        }
    };
    (message, stands)
}

#[rstest]
#[case::waiting("waiting", &[Choice::Cancel])]
#[case::in_flight("in flight", &[])]
#[case::unknown("unknown", &[])]
#[case::held("held", &[Choice::ItArrived, Choice::SendAgain])]
#[case::sent("sent", &[])]
#[case::delivered("delivered", &[])]
#[case::failed("failed", &[Choice::Retry])]
#[tokio::test]
async fn a_decision_where_there_is_nothing_to_decide_changes_nothing_and_says_where_it_stands(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] place: &str,
    #[case] possible: &[Choice],
) {
    let world = World::with(database, 2).await;
    let (message, standing) = at(&world, place).await;
    let (before, row) = (world.message(message).await, world.send_of(message).await);
    let events = number(world.store(), "SELECT count(*) FROM message_status_events").await;
    for choice in CHOICES.into_iter().filter(|choice| !possible.contains(choice)) {
        assert_eq!(world.decide(choice, message).await, Decided::WrongState(standing), "{choice:?}");
    }
    assert_eq!((&world.message(message).await, &world.send_of(message).await), (&before, &row));
    assert_eq!(number(world.store(), "SELECT count(*) FROM message_status_events").await, events);
    for choice in CHOICES {
        assert_eq!(world.decide(choice, MessageId::new(999_999)).await, Decided::NotFound);
    }
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_message_is_found_only_in_its_own_conversation_and_nobody_decides_about_what_they_wrote(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let elsewhere = world.accept(1, "hello").await;
    for choice in CHOICES {
        assert_eq!(world.decide(choice, elsewhere).await, Decided::NotFound, "{choice:?}");
    }
    let inbound = number(world.store(), "SELECT min(id) FROM messages WHERE direction = 'INBOUND'").await;
    let standing = Standing { status: Status::Received, state: None };
    for choice in CHOICES {
        assert_eq!(world.decide(choice, MessageId::new(inbound)).await, Decided::WrongState(standing), "{choice:?}");
    }
    world.keeps_its_promises().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_taking_back_and_claiming_at_the_same_moment_exactly_one_happens() {
    let world = World::with(Database::Postgres, 1).await;
    for round in 0..20 {
        let message = world.accept(0, "hello").await;
        assert_eq!(world.dispatch().await, [message]);
        let token = format!("t{round}");
        let claimed_ids = [message];
        let (decided, claimed) = tokio::join!(world.decide(Choice::Cancel, message), world.claim(&token, &claimed_ids));
        let cancelled = matches!(decided, Decided::Done { .. });
        assert_ne!(cancelled, !claimed.is_empty(), "round {round}: {decided:?}, claimed {claimed:?}");
        if let Some(claim) = claimed.first() {
            world.report(&[finished(claim, AttemptOutcome::Accepted)]).await;
        }
    }
    world.keeps_its_promises().await;
}

#[rstest]
#[case::a_report(None)]
#[case::sent(Some(Status::Sent))]
#[case::delivered(Some(Status::Delivered))]
#[tokio::test]
async fn proof_of_the_old_generation_between_two_attempts_of_the_new_one_ends_both(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(AttemptOutcome::Retry, AttemptOutcome::Unknown)] outcome: AttemptOutcome,
    #[case] status: Option<Status>,
) {
    let world = World::with(database, 1).await;
    let claim = world.held().await;
    world.decided(Choice::SendAgain, claim.message_id).await;
    let next = world.take("t2").await.pop().unwrap();
    world.report(&[finished(&next, outcome)]).await;
    match status {
        Some(status) => drop(world.told(&claim, "wamid.late", status, true).await),
        None => drop(world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await),
    }
    let want = status.unwrap_or(Status::Sent);
    assert_eq!((world.status(claim.message_id).await, world.send_of(claim.message_id).await), (want, None));
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn proof_of_the_old_generation_waits_while_the_new_one_is_in_flight(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let claim = world.take("t").await.pop().unwrap();
    let id = format!("wamid.out.{message}.1");
    world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await;
    world.told(&claim, &id, Status::Failed, false).await;
    world.decided(Choice::Retry, message).await;
    let next = world.take("t2").await.pop().unwrap();
    let told = world.told(&claim, &id, Status::Delivered, true).await;
    assert_eq!((told.applied.len(), told.parked), (0, 1));
    world.keeps_its_promises().await;
    world.report(&[finished(&next, AttemptOutcome::Retry)]).await;
    assert_eq!((world.status(message).await, world.send_of(message).await), (Status::Delivered, None));
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn what_failed_is_not_tried_again_while_a_row_of_it_is_left(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    world.take("t").await;
    // Nothing writes this; an older version did, when evidence came while a later call was open.
    execute(world.store(), "UPDATE messages SET status = 'FAILED', error_class = 'REJECTED', error_code = '1' WHERE direction = 'OUTBOUND'").await;
    let before = world.send_of(message).await;
    let standing = Standing { status: Status::Failed, state: Some(SendState::InFlight) };
    assert_eq!(world.decide(Choice::Retry, message).await, Decided::WrongState(standing));
    assert_eq!(world.send_of(message).await, before, "the open call keeps its claim");
}
