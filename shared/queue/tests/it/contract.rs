//! The three verbs, on both backends.

use crate::support::Backend::{Embedded, RabbitMq};
use crate::support::{
    Backend, NOTES, NOWHERE, Note, SOON, eventually, note, nothing, publish, publish_in_the_end, take, text,
    until_ready,
};
use bytes::Bytes;
use domain::wire::{SendRef, SendRefs};
use domain::{AccountName, MessageId};
use queue::topics::{DEAD, OUTBOUND};
use queue::{Depth, Envelope, PublishError, Settle};
use rstest::rstest;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Long enough for a delivery that should not come.
const A_WHILE: Duration = Duration::from_millis(300);

fn account(name: &str) -> AccountName {
    name.parse().unwrap()
}

fn refs(ids: impl IntoIterator<Item = i64>) -> SendRefs {
    SendRefs { items: ids.into_iter().map(|id| SendRef { message: MessageId::new(id), generation: 0 }).collect() }
}

#[rstest]
#[tokio::test]
async fn what_was_published_is_delivered_with_everything_said_of_it(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let envelope = Envelope { attempt: 3, ..Envelope::holding(7) }.traced(Some("00-aa-bb-01".into()));
    let body = Bytes::from_static(b"text \xe2\x9c\x93");
    let before = domain::Clock::now(&domain::SystemClock::default());
    let slot = fresh.queue.publisher().slot().await.unwrap();
    slot.publish(&NOTES, None, envelope.clone(), body.clone()).await.unwrap();
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let delivery = take(&mut consumer).await;
    assert_eq!(text(&delivery), "text ✓");
    assert_eq!(delivery.raw, body);
    assert_eq!(delivery.envelope, envelope);
    assert!(!delivery.redelivered);
    assert!(delivery.published_at >= before && delivery.published_at.since(before) < SOON);
}

#[rstest]
#[case::empty(0)]
#[case::one_frame(20_000)]
#[case::a_few_frames(100_000)]
#[case::many_frames(5_000_000)]
#[tokio::test]
async fn bodies_of_any_size_arrive_whole(#[values(Embedded, RabbitMq)] backend: Backend, #[case] size: usize) {
    let fresh = backend.fresh().await;
    let body: Vec<u8> = (0..=126u8).cycle().take(size).collect();
    let slot = fresh.queue.publisher().slot().await.unwrap();
    slot.publish(&NOTES, None, Envelope::holding(1), Bytes::from(body.clone())).await.unwrap();
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    assert_eq!(take(&mut consumer).await.raw, body);
}

#[rstest]
#[tokio::test]
async fn one_publishers_messages_keep_their_order(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 100).await;
    for i in 0..50 {
        publish(&fresh.queue, i.to_string()).await;
    }
    for i in 0..50 {
        let delivery = take(&mut consumer).await;
        assert_eq!(text(&delivery), i.to_string());
        delivery.settle(Settle::Done).await;
    }
}

#[rstest]
#[tokio::test]
async fn what_is_done_never_comes_again(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    publish(&fresh.queue, "a").await;
    take(&mut consumer).await.settle(Settle::Done).await;
    drop(consumer);
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    nothing(&mut consumer, A_WHILE).await;
    assert_eq!(fresh.queue.depth(&NOTES, None).await.unwrap().ready, 0);
}

#[rstest]
#[tokio::test]
async fn what_is_unsettled_comes_again_when_its_consumer_dies(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    publish(&fresh.queue, "a").await;
    let lost = take(&mut consumer).await;
    assert!(!lost.redelivered);
    drop(consumer);
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let again = take(&mut consumer).await;
    assert_eq!((text(&again), again.redelivered), ("a", true));
    assert_eq!(again.envelope.message_id, lost.envelope.message_id);
    // A verdict from the past reaches nothing, least of all the new delivery of the same number.
    lost.settle(Settle::Done).await;
    drop(consumer);
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    assert_eq!(text(&take(&mut consumer).await), "a");
}

#[rstest]
#[tokio::test]
async fn what_is_unsettled_comes_again_after_a_restart(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    for text in ["done", "unsettled", "untouched"] {
        publish(&fresh.queue, text).await;
    }
    let mut consumer = fresh.queue.consume(&NOTES, None, 2).await;
    take(&mut consumer).await.settle(Settle::Done).await;
    let _unsettled = take(&mut consumer).await;
    let fresh = fresh.reopen().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    // What comes back has no promised place.
    let rest = [take(&mut consumer).await, take(&mut consumer).await];
    let texts: BTreeSet<&str> = rest.iter().map(text).collect();
    assert_eq!(texts, BTreeSet::from(["unsettled", "untouched"]));
    assert!(rest.iter().all(|delivery| delivery.redelivered || text(delivery) == "untouched"));
}

