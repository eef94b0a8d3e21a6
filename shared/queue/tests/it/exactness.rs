//! Whose confirm is it: many publishes at once, half of them unroutable, and every answer must be the right one.

use crate::support::Backend::{Embedded, RabbitMq};
use crate::support::{Backend, NOTES, NOWHERE, Note, SOON, take};
use bytes::Bytes;
use queue::{Envelope, PublishError, Queue};
use rstest::rstest;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PUBLISHES: u64 = 100_000;
/// More than there are slots, so that every slot is always taken.
const TASKS: u64 = 16;

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_100_000_mixed_publishes_no_confirm_goes_to_another(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(publish_mixed(fresh.queue.clone(), next.clone()));
    }
    let mut wrong = Vec::new();
    while let Some(outcome) = tasks.join_next().await {
        wrong.extend(outcome.unwrap());
    }
    assert!(wrong.is_empty(), "{} of {PUBLISHES}: {:?}", wrong.len(), wrong.iter().take(5).collect::<Vec<_>>());

    let mut consumer = fresh.queue.consume(&NOTES, None, 1_000).await;
    let expected = (0..PUBLISHES).filter(|number| is_routable(*number)).count();
    let mut seen = HashSet::new();
    while seen.len() < expected {
        let mut batch = vec![take(&mut consumer).await];
        while let Some(delivery) = consumer.try_next() {
            batch.push(delivery);
        }
        for delivery in &batch {
            let Note(number) = delivery.item.as_ref().unwrap();
            assert!(seen.insert(number.parse::<u64>().unwrap()), "{number} came twice");
        }
        consumer.settle_all(batch).await;
    }
    assert!(seen.iter().all(|number| is_routable(*number)));
    let stats = fresh.queue.stats();
    assert_eq!(stats.topics["roost.notes"].confirmed, expected as u64);
    assert_eq!(stats.topics["roost.nowhere"].failed, PUBLISHES - expected as u64);
    fresh.queue.close(SOON).await;
}

/// Irregular, so that neighbours differ in every combination.
fn is_routable(number: u64) -> bool {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0
}

async fn publish_mixed(queue: Queue, next: Arc<AtomicU64>) -> Vec<String> {
    let publisher = queue.publisher();
    let mut wrong = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= PUBLISHES {
            return wrong;
        }
        let body = Bytes::from(number.to_string());
        let topic = if is_routable(number) { &NOTES } else { &NOWHERE };
        let outcome = match publisher.slot().await {
            Ok(slot) => slot.publish(topic, None, Envelope::holding(1), body).await,
            Err(error) => Err(error),
        };
        match (is_routable(number), outcome) {
            (true, Ok(())) | (false, Err(PublishError::Returned(_))) => {}
            (routable, outcome) => wrong.push(format!("{number}, routable {routable}: {outcome:?}")),
        }
    }
}
