//! Bad lines to a good broker: cut, silent, refused, confirms lost on the way. Through a proxy, so that the shared broker
//! is left alone.

use crate::support::{
    NOTES, SOON, broker, eventually, note, publish_in_the_end, take, take_within, text, until_health, until_up,
};
use queue::{PublishError, Queue, QueueHealth, QueueUrl, Settle};
use std::time::{Duration, Instant};
use testkit::amqp::{amqp_url, fresh_prefix};
use testkit::proxy::{Proxy, Trap, Way};

/// Within this a refusal counts as at once.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Within this a publish must be answered, whatever happens: its deadline and some for a busy machine.
const IN_TIME: Duration = Duration::from_millis(2_750);
/// Within this a consumer must have noticed that nothing answers any more: a ping and its deadline.
const NOTICED: Duration = Duration::from_secs(14);

const BASIC_ACK: [u8; 4] = [0, 60, 0, 80];
const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];

/// The shared broker behind a proxy.
async fn behind_a_proxy() -> (Queue, Proxy) {
    let url = amqp_url().unwrap();
    let (before, rest) = url.rsplit_once(':').unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let proxy = Proxy::start(port.parse().unwrap()).await.unwrap();
    let queue = Queue::open(broker(&format!("{before}:{}/{path}", proxy.port()), &fresh_prefix())).await.unwrap();
    (queue, proxy)
}

async fn timed_publish(queue: &Queue, text: &str) -> (Result<(), PublishError>, Duration) {
    let since = Instant::now();
    let outcome = queue.publisher().publish(&NOTES, None, &note(text)).await;
    (outcome, since.elapsed())
}

fn is_down(health: &QueueHealth) -> bool {
    matches!(health, QueueHealth::Down(_))
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_found_when_it_comes() {
    let url = amqp_url().unwrap();
    let port = url.rsplit_once(':').unwrap().1.split_once('/').unwrap().0.parse().unwrap();
    let proxy = Proxy::start(port).await.unwrap();
    proxy.refuse(true);
    let since = Instant::now();
    let queue = Queue::open(broker(&format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port()), &fresh_prefix()))
        .await
        .unwrap();
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    assert!(since.elapsed() < AT_ONCE, "opening waited {:?} for the broker", since.elapsed());
    until_health(&queue, SOON, is_down).await;
    let (outcome, took) = timed_publish(&queue, "too early").await;
    assert!(matches!(outcome, Err(PublishError::Down(_))), "{outcome:?}");
    assert!(took < AT_ONCE, "{took:?}");

    // Nor is it asked in a busy loop meanwhile: two connections, waits growing to five seconds.
    let before = queue.stats();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = queue.stats();
    for (before, after) in [(before.publishing, after.publishing), (before.consuming, after.consuming)] {
        let attempts = after.attempts - before.attempts;
        assert!((1..=40).contains(&attempts), "{attempts} attempts in four seconds");
        assert_eq!(after.connects, 0);
    }

    proxy.refuse(false);
    until_up(&queue, SOON).await;
    publish_in_the_end(&queue, "a", SOON).await;
    let delivery = take(&mut consumer).await;
    assert_eq!(text(&delivery), "a");
}

#[tokio::test]
async fn a_cut_line_is_an_error_and_then_forgotten() {
    let (queue, proxy) = behind_a_proxy().await;
    until_up(&queue, SOON).await;
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    for round in 0..3 {
        publish_in_the_end(&queue, &format!("held {round}"), SOON).await;
        let held = take(&mut consumer).await;
        proxy.cut();
        let mut seen = until_health(&queue, SOON, |health| !health.is_up()).await;
        if !is_down(&seen) {
            seen = until_health(&queue, SOON, is_down).await;
        }
        assert!(is_down(&seen));
        held.settle(Settle::Done).await;
        // What was held over the lost line comes again, whatever was said of it.
        let again = take_within(&mut consumer, SOON).await;
        assert_eq!(text(&again), format!("held {round}"));
        again.settle(Settle::Done).await;
    }
    until_up(&queue, SOON).await;
    let stats = queue.stats();
    assert_eq!((stats.publishing.connects, stats.consuming.connects), (4, 4));
}

