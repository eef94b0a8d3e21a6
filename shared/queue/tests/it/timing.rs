//! How long the queue waits is for whoever opens it to say.

use crate::support::{Backend, NOTES, SOON, broker, eventually, note, until_health, until_up};
use queue::{PublishError, Queue, QueueHealth, QueueOptions, Timing};
use rstest::rstest;
use std::time::{Duration, Instant};
use testkit::amqp::{amqp_url, fresh_prefix};
use testkit::proxy::Proxy;
use tokio::net::TcpListener;

const SHORT: Duration = Duration::from_millis(300);

#[rstest]
#[tokio::test]
async fn nobody_waits_for_a_slot_longer_than_its_options_say(
    #[values(Backend::Embedded, Backend::RabbitMq)] backend: Backend,
) {
    let fresh = backend.fresh_with(Timing { confirm_timeout: SHORT, ..Timing::default() }).await;
    let publisher = fresh.queue.publisher();
    let mut slots = Vec::new();
    for _ in 0..queue::SLOTS {
        slots.push(publisher.slot().await.unwrap());
    }
    let since = Instant::now();
    assert_eq!(publisher.slot().await.unwrap_err(), PublishError::Timeout);
    let took = since.elapsed();
    assert!(took >= SHORT && took < queue::CONFIRM_DEADLINE, "{took:?}");
}

#[tokio::test]
async fn a_publish_that_a_silent_broker_does_not_confirm_fails_when_its_options_say() {
    let url = amqp_url().unwrap();
    let (before, rest) = url.rsplit_once(':').unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let proxy = Proxy::start(port.parse().unwrap()).await.unwrap();
    let timing = Timing { confirm_timeout: SHORT, ..Timing::default() };
    let options = broker(&format!("{before}:{}/{path}", proxy.port()), &fresh_prefix());
    let queue = Queue::open(QueueOptions { timing, ..options }).await.unwrap();
    until_up(&queue, SOON).await;
    // The queue is declared by the first publish, which may take longer than so short a time.
    eventually(SOON, async || {
        queue.publisher().publish(&NOTES, None, &note("first")).await.map_err(|error| error.to_string())
    })
    .await;
    proxy.stall(true);
    let since = Instant::now();
    let error = queue.publisher().publish(&NOTES, None, &note("never")).await.unwrap_err();
    let took = since.elapsed();
    assert!(error.may_have_landed(), "{error}");
    assert!(took < queue::CONFIRM_DEADLINE, "{took:?}");
}

#[tokio::test]
async fn a_broker_that_takes_the_connection_and_says_nothing_is_given_up_and_tried_again_when_its_options_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}/%2f", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            silent.push(connection);
        }
    });
    let timing = Timing {
        connect_timeout: SHORT,
        reconnect_first: Duration::from_millis(10),
        reconnect_most: Duration::from_millis(50),
        ..Timing::default()
    };
    let since = Instant::now();
    let queue = Queue::open(QueueOptions { timing, ..broker(&url, "") }).await.unwrap();
    let down = until_health(&queue, SOON, |health| matches!(health, QueueHealth::Down(_))).await;
    assert!(since.elapsed() >= SHORT, "{:?}", since.elapsed());
    let QueueHealth::Down(reason) = down else { panic!("{down:?}") };
    assert!(reason.contains("300 ms"), "{reason}");
    // With the waits of a production system the first ten attempts alone take half a minute.
    eventually(Duration::from_secs(10), async || match queue.stats().publishing.attempts {
        attempts if attempts >= 10 => Ok(()),
        attempts => Err(format!("{attempts} attempts")),
    })
    .await;
}
