//! Large bodies that nobody needs any more. The row of a webhook goes after its time; the bytes in the object store go when
//! no row refers to them, which several may, since they are kept under their hash.
//!
//! A webhook with the same body may arrive at that very moment: its row is written long after its bytes were put and
//! perhaps only after we have looked for rows. Therefore only what was not put for longer than a webhook is kept at all,
//! and a day, is looked at, and it is deleted only if that is still so then: [`Blobs`](runtime::blobs::Blobs) makes what is
//! put again young, and lets nobody delete between finding it there and that. So whatever is deleted was last put that long
//! ago, and a frame that refers to it would have had to wait in the queue for more than the month.
//!
//! Looking at everything that is old, instead of at what the last purge let go of, also finds what a process left behind
//! that died in between, and what was put for a webhook that then could not be published and never came again.

use super::leased::{Job, JobError};
use super::retention::WEBHOOKS;
use crate::Context;
use std::collections::HashSet;
use std::time::Duration;
use store::webhook_event::referred;
use tracing::info;

/// Where ingress puts them.
const FOLDER: &str = "raw";
/// Younger objects are not looked at.
const LEAST_AGE: Duration = WEBHOOKS.saturating_add(Duration::from_secs(24 * 3600));
/// Keys asked for at once.
const AT_ONCE: usize = 500;

/// Deletes what is old and not referred to.
pub(super) struct Bodies;

impl Job for Bodies {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        let blobs = &context.deps.blobs;
        let mut deleted = 0u64;
        for keys in blobs.older_than(FOLDER, LEAST_AGE).await?.chunks(AT_ONCE) {
            let mut tx = context.deps.store.read().await?;
            let needed: HashSet<String> = referred(&mut tx, keys).await?.into_iter().collect();
            drop(tx);
            for key in keys.iter().filter(|key| !needed.contains(*key)) {
                deleted += u64::from(blobs.delete_if_older(key, LEAST_AGE).await?);
            }
        }
        if deleted > 0 {
            info!(deleted, "Deleted {deleted} large bodies that nothing refers to any more");
        }
        Ok(())
    }
}
