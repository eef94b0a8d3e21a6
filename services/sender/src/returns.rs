//! Claims that were not called go back to the lane, many in one statement. What cannot be given back because the database
//! is away ends by its lease.

use crate::Shared;
use crate::desk::Taken;
use domain::AccountId;
use runtime::reconnect::Reconnect;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use store::{Store, StoreError, send};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

/// A claim to be given back.
#[derive(Debug)]
pub(crate) struct Return {
    /// The lease's token.
    pub(crate) token: Arc<str>,
    /// The reference it came by.
    pub(crate) taken: Taken,
    /// Its account.
    pub(crate) account: AccountId,
}

/// Gives back what comes in, until the last sender of `incoming` is gone.
pub(crate) async fn run(shared: Arc<Shared>, mut incoming: mpsc::UnboundedReceiver<Return>) {
    while let Some(first) = incoming.recv().await {
        // What happens together is given back together.
        tokio::time::sleep(shared.deps.tuning.sender_linger).await;
        let mut batch = vec![first];
        while let Ok(next) = incoming.try_recv() {
            batch.push(next);
        }
        give_back(&shared, batch).await;
    }
}

async fn give_back(shared: &Shared, batch: Vec<Return>) {
    let mut by_token: HashMap<Arc<str>, Vec<Taken>> = HashMap::new();
    for Return { token, taken, account } in batch {
        debug!(message.id = %taken.message, account.id = %account, "Message {} was claimed and not called: back to its lane", taken.message);
        by_token.entry(token).or_default().push(taken);
    }
    let given_up_at = Instant::now() + shared.deps.tuning.lease;
    let mut waits = Reconnect::new(Duration::from_millis(50), Duration::from_secs(2));
    for (token, taken) in by_token {
        let messages: Vec<_> = taken.iter().map(|one| one.message).collect();
        loop {
            let error = match once(&shared.deps.store, &token, &messages).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if Instant::now() >= given_up_at || !(error.is_transient() || error.is_serialization()) {
                warn!(%error, count = messages.len(), "{} claims could not be given back; their leases end them", messages.len());
                break;
            }
            tokio::time::sleep(waits.next_wait()).await;
        }
        shared.returning.fetch_sub(taken.len(), Ordering::Relaxed);
        taken.into_iter().for_each(Taken::done);
    }
}

async fn once(store: &Store, token: &str, messages: &[domain::MessageId]) -> Result<(), StoreError> {
    let mut tx = store.autocommit().await?;
    send::give_back(&mut tx, token, messages).await?;
    tx.commit().await
}
