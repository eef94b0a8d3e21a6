//! Dispatch on both stacks: what is due reaches the account's queue, once, and nothing is lost on the way.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use dispatch::Dispatcher;
use domain::{Account, AccountId, AccountName, Channel, Content, MessageId, OnUnknown, Origin, Secret, SendState};
use queue::topics::OUTBOUND;
use queue::{Consumer, Queue, QueueOptions, QueueUrl};
use rstest::rstest;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use store::accept::{AcceptOutcome, NewSend, accept};
use store::{Store, account, send};
use testkit::amqp::{amqp_url, fresh_prefix};
use testkit::rows::{self, NOON, Seeded};
use testkit::{Database, TestDatabase, fresh_store};

/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum Stack {
    SqliteEmbedded,
    PostgresRabbitMq,
}

struct World {
    db: TestDatabase,
    queue: Queue,
    dispatcher: Dispatcher,
    account: AccountId,
    conversations: Vec<Seeded>,
    _folder: tempfile::TempDir,
}

fn sales() -> Account {
    Account {
        name: name(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: "1001".into(),
        parent_external_id: None,
        portfolio_id: None,
        display_address: None,
        api_base: "http://127.0.0.1:1/v25.0".into(),
        access_token: Secret::new("token"),
        rate_per_second: 10.0,
        pair_interval: Duration::ZERO,
        pair_burst: 1,
        window: None,
        on_unknown: OnUnknown::Hold,
    }
}

fn name() -> AccountName {
    "sales".parse().unwrap()
}

impl World {
    async fn new(stack: Stack, conversations: usize) -> World {
        let (database, url) = match stack {
            Stack::SqliteEmbedded => (Database::Sqlite, "embedded".to_owned()),
            Stack::PostgresRabbitMq => (Database::Postgres, amqp_url().unwrap()),
        };
        let db = fresh_store(database).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = QueueOptions {
            url: QueueUrl::parse(&url, folder.path()).unwrap(),
            prefix: fresh_prefix(),
            role: "test".into(),
            instance: "dispatch".into(),
            timing: queue::Timing::default(),
        };
        let queue = Queue::open(options).await.unwrap();
        let mut health = queue.health();
        tokio::time::timeout(SOON, health.wait_for(queue::QueueHealth::is_up)).await.unwrap().unwrap();
        let mut tx = db.store.begin().await.unwrap();
        let directory = account::mirror(&mut tx, &[sales()], NOON).await.unwrap();
        let account = directory.id_named(&name()).unwrap();
        let mut seeded = Vec::new();
        for n in 0..conversations {
            let digits = format!("9715{n:08}");
            seeded.push(rows::conversation(&mut tx, account, "Person", &digits, NOON).await.unwrap());
        }
        tx.commit().await.unwrap();
        let dispatcher = Dispatcher::new(queue.clone(), db.store.clone());
        World { db, queue, dispatcher, account, conversations: seeded, _folder: folder }
    }

    fn store(&self) -> &Store {
        &self.db.store
    }

    async fn accept(&self, conversation: usize) -> MessageId {
        let content = Content::Text { body: "hello".into() };
        let new = NewSend {
            conversation: self.conversations[conversation].conversation,
            content: &content,
            text: None,
            client_message_id: None,
            request_hash: None,
            reply_to: None,
            origin: Origin::Agent,
            created_by: None,
            bulk: false,
            deadline: Duration::from_secs(3600),
            now: NOON,
            send_at: None,
            hold: None,
            traceparent: None,
        };
        let mut tx = self.store().begin().await.unwrap();
        let outcome = accept(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        let AcceptOutcome::Created(row) = outcome else { panic!("{outcome:?}") };
        row.id
    }

    async fn consumer(&self) -> Consumer<domain::wire::SendRefs> {
        self.queue.consume(&OUTBOUND, Some(&name()), 200).await
    }

    async fn states(&self, messages: &[MessageId]) -> Vec<SendState> {
        let mut tx = self.store().read().await.unwrap();
        send::of(&mut tx, messages).await.unwrap().into_iter().map(|row| row.state).collect()
    }
}

/// Takes references until there are `wanted` different ones.
async fn take(consumer: &mut Consumer<domain::wire::SendRefs>, wanted: usize) -> Vec<MessageId> {
    let mut taken = Vec::new();
    let deadline = Instant::now() + SOON;
    while taken.iter().collect::<BTreeSet<_>>().len() < wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        let delivery = tokio::time::timeout(left, consumer.next()).await.unwrap().unwrap();
        taken.extend(delivery.item.as_ref().unwrap().items.iter().map(|one| one.message));
        assert!(delivery.item.as_ref().unwrap().items.len() <= 16);
        delivery.settle(queue::Settle::Done).await;
    }
    taken.sort();
    taken
}

#[rstest]
#[tokio::test]
async fn a_kick_publishes_what_is_due_and_many_kicks_publish_it_once(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(stack, 40).await;
    let mut consumer = world.consumer().await;
    let mut messages = Vec::new();
    for n in 0..40 {
        messages.push(world.accept(n).await);
        world.dispatcher.kick(&[world.account]);
    }
    assert_eq!(take(&mut consumer, 40).await, messages, "each once");
    assert!(world.states(&messages).await.iter().all(|state| *state == SendState::Dispatched));
    assert_eq!(world.dispatcher.sweep().await.unwrap().published, 0);
}

#[rstest]
#[tokio::test]
async fn the_broker_never_holds_more_than_the_window_and_a_sweep_fills_it_again(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(stack, 100).await;
    for n in 0..100 {
        world.accept(n).await;
    }
    assert_eq!(world.dispatcher.sweep().await.unwrap().published, 64);
    assert_eq!(world.dispatcher.sweep().await.unwrap().published, 0, "the window is full");
    let mut consumer = world.consumer().await;
    let taken = take(&mut consumer, 64).await;
    let mut tx = world.store().begin().await.unwrap();
    let now = tx.database_now().await.unwrap();
    let claims = send::Claims {
        lease_token: "t",
        lease_until: now + Duration::from_secs(20),
        now,
        messages: &taken[..10],
        tokens: &[],
    };
    assert_eq!(send::claim(&mut tx, &claims).await.unwrap().len(), 10);
    tx.commit().await.unwrap();
    assert_eq!(world.dispatcher.sweep().await.unwrap().published, 10);
}

#[rstest]
#[tokio::test]
async fn one_round_serves_every_account_each_as_far_as_its_own_window_goes(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let mut world = World::new(stack, 70).await;
    let support =
        Account { name: "support".parse().unwrap(), external_id: "1002".into(), rate_per_second: 50.0, ..sales() };
    let mut tx = world.store().begin().await.unwrap();
    let directory = account::mirror(&mut tx, &[sales(), support.clone()], NOON).await.unwrap();
    let other = directory.id_named(&support.name).unwrap();
    for n in 0..90 {
        let digits = format!("9716{n:08}");
        world.conversations.push(rows::conversation(&mut tx, other, "Person", &digits, NOON).await.unwrap());
    }
    tx.commit().await.unwrap();
    let mut messages = Vec::new();
    for n in 0..160 {
        messages.push(world.accept(n).await);
    }
    assert_eq!(
        world.dispatcher.sweep().await.unwrap().published,
        64 + 90,
        "2 s of 10 a second, 64 at least; 2 s of 50"
    );
    let mut theirs = world.queue.consume(&OUTBOUND, Some(&support.name), 200).await;
    assert_eq!(
        take(&mut theirs, 90).await.into_iter().collect::<BTreeSet<_>>(),
        messages[70..].iter().copied().collect()
    );
    let mut ours = world.consumer().await;
    assert_eq!(
        take(&mut ours, 64).await.into_iter().collect::<BTreeSet<_>>(),
        messages[..64].iter().copied().collect()
    );
}

#[rstest]
#[tokio::test]
async fn a_lane_that_moved_goes_at_once_and_everything_in_its_order_when_room_is_short(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(stack, 70).await;
    let mut consumer = world.consumer().await;
    let (first, moved) = (world.accept(0).await, world.accept(1).await);
    let lane = |n: usize| (world.account, world.conversations[n].conversation);
    world.dispatcher.kick_lanes([lane(1)]);
    assert_eq!(take(&mut consumer, 1).await, [moved]);
    assert_eq!(world.states(&[first]).await, [SendState::Waiting], "nobody asked for it");

    let mut all = vec![first];
    for n in 2..70 {
        all.push(world.accept(n).await);
    }
    world.dispatcher.kick_lanes((2..70).map(lane));
    assert_eq!(take(&mut consumer, 63).await, all[..63], "more than half of the window: the longest due go first");
}

#[rstest]
#[tokio::test]
async fn what_nobody_claims_is_published_again_only_while_somebody_listens(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(stack, 1).await;
    let message = world.accept(0).await;
    assert_eq!(world.dispatcher.sweep().await.unwrap().published, 1);
    let nobody = world.dispatcher.republish(Duration::ZERO).await.unwrap();
    assert_eq!(nobody.published, 0, "without a consumer it waits where it is");

    let mut consumer = world.consumer().await;
    assert_eq!(take(&mut consumer, 1).await, [message]);
    let deadline = Instant::now() + SOON;
    while world.dispatcher.republish(Duration::ZERO).await.unwrap().published == 0 {
        assert!(Instant::now() < deadline, "published again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(take(&mut consumer, 1).await, [message]);
    assert_eq!(world.dispatcher.republish(Duration::from_secs(60)).await.unwrap().published, 0, "once a minute");
}

#[tokio::test]
async fn with_the_broker_away_what_is_due_stays_waiting_and_goes_when_it_is_back() {
    let mut broker = testkit::amqp::PrivateRabbitMq::start().await.unwrap();
    let db = fresh_store(Database::Sqlite).await.unwrap();
    let url = QueueUrl::parse(&broker.url(), std::path::Path::new("/nowhere")).unwrap();
    let options = QueueOptions {
        url,
        prefix: String::new(),
        role: "test".into(),
        instance: "dispatch".into(),
        timing: queue::Timing::default(),
    };
    let queue = Queue::open(options).await.unwrap();
    let mut health = queue.health();
    tokio::time::timeout(SOON, health.wait_for(queue::QueueHealth::is_up)).await.unwrap().unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = account::mirror(&mut tx, &[sales()], NOON).await.unwrap().id_named(&name()).unwrap();
    let seeded = rows::conversation(&mut tx, account, "Person", "971500000001", NOON).await.unwrap();
    tx.commit().await.unwrap();
    let dispatcher = Dispatcher::new(queue.clone(), db.store.clone());
    let folder = tempfile::tempdir().unwrap();
    let world = World { db, queue, dispatcher, account, conversations: vec![seeded], _folder: folder };

    broker.kill();
    tokio::time::timeout(SOON, health.wait_for(|health| !health.is_up())).await.unwrap().unwrap();
    let message = world.accept(0).await;
    world.dispatcher.kick(&[account]);
    assert!(world.dispatcher.sweep().await.is_err());
    assert_eq!(world.states(&[message]).await, [SendState::Waiting]);

    broker.start_again().await.unwrap();
    let mut consumer = world.consumer().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !world.dispatcher.sweep().await.is_ok_and(|done| done.published == 1) {
        assert!(Instant::now() < deadline, "dispatched after the broker came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(take(&mut consumer, 1).await, [message]);
}
