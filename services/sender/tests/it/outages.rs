//! The database or the broker goes away in the middle of everything.

use crate::world::{Setup, Stack, World};
use domain::{SendState, Status};
use std::time::{Duration, Instant};
use store::{Store, StoreOptions, StoreUrl};
use testkit::amqp::PrivateRabbitMq;
use testkit::proxy::{Proxy, Trap, Way};
use testkit::servers::PrivatePostgres;

/// A store of its own, whose lines can be cut.
async fn by_way_of_a_proxy(world: &World) -> (Proxy, Store) {
    let StoreUrl::Postgres(url) = &world.db.options.url else { panic!("PostgreSQL") };
    let mut url = url::Url::parse(url).unwrap();
    let proxy = Proxy::start(url.port().unwrap_or(5432)).await.unwrap();
    url.set_port(Some(proxy.port())).unwrap();
    let options = StoreOptions { url: StoreUrl::Postgres(url.to_string()), ..world.db.options.clone() };
    let store = Store::open(&options).await.unwrap();
    (proxy, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_is_found_by_its_token_given_back_and_made_again() {
    let world = World::new(Setup::on(Stack::PostgresRabbitMq)).await;
    let (proxy, store) = by_way_of_a_proxy(&world).await;
    let text = "needle in the answer to a claim";
    proxy.set_trap(Trap { way: Way::Down, bytes: text.as_bytes().to_vec(), forward: false });
    let message = world.accept("sales", 0, text).await;
    let sender = world.sender_on("sender-1", world.queue.clone(), store);
    world.until_all(&[message], Status::Sent).await;
    assert_eq!(proxy.trapped(), 1, "the answer was lost");
    let attempts = world.attempts(message).await;
    assert_eq!((attempts.len(), attempts[0].attempt), (1, 1), "the lost claim did not count");
    assert_eq!(world.provider.stats().calls.calls, 1);
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_line_that_is_cut_again_and_again_loses_nothing_and_calls_nobody_twice() {
    let world = World::new(Setup { conversations: 60, ..Setup::on(Stack::PostgresRabbitMq) }).await;
    world.provider.set_latency(Duration::from_millis(30));
    let (proxy, store) = by_way_of_a_proxy(&world).await;
    let sender = world.sender_on("sender-1", world.queue.clone(), store);
    let mut messages = Vec::new();
    for n in 0..60 {
        messages.push(world.accept("sales", n, "hello").await);
        if n % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(120)).await;
            proxy.cut();
        }
    }
    world.until_all(&messages, Status::Sent).await;
    assert!(proxy.accepted() >= 6, "the line was really cut: {}", proxy.accepted());
    sender.stop().await;
    world.keeps_its_promises().await;
}

/// The longest statement of a database server that is going to be suspended: nobody waits for an answer twice as long.
const STATEMENT: Duration = Duration::from_millis(750);

async fn on_a_server_of_its_own(rate: f64, conversations: usize) -> (PrivatePostgres, World) {
    let server = PrivatePostgres::start().await.unwrap();
    let mut world = World::new(Setup {
        accounts: vec![("sales", rate)],
        conversations,
        server: Some((server.url(), STATEMENT)),
        ..Setup::on(Stack::PostgresRabbitMq)
    })
    .await;
    world.tuning.lease = Duration::from_secs(120);
    (server, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_in_mid_claim_is_given_up_in_time_and_nobody_is_called_twice() {
    let (server, world) = on_a_server_of_its_own(20.0, 60).await;
    let sender = world.sender_of_its_own("sender-1").await;
    let mut messages = Vec::new();
    for n in 0..60 {
        messages.push(world.accept("sales", n, "hello").await);
    }
    // Else it may run out of references, and ask the database for nothing.
    for message in &messages {
        let is_on_its_way = async || world.state_of(*message).await != Some(SendState::Waiting);
        world.until("it is dispatched", is_on_its_way).await;
    }
    for calls in [10, 40] {
        world.until("calls are made", async || world.provider.stats().calls.calls >= calls).await;
        server.suspend().unwrap();
        let began = Instant::now();
        world.until("the sender notices", async || !sender.is_ready()).await;
        assert!(began.elapsed() < STATEMENT * 2 + Duration::from_secs(3), "{:?}", began.elapsed());
        server.resume().unwrap();
        world.until("it goes on", async || sender.is_ready()).await;
    }
    world.until_all(&messages, Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 60, "each was called for once");
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_whose_database_is_silent_stops_within_its_budget() {
    let (server, mut world) = on_a_server_of_its_own(60.0, 60).await;
    world.db.options.statement_timeout = Duration::from_secs(60);
    world.tuning.drain = Duration::from_secs(3);
    let sender = world.sender_of_its_own("sender-1").await;
    for n in 0..60 {
        world.accept("sales", n, "hello").await;
    }
    world.until("calls are made", async || world.provider.stats().calls.calls >= 20).await;
    server.suspend().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let took = sender.stop().await;
    server.resume().unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_with_a_call_open_whose_database_is_silent_stops_within_its_budget_too() {
    let (server, mut world) = on_a_server_of_its_own(60.0, 60).await;
    world.db.options.statement_timeout = Duration::from_secs(60);
    world.tuning.drain = Duration::from_secs(3);
    world.tuning.call_timeout = Duration::from_secs(30);
    let sender = world.sender_of_its_own("sender-1").await;
    world.provider.set_latency(Duration::from_secs(20));
    for n in 0..60 {
        world.accept("sales", n, "hello").await;
    }
    world.until("calls are made", async || world.provider.stats().calls.open >= 10).await;
    server.suspend().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(world.provider.stats().calls.open > 0, "the calls outlive the budget");
    let took = sender.stop().await;
    server.resume().unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_that_cannot_be_published_are_kept_and_nothing_new_is_claimed_until_they_are() {
    let mut broker = PrivateRabbitMq::start().await.unwrap();
    let setup = Setup { conversations: 8, broker: Some(broker.url()), ..Setup::on(Stack::PostgresRabbitMq) };
    let mut world = World::new(setup).await;
    world.tuning.lease = Duration::from_secs(120);
    world.provider.set_latency(Duration::from_millis(800));
    let sender = world.sender("sender-1");
    let before = world.accept("sales", 0, "before").await;
    world.until_all(&[before], Status::Sent).await;
    // A node killed in the second in which a queue was made may come back without a leader for it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let first = world.accept("sales", 0, "called while the broker dies").await;
    world.until("it is being called", async || world.provider.stats().calls.open == 1).await;
    broker.kill();
    let mut later = Vec::new();
    for n in 1..8 {
        later.push(world.accept("sales", n, "accepted meanwhile").await);
    }
    world.until("the call has ended", async || world.provider.stats().calls.open == 0).await;
    world.until("it says that it cannot report", async || !sender.is_ready()).await;
    assert_eq!(world.state_of(first).await, Some(SendState::InFlight), "not reported yet");
    broker.start_again().await.unwrap();
    world.until_all(&[first], Status::Sent).await;
    world.until_all(&later, Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 9);
    sender.stop().await;
    world.keeps_its_promises().await;
}
