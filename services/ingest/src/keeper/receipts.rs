//! Receipts that wait for an id: whoever learnt it looks once more after its commit, and should that process have died in
//! between, this job does. What waits for the end of a call is the evidence job's.

use super::leased::{Job, JobError};
use super::retention;
use crate::Context;
use domain::AccountId;
use store::receipt;
use tracing::info;

/// Receipts applied in one turn.
const AT_ONCE: i64 = 500;

/// Looks for parked receipts whose message is known by now.
pub(super) struct Parked;

impl Job for Parked {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let now = context.deps.clock.now();
        let mut tx = context.deps.store.begin().await?;
        let found = receipt::second_look_at_all(&mut tx, now - retention::PARKED, AT_ONCE, now).await?;
        tx.commit().await?;
        if !found.applied.is_empty() {
            info!(count = found.applied.len(), "Receipts of {} messages had waited for them", found.applied.len());
            context.deps.store.wake_readers();
            let settled = found.applied.iter().filter(|one| one.settled);
            let accounts: Vec<AccountId> = settled.map(|one| one.account).collect();
            context.deps.dispatcher.kick(&accounts);
        }
        Ok(())
    }
}
