//! The lane: who may go, who waits, who is out of it.

use crate::sending::{World, execute, finished, number, report_of, seconds};
use domain::wire::SendEvent;
use domain::{AttemptOutcome, MessageId, SendState, Status};
use rstest::rstest;
use std::collections::BTreeSet;
use store::{Tx, send};
use testkit::Database;
use testkit::rows::NOON;

#[rstest]
#[tokio::test]
async fn one_message_at_a_time_and_a_retry_keeps_its_place(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let (first, second) = (world.accept(0, "first").await, world.accept(0, "second").await);
    let other = world.accept(1, "another conversation").await;
    let claimed = world.take("t").await;
    assert_eq!(claimed.iter().map(|c| c.message_id).collect::<Vec<_>>(), [first, other]);
    assert!(world.dispatch().await.is_empty(), "the second waits for the first");

    world.report(&[finished(&claimed[0], AttemptOutcome::Retry)]).await;
    let row = world.send_of(first).await.unwrap();
    assert_eq!((row.state, row.seq, row.attempt), (SendState::Waiting, Some(1), 1));
    assert!(world.dispatch().await.is_empty(), "not due yet, and the second does not overtake it");
    let later = world.now().await + seconds(6);
    assert_eq!(world.dispatch_at(later, 64).await, [first]);
    let again = world.claim("t2", &[first]).await;
    assert_eq!(again[0].attempt, 2);
    world.report(&[finished(&again[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(world.dispatch().await, [second]);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn unknown_blocks_the_lane_and_held_frees_it(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::with(database, 1).await;
    let (first, second) = (world.accept(0, "first").await, world.accept(0, "second").await);
    let claimed = world.take("t").await;
    world.report(&[finished(&claimed[0], AttemptOutcome::Unknown)]).await;
    assert_eq!(world.state_of(first).await, Some(SendState::Unknown));
    let shown = world.message(first).await;
    assert_eq!((shown.status, shown.unknown), (Status::Sending, true));
    assert!(world.dispatch().await.is_empty());

    hold(&world).await;
    let row = world.send_of(first).await.unwrap();
    assert_eq!((row.state, row.seq), (SendState::Held, None));
    assert_eq!(world.dispatch().await, [second]);
    world.keeps_its_promises().await;
}

async fn hold(world: &World) {
    let mut tx = world.store().begin().await.unwrap();
    let silent = send::silences(&mut tx, 10).await.unwrap();
    let ended = send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), send::Verdict::Hold, NOON).await.unwrap();
    assert_eq!(ended.len(), silent.len());
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn conversations_go_before_bulk_and_fresh_sends_keep_half_of_the_window(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 12).await;
    let mut bulk = Vec::new();
    for n in 0..4 {
        let new = world
            .accept_as(n, "campaign", |mut new| {
                new.bulk = true;
                new
            })
            .await;
        bulk.push(new.id);
    }
    let (mut late, mut fresh) = (Vec::new(), Vec::new());
    for n in 4..8 {
        late.push(world.accept(n, "tried before").await);
    }
    execute(world.store(), "UPDATE sends SET attempt = 3 WHERE bulk = false").await;
    for n in 8..12 {
        fresh.push(world.accept(n, "new").await);
    }
    let first = world.dispatch_at(world.now().await, 4).await;
    assert_eq!(first.iter().filter(|id| fresh.contains(id)).count(), 2, "half is for the fresh: {first:?}");
    assert_eq!(first.iter().filter(|id| late.contains(id)).count(), 2, "the older retries have the other half");
    let second = world.dispatch_at(world.now().await, 4).await;
    assert!(second.iter().all(|id| fresh.contains(id) || late.contains(id)), "no bulk while a conversation waits");
    assert_eq!(world.dispatch_at(world.now().await, 64).await, bulk);
}

#[rstest]
#[tokio::test]
async fn a_paused_broken_or_blocked_account_dispatches_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    for status in ["PAUSED", "BROKEN", "DISABLED"] {
        set_status(&world, status).await;
        assert!(rooms(&world).await.is_empty(), "{status}");
        assert!(world.dispatch().await.is_empty(), "{status}");
    }
    set_status(&world, "ACTIVE").await;
    for scope in ["account:1", "app:meta", "waba:waba-1"] {
        block(&world, scope, 60).await;
        assert!(rooms(&world).await.is_empty(), "{scope}");
        block(&world, scope, -60).await;
    }
    let rooms = rooms(&world).await;
    assert_eq!((rooms[0].account, rooms[0].name.as_str(), rooms[0].dispatched), (world.account, "sales", 0));
    assert_eq!(world.dispatch().await, [message]);
}

async fn rooms(world: &World) -> Vec<send::Room> {
    let mut tx = world.store().read().await.unwrap();
    let now = tx.database_now().await.unwrap();
    let all = send::rooms(&mut tx, None, now).await.unwrap();
    assert_eq!(send::rooms(&mut tx, Some(&[world.account]), now).await.unwrap(), all);
    assert!(send::rooms(&mut tx, Some(&[]), now).await.unwrap().is_empty());
    all
}

async fn set_status(world: &World, status: &'static str) {
    let sql = match status {
        "PAUSED" => "UPDATE channel_accounts SET status = 'PAUSED'",
        "BROKEN" => "UPDATE channel_accounts SET status = 'BROKEN'",
        "DISABLED" => "UPDATE channel_accounts SET status = 'DISABLED'",
        _ => "UPDATE channel_accounts SET status = 'ACTIVE'",
    };
    execute(world.store(), sql).await;
}

async fn block(world: &World, scope: &str, seconds_from_now: i64) {
    const BLOCK: &str = "UPDATE rate_limits SET blocked_until = $2 WHERE scope = $1";
    let now = world.now().await;
    let until = domain::Timestamp::from_micros(now.micros() + seconds_from_now * 1_000_000);
    let mut tx = world.store().begin().await.unwrap();
    let rows = match &mut tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(BLOCK).bind(scope).bind(store::At(until));
            query.execute(tx.conn()).await.unwrap().rows_affected()
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query(BLOCK).bind(scope).bind(store::At(until));
            query.execute(&mut **tx).await.unwrap().rows_affected()
        }
    };
    assert_eq!(rows, 1, "{scope}");
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_reference_that_could_not_be_published_goes_back_and_one_nobody_took_is_published_again(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    assert_eq!(world.dispatch().await, [message]);
    let now = world.now().await;
    let mut tx = world.store().begin().await.unwrap();
    assert_eq!(send::set_back(&mut tx, &[message], now).await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert_eq!(world.dispatch().await, [message]);

    let mut tx = world.store().begin().await.unwrap();
    let now = tx.database_now().await.unwrap();
    assert!(send::stale_accounts(&mut tx, now - seconds(60)).await.unwrap().is_empty(), "it has only just gone");
    let in_a_minute = now + seconds(61);
    let stale = send::stale_accounts(&mut tx, in_a_minute - seconds(60)).await.unwrap();
    assert_eq!(stale[0].account, world.account);
    let again = send::republish(&mut tx, world.account, in_a_minute - seconds(60), in_a_minute).await.unwrap();
    assert_eq!(again.iter().map(|one| one.message).collect::<Vec<_>>(), [message]);
    let twice = send::republish(&mut tx, world.account, in_a_minute - seconds(60), in_a_minute).await.unwrap();
    assert!(twice.is_empty(), "once a minute");
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_scheduled_send_enters_the_lane_at_its_end_when_its_time_has_come(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let mut scheduled: Vec<MessageId> = Vec::new();
    for wait in [120, 60] {
        let row = world
            .accept_as(0, "later", |mut new| {
                new.send_at = Some(new.now + seconds(wait));
                new
            })
            .await;
        scheduled.push(row.id);
    }
    let waiting = world.accept(0, "in the lane").await;
    let fall_due = async |after: u64| {
        let mut tx = world.store().begin().await.unwrap();
        let now = tx.database_now().await.unwrap();
        let accounts = send::fall_due(&mut tx, now + seconds(after), 100).await.unwrap();
        tx.commit().await.unwrap();
        accounts
    };
    assert!(fall_due(0).await.is_empty());
    assert_eq!(fall_due(200).await, [world.account, world.account]);
    let mut order = Vec::new();
    for message in [waiting, scheduled[1], scheduled[0]] {
        let row = world.send_of(message).await.unwrap();
        assert_eq!(row.state, SendState::Waiting);
        order.push(row.seq.unwrap());
    }
    assert_eq!(order, [1, 2, 3], "behind what waits, in the order of their times");
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_send_past_its_deadline_fails_where_it_waits_and_only_there(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 4).await;
    let in_flight = world.accept(0, "in flight").await;
    let claimed = world.take("t").await;
    let dispatched = world.accept(3, "in a queue that nobody reads").await;
    assert_eq!(world.dispatch().await, [dispatched]);
    let behind = world
        .accept_as(3, "waits for it", |mut new| {
            new.deadline = seconds(48 * 3600);
            new
        })
        .await
        .id;
    let waiting = world.accept(1, "waiting").await;
    let scheduled = world
        .accept_as(2, "scheduled", |mut new| {
            new.send_at = Some(new.now + seconds(60));
            new
        })
        .await
        .id;
    let mut tx = world.store().begin().await.unwrap();
    let tomorrow = tx.database_now().await.unwrap() + seconds(25 * 3600);
    let expired = send::expire(&mut tx, tomorrow, NOON, 100).await.unwrap();
    tx.commit().await.unwrap();
    let expired: BTreeSet<MessageId> = expired.iter().map(|row| row.message_id).collect();
    assert_eq!(expired, BTreeSet::from([dispatched, waiting, scheduled]));
    for message in [dispatched, waiting, scheduled] {
        let shown = world.message(message).await;
        assert_eq!((shown.status, shown.error.unwrap().0.as_str()), (Status::Failed, "EXPIRED"));
        assert_eq!(world.send_of(message).await, None);
    }
    assert_eq!(world.state_of(in_flight).await, Some(SendState::InFlight));
    assert_eq!(number(world.store(), "SELECT count(*) FROM conversations WHERE last_failed_at IS NOT NULL").await, 3);
    assert!(world.claim("late", &[dispatched]).await.is_empty(), "its reference finds nothing to claim");
    assert_eq!(world.dispatch().await, [behind], "the lane goes on");
    let event = SendEvent::Finished(Box::new(report_of(&claimed[0], AttemptOutcome::Accepted)));
    world.report(&[event]).await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn the_heads_of_lanes_that_are_named_go_and_nothing_else(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 4).await;
    let (head, behind) = (world.accept(0, "head").await, world.accept(0, "behind").await);
    let later = world
        .accept_as(1, "held back a little", |mut new| {
            new.hold = Some(seconds(60));
            new
        })
        .await;
    let not_named = world.accept(2, "not named").await;
    let named: Vec<_> = [0, 1, 3].iter().map(|n| world.conversations[*n].conversation).collect();
    let go = async || {
        let mut tx = world.store().autocommit().await.unwrap();
        let now = tx.database_now().await.unwrap();
        let refs = send::dispatch_lanes(&mut tx, &named, now).await.unwrap();
        tx.commit().await.unwrap();
        refs.into_iter().map(|(account, one)| (account, one.message)).collect::<Vec<_>>()
    };
    set_status(&world, "PAUSED").await;
    assert_eq!(go().await, []);
    set_status(&world, "ACTIVE").await;
    assert_eq!(go().await, [(world.account, head)]);
    assert_eq!(go().await, [], "its successor waits for it");
    let claimed = world.claim("t", &[head]).await;
    world.report(&[finished(&claimed[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(go().await, [(world.account, behind)]);
    assert_eq!(world.state_of(later.id).await, Some(SendState::Waiting), "not due");
    assert_eq!(world.state_of(not_named).await, Some(SendState::Waiting));
}

#[rstest]
#[case::taken_after_all(
    "INSERT INTO send_attempts (message_id, generation, attempt, outcome, provider_message_id, finished_at)
     SELECT message_id, generation, 7, 'ACCEPTED', 'wamid.late', created_at FROM sends WHERE attempt > 0"
)]
#[case::spoken_of(
    "INSERT INTO message_status_events (waits_for_message_id, channel_account_id, provider_message_id, status,
            provider_status, source, occurred_at, received_at)
     SELECT message_id, channel_account_id, 'wamid.seen', 'DELIVERED', 'delivered', 'PROVIDER', created_at, created_at
       FROM sends WHERE attempt > 0"
)]
#[case::sent(
    "UPDATE messages SET status = 'SENT', provider_message_id = 'wamid.known.' || id
      WHERE id IN (SELECT message_id FROM sends WHERE attempt > 0)"
)]
#[tokio::test]
async fn what_an_earlier_attempt_got_through_is_neither_dispatched_nor_published_nor_claimed_again(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] heard: &'static str,
) {
    let world = World::with(database, 3).await;
    let waits = world.accept(0, "tried once, waits").await;
    let dispatched = world.accept(1, "tried once, its reference is in the queue").await;
    let claimed = world.take("t").await;
    world.report(&claimed.iter().map(|claim| finished(claim, AttemptOutcome::Retry)).collect::<Vec<_>>()).await;
    let later = world.now().await + seconds(6);
    assert_eq!(world.dispatch_at(later, 64).await, [waits, dispatched]);
    let mut tx = world.store().begin().await.unwrap();
    send::set_back(&mut tx, &[waits], later).await.unwrap();
    tx.commit().await.unwrap();
    let fresh = world.accept(2, "never tried").await;
    execute(world.store(), heard).await;

    assert_eq!(world.dispatch_at(later, 64).await, [fresh]);
    assert_eq!(world.claim("t2", &[waits, dispatched, fresh]).await.len(), 1);
    let mut tx = world.store().begin().await.unwrap();
    let again = send::republish(&mut tx, world.account, later + seconds(60), later + seconds(120)).await.unwrap();
    assert_eq!(again, []);
}

