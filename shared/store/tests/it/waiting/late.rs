//! What comes later still.

use super::*;
use testkit::wait;

#[rstest]
#[tokio::test]
async fn a_word_on_the_old_generation_settles_the_new_one_when_its_first_call_is_given_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_generation(&world).await;
    let message = first.message_id;
    tell(world.store(), &[said(&world, &first, "wamid.A", Status::Sent, true)]).await;
    give_back(&world, &second, "t2").await;
    assert_eq!(world.send_of(message).await.map(|row| row.attempt), Some(0));
    assert!(world.dispatch().await.is_empty(), "it does not go again before the keeper comes");
    world.keeps_its_promises().await;
    assert_eq!(result_of_keeper(&world).await, [message]);
    assert_eq!(stands(&world, message).await, (Status::Sent, None));
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn what_the_provider_took_is_neither_given_up_nor_taken_back_before_it_is_settled(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(Word::Report, Word::Receipt(Status::Sent))] word: Word,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    match word {
        Word::Report => drop(world.report(&[finished(&first, AttemptOutcome::Accepted)]).await),
        Word::Receipt(status) => drop(tell(world.store(), &[said(&world, &first, "wamid.A", status, true)]).await),
    }
    give_back(&world, &second, "t2").await;
    let mut tx = world.store().begin().await.unwrap();
    let tomorrow = tx.database_now().await.unwrap() + seconds(25 * 3600);
    assert_eq!(send::expire(&mut tx, tomorrow, NOON, 10).await.unwrap(), []);
    let conversation = world.conversations[0].conversation;
    let cancelled = decide::cancel(&mut tx, conversation, first.message_id, told_at()).await.unwrap();
    assert!(matches!(cancelled, Decided::WrongState(_)), "{cancelled:?}");
    tx.commit().await.unwrap();
    assert_eq!(result_of_keeper(&world).await, [first.message_id]);
    assert_eq!(stands(&world, first.message_id).await, (Status::Sent, None));
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn a_receipt_that_settles_a_send_takes_along_what_had_waited_for_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let (first, second) = second_call(&world).await;
    tell(world.store(), &[said(&world, &first, "wamid.A", Status::Delivered, true)]).await;
    give_back(&world, &second, "t2").await;
    let told = tell(world.store(), &[said(&world, &first, "wamid.A", Status::Sent, true)]).await;
    assert!(told.applied.iter().any(|one| one.settled));
    assert_eq!(stands(&world, first.message_id).await, (Status::Delivered, None));
    is_all_settled(&world).await;
}

#[rstest]
#[tokio::test]
async fn a_receipt_of_nobodys_is_forgotten_after_its_time_and_what_waits_for_a_call_is_not(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    world.accept(0, "hello").await;
    let claim = world.take("t").await.pop().unwrap();
    let late =
        NewReceipt { received_at: told_at() + seconds(60), ..said(&world, &claim, "wamid.C", Status::Read, false) };
    let receipts = [
        said(&world, &claim, "wamid.A", Status::Sent, false),
        said(&world, &claim, "wamid.B", Status::Sent, true),
        late,
    ];
    assert_eq!(tell(world.store(), &receipts).await.parked, 3);
    let purge = async |before: Timestamp| {
        let mut tx = world.store().begin().await.unwrap();
        let gone = purge_parked(&mut tx, before).await.unwrap();
        tx.commit().await.unwrap();
        gone
    };
    assert_eq!(purge(told_at()).await, 0, "not yet");
    assert_eq!(purge(told_at() + seconds(1)).await, 1);
    let left = "SELECT provider_message_id FROM message_status_events ORDER BY provider_message_id";
    assert_eq!(texts(&world, left).await, ["wamid.B", "wamid.C"]);
    // The person was forgotten, and with them the message.
    execute(world.store(), "DELETE FROM messages WHERE direction = 'OUTBOUND'").await;
    world.keeps_its_promises().await;
    assert_eq!(purge(told_at() + seconds(1)).await, 1);
    assert_eq!(texts(&world, left).await, ["wamid.C"]);
}

