//! Bodies that are too large for the queue, and an object store that is away.

use crate::said::{RITA, one_text};
use crate::support::{DEAD_LETTERS, DEADLINE, MESSAGES, Stack, World};
use bytes::Bytes;
use domain::wire::{Body, Frame, WebhookFrame};
use queue::topics::WEBHOOKS;
use rstest::rstest;
use std::path::PathBuf;
use std::time::Duration;
use testkit::wait;

fn stored(world: &World, key: &str) -> Frame {
    Frame::Webhook(WebhookFrame { head: world.head("meta"), body: Body::Stored(key.into()) })
}

pub(crate) async fn put(world: &World, key: &str, body: String) -> Frame {
    world.blobs.put(key, Bytes::from(body)).await.unwrap();
    stored(world, key)
}

/// Where the objects under `raw/` are.
fn raw(world: &World) -> PathBuf {
    world.folder().join("blobs").join("raw")
}

/// The disk is gone: what was a folder is none any more, and every read fails.
pub(crate) fn takes_away(world: &World) {
    std::fs::rename(raw(world), world.folder().join("elsewhere")).unwrap();
    std::fs::write(raw(world), "no folder").unwrap();
}

pub(crate) fn brings_back(world: &World) {
    std::fs::remove_file(raw(world)).unwrap();
    std::fs::rename(world.folder().join("elsewhere"), raw(world)).unwrap();
}

pub(crate) async fn until_held(world: &World) {
    wait::until_so("it says that the object store is away", DEADLINE, async || {
        world.health.reasons().values().any(|reason| reason.contains("object store"))
    })
    .await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn while_the_object_store_is_away_webhooks_are_held_and_nobody_believes_that_they_are_heard(
    #[case] stack: Stack,
) {
    let mut world = World::fresh(stack).await;
    world.lives_in_the_past();
    let frame = put(&world, "raw/large", one_text(RITA, "large", "read me", 0)).await;
    takes_away(&world);
    let arrived = world.now();
    world.publish(vec![frame, world.frame(one_text(RITA, "small", "small", 1).as_bytes())]).await;
    let ingest = world.start("a");
    until_held(&world).await;
    // Beats go on meanwhile, and time passes.
    world.clock.advance(Duration::from_secs(700));
    for _ in 0..3 {
        world.until_next_beat("a").await;
    }
    let until = world.settled_until().await;
    assert!(until.is_none_or(|until| until <= arrived), "{until:?}");
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    brings_back(&world);
    world.until("SELECT body FROM messages ORDER BY provider_message_id", &["read me", "small"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    assert!(world.health.is_ready(), "{:?}", world.health.reasons());
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn after_its_patience_with_the_object_store_ingest_gives_everything_back_and_takes_it_again(
    #[case] stack: Stack,
) {
    let mut world = World::fresh(stack).await;
    world.tuning.database_patience = Duration::from_millis(700);
    let frame = put(&world, "raw/large", one_text(RITA, "large", "read me", 0)).await;
    takes_away(&world);
    world.publish(vec![frame]).await;
    let ingest = world.start("a");
    until_held(&world).await;
    wait::until_so("it is back in the queue", DEADLINE, async || world.depth(&WEBHOOKS).await.ready > 0).await;
    brings_back(&world);
    world.until("SELECT body FROM messages", &["read me"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    assert!(world.health.is_ready(), "{:?}", world.health.reasons());
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn one_object_that_cannot_be_read_stands_in_nobodys_way_for_ever(#[case] stack: Stack) {
    let mut world = World::fresh(stack).await;
    world.tuning.database_patience = Duration::from_millis(700);
    let good = put(&world, "raw/good", one_text(RITA, "good", "good", 0)).await;
    // A folder where an object should be: reading it fails, and not for want of it.
    std::fs::create_dir(raw(&world).join("bad")).unwrap();
    world.publish(vec![stored(&world, "raw/bad"), stored(&world, "raw/missing"), good]).await;
    let ingest = world.start("a");
    world.until(MESSAGES, &["1"]).await;
    world.until_empty().await;
    let dead = "SELECT error_class FROM dead_letters ORDER BY error_class";
    assert_eq!(world.texts(dead).await, ["BODY_MISSING", "BODY_UNREADABLE"]);
    assert!(world.health.is_ready(), "{:?}", world.health.reasons());
    ingest.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_read_in_portions_whatever_many_one_queue_message_names() {
    let mut world = World::fresh(Stack::PostgresRabbitMq).await;
    world.tuning.ingest_writers = 1;
    let mut frames = Vec::new();
    for n in 0..9 {
        let body = format!(
            "{{\"object\":\"whatsapp_business_account\",\"entry\":[],\"n\":{n},\"pad\":\"{}\"}}",
            "x".repeat(4 << 20)
        );
        frames.push(put(&world, &format!("raw/{n}"), body).await);
    }
    world.publish(frames).await;
    let ingest = world.start("a");
    world.until("SELECT CAST(count(*) AS TEXT) FROM webhook_events WHERE outcome = 'IGNORED'", &["9"]).await;
    // Each portion of 16 MB is a transaction of its own.
    let transactions = "SELECT CAST(count(DISTINCT CAST(xmin AS TEXT)) AS TEXT) FROM webhook_events";
    assert_eq!(world.texts(transactions).await, ["3"]);
    world.until_empty().await;
    ingest.stopped().await;
}
