//! What is too old goes: rows, and the large bodies that they referred to.

use crate::support::{DEADLINE, Stack, World};
use bytes::Bytes;
use domain::Timestamp;
use rstest::rstest;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use store::dead_letter::{self, NewDeadLetter, Stage};
use store::webhook_event::{self, NewWebhook, Outcome, RawBody};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn path(world: &World, key: &str) -> PathBuf {
    world.folder().join("blobs").join(key)
}

/// Puts an object as if it had been so many days ago.
async fn put(world: &World, key: &str, days_ago: u32) {
    world.blobs.put(key, Bytes::from_static(b"large")).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "files are as old as the machine's clock says")]
    let then = SystemTime::now() - days_ago * DAY;
    std::fs::File::open(path(world, key)).unwrap().set_modified(then).unwrap();
}

/// A webhook that was kept, with its body in the object store.
async fn kept(world: &World, key: &str, received_at: Timestamp) {
    let webhook = NewWebhook {
        request_id: Uuid::now_v7(),
        source: "meta",
        received_at,
        headers: &[],
        body: RawBody::Stored(key),
        items: 1,
        outcome: Outcome::Processed,
    };
    let mut tx = world.store.begin().await.unwrap();
    webhook_event::upsert(&mut tx, &[webhook]).await.unwrap();
    tx.commit().await.unwrap();
}

/// A dead letter that can still be replayed, although its webhook's row is gone.
async fn dead(world: &World, key: &str) {
    let letter = NewDeadLetter {
        origin_key: "webhook:1".into(),
        stage: Stage::Ingest,
        queue: "roost.webhooks".into(),
        headers: serde_json::json!({ "body_ref": key }),
        body: Vec::new(),
        content_type: None,
        error_class: "UNKNOWN_ACCOUNT".into(),
        error_code: None,
        error_message: None,
        replayable: true,
        source: Some("meta".into()),
        request_id: None,
        message: None,
        conversation: None,
        account: None,
    };
    let mut tx = world.store.begin().await.unwrap();
    dead_letter::insert(&mut tx, &[letter], world.now()).await.unwrap();
    tx.commit().await.unwrap();
}

/// Waits until exactly these objects are left.
async fn until_left(world: &World, want: &[&str]) {
    let left = || {
        let entries = std::fs::read_dir(path(world, "raw")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let as_wanted = async {
        while left() != want {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, as_wanted).await.is_ok(), "{:?} are left, not {want:?}", left());
}

#[rstest]
#[tokio::test]
async fn a_large_body_goes_with_the_last_webhook_that_refers_to_it(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    for (key, days_ago) in
        [("raw/twice", 40), ("raw/once", 40), ("raw/dead", 40), ("raw/nobodys", 40), ("raw/young", 2)]
    {
        put(&world, key, days_ago).await;
    }
    kept(&world, "raw/twice", world.now() - 40 * DAY).await;
    kept(&world, "raw/once", world.now() - 40 * DAY).await;
    kept(&world, "raw/twice", world.now() - 10 * DAY).await;
    dead(&world, "raw/dead").await;

    let kept_keys = "SELECT body_ref FROM webhook_events ORDER BY body_ref";
    let ingest = world.start("a");
    world.until(kept_keys, &["raw/twice"]).await;
    ingest.stopped().await;
    let ingest = world.start("b");
    until_left(&world, &["dead", "twice", "young"]).await;
    ingest.stopped().await;

    world.clock.advance(25 * DAY);
    let ingest = world.start("c");
    world.until(kept_keys, &[]).await;
    ingest.stopped().await;
    world.run("UPDATE dead_letters SET state = 'RESOLVED'").await;
    let ingest = world.start("d");
    until_left(&world, &["young"]).await;
    ingest.stopped().await;
}
