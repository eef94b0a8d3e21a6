//! Many at once, and when the queue cannot take them.

use crate::harness::start;
use runtime::config::Tuning;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[tokio::test]
async fn what_waits_together_is_published_together_and_answered_each() {
    let harness = Arc::new(start(Tuning::default()).await);
    let posts: Vec<_> = (0..200)
        .map(|n| {
            let harness = harness.clone();
            tokio::spawn(async move { harness.signed(format!("{{\"n\":{n}}}").as_bytes()).await.status })
        })
        .collect();
    for post in posts {
        assert_eq!(post.await.unwrap(), 200);
    }
    let (webhooks, messages) = harness.kept(200).await;
    assert_eq!(webhooks.len(), 200);
    assert!(messages < 200, "{messages} messages for 200 webhooks: nothing was batched");
    let ids: std::collections::HashSet<_> = webhooks.iter().map(|webhook| webhook.head.request_id).collect();
    assert_eq!(ids.len(), 200);
}

#[tokio::test]
async fn a_batch_keeps_its_limits() {
    let tuning = Tuning { ingress_batch: 10, ..Tuning::default() };
    let harness = Arc::new(start(tuning).await);
    let posts: Vec<_> = (0..60)
        .map(|n| {
            let harness = harness.clone();
            tokio::spawn(async move { harness.signed(format!("{{\"n\":{n}}}").as_bytes()).await.status })
        })
        .collect();
    for post in posts {
        assert_eq!(post.await.unwrap(), 200);
    }
    let (_, messages) = harness.kept(60).await;
    assert!(messages >= 6, "{messages}");
}

#[tokio::test]
async fn without_a_queue_the_answer_is_503_at_once_and_never_2xx() {
    let harness = start(Tuning::default()).await;
    harness.queue.close(Duration::from_secs(1)).await;
    let begun = Instant::now();
    let answer = harness.signed(b"{}").await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: "), "{}", answer.head);
    assert!(begun.elapsed() < Duration::from_secs(2));
    let counted = harness.metrics.render();
    assert!(counted.lines().any(|line| line.contains(r#"outcome="stopping""#) && line.ends_with(" 1")), "{counted}");
}

#[tokio::test]
async fn what_was_handed_over_before_the_stop_is_still_published() {
    let harness = Arc::new(start(Tuning::default()).await);
    let posts: Vec<_> = (0..50)
        .map(|n| {
            let harness = harness.clone();
            tokio::spawn(async move { harness.signed(format!("{{\"n\":{n}}}").as_bytes()).await.status })
        })
        .collect();
    tokio::task::yield_now().await;
    harness.stop.cancel();
    let mut kept = 0;
    for post in posts {
        // 200: kept. Anything else: the provider comes again.
        kept += usize::from(post.await.unwrap() == 200);
    }
    harness.intake.close();
    harness.intake.wait().await;
    if kept > 0 {
        assert!(harness.kept(kept).await.0.len() >= kept);
    }
}
