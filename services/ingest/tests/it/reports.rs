//! What senders report, through the queue into the store.

use crate::sends::{Office, publish, report};
use crate::support::{Stack, World};
use domain::AttemptOutcome;
use queue::topics::OUTBOUND;
use rstest::rstest;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(600);
const STATUSES: &str = "SELECT status FROM messages WHERE direction = 'OUTBOUND' ORDER BY id";

#[rstest]
#[tokio::test]
async fn reports_become_statuses_and_the_lanes_next_head_goes_out(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let office = Office::of(&world, 2).await;
    for conversation in [0, 0, 1] {
        office.accept(&world, conversation).await;
    }
    let claimed = office.claim(&world, "t", LEASE).await;
    assert_eq!(claimed.len(), 2);
    let ingest = world.start("a");
    let mut refused = report(&world, &claimed[1], AttemptOutcome::Rejected);
    (refused.code, refused.reason) = (Some("131026".into()), Some("Message undeliverable".into()));
    publish(&world, vec![report(&world, &claimed[0], AttemptOutcome::Accepted), refused]).await;
    world.until(STATUSES, &["SENT", "QUEUED", "FAILED"]).await;
    let name = world.accounts[0].name.clone();
    let mut consumer = world.queue.consume(&OUTBOUND, Some(&name), 10).await;
    let delivery = tokio::time::timeout(crate::support::DEADLINE, consumer.next()).await.unwrap().unwrap();
    assert_eq!(delivery.item.as_ref().unwrap().items.len(), 1, "the second message of the first conversation");
    delivery.settle(queue::Settle::Done).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn a_report_told_twice_and_in_two_messages_is_written_once(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let office = Office::of(&world, 1).await;
    office.accept(&world, 0).await;
    let claimed = office.claim(&world, "t", LEASE).await;
    let told = report(&world, &claimed[0], AttemptOutcome::Accepted);
    let (one, two) = (world.start("a"), world.start("b"));
    for _ in 0..4 {
        publish(&world, vec![told.clone(), told.clone()]).await;
    }
    world.until(STATUSES, &["SENT"]).await;
    let attempts = "SELECT CAST(count(*) AS TEXT) || ' ' || min(outcome) FROM send_attempts";
    world.until(attempts, &["1 ACCEPTED"]).await;
    one.stopped().await;
    two.stopped().await;
    world.until("SELECT CAST(count(*) AS TEXT) FROM message_status_events WHERE source = 'SENDER'", &["1"]).await;
    world.holds().await;
}

/// A provider that gives one id twice: the database refuses the second, and only that one.
#[rstest]
#[tokio::test]
async fn a_report_the_database_refuses_is_set_aside_and_its_neighbours_are_written(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let office = Office::of(&world, 5).await;
    for conversation in 0..5 {
        office.accept(&world, conversation).await;
    }
    let claimed = office.claim(&world, "t", LEASE).await;
    let mut reports: Vec<_> = claimed.iter().map(|claim| report(&world, claim, AttemptOutcome::Accepted)).collect();
    reports[2].provider_message_id = reports[0].provider_message_id.clone();
    let ingest = world.start("a");
    publish(&world, reports).await;
    world.until(STATUSES, &["SENT", "SENT", "QUEUED", "SENT", "SENT"]).await;
    world.until("SELECT stage || ' ' || state FROM dead_letters", &["RESULT OPEN"]).await;
    world.until("SELECT state FROM sends", &["IN_FLIGHT"]).await;
    ingest.stopped().await;
    world.holds().await;
}

#[rstest]
#[tokio::test]
async fn a_message_in_the_results_queue_that_is_no_report_is_a_dead_letter(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    let rubbish = bytes::Bytes::from_static(b"{\"items\": \"none\"}");
    world.publish_bytes(&queue::topics::RESULTS, rubbish).await;
    world.until("SELECT stage || ' ' || error_code FROM dead_letters", &["RESULT UNDECODABLE"]).await;
    ingest.stopped().await;
}
