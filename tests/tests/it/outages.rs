//! Broker or database cut off in the middle of everything. What is refused is refused clearly, what is accepted arrives,
//! and afterwards everything runs again without a hand.

use crate::ROOST;
use roost_tests::{Stack, System, SystemOptions, wait};
use simulator::{LoadPlan, StatusPlan};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use testkit::amqp::PrivateRabbitMq;
use testkit::look::texts;
use testkit::servers::PrivatePostgres;

/// After a fault ends everything holds again within two minutes (design: decided in `reliability`, P21).
pub(crate) const BACK_WITHIN: Duration = Duration::from_secs(120);

/// Production's machinery; only the waits between two tries to connect are shorter.
pub(crate) const QUICK_RECONNECT: &str = "\n[tuning]\nreconnect_first_ms = 100\nreconnect_most_ms = 1000\n";

const FLEET: [(&str, &str); 4] =
    [("ingress", "ingress"), ("ingest", "ingest"), ("inbox", "inbox"), ("sender", "sender")];

async fn fleet(broker: &PrivateRabbitMq, database: Option<&PrivatePostgres>) -> System {
    let mut options = SystemOptions::new(Stack::PostgresRabbitMq).with_roles(&FLEET);
    options.more_config = QUICK_RECONNECT.into();
    options.amqp_url = Some(broker.url());
    options.database_url = database.map(PrivatePostgres::url);
    options.simulator.statuses = StatusPlan::default();
    System::start(ROOST, options).await.unwrap()
}

/// Everything the provider was told 200 for is stored once, and nothing was set aside.
async fn all_arrives(system: &System) {
    assert!(system.simulator.settled(BACK_WITHIN).await, "webhooks are still refused\n{}", system.last_lines());
    let acknowledged: HashSet<String> = system
        .simulator
        .acknowledged()
        .into_iter()
        .filter(|item| item.item.what == "message")
        .map(|item| item.item.id)
        .collect();
    assert!(acknowledged.len() > 50, "only {} webhooks: this run proves little", acknowledged.len());
    let stored = wait::until("every acknowledged webhook", BACK_WITHIN, async || {
        let ids =
            texts(&system.store_url, "SELECT provider_message_id FROM messages WHERE direction = 'INBOUND'").await?;
        let stored: HashSet<&String> = ids.iter().collect();
        Ok(acknowledged.iter().all(|id| stored.contains(id)).then_some(ids.len()))
    });
    let rows = stored.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    let distinct =
        texts(&system.store_url, "SELECT DISTINCT provider_message_id FROM messages WHERE direction = 'INBOUND'")
            .await
            .unwrap();
    assert_eq!(rows, distinct.len(), "doubled");
    let dead = texts(&system.store_url, "SELECT error_class || ': ' || coalesce(error_message, '') FROM dead_letters")
        .await
        .unwrap();
    assert_eq!(dead, [""; 0], "dead letters");
}

/// A send accepted now ends at READ.
pub(crate) async fn a_send_goes_through(system: &System, from: &str) {
    let api = system.api();
    system.simulator.customer_writes(from, "Rita", "Are you there?").done().await;
    let phone = format!("+{from}");
    let conversation =
        wait::until("the conversation", BACK_WITHIN, async || Ok(api.conversation_with(&phone).await.ok().flatten()));
    let conversation = conversation.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines())).id;
    let accepted = wait::until("an accepted send", BACK_WITHIN, async || {
        Ok(api.send_text(conversation, "Yes, again", "after-the-outage").await.ok().filter(|(code, _)| *code == 202))
    });
    accepted.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    let read = wait::until("READ", BACK_WITHIN, async || {
        let messages = api.messages(conversation).await.unwrap_or_default();
        Ok(messages.into_iter().find(|message| message.status == "READ"))
    });
    read.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    assert_eq!(system.simulator.order(from), ["Yes, again"]);
}

