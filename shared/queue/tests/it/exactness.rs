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

/// What the publishers were told.
#[derive(Default)]
struct Answers {
    confirmed: HashSet<u64>,
    returned: HashSet<u64>,
    /// No answer in time, which is an error and no misattribution; the message may be there.
    unsure: HashSet<u64>,
    other: Vec<String>,
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_100_000_mixed_publishes_no_confirm_goes_to_another(#[values(Embedded, RabbitMq)] backend: Backend) {
    let fresh = backend.fresh().await;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(publish_mixed(fresh.queue.clone(), next.clone()));
    }
    let mut answers = Answers::default();
    while let Some(of_one) = tasks.join_next().await {
        let Answers { confirmed, returned, unsure, other } = of_one.unwrap();
        answers.confirmed.extend(confirmed);
        answers.returned.extend(returned);
        answers.unsure.extend(unsure);
        answers.other.extend(other);
    }
    let swapped = answers.confirmed.iter().filter(|number| !is_routable(**number)).count();
    let slandered = answers.returned.iter().filter(|number| is_routable(**number)).count();
    assert_eq!((swapped, slandered), (0, 0), "unroutable and confirmed, routable and returned");
    assert!(answers.other.is_empty(), "{:?}", answers.other);
    assert!(answers.unsure.len() < 1_000, "too slow to say anything: {} without an answer", answers.unsure.len());

    let mut consumer = fresh.queue.consume(&NOTES, None, 1_000).await;
    let mut missing = answers.confirmed.clone();
    let mut seen = HashSet::new();
    while !missing.is_empty() {
        let mut batch = vec![take(&mut consumer).await];
        while let Some(delivery) = consumer.try_next() {
            batch.push(delivery);
        }
        for delivery in &batch {
            let Note(number) = delivery.item.as_ref().unwrap();
            let number = number.parse().unwrap();
            missing.remove(&number);
            assert!(is_routable(number) && !answers.returned.contains(&number));
            assert!(seen.insert(number) || delivery.redelivered, "{number} came twice");
        }
        consumer.settle_all(batch).await;
    }
    let stats = fresh.queue.stats();
    assert_eq!(
        stats.topics["roost.notes"].confirmed + stats.topics["roost.nowhere"].confirmed,
        answers.confirmed.len() as u64
    );
    fresh.queue.close(SOON).await;
}

/// Irregular, so that neighbours differ in every combination.
fn is_routable(number: u64) -> bool {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0
}

async fn publish_mixed(queue: Queue, next: Arc<AtomicU64>) -> Answers {
    let publisher = queue.publisher();
    let mut answers = Answers::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= PUBLISHES {
            return answers;
        }
        let body = Bytes::from(number.to_string());
        let topic = if is_routable(number) { &NOTES } else { &NOWHERE };
        let outcome = match publisher.slot().await {
            Ok(slot) => slot.publish(topic, None, Envelope::holding(1), body).await,
            Err(error) => Err(error),
        };
        let whose = match outcome {
            Ok(()) => &mut answers.confirmed,
            Err(PublishError::Returned(_)) => &mut answers.returned,
            // A broker that is busy with others for two seconds.
            Err(PublishError::Timeout | PublishError::Lost(_) | PublishError::Down(_)) => &mut answers.unsure,
            Err(error) => {
                answers.other.push(format!("{number}: {error}"));
                continue;
            }
        };
        whose.insert(number);
    }
}