#[tokio::test]
async fn silence_is_noticed_by_publishers_in_two_seconds_and_by_consumers_soon_after() {
    let (queue, proxy) = behind_a_proxy().await;
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    publish_in_the_end(&queue, "before", SOON).await;
    take(&mut consumer).await.settle(Settle::Done).await;
    for (round, way) in [Way::Up, Way::Down].into_iter().enumerate() {
        proxy.silence(way, true);
        let (outcome, took) = timed_publish(&queue, "into the void").await;
        assert_eq!(outcome, Err(PublishError::Timeout));
        assert!(took < IN_TIME, "{took:?}");
        let (outcome, took) = timed_publish(&queue, "known to be down").await;
        assert!(matches!(outcome, Err(PublishError::Down(_))), "{outcome:?}");
        assert!(took < AT_ONCE, "{took:?}");
        eventually(NOTICED, async || match queue.stats().consuming {
            link if link.connected => Err(format!("{link:?}")),
            _ => Ok(()),
        })
        .await;
        proxy.silence(way, false);
        until_up(&queue, SOON).await;
        let after = format!("after {round}");
        publish_in_the_end(&queue, &after, SOON).await;
        // The lost ones may have landed; what was confirmed must have.
        loop {
            let delivery = take(&mut consumer).await;
            let found = text(&delivery) == after;
            delivery.settle(Settle::Done).await;
            if found {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_lost_confirm_is_an_error_although_the_message_is_there() {
    let (queue, proxy) = behind_a_proxy().await;
    publish_in_the_end(&queue, "first", SOON).await;
    for forward in [true, false] {
        // Either the confirm is cut on its way back, or the publish on its way there.
        let (way, bytes) = if forward { (Way::Down, BASIC_ACK) } else { (Way::Up, BASIC_PUBLISH) };
        proxy.set_trap(Trap { way, bytes: bytes.to_vec(), forward: false });
        let (outcome, took) = timed_publish(&queue, &format!("confirm lost: {forward}")).await;
        assert!(matches!(outcome, Err(PublishError::Lost(_))), "{outcome:?}");
        assert!(outcome.unwrap_err().may_have_landed());
        assert!(took < IN_TIME, "{took:?}");
        until_up(&queue, SOON).await;
        publish_in_the_end(&queue, "next", SOON).await;
    }
    assert_eq!(proxy.trapped(), 2);
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    let mut texts = Vec::new();
    for _ in 0..4 {
        texts.push(text(&take(&mut consumer).await).to_owned());
    }
    assert_eq!(texts, ["first", "confirm lost: true", "next", "next"]);
}

#[tokio::test]
async fn a_lost_acknowledgement_means_one_more_delivery() {
    let (queue, proxy) = behind_a_proxy().await;
    let mut consumer = queue.consume(&NOTES, None, 10).await;
    publish_in_the_end(&queue, "a", SOON).await;
    let first = take(&mut consumer).await;
    let id = first.envelope.message_id;
    proxy.set_trap(Trap { way: Way::Up, bytes: BASIC_ACK.to_vec(), forward: false });
    first.settle(Settle::Done).await;
    let again = take(&mut consumer).await;
    assert_eq!((again.envelope.message_id, again.redelivered), (id, true));
    assert_eq!(proxy.trapped(), 1);
}

#[tokio::test]
async fn a_broker_that_refuses_us_is_a_reason_and_no_busy_loop() {
    let url = amqp_url().unwrap();
    let (address, _) = url.rsplit_once('/').unwrap();
    let no_such_vhost = format!("{address}/no-such-vhost");
    let wrong_password = format!("amqp://guest:wrong@{}/%2f", address.rsplit_once('@').unwrap().1);
    for url in [no_such_vhost, wrong_password] {
        let queue = Queue::open(broker(&url, &fresh_prefix())).await.unwrap();
        let QueueHealth::Down(reason) = until_health(&queue, SOON, is_down).await else { unreachable!() };
        assert!(!reason.contains("wrong"), "the password is nobody's business: {reason}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let attempts = queue.stats().publishing.attempts;
        assert!((1..=25).contains(&attempts), "{attempts} attempts in two seconds");
        assert!(matches!(queue.publisher().slot().await, Err(PublishError::Down(_))));
        queue.close(Duration::from_secs(2)).await;
    }
}

#[test]
fn an_unreadable_url_is_refused_before_anything_starts() {
    assert!(QueueUrl::parse("amqp://[", std::path::Path::new("/")).is_err());
}
