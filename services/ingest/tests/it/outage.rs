//! The database is away: what was taken is held, nothing is given up, everything is there afterwards.

use crate::bodies::{self, brings_back, takes_away};
use crate::said::{RITA, one_status, one_text};
use crate::support::{MESSAGES, Running, Stack, UNREAD, World};
use queue::topics::{RESULTS, WEBHOOKS};
use rstest::rstest;
use std::time::Duration;
use store::{Store, StoreOptions, StoreUrl, Tx};
use testkit::proxy::{Proxy, Trap, Way};
use testkit::servers::PrivatePostgres;
use testkit::wait;

async fn world(server: &PrivatePostgres) -> World {
    world_through(server, server.port()).await
}

/// A world that reaches the server through `port`; the test itself looks at it directly.
async fn world_through(server: &PrivatePostgres, port: u16) -> World {
    let url = StoreUrl::Postgres(server.url());
    let options = StoreOptions {
        max_connections: 8,
        acquire_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(2),
        ..StoreOptions::new(url)
    };
    // What is committed must survive the kill, as in production; the other shortcuts of the test server stay.
    let store = Store::open(&options).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    if let Tx::Postgres(tx) = &mut tx {
        sqlx::query("ALTER DATABASE postgres SET synchronous_commit = on").execute(tx.conn()).await.unwrap();
    }
    tx.commit().await.unwrap();
    store.close().await;
    let through = server.url().replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    let mut world =
        World::on(Stack::PostgresRabbitMq, &StoreOptions { url: StoreUrl::Postgres(through), ..options.clone() }).await;
    world.url = options.url;
    world
}

async fn migrated(world: &World) {
    world.store.migrate().await.unwrap();
}

async fn post(world: &World, ids: std::ops::Range<i64>) {
    for n in ids {
        world.post(&[&one_text(RITA, &format!("wamid.{n}"), "hello", n), &one_status("wamid.x", "sent", n)]).await;
    }
}

async fn all_there(world: &World, ingest: Running, count: &str) {
    world.until(MESSAGES, &[count]).await;
    world.until_empty().await;
    assert_eq!(world.texts(UNREAD).await, [count]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM dead_letters").await, ["0"]);
    assert!(world.health.is_ready(), "{:?}", world.health.reasons());
    world.holds().await;
    ingest.stopped().await;
}

/// Waits until ingest says that it holds.
async fn until_held(world: &World) {
    let says_so = async || !world.health.is_ready();
    wait::until_so("it says that the database is away", Duration::from_secs(60), says_so).await;
}

/// How the database goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    /// Connections stay open and say nothing.
    Silent,
    /// Every line is cut, and new ones are refused.
    Cut,
}

