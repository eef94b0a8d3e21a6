//! Plays what surrounds a sender: dispatches due heads, and writes down what is reported.

use domain::wire::{SendEvent, SendRefs, SendResults};
use domain::{AccountId, AccountName};
use queue::topics::{OUTBOUND, RESULTS};
use queue::{Queue, Settle};
use std::time::Duration;
use store::result::{self, Pace, Times};
use store::{Store, StoreError, send};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Waits between attempts, as a part of the real ones: 5 s become 50 ms.
const SCALE: f64 = 0.01;

/// Ends when dropped.
pub(crate) struct Office {
    _tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Drop for Office {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Office {
    pub(crate) fn open(store: &Store, queue: &Queue) -> Office {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(write_results(store.clone(), queue.clone()));
        tasks.spawn(dispatch_what_is_due(store.clone(), queue.clone(), stop.clone()));
        Office { _tasks: tasks, stop }
    }
}

async fn write_results(store: Store, queue: Queue) {
    let mut results = queue.consume(&RESULTS, None, 32).await;
    while let Some(delivery) = results.next().await {
        let reports = delivery.item.as_ref().unwrap().items.clone();
        while let Err(error) = apply(&store, &reports).await {
            assert!(error.is_transient() || error.is_serialization(), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        delivery.settle(Settle::Done).await;
    }
}

async fn apply(store: &Store, reports: &[SendEvent]) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    let now = tx.database_now().await?;
    let pace = Pace { scale: SCALE, random: || 0.5 };
    result::apply(&mut tx, reports, Times { now, database_now: now }, pace).await?;
    tx.commit().await
}

async fn dispatch_what_is_due(store: Store, queue: Queue, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // An outage is a matter for the next turn.
        let _ = turn(&store, &queue).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn turn(store: &Store, queue: &Queue) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    let now = tx.database_now().await?;
    send::fall_due(&mut tx, now, 100).await?;
    let mut due: Vec<(AccountId, AccountName, i64)> = Vec::new();
    for room in send::rooms(&mut tx, None, now).await? {
        due.push((room.account, room.name.parse().unwrap(), send::window(room.rate) - room.dispatched));
    }
    let mut dispatched = Vec::new();
    for (account, name, room) in due {
        dispatched.push((name, send::dispatch(&mut tx, account, room, now).await?));
    }
    tx.commit().await?;
    for (name, refs) in dispatched {
        for chunk in refs.chunks(16) {
            let message = SendRefs { items: chunk.to_vec() };
            if queue.publisher().publish(&OUTBOUND, Some(&name), &message).await.is_err() {
                let mut tx = store.begin().await?;
                let messages: Vec<_> = chunk.iter().map(|one| one.message).collect();
                send::set_back(&mut tx, &messages, now).await?;
                tx.commit().await?;
            }
        }
    }
    // A claim whose sender fell silent: what the keeper would report.
    let mut tx = store.read().await?;
    let expired = send::expired_leases(&mut tx, now, 100).await?;
    drop(tx);
    let items: Vec<SendEvent> = expired
        .into_iter()
        .map(|lease| SendEvent::LeaseExpired {
            message: lease.message_id,
            account: lease.channel_account_id,
            generation: lease.generation,
            attempt: lease.attempt,
            lease_token: lease.lease_token,
            at: now,
        })
        .collect();
    if !items.is_empty() {
        let _ = queue.publisher().publish(&RESULTS, None, &SendResults { items }).await;
    }
    Ok(())
}
