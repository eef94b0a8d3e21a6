//! While the database or the object store is away, what was taken is held and tried again in place. Nothing is given up for
//! it, and nothing goes back to the broker in a loop: its delivery limit would turn an outage into dead letters.

use crate::Context;
use crate::batch::RawBody;
use crate::progress::holds_for;
use rand::RngExt;
use runtime::blobs::BlobError;
use runtime::health::Part;
use runtime::reconnect::Reconnect;
use std::future::Future;
use std::time::Duration;
use store::StoreError;
use store::heartbeat::LIVES_FOR;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Two transactions that lock each other out are run again at once; after so many times in a row something else is wrong,
/// and they wait as for a database that is away.
const CLASHES_IN_A_ROW: u32 = 20;

/// Whether the object store answers is asked with this key, under which there is nothing.
const NOTHING: &str = "raw/nothing";

/// What can be away, each with a say of its own: the return of one says nothing of the other.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    database: Part,
    object_store: Part,
}

impl Needs {
    pub(crate) fn of(part: &Part) -> Self {
        Self { database: part.cause("database"), object_store: part.cause("object store") }
    }

    fn database_away(&self) {
        self.database.not_ready("the database is away; what was taken is held");
    }

    fn object_store_away(&self) {
        self.object_store.not_ready("the object store is away; what was taken is held");
    }
}

/// What is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Away {
    Database,
    ObjectStore,
}

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
///
/// Patience is counted from the beginning of the first try that found the database away, and ends at the latest when the
/// others stop to count on what we hold, which is a while after the last beat that reached them.
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
    let patience_ends = || context.progress.last_beat() + holds_for(tuning);
    loop {
        let begun = Instant::now();
        // Each statement has a deadline of its own; all of them together have this one.
        let by = patience_ends().max(begun) + LIVES_FOR / 2;
        let outcome = match tokio::time::timeout_at(by, transaction()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::Unanswered),
        };
        let error = match outcome {
            Ok(done) => {
                // Whoever said that it is away may have been dropped meanwhile.
                context.needs.database.ready();
                if let Some(since) = away_since {
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
            // Whoever refuses is there.
            context.needs.database.ready();
            return Err(NotWritten::Refused(error));
        }
        if away_since.is_none() {
            warn!(%error, "The database is away; holding what was taken");
        }
        // Each time: another loop may have found it back in between.
        context.needs.database_away();
        let since = *away_since.get_or_insert(begun);
        if since.elapsed() >= tuning.database_patience || Instant::now() >= patience_ends() {
            return Err(NotWritten::Away);
        }
        tokio::select! {
            () = stop.cancelled() => return Err(NotWritten::Away),
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    }
}

/// Reads a webhook's body from the object store, and holds on while that is away.
/// # Errors
/// It was away for longer than we hold on, or this process stops: give back what was taken.
pub(crate) async fn body(context: &Context, stop: &CancellationToken, key: &str) -> Result<RawBody, Away> {
    let tuning = &context.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    let mut away_since: Option<Instant> = None;
    let body = loop {
        let lost = |class: &'static str, reason: String| RawBody::Lost { key: key.to_owned(), class, reason };
        let error = match context.deps.blobs.get(key).await {
            Ok(bytes) => break RawBody::Fetched { key: key.to_owned(), bytes },
            Err(BlobError::Missing(_)) => break lost("BODY_MISSING", "it is not there".to_owned()),
            Err(error @ BlobError::BadKey(_)) => break lost("BODY_UNREADABLE", error.to_string()),
            Err(error @ BlobError::Io(_)) => error,
        };
        if away_since.is_none() {
            warn!(%error, "A body cannot be read from the object store; holding what was taken");
        }
        context.needs.object_store_away();
        if away_since.get_or_insert_with(Instant::now).elapsed() >= tuning.database_patience {
            // One object that cannot be read, while others can, must not stand in everybody's way.
            if object_store_answers(context).await {
                break lost("BODY_UNREADABLE", error.to_string());
            }
            return Err(Away::ObjectStore);
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Away::ObjectStore),
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    };
    context.needs.object_store.ready();
    if let Some(since) = away_since {
        info!(after_ms = since.elapsed().as_millis(), "What was held for the object store goes on");
    }
    Ok(body)
}

async fn object_store_answers(context: &Context) -> bool {
    !matches!(context.deps.blobs.get(NOTHING).await, Err(BlobError::Io(_)))
}

/// Asks until the object store answers. `false`: stopped before that.
pub(crate) async fn until_object_store_back(context: &Context, stop: &CancellationToken) -> bool {
    let tuning = &context.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    while !object_store_answers(context).await {
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    }
    context.needs.object_store.ready();
    true
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
                context.needs.database.ready();
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