async fn post_once(system: &System) -> (u16, Duration) {
    let body = br#"{"object":"page","entry":[]}"#;
    let signature = simulator::signature(&domain::Secret::new(roost_tests::APP_SECRET), body);
    let begun = Instant::now();
    let status = system.simulator.post_raw(Some(&signature), body.to_vec()).await.unwrap_or(0);
    (status, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_2_with_the_rabbitmq_broker_stopped_webhooks_are_told_503_and_their_repetition_is_stored_once() {
    let mut broker = PrivateRabbitMq::start().await.unwrap();
    let system = fleet(&broker, None).await;
    broker.stop().await.unwrap();
    let known = wait::until("ingress to notice", BACK_WITHIN, async || {
        let (status, took) = post_once(&system).await;
        assert_eq!(status, 503, "no confirm, no 2xx");
        assert!(took < Duration::from_millis(2500), "{took:?}");
        Ok((took < Duration::from_millis(500)).then_some(()))
    });
    known.await.unwrap();
    let refused: Vec<_> =
        (0..60).map(|n| system.simulator.customer_writes("351912000333", "Rita", &format!("{n}"))).collect();
    broker.start_again().await.unwrap();
    for delivery in refused {
        assert!(delivery.done().await.acknowledged);
    }
    all_arrives(&system).await;
    a_send_goes_through(&system, "351912000444").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rabbitmq_broker_killed_frozen_and_alarmed_under_load_loses_and_doubles_nothing() {
    let mut broker = PrivateRabbitMq::start().await.unwrap();
    let system = fleet(&broker, None).await;
    let load = system.simulator.start_load(LoadPlan { per_second: 40.0, forged: 0.0, ..LoadPlan::default() });
    // In full swing first. RabbitMQ 3.10, killed within a second of a quorum queue's creation, has been seen to come back
    // with that queue leaderless for good; `docs/promises.md` says so.
    assert!(system.simulator.wait_until(BACK_WITHIN, |stats| stats.webhooks.acknowledged >= 300).await);
    // Each fault lasts long enough to be noticed by every deadline we have.
    broker.kill();
    broker.start_again().await.unwrap();
    a_send_goes_through(&system, "351912000441").await;

    broker.suspend().unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    broker.resume().unwrap();
    a_send_goes_through(&system, "351912000442").await;

    broker.memory_alarm(true).await.unwrap();
    let refused = wait::until("a refusal under the alarm", BACK_WITHIN, async || {
        let (status, took) = post_once(&system).await;
        assert!(took < Duration::from_millis(2500), "{took:?}");
        Ok((status == 503).then_some(()))
    });
    refused.await.unwrap();
    broker.memory_alarm(false).await.unwrap();
    a_send_goes_through(&system, "351912000443").await;

    broker.close_all_connections().await.unwrap();
    a_send_goes_through(&system, "351912000444").await;
    load.stop().await;
    all_arrives(&system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_away_for_a_minute_is_held_and_stored_afterwards() {
    let broker = PrivateRabbitMq::start().await.unwrap();
    let mut database = PrivatePostgres::start().await.unwrap();
    let system = fleet(&broker, Some(&database)).await;
    a_send_goes_through(&system, "351912000441").await;
    let load = system.simulator.start_load(LoadPlan { per_second: 20.0, forged: 0.0, ..LoadPlan::default() });
    database.stop().await.unwrap();
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(60) {
        let (status, _) = post_once(&system).await;
        assert_eq!(status, 200, "ingress needs no database");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    load.stop().await;
    database.start_again().await.unwrap();
    all_arrives(&system).await;
    a_send_goes_through(&system, "351912000442").await;
    // Killed rather than stopped, and frozen for longer than any deadline.
    let load = system.simulator.start_load(LoadPlan {
        per_second: 20.0,
        forged: 0.0,
        seed: 2,
        label: "again".into(),
        ..LoadPlan::default()
    });
    database.kill();
    database.start_again().await.unwrap();
    a_send_goes_through(&system, "351912000443").await;
    database.suspend().unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    database.resume().unwrap();
    load.stop().await;
    all_arrives(&system).await;
    a_send_goes_through(&system, "351912000444").await;
}
