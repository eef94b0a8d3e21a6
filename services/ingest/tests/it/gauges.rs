//! What operators see of what waits.

use crate::sends::Office;
use crate::support::{DEADLINE, Stack, World};
use domain::wire::{SendRef, SendRefs};
use queue::topics::OUTBOUND;
use rstest::rstest;
use std::time::Duration;

/// The value of a series as `/metrics` shows it.
fn shown(world: &World, series: &str) -> Option<f64> {
    let text = world.metrics.render();
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// A series and what is right for it.
type Wanted = (&'static str, fn(f64) -> bool);

/// Waits until each series shows a value that is right.
async fn until_shown(world: &World, wanted: &[Wanted]) {
    let wrong = || -> Vec<_> {
        let of = |series: &str| (series.to_owned(), shown(world, series));
        wanted.iter().filter(|(series, right)| !shown(world, series).is_some_and(right)).map(|(s, _)| of(s)).collect()
    };
    let right = async {
        while !wrong().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, right).await.is_ok(), "{:?}", wrong());
}

#[rstest]
#[tokio::test]
async fn what_waits_is_shown_by_state_by_account_and_by_queue(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let office = Office::of(&world, 4).await;
    office.accept(&world, 0).await;
    office.claim(&world, "t", Duration::from_secs(600)).await;
    // Behind the one in flight, and no head of its lane.
    office.accept(&world, 0).await;
    for conversation in [1, 2] {
        office.accept(&world, conversation).await;
    }
    let bulk = office.accept_as(&world, 2, |new| store::accept::NewSend { bulk: true, ..new }).await;
    office
        .accept_as(&world, 3, |mut new| {
            new.send_at = Some(new.now + Duration::from_secs(365 * 24 * 3600));
            new
        })
        .await;
    world.run("UPDATE channel_accounts SET status = 'PAUSED'").await;
    // The oldest is one of a broadcast.
    match stack {
        Stack::SqliteEmbedded => world.run("UPDATE sends SET due_at = due_at - 300000000 WHERE bulk").await,
        Stack::PostgresRabbitMq => {
            world.run("UPDATE sends SET due_at = due_at - interval '300 seconds' WHERE bulk").await;
        }
    }
    let name = "sales".parse().unwrap();
    let refs = SendRefs { items: vec![SendRef { message: bulk, generation: 0 }] };
    world.publish_for(&OUTBOUND, Some(&name), &refs).await;

    let ingest = world.start("a");
    until_shown(
        &world,
        &[
            (r#"roost_sends{state="WAITING"}"#, |n| n == 4.0),
            (r#"roost_sends{state="IN_FLIGHT"}"#, |n| n == 1.0),
            (r#"roost_sends{state="SCHEDULED"}"#, |n| n == 1.0),
            (r#"roost_sends{state="HELD"}"#, |n| n == 0.0),
            (r#"roost_lane_heads_waiting{account="sales"}"#, |n| n == 2.0),
            (r#"roost_sends_oldest_due_age_seconds{account="sales"}"#, |age| (300.0..400.0).contains(&age)),
            (r#"roost_account_paused{account="sales",reason="paused"}"#, |n| n == 1.0),
            (r#"roost_queue_depth{queue="roost.outbound.sales"}"#, |n| n == 1.0),
            (r#"roost_queue_depth{queue="roost.webhooks"}"#, |n| n == 0.0),
            (r#"roost_queue_depth{queue="roost.results"}"#, |n| n == 0.0),
            (r#"roost_queue_depth{queue="roost.dead"}"#, |n| n == 0.0),
        ],
    )
    .await;
    ingest.stopped().await;

    // Gone, and shown as gone.
    world.run("DELETE FROM sends WHERE state = 'WAITING'").await;
    world.run("UPDATE channel_accounts SET status = 'ACTIVE'").await;
    let mut consumer = world.queue.consume(&OUTBOUND, Some(&name), 1).await;
    let taken = tokio::time::timeout(DEADLINE, consumer.next()).await.expect("it was published").unwrap();
    taken.settle(queue::Settle::Done).await;
    let ingest = world.start("b");
    until_shown(
        &world,
        &[
            (r#"roost_sends{state="WAITING"}"#, |n| n == 0.0),
            (r#"roost_sends{state="IN_FLIGHT"}"#, |n| n == 1.0),
            (r#"roost_lane_heads_waiting{account="sales"}"#, |n| n == 0.0),
            (r#"roost_sends_oldest_due_age_seconds{account="sales"}"#, |age| age == 0.0),
            (r#"roost_queue_depth{queue="roost.outbound.sales"}"#, |n| n == 0.0),
        ],
    )
    .await;
    assert_eq!(shown(&world, r#"roost_account_paused{account="sales",reason="paused"}"#), None);
    ingest.stopped().await;
}