#[rstest]
#[case::postgres_killed(Fault::Killed)]
#[case::postgres_silent(Fault::Silent)]
#[case::postgres_cut_off(Fault::Cut)]
#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_deliveries_are_held_and_nothing_is_dead_lettered(#[case] fault: Fault) {
    let mut server = PrivatePostgres::start().await.unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let world = world_through(&server, proxy.port()).await;
    migrated(&world).await;
    let ingest = world.start("a");
    post(&world, 0..5).await;
    world.until(MESSAGES, &["5"]).await;
    match fault {
        Fault::Killed => server.kill(),
        Fault::Silent => proxy.stall(true),
        Fault::Cut => proxy.refuse(true),
    }
    post(&world, 5..40).await;
    until_held(&world).await;
    // Held, not thrown back and forth: what was taken stays taken.
    let redelivered = || world.queue.stats().topics.get(WEBHOOKS.name()).map_or(0, |topic| topic.redelivered);
    let before = redelivered();
    // It knocks again and again meanwhile.
    let knocks = proxy.accepted();
    wait::until_so("it tries again", Duration::from_secs(60), async || proxy.accepted() >= knocks + 5).await;
    assert_eq!(redelivered(), before);
    match fault {
        Fault::Killed => server.start_again().await.unwrap(),
        Fault::Silent => proxy.stall(false),
        Fault::Cut => proxy.refuse(false),
    }
    all_there(&world, ingest, "40").await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_never_came_is_repeated_and_counts_once() {
    let server = PrivatePostgres::start().await.unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let world = world_through(&server, proxy.port()).await;
    migrated(&world).await;
    let ingest = world.start("a");
    post(&world, 0..1).await;
    world.until(MESSAGES, &["1"]).await;
    for n in 1..11 {
        // The next COMMIT, whoever's it is, reaches the server; its answer does not come back.
        let before = proxy.trapped();
        proxy.set_trap(Trap { way: Way::Up, bytes: b"COMMIT".to_vec(), forward: true });
        post(&world, n..n + 1).await;
        wait::until_so("a commit passes by", Duration::from_secs(60), async || proxy.trapped() != before).await;
    }
    all_there(&world, ingest, "11").await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn after_its_patience_ingest_gives_everything_back_once_and_takes_it_again_when_the_database_answers() {
    let mut server = PrivatePostgres::start().await.unwrap();
    let mut world = world(&server).await;
    world.tuning.database_patience = Duration::from_millis(500);
    migrated(&world).await;
    let ingest = world.start("a");
    post(&world, 0..5).await;
    world.until(MESSAGES, &["5"]).await;
    server.kill();
    post(&world, 5..30).await;
    let given_back = async || {
        let depth = world.depth(&WEBHOOKS).await;
        depth.ready == 25 && depth.consumers == 0
    };
    wait::until_so("all of it is back in the queue, and nobody consumes", Duration::from_secs(60), given_back).await;
    server.start_again().await.unwrap();
    all_there(&world, ingest, "30").await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_the_database_is_away_it_ends_at_once_and_another_process_has_everything() {
    let mut server = PrivatePostgres::start().await.unwrap();
    let world = world(&server).await;
    migrated(&world).await;
    let ingest = world.start("a");
    post(&world, 0..1).await;
    world.until(MESSAGES, &["1"]).await;
    server.kill();
    post(&world, 1..20).await;
    until_held(&world).await;
    let started = std::time::Instant::now();
    ingest.stopped().await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    server.start_again().await.unwrap();
    all_there(&world, world.start("b"), "20").await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn it_starts_before_the_database_and_before_the_schema_and_says_why_it_is_not_ready() {
    let mut server = PrivatePostgres::start().await.unwrap();
    let world = world(&server).await;
    server.kill();
    let ingest = world.start("a");
    post(&world, 0..3).await;
    let says = async |words: &str| {
        let said = async {
            while !world.health.reasons().values().any(|reason| reason.contains(words)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), said)
            .await
            .unwrap_or_else(|_| panic!("{:?}", world.health.reasons()));
    };
    says("cannot be reached").await;
    server.start_again().await.unwrap();
    says("roost migrate").await;
    migrated(&world).await;
    all_there(&world, ingest, "3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_things_that_are_away_the_return_of_one_does_not_make_it_ready() {
    let server = PrivatePostgres::start().await.unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let world = world_through(&server, proxy.port()).await;
    migrated(&world).await;
    let large = bodies::put(&world, "raw/large", one_text(RITA, "large", "read me", 0)).await;
    takes_away(&world);
    let ingest = world.start("a");
    world.publish(vec![large]).await;
    bodies::until_held(&world).await;
    proxy.refuse(true);
    // Something to write while the webhook waits for its body.
    world.publish_bytes(&RESULTS, bytes::Bytes::from_static(b"rubbish")).await;
    let away = async |want: &[&str]| {
        let said = async {
            while !world.health.reasons().into_keys().eq(want.iter().copied()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), said)
            .await
            .unwrap_or_else(|_| panic!("{:?}", world.health.reasons()));
    };
    away(&["ingest: database", "ingest: object store"]).await;
    proxy.refuse(false);
    away(&["ingest: object store"]).await;
    brings_back(&world);
    world.until(MESSAGES, &["1"]).await;
    away(&[]).await;
    ingest.stopped().await;
}