#[rstest]
#[case::all(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
#[case::the_oldest(&[0, 1, 2])]
#[case::the_newest(&[7, 8, 9])]
#[case::here_and_there(&[0, 1, 4, 9])]
#[tokio::test]
async fn settling_many_settles_exactly_those(#[values(Embedded, RabbitMq)] backend: Backend, #[case] which: &[usize]) {
    let fresh = backend.fresh().await;
    for i in 0..10 {
        publish(&fresh.queue, i.to_string()).await;
    }
    let mut consumer = fresh.queue.consume(&NOTES, None, 20).await;
    let (mut done, mut rest) = (Vec::new(), Vec::new());
    for i in 0..10 {
        let delivery = take(&mut consumer).await;
        if which.contains(&i) { done.push(delivery) } else { rest.push(delivery) }
    }
    consumer.settle_all(done).await;
    consumer.close(rest).await;
    until_ready(&fresh.queue, &NOTES, (10 - which.len()) as u64).await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 20).await;
    let mut left = BTreeSet::new();
    for _ in 0..10 - which.len() {
        let delivery = take(&mut consumer).await;
        left.insert(text(&delivery).parse::<usize>().unwrap());
        delivery.settle(Settle::Done).await;
    }
    let expected: BTreeSet<usize> = (0..10).filter(|i| !which.contains(i)).collect();
    assert_eq!(left, expected);
}

#[rstest]
#[tokio::test]
async fn never_more_than_the_prefetch_is_unsettled(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    for i in 0..10 {
        publish(&fresh.queue, i.to_string()).await;
    }
    let mut consumer = fresh.queue.consume(&NOTES, None, 3).await;
    let first = take(&mut consumer).await;
    let _held = (take(&mut consumer).await, take(&mut consumer).await);
    nothing(&mut consumer, A_WHILE).await;
    assert!(consumer.try_next().is_none());
    first.settle(Settle::Done).await;
    let fourth = take(&mut consumer).await;
    assert_eq!(text(&fourth), "3");
    nothing(&mut consumer, A_WHILE).await;
}

#[rstest]
#[tokio::test]
async fn a_retried_job_returns_later_with_the_next_attempt(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "a").await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 1).await;
    let first = take(&mut consumer).await;
    let (id, published_at) = (first.envelope.message_id, first.published_at);
    let since = Instant::now();
    first.settle(Settle::RetryIn(Duration::from_millis(200))).await;
    let second = take(&mut consumer).await;
    assert!(since.elapsed() >= Duration::from_millis(200), "after {:?}", since.elapsed());
    assert_eq!((second.envelope.attempt, second.envelope.message_id), (2, id));
    assert_eq!(second.published_at, published_at, "its age is its whole age");
    second.settle(Settle::Done).await;
    until_ready(&fresh.queue, &NOTES, 0).await;
    nothing(&mut consumer, A_WHILE).await;
}

#[rstest]
#[tokio::test]
async fn a_snoozed_job_returns_with_the_same_attempt(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let slot = fresh.queue.publisher().slot().await.unwrap();
    let envelope = Envelope { attempt: 3, ..Envelope::holding(1) };
    slot.publish(&NOTES, None, envelope.clone(), Bytes::from_static(b"a")).await.unwrap();
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    take(&mut consumer).await.settle(Settle::SnoozeFor(Duration::from_millis(50))).await;
    assert_eq!(take(&mut consumer).await.envelope, envelope);
}

#[rstest]
#[tokio::test]
async fn a_held_job_is_given_back_when_its_consumer_closes(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "a").await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    take(&mut consumer).await.settle(Settle::RetryIn(Duration::from_secs(30))).await;
    nothing(&mut consumer, A_WHILE).await;
    consumer.close(Vec::new()).await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let again = take(&mut consumer).await;
    assert_eq!((text(&again), again.envelope.attempt), ("a", 1));
}

