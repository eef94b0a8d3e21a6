//! What is kept for a time only.

use super::leased::{Job, JobError};
use crate::Context;
use std::time::Duration;
use store::retention::{purge_feed, purge_parked, purge_webhooks};
use tracing::info;

/// How far back a reader of the change feed may go on from.
const FEED: Duration = Duration::from_secs(72 * 3600);
/// How long raw webhooks can be replayed.
pub(super) const WEBHOOKS: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a receipt waits for a message of ours; after that it was never about one.
pub(super) const PARKED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Transactions of one turn.
const MOST_ROUNDS: usize = 200;

/// Forgets what is too old.
pub(super) struct Retention;

impl Job for Retention {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let now = context.deps.clock.now();
        let (mut changes, mut webhooks, mut receipts) = (0, 0, 0);
        for _ in 0..MOST_ROUNDS {
            let mut tx = context.deps.store.begin().await?;
            let gone = purge_feed(&mut tx, now - FEED).await?;
            tx.commit().await?;
            changes += gone;
            if gone == 0 {
                break;
            }
        }
        for _ in 0..MOST_ROUNDS {
            let mut tx = context.deps.store.begin().await?;
            let gone = purge_webhooks(&mut tx, now - WEBHOOKS).await?;
            tx.commit().await?;
            webhooks += gone;
            if gone == 0 {
                break;
            }
        }
        for _ in 0..MOST_ROUNDS {
            let mut tx = context.deps.store.begin().await?;
            let gone = purge_parked(&mut tx, now - PARKED).await?;
            tx.commit().await?;
            receipts += gone;
            if gone == 0 {
                break;
            }
        }
        if changes + webhooks + receipts > 0 {
            info!(
                changes,
                webhooks,
                receipts,
                "Forgot {changes} changes, {webhooks} raw webhooks and {receipts} receipts of nobody's that were too old"
            );
        }
        Ok(())
    }
}
