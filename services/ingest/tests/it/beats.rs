//! What ingest says of itself, and until when.

use crate::said::{RITA, one_text};
use crate::support::{DEADLINE, MESSAGES, Stack, World};
use queue::topics::WEBHOOKS;
use std::time::Duration;
use store::Tx;
use testkit::wait;

const BEATS: &str = "SELECT instance FROM process_heartbeats WHERE role = 'ingest'";
/// Ends the transaction that waits for a lock, as an operator would.
const END_WAITING: &str = "SELECT CAST(count(pg_terminate_backend(pid)) AS TEXT) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";
const WAITING: &str = "SELECT CAST(count(*) > 0 AS TEXT) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Nobody can write messages until this is dropped.
async fn locked(world: &World) -> Tx {
    let mut tx = world.store.begin().await.unwrap();
    if let Tx::Postgres(tx) = &mut tx {
        sqlx::query("LOCK TABLE messages IN EXCLUSIVE MODE").execute(tx.conn()).await.unwrap();
    }
    tx
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_it_says_that_it_lives_until_what_it_took_is_written() {
    let world = World::fresh(Stack::PostgresRabbitMq).await;
    let ingest = world.start("a");
    world.until(BEATS, &["a"]).await;
    let lock = locked(&world).await;
    world.post(&[&one_text(RITA, "wamid.1", "hello", 0)]).await;
    world.until(WAITING, &["true"]).await;
    ingest.stop.cancel();
    for _ in 0..2 {
        world.until_next_beat("a").await;
    }
    lock.rollback().await.unwrap();
    ingest.stopped().await;
    assert_eq!(world.texts(MESSAGES).await, ["1"]);
    assert!(world.texts(BEATS).await.is_empty(), "nothing is in its hands any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_gave_back_when_it_stopped_counts_until_others_have_it() {
    let world = World::fresh(Stack::PostgresRabbitMq).await;
    let ingest = world.start("a");
    world.until(BEATS, &["a"]).await;
    let lock = locked(&world).await;
    world.post(&[&one_text(RITA, "wamid.1", "hello", 0)]).await;
    world.until(WAITING, &["true"]).await;
    ingest.stop.cancel();
    world.until(END_WAITING, &["1"]).await;
    tokio::time::timeout(DEADLINE, ingest.task).await.expect("it drains").unwrap().unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(world.depth(&WEBHOOKS).await.ready, 1);
    let last = "SELECT stats ->> 'holds_for_ms' FROM process_heartbeats WHERE role = 'ingest'";
    assert_eq!(world.texts(last).await, ["0"], "for a minute after its last word, and no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_that_it_listens_before_it_takes_the_first_webhook() {
    let world = World::fresh(Stack::PostgresRabbitMq).await;
    world.post(&[&one_text(RITA, "wamid.1", "hello", 0)]).await;
    // Whoever beats waits; whoever writes messages does not.
    let mut tx = world.store.begin().await.unwrap();
    if let Tx::Postgres(tx) = &mut tx {
        sqlx::query("LOCK TABLE process_heartbeats IN EXCLUSIVE MODE").execute(tx.conn()).await.unwrap();
    }
    let ingest = world.start("a");
    world.until(WAITING, &["true"]).await;
    assert_eq!(world.depth(&WEBHOOKS).await.ready, 1);
    assert_eq!(world.texts(MESSAGES).await, ["0"]);
    tx.rollback().await.unwrap();
    world.until(MESSAGES, &["1"]).await;
    ingest.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_say_that_it_lives_gives_back_what_it_holds_before_the_others_count_without_it() {
    let mut world = World::fresh(Stack::PostgresRabbitMq).await;
    world.tuning.database_patience = Duration::from_millis(700);
    let ingest = world.start("a");
    world.until(BEATS, &["a"]).await;
    // It is idle, so nothing it writes tells it that it is cut off: only the beat does.
    world
        .run(
            "CREATE FUNCTION mute() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P03'; END $$",
        )
        .await;
    world.run("CREATE TRIGGER mute BEFORE INSERT OR UPDATE ON process_heartbeats EXECUTE FUNCTION mute()").await;
    let consumers = async |want: u32| {
        let are = async || world.depth(&WEBHOOKS).await.consumers == want;
        wait::until_so(&format!("{want} consumers"), DEADLINE, are).await;
    };
    consumers(0).await;
    world.run("DROP TRIGGER mute ON process_heartbeats").await;
    consumers(1).await;
    ingest.stopped().await;
}
