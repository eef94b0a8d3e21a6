//! Pauses that end by themselves.

use super::leased::{Job, JobError};
use crate::Context;
use domain::AccountId;
use store::account;
use tracing::info;

/// Ends pauses whose time is over.
pub(super) struct Pauses;

impl Job for Pauses {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let mut tx = context.deps.store.begin().await?;
        let ended = account::end_pauses(&mut tx, context.deps.clock.now()).await?;
        tx.commit().await?;
        if ended > 0 {
            info!(count = ended, "{ended} accounts go on after their pause");
            let all: Vec<AccountId> = context.accounts.iter().map(|(id, _)| id).collect();
            context.deps.dispatcher.kick(&all);
        }
        Ok(())
    }
}
