//! While the database is away, what was taken is held and tried again in place. Nothing is given up for it, and nothing
//! goes back to the broker in a loop: its delivery limit would turn an outage into dead letters.

use crate::Context;
use rand::RngExt;
use runtime::reconnect::Reconnect;
use std::future::Future;
use std::time::Duration;
use store::StoreError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Two transactions that lock each other out are run again at once; after so many times in a row something else is wrong,
/// and they wait as for a database that is away.
const CLASHES_IN_A_ROW: u32 = 20;

/// Why something was not written.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// The database was away for longer than we hold on, or this process stops: give it back.
    Away,
    /// The database was there and refused it.
    Refused(StoreError),
}

/// Runs a transaction until it is committed: again at once when two locked each other out, with growing waits while the
/// database is away. Running it twice must be harmless, for a commit that got no answer may have happened.
/// # Errors
/// See [`NotWritten`].
pub(crate) async fn patiently<T, F>(
    context: &Context,
    stop: &CancellationToken,
    mut transaction: impl FnMut() -> F,
) -> Result<T, NotWritten>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let tuning = &context.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first / 4, tuning.reconnect_most);
    let mut clashes = 0;
    let mut away_since: Option<Instant> = None;
    // A server that is suspended or cut off without a word answers nothing, its own statement timeout least of all.
    let deadline = tuning.statement_timeout * 2;
    loop {
        let outcome = match tokio::time::timeout(deadline, transaction()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::Unanswered),
        };
        let error = match outcome {
            Ok(done) => {
                if let Some(since) = away_since {
                    context.part.ready();
                    info!(after_ms = since.elapsed().as_millis(), "The database is back; what was held is written");
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        if error.is_serialization() && clashes < CLASHES_IN_A_ROW {
            clashes += 1;
            let pause = Duration::from_millis(rand::rng().random_range(0..20));
            tokio::time::sleep(pause).await;
            continue;
        }
        if !error.is_serialization() && error.is_items_fault() {
            return Err(NotWritten::Refused(error));
        }
        if away_since.is_none() {
            warn!(%error, "The database is away; holding what was taken");
            context.part.not_ready("the database is away; what was taken is held");
        }
        let since = *away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= tuning.database_patience {
            return Err(NotWritten::Away);
        }
        tokio::select! {
            () = stop.cancelled() => return Err(NotWritten::Away),
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    }
}

/// Asks until the database answers. `false`: stopped before that.
pub(crate) async fn until_back(context: &Context, stop: &CancellationToken) -> bool {
    let tuning = &context.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    loop {
        let answers = async {
            let mut tx = context.deps.store.begin().await?;
            tx.ping().await?;
            tx.rollback().await
        };
        match answers.await {
            Ok(()) => {
                context.part.ready();
                return true;
            }
            Err(error) => tracing::debug!(%error, "The database is still away"),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    }
}