#[rstest]
#[tokio::test]
async fn a_late_acceptance_while_the_next_attempt_was_in_flight_is_not_forgotten_when_that_one_goes_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    let first = world.take("first").await;
    world.report(&[finished(&first[0], AttemptOutcome::Unknown)]).await;
    let mut tx = world.store().begin().await.unwrap();
    let silent = send::silences(&mut tx, 10).await.unwrap();
    send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), send::Verdict::Resend, NOON).await.unwrap();
    tx.commit().await.unwrap();
    let second = world.take("second").await;
    assert_eq!(second[0].attempt, 2);
    world.report(&[finished(&first[0], AttemptOutcome::Accepted)]).await;
    assert_eq!(world.state_of(message).await, Some(SendState::InFlight), "the second may be on its way as well");
    let mut tx = world.store().begin().await.unwrap();
    assert_eq!(send::give_back(&mut tx, "second", &[message]).await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert!(world.dispatch_at(world.now().await + seconds(3600), 64).await.is_empty(), "it has been sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_dispatchers_at_once_take_each_head_once() {
    let world = World::with(Database::Postgres, 40).await;
    for n in 0..40 {
        world.accept(n, "hello").await;
    }
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (store, account) = (world.store().clone(), world.account);
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..20 {
                    let mut tx = store.autocommit().await.unwrap();
                    let now = tx.database_now().await.unwrap();
                    taken.extend(send::dispatch(&mut tx, account, 3, now).await.unwrap());
                    tx.commit().await.unwrap();
                }
                taken
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap().into_iter().map(|one| one.message));
    }
    let distinct: std::collections::HashSet<_> = taken.iter().collect();
    assert_eq!((taken.len(), distinct.len()), (40, 40));
}
