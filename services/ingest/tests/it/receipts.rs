//! Receipts through the queue: before, beside and after the report that teaches their id.

use crate::said::{PHONE_NUMBER_ID, one_status, one_text};
use crate::support::{Stack, World};
use domain::wire::{AttemptReport, SendEvent, SendResults};
use domain::{AttemptOutcome, MessageId, Status, Timestamp};
use queue::topics::RESULTS;
use rstest::rstest;
use std::time::Duration;
use testkit::rows::{self, NOON, Seeded};

const WAMID: &str = "wamid.ours";
const STATUS: &str = "SELECT status FROM messages WHERE direction = 'OUTBOUND'";
const PARKED: &str = "SELECT CAST(count(*) AS TEXT) FROM message_status_events WHERE message_id IS NULL";

/// Leases, due times and deadlines go by the database's clock.
fn real_now() -> Timestamp {
    domain::Clock::now(&domain::SystemClock::default())
}

/// A message of ours that is in flight for another hour: its sender has not reported yet.
async fn in_flight(world: &World) -> (Seeded, MessageId) {
    let mut tx = world.store.begin().await.unwrap();
    let directory = store::account::mirror(&mut tx, &world.accounts, NOON).await.unwrap();
    let (account, _) = directory.iter().next().unwrap();
    let to = rows::conversation(&mut tx, account, "Rita", "351912000333", real_now() + Duration::from_secs(7200))
        .await
        .unwrap();
    let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, false, real_now() + Duration::from_secs(3600))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.accounts[0].external_id, PHONE_NUMBER_ID);
    (to, message)
}

async fn report(world: &World, to: &Seeded, message: MessageId) {
    let report = AttemptReport {
        message,
        conversation: to.conversation,
        account: to.account,
        generation: 0,
        attempt: 1,
        worker: "sender-1".into(),
        started_at: NOON,
        finished_at: NOON,
        outcome: AttemptOutcome::Accepted,
        provider_message_id: Some(WAMID.into()),
        http_status: Some(200),
        code: None,
        reason: None,
        retry_after_ms: None,
        throttle_scope: None,
        give_up_after: None,
        traceparent: None,
    };
    let results = SendResults { items: vec![SendEvent::Finished(Box::new(report))] };
    world.publish_to(&RESULTS, &results).await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_7_receipt_first_it_waits_and_is_applied_when_the_report_comes(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let (to, message) = in_flight(&world).await;
    let ingest = world.start("a");
    world.post(&[&one_status(WAMID, "delivered", 20)]).await;
    world.until(PARKED, &["1"]).await;
    assert_eq!(world.texts(STATUS).await, ["SENDING"]);
    report(&world, &to, message).await;
    world.until(STATUS, &["DELIVERED"]).await;
    assert_eq!(world.texts(PARKED).await, ["0"]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM sends").await, ["0"]);
    world.holds().await;
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_7_report_first_the_receipt_is_applied_at_once(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let (to, message) = in_flight(&world).await;
    let ingest = world.start("a");
    report(&world, &to, message).await;
    world.until(STATUS, &["SENT"]).await;
    world
        .post(&[&one_status(WAMID, "read", 20), &one_status(WAMID, "delivered", 10), &one_status(WAMID, "sent", 5)])
        .await;
    world.until(STATUS, &["READ"]).await;
    world.until_empty().await;
    let times = "SELECT CAST(count(*) AS TEXT) FROM messages WHERE sent_at <= delivered_at AND delivered_at < read_at";
    assert_eq!(world.texts(times).await, ["1"]);
    world.holds().await;
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded, 1)]
#[case::postgres_rabbitmq_two_processes(Stack::PostgresRabbitMq, 2)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_7_receipts_and_report_at_the_same_moment_always_find_each_other(
    #[case] stack: Stack,
    #[case] processes: usize,
) {
    let world = World::fresh(stack).await;
    let (to, message) = in_flight(&world).await;
    let running: Vec<_> = (0..processes).map(|n| world.start(&format!("ingest-{n}"))).collect();
    for word in ["sent", "delivered", "read", "delivered"] {
        world.post(&[&one_status(WAMID, word, 20)]).await;
        if word == "sent" {
            report(&world, &to, message).await;
        }
    }
    world.until(STATUS, &["READ"]).await;
    world.until(PARKED, &["0"]).await;
    world.until_empty().await;
    world.holds().await;
    for ingest in running {
        ingest.stopped().await;
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_with_our_correlation_settles_a_send_whose_sender_died_and_frees_the_lane(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let (to, message) = in_flight(&world).await;
    let mut tx = world.store.begin().await.unwrap();
    rows::outbound(&mut tx, &to, "And another thing", Status::Queued, false, real_now()).await.unwrap();
    let deployment = store::send::deployment(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    // Its sender died long ago: the lease is over, and the keeper says so.
    world.run("UPDATE sends SET lease_until = (SELECT created_at FROM deployment) WHERE state = 'IN_FLIGHT'").await;
    let ingest = world.start("a");
    let correlated = one_status(WAMID, "sent", 5).replace(
        "\"recipient_id\"",
        &format!("\"biz_opaque_callback_data\":\"r1.{deployment}.{message}.0.1\",\"recipient_id\""),
    );
    world.post(&[&correlated, &one_text("351912000333", "in", "hi", 0)]).await;
    world
        .until(
            "SELECT status || coalesce(provider_message_id, '') FROM messages WHERE direction = 'OUTBOUND' ORDER BY id",
            &["SENTwamid.ours", "QUEUED"],
        )
        .await;
    world.until("SELECT state FROM sends", &["DISPATCHED"]).await;
    world.holds().await;
    ingest.stopped().await;
}
