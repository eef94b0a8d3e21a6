//! A broker that is killed, stopped, suspended, emptied and filled under load. Each test has a broker of its own.

use crate::support::{
    NOTES, Note, SOON, broker, eventually, note, publish_in_the_end, take, take_within, text, until_health, until_up,
};
use queue::{PublishError, Queue, QueueHealth, Settle, Topic};
use rstest::rstest;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::amqp::PrivateRabbitMq;
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

/// A publish is answered within its deadline; some more for a machine with two busy cores.
const IN_TIME: Duration = Duration::from_millis(2_750);
/// A refusal of what is known to be down.
const AT_ONCE: Duration = Duration::from_millis(250);
/// After a fault has ended everything works again within this.
const HEALED: Duration = Duration::from_secs(45);

/// One broker at a time: each is heavy.
async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ONE.lock().await
}

/// Publishers that never stop, and a consumer that settles what it gets.
struct Load {
    stop: CancellationToken,
    confirmed: Arc<Mutex<BTreeSet<u64>>>,
    delivered: Arc<Mutex<BTreeSet<u64>>>,
    /// The slowest answer to a publish.
    slowest: Arc<Mutex<Duration>>,
    errors: Arc<Mutex<Vec<PublishError>>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    async fn start(queue: &Queue) -> Self {
        let mut load = Self {
            stop: CancellationToken::new(),
            confirmed: Arc::default(),
            delivered: Arc::default(),
            slowest: Arc::default(),
            errors: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        for task in 0..6u64 {
            let (publisher, stop) = (queue.publisher(), load.stop.clone());
            let (confirmed, slowest, errors) = (load.confirmed.clone(), load.slowest.clone(), load.errors.clone());
            load.tasks.spawn(async move {
                let mut number = task;
                while !stop.is_cancelled() {
                    let since = Instant::now();
                    let outcome = publisher.publish(&NOTES, None, &note(number.to_string())).await;
                    {
                        let mut slowest = slowest.lock().unwrap();
                        *slowest = (*slowest).max(since.elapsed());
                    }
                    match outcome {
                        Ok(()) => drop(confirmed.lock().unwrap().insert(number)),
                        Err(error) => {
                            errors.lock().unwrap().push(error);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    number += 6;
                }
            });
        }
        let mut consumer = queue.consume(&NOTES, None, 50).await;
        let delivered = load.delivered.clone();
        load.tasks.spawn(async move {
            while let Some(delivery) = consumer.next().await {
                let Ok(Note(number)) = &delivery.item else { panic!("{delivery:?}") };
                delivered.lock().unwrap().insert(number.parse().unwrap());
                delivery.settle(Settle::Done).await;
            }
        });
        load
    }

    fn confirmed(&self) -> usize {
        self.confirmed.lock().unwrap().len()
    }

    /// Waits until so many more are confirmed and delivered.
    async fn makes_progress(&self, within: Duration) {
        let (confirmed, delivered) = (self.confirmed(), self.delivered.lock().unwrap().len());
        eventually(within, async || {
            let now = (self.confirmed(), self.delivered.lock().unwrap().len());
            if now.0 >= confirmed + 50 && now.1 >= delivered + 50 {
                return Ok(());
            }
            Err(format!("confirmed {confirmed} → {}, delivered {delivered} → {}", now.0, now.1))
        })
        .await;
    }

    /// Stops publishing and waits until every confirmed message was delivered.
    async fn nothing_is_lost(self, queue: &Queue) {
        self.stop.cancel();
        eventually(HEALED, async || {
            let (confirmed, delivered) = (self.confirmed.lock().unwrap(), self.delivered.lock().unwrap());
            let missing = confirmed.difference(&delivered).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} confirmed are missing", confirmed.len())) }
        })
        .await;
        let slowest = *self.slowest.lock().unwrap();
        assert!(slowest < IN_TIME, "a publish was answered after {slowest:?}");
        queue.close(SOON).await;
        let mut tasks = self.tasks;
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Stopped,
    Suspended,
    ConnectionsClosed,
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_and_everything_resumes_by_itself(
    #[values(Outage::Killed, Outage::Stopped, Outage::Suspended, Outage::ConnectionsClosed)] outage: Outage,
) {
    let _one = one_at_a_time().await;
    let mut server = PrivateRabbitMq::start().await.unwrap();
    let queue = Queue::open(broker(&server.url(), "")).await.unwrap();
    until_up(&queue, SOON).await;
    let load = Load::start(&queue).await;
    load.makes_progress(HEALED).await;

    // RabbitMQ 3.10 killed within a tenth of a second of a queue's declaration has been seen not to find the queue again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let attempts_before = queue.stats().publishing.attempts;
    match outage {
        Outage::Killed => server.kill(),
        Outage::Stopped => server.stop().await.unwrap(),
        Outage::Suspended => server.suspend().unwrap(),
        Outage::ConnectionsClosed => server.close_all_connections().await.unwrap(),
    }
    if !matches!(outage, Outage::ConnectionsClosed) {
        let since = Instant::now();
        until_health(&queue, IN_TIME, |health| matches!(health, QueueHealth::Down(_))).await;
        // Known to be down: from now on every refusal is at once.
        for _ in 0..10 {
            let since = Instant::now();
            let outcome = queue.publisher().slot().await;
            assert!(matches!(outcome, Err(PublishError::Down(_))), "{outcome:?}");
            assert!(since.elapsed() < AT_ONCE, "refused after {:?}", since.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let confirmed = load.confirmed();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(load.confirmed(), confirmed, "confirmed by a broker that is not there");
        let attempts = queue.stats().publishing.attempts - attempts_before;
        let seconds = since.elapsed().as_secs() + 1;
        assert!((1..=10 * seconds).contains(&attempts), "{attempts} attempts to connect in {seconds} s");
    }
    match outage {
        Outage::Killed | Outage::Stopped => server.start_again().await.unwrap(),
        Outage::Suspended => server.resume().unwrap(),
        Outage::ConnectionsClosed => {}
    }
    load.makes_progress(HEALED).await;
    let errors = load.errors.lock().unwrap().len();
    assert!(errors > 0, "the outage was not felt");
    load.nothing_is_lost(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_an_error_until_it_is_declared_again() {
    let _one = one_at_a_time().await;
    let server = PrivateRabbitMq::start().await.unwrap();
    let queue = Queue::open(broker(&server.url(), "")).await.unwrap();
    until_up(&queue, SOON).await;
    publish_in_the_end(&queue, "lost with its queue", SOON).await;

    // Without a consumer nobody declares it behind the publisher's back.
    server.delete_queue("roost.notes").await.unwrap();
    let outcome = queue.publisher().publish(&NOTES, None, &note("returned")).await;
    assert!(matches!(outcome, Err(PublishError::Returned(_))), "{outcome:?}");
    queue.publisher().publish(&NOTES, None, &note("declared again")).await.unwrap();

    let mut consumer = queue.consume(&NOTES, None, 10).await;
    let delivery = take(&mut consumer).await;
    assert_eq!(text(&delivery), "declared again");
    // Deleted under a consumer that holds a delivery: it subscribes again by itself.
    server.delete_queue("roost.notes").await.unwrap();
    delivery.settle(Settle::Done).await;
    publish_in_the_end(&queue, "after", SOON).await;
    let delivery = take_within(&mut consumer, HEALED).await;
    assert_eq!(text(&delivery), "after");
    let stats = queue.stats();
    assert_eq!((stats.publishing.connects, stats.consuming.connects), (1, 1), "the connections are none the worse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_an_alarm_publishers_are_refused_at_once_and_consumers_go_on() {
    let _one = one_at_a_time().await;
    let server = PrivateRabbitMq::start().await.unwrap();
    let queue = Queue::open(broker(&server.url(), "")).await.unwrap();
    until_up(&queue, SOON).await;
    for number in 0..20 {
        publish_in_the_end(&queue, &number.to_string(), SOON).await;
    }
    let mut consumer = queue.consume(&NOTES, None, 1).await;
    let first = take(&mut consumer).await;

    server.memory_alarm(true).await.unwrap();
    let since = Instant::now();
    let outcome = queue.publisher().publish(&NOTES, None, &note("refused")).await;
    assert!(matches!(outcome, Err(PublishError::Blocked(_) | PublishError::Timeout)), "{outcome:?}");
    assert!(since.elapsed() < IN_TIME, "{:?}", since.elapsed());
    until_health(&queue, IN_TIME, |health| matches!(health, QueueHealth::Blocked(_))).await;
    for _ in 0..20 {
        let since = Instant::now();
        let outcome = queue.publisher().slot().await;
        assert!(matches!(outcome, Err(PublishError::Blocked(_))), "{outcome:?}");
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }
    assert!(queue.stats().publishing.blocked);

    // Deliveries and acknowledgements use the other connection; what must wait waits for the alarm to end.
    first.settle(Settle::Done).await;
    for number in 1..19 {
        let delivery = take(&mut consumer).await;
        assert_eq!(text(&delivery), number.to_string());
        delivery.settle(Settle::Done).await;
    }
    let retried = take(&mut consumer).await;
    assert_eq!(text(&retried), "19");
    retried.settle(Settle::RetryIn(Duration::from_millis(10))).await;
    // Longer than pings and heartbeats would take to give a silent connection up.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(matches!(&*queue.health().borrow(), QueueHealth::Blocked(_)), "{:?}", queue.health().borrow());

    server.memory_alarm(false).await.unwrap();
    until_up(&queue, SOON).await;
    publish_in_the_end(&queue, "after", SOON).await;
    let mut texts = BTreeSet::new();
    while !(texts.contains("19") && texts.contains("after")) {
        let delivery = take(&mut consumer).await;
        texts.insert(text(&delivery).to_owned());
        delivery.settle(Settle::Done).await;
    }
    // The one that was refused may have landed after all, which is why it was an error and not a promise.
    texts.remove("refused");
    assert_eq!(texts, BTreeSet::from(["19".to_owned(), "after".to_owned()]));
    let stats = queue.stats();
    assert_eq!((stats.publishing.connects, stats.consuming.connects), (1, 1), "nothing had to be built again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_publishes() {
    let _one = one_at_a_time().await;
    let server = PrivateRabbitMq::start().await.unwrap();
    let queue = Queue::open(broker(&server.url(), "")).await.unwrap();
    until_up(&queue, SOON).await;
    publish_in_the_end(&queue, "0", SOON).await;
    server
        .ctl(&["set_policy", "--apply-to", "queues", "short", "^roost\\.notes$", r#"{"max-length":5}"#])
        .await
        .unwrap();
    let mut outcomes = Vec::new();
    for number in 1..50 {
        outcomes.push(queue.publisher().publish(&NOTES, None, &note(number.to_string())).await);
    }
    let confirmed = 1 + outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((5..20).contains(&confirmed), "a limit of 5 overshoots a little: {confirmed}");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(PublishError::Refused(_)))), "{outcomes:?}");
    let mut consumer = queue.consume(&NOTES, None, 100).await;
    for _ in 0..confirmed {
        take(&mut consumer).await.settle(Settle::Done).await;
    }
    publish_in_the_end(&queue, "there is room again", SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_hangs_does_not_disturb_the_others() {
    const OTHERS: Topic<Note> = Topic::new("roost.others");
    let _one = one_at_a_time().await;
    let server = PrivateRabbitMq::start().await.unwrap();
    let queue = Queue::open(broker(&server.url(), "")).await.unwrap();
    until_up(&queue, SOON).await;
    let publisher = queue.publisher();
    publish_in_the_end(&queue, "before", SOON).await;
    publisher.publish(&OTHERS, None, &note("before")).await.unwrap();
    let mut others = queue.consume(&OTHERS, None, 10).await;
    let held = take(&mut others).await;

    // As a queue whose leader cannot be reached: it exists and does not answer.
    let leader = "{list_to_atom(\"%2F_roost.notes\"), node()}";
    server.ctl(&["eval", &format!("sys:suspend({leader}).")]).await.unwrap();
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    for _ in 0..2 {
        let since = Instant::now();
        assert_eq!(publisher.publish(&NOTES, None, &note("hangs")).await, Err(PublishError::Timeout));
        assert!(since.elapsed() < IN_TIME, "{:?}", since.elapsed());
        publisher.publish(&OTHERS, None, &note("goes on")).await.unwrap();
        let delivery = take(&mut others).await;
        assert!(!delivery.redelivered);
        delivery.settle(Settle::Done).await;
    }
    // Those who can do nothing without it are told.
    let trouble = until_health(&queue, SOON, |health| matches!(health, QueueHealth::Down(_))).await;
    assert!(format!("{trouble:?}").contains("roost.notes"), "{trouble:?}");
    tokio::time::sleep(Duration::from_secs(8)).await;
    held.settle(Settle::Done).await;
    let stats = queue.stats();
    assert_eq!((stats.publishing.connects, stats.consuming.connects), (1, 1), "the connections are none the worse");

    server.ctl(&["eval", &format!("sys:resume({leader}).")]).await.unwrap();
    // What hung was no promise and may have landed; it may even come first, since what comes back has no promised place.
    loop {
        let delivery = take_within(&mut consumer, HEALED).await;
        let found = text(&delivery) == "before";
        delivery.settle(Settle::Done).await;
        if found {
            break;
        }
    }
    publish_in_the_end(&queue, "after", SOON).await;
    until_up(&queue, SOON).await;
    assert_eq!(queue.depth(&OTHERS, None).await.unwrap().ready, 0);
}
