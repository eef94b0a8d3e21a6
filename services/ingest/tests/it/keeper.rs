//! The keeper: everything that happens because time passes.

use crate::said::{NOON_SECONDS, one_status};
use crate::sends::{Office, publish, report};
use crate::support::{DEADLINE, Stack, World};
use domain::{AttemptOutcome, OnUnknown};
use rstest::rstest;
use std::time::Duration;
use testkit::wait;

const LEASE: Duration = Duration::from_secs(600);
const STATES: &str = "SELECT state FROM sends ORDER BY message_id";
const STATUSES: &str = "SELECT status FROM messages WHERE direction = 'OUTBOUND' ORDER BY id";

async fn quick(stack: Stack) -> World {
    let mut world = World::fresh(stack).await;
    world.tuning.sweep = Duration::from_millis(50);
    world.tuning.keeper_interval = Duration::from_millis(50);
    world.tuning.keeper_lease = Duration::from_millis(800);
    world
}

/// Waits until ingest says that it has heard all there is up to now, and the keeper has had a look at that.
async fn settled(world: &World) {
    let soon = world.now() - Duration::from_secs(10);
    let heard = async || world.settled_until().await.is_some_and(|until| until >= soon);
    wait::until_so("it moves on without webhooks", DEADLINE, heard).await;
    world.until_turn("evidence").await;
}

fn seconds_after_noon(world: &World) -> i64 {
    world.now().millis() / 1000 - NOON_SECONDS
}

