//! Several senders, several accounts, many messages: limits, order, fairness, stopping.

use crate::world::{Setup, Stack, World};
use domain::wire::{SendRef, SendRefs};
use domain::{MessageId, SendState, Status};
use queue::topics::OUTBOUND;
use rstest::rstest;
use simulator::{Fault, FaultMix, Script, When};
use std::time::{Duration, Instant};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_senders_share_one_accounts_rate_in_every_sliding_second(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    const RATE: f64 = 20.0;
    let world = World::new(Setup { accounts: vec![("sales", RATE)], conversations: 80, ..Setup::on(stack) }).await;
    let first = world.sender_of_its_own("sender-1").await;
    let second = world.sender_of_its_own("sender-2").await;
    let mut messages = Vec::new();
    for n in 0..80 {
        messages.push(world.accept("sales", n, "hello").await);
    }
    let began = Instant::now();
    world.until_all(&messages, Status::Sent).await;
    let took = began.elapsed();
    let rate = world.provider.stats().rates.remove(0);
    assert!(rate.most_in_a_second <= 20, "{rate:?}");
    assert_eq!(rate.violations, 0, "{rate:?}");
    assert!(took < Duration::from_secs(20), "80 at 20 a second are 4 s, not {took:?}");
    let workers: std::collections::HashSet<_> = {
        let mut workers = std::collections::HashSet::new();
        for message in &messages {
            workers.extend(world.attempts(*message).await.into_iter().filter_map(|attempt| attempt.worker));
        }
        workers
    };
    assert_eq!(workers.len(), 2, "both took part");
    first.stop().await;
    second.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_arrives_in_the_order_it_was_accepted_whatever_is_tried_again(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 4, ..Setup::on(stack) }).await;
    world.provider.set_faults(FaultMix::even(
        0.4,
        vec![Fault::http(500), Fault::gateway(503), Fault::error(131_000), Fault::Slow { ms: 150 }],
    ));
    let senders = [world.sender_of_its_own("sender-1").await, world.sender_of_its_own("sender-2").await];
    let mut messages = Vec::new();
    for n in 0..12 {
        for conversation in 0..4 {
            messages.push(world.accept("sales", conversation, &format!("message {n:02}")).await);
        }
    }
    world.until_all(&messages, Status::Sent).await;
    let want: Vec<String> = (0..12).map(|n| format!("message {n:02}")).collect();
    for conversation in 0..4 {
        let calls = world.provider.calls_to(&world.recipient("sales", conversation));
        let accepted: Vec<String> =
            calls.into_iter().filter(|call| call.wamid.is_some()).map(|call| call.text).collect();
        assert_eq!(accepted, want);
    }
    for sender in senders {
        sender.stop().await;
    }
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_that_come_many_times_to_many_senders_lead_to_one_call(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 20, ..Setup::on(stack) }).await;
    world.provider.set_latency(Duration::from_millis(50));
    let mut messages = Vec::new();
    for n in 0..20 {
        messages.push(world.accept("sales", n, "hello").await);
    }
    let refs: Vec<SendRef> = messages.iter().map(|message| SendRef { message: *message, generation: 0 }).collect();
    let name = "sales".parse().unwrap();
    for _ in 0..6 {
        let message = SendRefs { items: refs.clone() };
        world.refer(&name, &message).await;
    }
    let senders = [
        world.sender_of_its_own("sender-1").await,
        world.sender_of_its_own("sender-2").await,
        world.sender_of_its_own("sender-3").await,
    ];
    world.until_all(&messages, Status::Sent).await;
    world
        .until("every reference is acknowledged", async || {
            world.queue.depth(&OUTBOUND, Some(&name)).await.unwrap().ready == 0
        })
        .await;
    assert_eq!(world.provider.stats().calls.calls, 20);
    for sender in senders {
        sender.stop().await;
    }
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_whose_provider_hangs_does_not_take_the_room_of_another(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let accounts = vec![("hangs", 1000.0), ("works", 1000.0)];
    let mut world = World::new(Setup { accounts, conversations: 30, ..Setup::on(stack) }).await;
    world.tuning.sender_concurrency = 8;
    world.tuning.call_timeout = Duration::from_secs(8);
    world.tuning.lease = Duration::from_secs(15);
    let number = world.accounts[0].external_id.clone();
    world.provider.script(Script::always(When::from(number), Fault::HangBefore));
    for n in 0..30 {
        world.accept("hangs", n, "hello").await;
    }
    let sender = world.sender("sender-1");
    world.until("calls hang", async || world.provider.stats().calls.open >= 6).await;
    let began = Instant::now();
    let mut messages = Vec::new();
    for n in 0..10 {
        messages.push(world.accept("works", n, "hello").await);
    }
    world.until_all(&messages, Status::Sent).await;
    assert!(began.elapsed() < Duration::from_secs(6), "before any of the hanging calls ended: {:?}", began.elapsed());
    sender.stop().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_stopped_finishes_its_calls_gives_the_rest_back_and_reports(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { accounts: vec![("sales", 10.0)], conversations: 30, ..Setup::on(stack) }).await;
    world.provider.set_latency(Duration::from_millis(600));
    let mut messages = Vec::new();
    for n in 0..30 {
        messages.push(world.accept("sales", n, "hello").await);
    }
    let sender = world.sender_of_its_own("sender-1").await;
    world.until("calls are under way", async || world.provider.stats().calls.open >= 3).await;
    let took = sender.stop().await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    let called = world.provider.stats().calls;
    assert_eq!((called.open, called.caller_gone), (0, 0), "no call was cut");
    let called: Vec<MessageId> = correlated(&world);
    world.until_all(&called, Status::Sent).await;
    for message in messages.iter().filter(|message| !called.contains(message)) {
        let row = world.send_of(*message).await.unwrap();
        assert!(matches!(row.state, SendState::Waiting | SendState::Dispatched), "{row:?}");
        assert_eq!((row.attempt, row.lease_token), (0, None), "what was not called did not count");
    }
    world.provider.set_latency(Duration::ZERO);
    let sender = world.sender_of_its_own("sender-2").await;
    world.until_all(&messages, Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 30);
    sender.stop().await;
    world.keeps_its_promises().await;
}

