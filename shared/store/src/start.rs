//! What a role does before it can begin.

use crate::{Result, SchemaState, Store};
use std::time::Duration;

/// Waits for the database and its schema and until `work` has succeeded, which may be done more than once. It never gives
/// up: an outage is over when it is over, and whoever is to stop meanwhile drops it. `not_ready` is told after each attempt
/// what is missing, in words for an operator; `next_wait` says how long it is until the next one.
pub async fn when_ready<T, Work: Future<Output = Result<T>>>(
    store: &Store,
    not_ready: impl Fn(String),
    mut next_wait: impl FnMut() -> Duration,
    work: impl Fn() -> Work,
) -> T {
    loop {
        let outcome = match store.schema_state().await {
            Ok(SchemaState::Fits) => work().await.map(Ok),
            Ok(too_old @ SchemaState::TooOld { .. }) => Ok(Err(too_old)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Ok(done)) => return done,
            Ok(Err(schema)) => not_ready(schema.to_string()),
            Err(error) if error.is_transient() => not_ready("the database cannot be reached".to_owned()),
            Err(error) => not_ready(error.to_string()),
        }
        tokio::time::sleep(next_wait()).await;
    }
}