#[rstest]
#[tokio::test]
async fn what_is_due_is_dispatched_without_anybody_asking(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 2).await;
    office.accept(&world, 0).await;
    office
        .accept_as(&world, 1, |mut new| {
            new.send_at = Some(new.now + Duration::from_secs(1));
            new
        })
        .await;
    let ingest = world.start("a");
    world.until(STATES, &["DISPATCHED", "DISPATCHED"]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn what_could_not_go_before_its_deadline_fails_and_says_so(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 1).await;
    world.run("UPDATE channel_accounts SET status = 'PAUSED'").await;
    office
        .accept_as(&world, 0, |mut new| {
            new.deadline = Duration::from_millis(300);
            new
        })
        .await;
    let ingest = world.start("a");
    world.until(STATUSES, &["FAILED"]).await;
    world.until("SELECT error_class FROM messages WHERE status = 'FAILED'", &["EXPIRED"]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn a_lease_that_ran_out_is_an_unknown_outcome_and_a_report_that_was_in_front_of_it_wins(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 2).await;
    for conversation in 0..2 {
        office.accept(&world, conversation).await;
    }
    let claimed = office.claim(&world, "t", Duration::from_millis(50)).await;
    publish(&world, vec![report(&world, &claimed[1], AttemptOutcome::Accepted)]).await;
    let ingest = world.start("a");
    world.until(STATUSES, &["SENDING", "SENT"]).await;
    world.until(STATES, &["UNKNOWN"]).await;
    let attempts = "SELECT outcome || ' ' || coalesce(provider_code, '') FROM send_attempts ORDER BY message_id";
    world.until(attempts, &["UNKNOWN lease_expired", "ACCEPTED "]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[case::a_person_decides(OnUnknown::Hold, "HELD", "SENDING")]
#[case::it_is_sent_again(OnUnknown::Resend, "DISPATCHED", "QUEUED")]
#[tokio::test]
async fn silence_counts_once_the_provider_has_spoken_of_something_later_and_we_have_heard_it_all(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
    #[case] on_unknown: OnUnknown,
    #[case] state: &'static str,
    #[case] status: &'static str,
) {
    let mut world = quick(stack).await;
    world.lives_in_the_past();
    world.tuning.witness_timeout = Duration::from_secs(24 * 3600);
    world.accounts[0].on_unknown = on_unknown;
    let office = Office::of(&world, 2).await;
    for conversation in 0..2 {
        office.accept(&world, conversation).await;
    }
    let claimed = office.claim(&world, "t", LEASE).await;
    let unknown = report(&world, &claimed[0], AttemptOutcome::Unknown);
    let accepted = report(&world, &claimed[1], AttemptOutcome::Accepted);
    let wamid = accepted.provider_message_id.clone().unwrap();
    publish(&world, vec![unknown, accepted]).await;
    let ingest = world.start("a");
    world.until(STATUSES, &["SENDING", "SENT"]).await;
    // By the database's clock, as all else here goes by this world's.
    world.run("UPDATE sends SET unknown_since = (SELECT created_at FROM messages m WHERE m.id = message_id)").await;
    world.clock.advance(Duration::from_secs(300));
    settled(&world).await;
    assert_eq!(world.texts(STATES).await, ["UNKNOWN"]);

    // The witness: a word about the other message, later than the attempt.
    world.post(&[&one_status(&wamid, "delivered", seconds_after_noon(&world) - 100)]).await;
    world.until(STATUSES, &["SENDING", "DELIVERED"]).await;
    world.until("SELECT CAST(count(witness_at) AS TEXT) FROM sends", &["1"]).await;
    world.clock.advance(Duration::from_secs(30));
    settled(&world).await;
    assert_eq!(world.texts(STATES).await, ["UNKNOWN"]);
    world.clock.advance(Duration::from_secs(60));
    world.until(STATES, &[state]).await;
    world.until(STATUSES, &[status, "DELIVERED"]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn without_a_witness_a_person_decides_after_a_while_and_the_lane_goes_on(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let mut world = quick(stack).await;
    world.accounts[0].on_unknown = OnUnknown::Resend;
    world.tuning.witness_timeout = Duration::from_millis(600);
    let office = Office::of(&world, 1).await;
    for _ in 0..2 {
        office.accept(&world, 0).await;
    }
    let claimed = office.claim(&world, "t", LEASE).await;
    publish(&world, vec![report(&world, &claimed[0], AttemptOutcome::Unknown)]).await;
    let ingest = world.start("a");
    world.until(STATES, &["HELD", "DISPATCHED"]).await;
    world.until("SELECT CAST(count(*) AS TEXT) FROM messages WHERE outcome_unknown", &["1"]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn a_pause_ends_by_itself(#[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack) {
    let world = quick(stack).await;
    let office = Office::of(&world, 1).await;
    let mut tx = world.store.begin().await.unwrap();
    let until = Some(world.now() + Duration::from_secs(60));
    assert!(store::account::pause(&mut tx, office.account, None, None, until, world.now()).await.unwrap());
    tx.commit().await.unwrap();
    office.accept(&world, 0).await;
    let ingest = world.start("a");
    world.until_turn("pauses").await;
    assert_eq!(world.texts(STATES).await, ["WAITING"]);
    world.clock.advance(Duration::from_secs(61));
    world.until(STATES, &["DISPATCHED"]).await;
    ingest.stopped().await;
}

#[rstest]
#[tokio::test]
async fn what_is_too_old_is_forgotten_and_the_rest_stays(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 1).await;
    office.accept(&world, 0).await;
    world.clock.advance(Duration::from_secs(73 * 3600));
    let second = Office { account: office.account, conversations: office.conversations.clone() };
    second.accept(&world, 0).await;
    let rows = "SELECT CAST(count(*) AS TEXT) FROM change_feed";
    world.until(rows, &["4"]).await;
    let ingest = world.start("a");
    world.until(rows, &["2"]).await;
    ingest.stopped().await;
}

#[tokio::test]
async fn when_the_process_that_keeps_the_time_dies_another_one_goes_on() {
    let world = quick(Stack::PostgresRabbitMq).await;
    let office = Office::of(&world, 2).await;
    let (first, second) = (world.start("a"), world.start("b"));
    world.until("SELECT CAST(count(*) AS TEXT) FROM keeper_leases", &["10"]).await;
    office.accept(&world, 0).await;
    world.until(STATES, &["DISPATCHED"]).await;
    // A crash: nothing is released.
    first.task.abort();
    let _ = first.task.await;
    world.until("SELECT holder FROM keeper_leases WHERE job = 'sweep'", &["b"]).await;
    office.accept(&world, 1).await;
    world.until(STATES, &["DISPATCHED", "DISPATCHED"]).await;
    second.stopped().await;
    world.until("SELECT CAST(count(*) AS TEXT) FROM keeper_leases WHERE holder = 'b'", &["0"]).await;
}
