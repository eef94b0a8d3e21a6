//! Jobs about lanes: dispatch, schedules, deadlines, leases that ran out.

use super::leased::{Job, JobError};
use crate::Context;
use domain::wire::{SendEvent, SendResults};
use domain::{AccountId, MessageId};
use queue::topics::RESULTS;
use std::collections::HashMap;
use std::time::Duration;
use store::send;
use tokio::time::Instant;
use tracing::{info, warn};

/// Rows that one turn changes at most; what is left follows at the next.
const AT_ONCE: i64 = 500;
/// An expired lease that was reported is not reported again for so long: its report waits its turn in the queue.
const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Reports in one queue message.
const REPORTS_PER_MESSAGE: usize = 256;

/// Dispatches whatever is due and was missed by a kick: retries above all.
pub(super) struct Sweep;

impl Job for Sweep {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        context.deps.dispatcher.sweep().await?;
        Ok(())
    }
}

/// Publishes references again that nobody took.
pub(super) struct Republish;

impl Job for Republish {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        context.deps.dispatcher.republish(context.deps.tuning.redispatch).await?;
        Ok(())
    }
}

/// Lets scheduled sends enter their lanes when their time has come.
pub(super) struct FallDue;

impl Job for FallDue {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let mut tx = context.deps.store.begin().await?;
        let now = tx.database_now().await?;
        let accounts: Vec<AccountId> = send::fall_due(&mut tx, now, AT_ONCE).await?;
        tx.commit().await?;
        context.deps.dispatcher.kick(&accounts);
        Ok(())
    }
}

/// Gives up sends whose deadline has passed while they waited.
pub(super) struct Deadlines;

impl Job for Deadlines {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let mut tx = context.deps.store.begin().await?;
        let database_now = tx.database_now().await?;
        let expired = send::expire(&mut tx, database_now, context.deps.clock.now(), AT_ONCE).await?;
        tx.commit().await?;
        if !expired.is_empty() {
            info!(count = expired.len(), "{} sends could not go before their deadline", expired.len());
            context.deps.store.wake_readers();
            let accounts: Vec<AccountId> = expired.iter().map(|row| row.channel_account_id).collect();
            context.deps.dispatcher.kick(&accounts);
        }
        Ok(())
    }
}

/// Reports leases that ran out, through the queue in which their senders' own reports may still wait.
#[derive(Default)]
pub(super) struct Leases {
    reported: HashMap<(MessageId, String), Instant>,
}

impl Job for Leases {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        self.reported.retain(|_, at| at.elapsed() < REPORT_AGAIN_AFTER);
        let mut tx = context.deps.store.read().await?;
        let now = tx.database_now().await?;
        let mut expired = send::expired_leases(&mut tx, now, AT_ONCE).await?;
        drop(tx);
        expired.retain(|lease| !self.reported.contains_key(&(lease.message_id, lease.lease_token.clone())));
        let at = context.deps.clock.now();
        for chunk in expired.chunks(REPORTS_PER_MESSAGE) {
            let items = chunk.iter().map(|lease| SendEvent::LeaseExpired {
                message: lease.message_id,
                account: lease.channel_account_id,
                generation: lease.generation,
                attempt: lease.attempt,
                lease_token: lease.lease_token.clone(),
                at,
            });
            let results = SendResults { items: items.collect() };
            context.deps.queue.publisher().publish(&RESULTS, None, &results).await?;
            warn!(
                count = chunk.len(),
                "{} claims ran out without a report; looking for the provider's evidence",
                chunk.len()
            );
            let reported = chunk.iter().map(|lease| ((lease.message_id, lease.lease_token.clone()), Instant::now()));
            self.reported.extend(reported);
        }
        Ok(())
    }
}