/// The messages the provider was called for.
fn correlated(world: &World) -> Vec<MessageId> {
    let id = |correlation: String| correlation.split('.').nth(2).unwrap().parse().unwrap();
    world.provider.calls().into_iter().filter_map(|call| call.correlation).map(id).collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_recipient_gets_a_burst_and_the_rest_waits_without_holding_up_others(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 2, pair_burst: 3, ..Setup::on(stack) }).await;
    let mut messages = Vec::new();
    for n in 0..5 {
        messages.push(world.accept("sales", 0, &format!("message {n}")).await);
    }
    let sender = world.sender("sender-1");
    world.until_all(&messages[..3], Status::Sent).await;
    let other = world.accept("sales", 1, "hello").await;
    world.until_all(&[other], Status::Sent).await;
    let row = world.send_of(messages[3]).await.unwrap();
    assert_eq!((row.state, row.attempt), (SendState::Waiting, 0), "the fourth waits its turn, uncounted");
    assert_eq!(world.provider.calls_to(&world.recipient("sales", 0)).len(), 3);
    world.until_all(&messages[3..4], Status::Sent).await;
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_referred_to_many_times_is_one_place_in_its_recipients_pace(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 2, pair_burst: 1, ..Setup::on(stack) }).await;
    let mut tx = world.store().begin().await.unwrap();
    let much_later = tx.database_now().await.unwrap() + Duration::from_secs(100);
    let conversation = world.conversations["sales"][0].conversation;
    store::rate_limit::exhaust_pair(&mut tx, conversation, much_later).await.unwrap();
    tx.commit().await.unwrap();
    let had_enough = world.accept("sales", 0, "too much").await;
    world.until("dispatched", async || world.state_of(had_enough).await == Some(SendState::Dispatched)).await;
    let (reference, name) = (SendRef { message: had_enough, generation: 0 }, "sales".parse().unwrap());
    let many = SendRefs { items: vec![reference; 8] };
    world.refer(&name, &many).await;
    let sender = world.sender("sender-1");
    world.until("it waits", async || world.state_of(had_enough).await == Some(SendState::Waiting)).await;
    let other = world.accept("sales", 1, "hello").await;
    world.until_all(&[other], Status::Sent).await;
    let row = world.send_of(had_enough).await.unwrap();
    assert_eq!((row.state, row.attempt), (SendState::Waiting, 0));
    assert_eq!(
        world.provider.stats().calls.calls,
        1,
        "its recipient has had enough for now, however often it is named"
    );
    sender.stop().await;
    world.keeps_its_promises().await;
}