#[rstest]
#[tokio::test]
async fn what_is_given_back_goes_to_another(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "a").await;
    let mut one = fresh.queue.consume(&NOTES, None, 1).await;
    let delivery = take(&mut one).await;
    let mut other = fresh.queue.consume(&NOTES, None, 1).await;
    publish(&fresh.queue, "b").await;
    assert_eq!(text(&take(&mut other).await), "b", "the one holds all it may, so the other gets the next");
    one.close(vec![delivery]).await;
    let mut third = fresh.queue.consume(&NOTES, None, 1).await;
    let delivery = take(&mut third).await;
    assert_eq!((text(&delivery), delivery.redelivered), ("a", true));
}

#[rstest]
#[tokio::test]
async fn two_consumers_share_a_queue_without_doubling(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumers = [fresh.queue.consume(&NOTES, None, 4).await, fresh.queue.consume(&NOTES, None, 4).await];
    for i in 0..40 {
        publish(&fresh.queue, i.to_string()).await;
    }
    let mut seen = Vec::new();
    let [one, other] = &mut consumers;
    while seen.len() < 40 {
        let delivery = tokio::select! {
            delivery = take(one) => delivery,
            delivery = take(other) => delivery,
        };
        seen.push(text(&delivery).parse::<u32>().unwrap());
        delivery.settle(Settle::Done).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[rstest]
#[tokio::test]
async fn a_dead_letter_keeps_its_bytes_origin_and_reason(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let body = Bytes::from_static(b"\xff\x00 not text");
    let envelope = Envelope::holding(5);
    let slot = fresh.queue.publisher().slot().await.unwrap();
    slot.publish(&NOTES, None, envelope.clone(), body.clone()).await.unwrap();
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let delivery = take(&mut consumer).await;
    let published_at = delivery.published_at;
    let reason = delivery.item.as_ref().unwrap_err().to_string();
    delivery.settle(Settle::DeadLetter { reason_code: "undecodable".into(), reason: reason.clone() }).await;

    let mut dead_letters = fresh.queue.consume(&DEAD, None, 10).await;
    let delivery = take(&mut dead_letters).await;
    let dead = delivery.item.as_ref().unwrap();
    assert_eq!((dead.origin.as_str(), dead.reason_code.as_str()), ("roost.notes", "undecodable"));
    assert_eq!((&dead.reason, &dead.body), (&reason, &body));
    assert_eq!((&dead.envelope, dead.published_at), (&envelope, published_at));
    assert!(dead.died_at >= published_at && dead.by_broker.is_none());
    assert_eq!(delivery.raw, body);
    until_ready(&fresh.queue, &NOTES, 0).await;
    assert_eq!(fresh.queue.stats().topics["roost.notes"].dead_lettered["undecodable"], 1);

    // A dead letter that must wait stays one, with all it carries.
    let before = dead.clone();
    delivery.settle(Settle::RetryIn(Duration::from_millis(20))).await;
    let again = take(&mut dead_letters).await;
    let dead = again.item.as_ref().unwrap();
    assert_eq!(dead.envelope.attempt, 2);
    assert_eq!((&dead.origin, &dead.reason, &dead.body), (&before.origin, &before.reason, &before.body));
}

#[rstest]
#[tokio::test]
async fn what_fails_again_and_again_ends_in_the_dead_letters_by_itself(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "poison").await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let mut dead_letters = fresh.queue.consume(&DEAD, None, 10).await;
    let mut deliveries = 0;
    let delivery = loop {
        tokio::select! {
            // A handler that panics drops its delivery.
            delivery = take(&mut consumer) => { deliveries += 1; drop(delivery); }
            dead = take(&mut dead_letters) => break dead,
        }
    };
    let dead = delivery.item.as_ref().unwrap();
    assert_eq!(deliveries, queue::DELIVERY_LIMIT + 1);
    assert_eq!((dead.origin.as_str(), dead.reason_code.as_str()), ("roost.notes", "delivery_limit"));
    assert_eq!(dead.body, Bytes::from_static(b"poison"));
    if backend == RabbitMq {
        assert_eq!(dead.by_broker.as_ref().unwrap().reason, "delivery_limit");
    }
}

#[rstest]
#[tokio::test]
async fn a_reference_that_fails_again_and_again_is_dropped(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let sales = account("sales");
    fresh.queue.publisher().publish(&OUTBOUND, Some(&sales), &refs([1])).await.unwrap();
    let mut consumer = fresh.queue.consume(&OUTBOUND, Some(&sales), 10).await;
    for _ in 0..=queue::DELIVERY_LIMIT {
        drop(take(&mut consumer).await);
    }
    nothing(&mut consumer, A_WHILE).await;
    assert_eq!(fresh.queue.depth(&OUTBOUND, Some(&sales)).await.unwrap().ready, 0);
    assert_eq!(fresh.queue.depth(&DEAD, None).await.unwrap().ready, 0);
}

#[rstest]
#[tokio::test]
async fn each_account_has_a_queue_of_its_own(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let (sales, support) = (account("sales"), account("support"));
    fresh.queue.publisher().publish(&OUTBOUND, Some(&sales), &refs([1, 2])).await.unwrap();
    fresh.queue.publisher().publish(&OUTBOUND, Some(&support), &refs([3])).await.unwrap();
    let mut consumer = fresh.queue.consume(&OUTBOUND, Some(&support), 10).await;
    let delivery = take(&mut consumer).await;
    assert_eq!((delivery.item.as_ref().unwrap(), delivery.envelope.count), (&refs([3]), 1));
    nothing(&mut consumer, A_WHILE).await;
    assert_eq!(fresh.queue.depth(&OUTBOUND, Some(&sales)).await.unwrap(), Depth { ready: 1, consumers: 0 });
}

#[rstest]
#[tokio::test]
async fn depth_tells_what_waits_and_who_consumes(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    assert_eq!(fresh.queue.depth(&NOTES, None).await.unwrap(), Depth::default(), "nobody has declared it yet");
    for i in 0..5 {
        publish(&fresh.queue, i.to_string()).await;
    }
    until_ready(&fresh.queue, &NOTES, 5).await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 2).await;
    let _held = take(&mut consumer).await;
    eventually(SOON, async || match fresh.queue.depth(&NOTES, None).await.unwrap() {
        Depth { ready: 3, consumers: 1 } => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[rstest]
#[tokio::test]
async fn a_paused_consumer_leaves_everything_to_others_until_it_resumes(
    #[values(Embedded, RabbitMq)] backend: Backend,
) {
    let fresh = backend.fresh().await;
    for i in 0..4 {
        publish(&fresh.queue, i.to_string()).await;
    }
    let mut consumer = fresh.queue.consume(&NOTES, None, 3).await;
    let held = take(&mut consumer).await;
    consumer.pause(vec![held]).await;
    until_ready(&fresh.queue, &NOTES, 4).await;
    nothing(&mut consumer, A_WHILE).await;
    let mut other = fresh.queue.consume(&NOTES, None, 1).await;
    take(&mut other).await.settle(Settle::Done).await;
    other.close(Vec::new()).await;
    consumer.resume().await;
    for _ in 0..3 {
        take(&mut consumer).await.settle(Settle::Done).await;
    }
    until_ready(&fresh.queue, &NOTES, 0).await;
    nothing(&mut consumer, A_WHILE).await;
}

#[rstest]
#[tokio::test]
async fn a_closed_queue_ends_its_consumers_and_refuses_publishes(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "a").await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    let _held = take(&mut consumer).await;
    let since = Instant::now();
    fresh.queue.close(SOON).await;
    assert!(since.elapsed() < Duration::from_secs(10), "closing took {:?}", since.elapsed());
    assert!(consumer.next().await.is_none());
    let publisher = fresh.queue.publisher();
    assert_eq!(publisher.publish(&NOTES, None, &note("b")).await, Err(PublishError::Closed));
    assert_eq!(publisher.slot().await.unwrap_err(), PublishError::Closed);
    assert!(!fresh.queue.health().borrow().is_up());
}

#[rstest]
#[tokio::test]
async fn a_publish_nobody_can_take_is_an_error(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let (mut asked, deadline) = (0, Instant::now() + SOON);
    let error = loop {
        asked += 1;
        let outcome = fresh.queue.publisher().publish(&NOWHERE, None, &note("a")).await;
        match outcome.expect_err("nobody can take it, so nobody has") {
            // A broker whose disk is busy answers nothing in time, and the connection may be given up over it: that is no
            // answer yet, and an error too.
            error if is_no_answer(&error) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            error => break error,
        }
    };
    assert!(matches!(error, PublishError::Returned(_)), "{error:?}");
    assert!(!error.may_have_landed());
    // The channel is as good as before.
    publish_in_the_end(&fresh.queue, "b", SOON).await;
    let stats = fresh.queue.stats();
    assert_eq!((stats.topics["roost.nowhere"].failed, stats.topics["roost.notes"].confirmed), (asked, 1));
    assert_eq!(stats.topics["roost.nowhere"].confirmed, 0);
}

/// Whether a publish ended before the broker said anything of it.
fn is_no_answer(error: &PublishError) -> bool {
    matches!(error, PublishError::Timeout | PublishError::Lost(_) | PublishError::Down(_))
}

#[rstest]
#[tokio::test]
async fn there_are_four_slots_and_an_unused_one_is_free_again(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let publisher = fresh.queue.publisher();
    let mut slots = Vec::new();
    for _ in 0..queue::SLOTS {
        slots.push(publisher.slot().await.unwrap());
    }
    let fifth = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.slot().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!fifth.is_finished());
    drop(slots.pop());
    let fifth = fifth.await.unwrap().unwrap();
    fifth.publish(&NOTES, None, Envelope::holding(1), Bytes::from_static(b"a")).await.unwrap();
    for slot in slots {
        slot.publish(&NOTES, None, Envelope::holding(1), Bytes::from_static(b"b")).await.unwrap();
    }
    until_ready(&fresh.queue, &NOTES, 4).await;
}

#[rstest]
#[tokio::test]
async fn nobody_waits_for_a_slot_beyond_the_deadline(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let publisher = fresh.queue.publisher();
    let mut slots = Vec::new();
    for _ in 0..queue::SLOTS {
        slots.push(publisher.slot().await.unwrap());
    }
    let since = Instant::now();
    assert_eq!(publisher.slot().await.unwrap_err(), PublishError::Timeout);
    assert!(since.elapsed() < queue::CONFIRM_DEADLINE + Duration::from_secs(1), "{:?}", since.elapsed());
}

#[rstest]
#[tokio::test]
async fn a_publish_whose_caller_went_away_does_not_disturb_the_next(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    publish(&fresh.queue, "first").await;
    for i in 0..50 {
        let publisher = fresh.queue.publisher();
        let (gone, stays) = (note(format!("gone {i}")), note(format!("stays {i}")));
        let abandoned =
            tokio::time::timeout(Duration::from_micros(200), publisher.publish(&NOWHERE, None, &gone)).await;
        assert!(!matches!(abandoned, Ok(Ok(()))), "unroutable and confirmed");
        publisher.publish(&NOTES, None, &stays).await.unwrap();
    }
    until_ready(&fresh.queue, &NOTES, 51).await;
}

#[rstest]
#[tokio::test]
async fn the_counters_tell_what_happened(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    for text in ["done", "retry", "give back"] {
        publish(&fresh.queue, text).await;
    }
    take(&mut consumer).await.settle(Settle::Done).await;
    take(&mut consumer).await.settle(Settle::RetryIn(Duration::ZERO)).await;
    take(&mut consumer).await.settle(Settle::GiveBack).await;
    let _two = (take(&mut consumer).await, take(&mut consumer).await);
    // On RabbitMQ a retry is a publish like any other. Its delivery may be faster than its confirm, and than the end of
    // the original, on either backend.
    let publishes = 3 + u64::from(backend == RabbitMq);
    eventually(SOON, async || {
        let stats = fresh.queue.stats().topics["roost.notes"].clone();
        if (stats.confirmed, stats.unacked) == (publishes, 2) { Ok(()) } else { Err(format!("{stats:?}")) }
    })
    .await;
    let stats = fresh.queue.stats().topics["roost.notes"].clone();
    assert_eq!((stats.published, stats.failed), (publishes, 0));
    assert_eq!((stats.delivered, stats.redelivered), (5, 1));
    assert_eq!((stats.done, stats.retried, stats.given_back, stats.undecodable), (1, 1, 1, 0));
    assert!(stats.last_age.unwrap() < SOON);
}

#[rstest]
#[tokio::test]
async fn a_consumer_that_waits_is_woken_at_once(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    publish(&fresh.queue, "warm up").await;
    take(&mut consumer).await.settle(Settle::Done).await;
    let mut slowest = Duration::ZERO;
    for i in 0..20 {
        publish(&fresh.queue, i.to_string()).await;
        let since = Instant::now();
        take(&mut consumer).await.settle(Settle::Done).await;
        slowest = slowest.max(since.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[rstest]
#[tokio::test]
async fn what_a_waiting_task_does_not_take_stays_for_the_next_call(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let mut consumer = fresh.queue.consume(&NOTES, None, 10).await;
    for _ in 0..20 {
        let _ = tokio::time::timeout(Duration::from_micros(50), consumer.next()).await.map(|_| panic!("too early"));
    }
    publish(&fresh.queue, "a").await;
    assert_eq!(take(&mut consumer).await.item, Ok(Note("a".into())));
}