/// Until somebody waits for a lock of somebody else's.
async fn until_one_waits(store: &Store) {
    const WAITS: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait::until_so("they meet", Duration::from_secs(10), async || number(store, WAITS).await != 0).await;
}

/// Two transactions on one message, each begun before the other has committed. SQLite has one writer: nothing overlaps there.
#[rstest]
#[case::the_receipt_is_first(true)]
#[case::the_report_is_first(false)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_and_the_report_that_ends_the_call_never_miss_each_other(
    #[case] receipt_first: bool,
    #[values(AttemptOutcome::Retry, AttemptOutcome::Unknown, AttemptOutcome::Accepted)] outcome: AttemptOutcome,
    #[values(true, false)] named: bool,
) {
    let world = World::with(Database::Postgres, 1).await;
    let (first, second) = second_call(&world).await;
    if !named {
        // By its own id, as an acceptance of the first attempt once taught it.
        execute(world.store(), "UPDATE messages SET provider_message_id = 'wamid.A' WHERE direction = 'OUTBOUND'")
            .await;
    }
    let receipt = [said(&world, &first, "wamid.A", Status::Delivered, named)];
    let event = [finished(&second, outcome)];
    let store = world.store().clone();
    let report = async |tx: &mut Tx| {
        let database_now = tx.database_now().await.unwrap();
        let times = Times { now: told_at(), database_now };
        result::apply(tx, &event, times, crate::sending::PACE).await.unwrap();
    };
    let mut one = store.begin().await.unwrap();
    let mut other = store.begin().await.unwrap();
    if receipt_first {
        assert_eq!(receipt::apply(&mut one, &receipt, told_at()).await.unwrap().parked, 1);
    } else {
        report(&mut one).await;
    }
    let second_one = async {
        if receipt_first {
            report(&mut other).await;
        } else {
            receipt::apply(&mut other, &receipt, told_at()).await.unwrap();
        }
        other.commit().await.unwrap();
    };
    let first_one = async {
        until_one_waits(&store).await;
        one.commit().await.unwrap();
    };
    tokio::join!(second_one, first_one);
    assert_eq!(stands(&world, first.message_id).await, (Status::Delivered, None));
    match (outcome, named) {
        (AttemptOutcome::Accepted, true) => is_all_settled_and_was_taken_twice(&world).await,
        _ => is_all_settled(&world).await,
    }
}

#[rstest]
#[case::the_receipt_is_first(true)]
#[case::the_claim_is_first(false)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_receipt_and_a_claim_at_the_same_moment_the_later_one_sees_the_earlier(#[case] receipt_first: bool) {
    let world = World::with(Database::Postgres, 1).await;
    let message = world.accept(0, "hello").await;
    let first = world.take("t1").await.pop().unwrap();
    world.report(&[finished(&first, AttemptOutcome::Unknown)]).await;
    conclude(&world, Verdict::Resend).await;
    assert_eq!(world.dispatch().await, [message]);
    let receipt = [said(&world, &first, "wamid.A", Status::Sent, true)];
    let store = world.store().clone();
    let mut one = store.begin().await.unwrap();
    let commit = async |one: Tx| {
        until_one_waits(&store).await;
        one.commit().await.unwrap();
    };
    if receipt_first {
        assert!(receipt::apply(&mut one, &receipt, told_at()).await.unwrap().applied[0].settled);
        let messages = [message];
        let (claimed, ()) = tokio::join!(world.claim("t2", &messages), commit(one));
        assert!(claimed.is_empty(), "it is gone");
        assert_eq!(stands(&world, message).await, (Status::Sent, None));
    } else {
        const CLAIM: &str =
            "UPDATE sends SET state = 'IN_FLIGHT', attempt = 2, lease_token = 't2', lease_until = now()";
        sql::run(&mut one, CLAIM).await;
        let (told, ()) = tokio::join!(tell(&store, &receipt), commit(one));
        assert_eq!((told.parked, told.applied.len()), (1, 0), "it waits for the call");
        assert_eq!(stands(&world, message).await, (Status::Queued, Some(SendState::InFlight)));
    }
    world.keeps_its_promises().await;
}
