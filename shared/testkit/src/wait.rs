//! Waiting for something to become true, with a deadline that only a broken system reaches.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How often a condition that nothing announces is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Asks `condition` until it answers; the error names `what` was waited for.
/// # Errors
/// After `within`, or at once when `condition` itself fails for good.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {within:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// As [`until`], for what is so or not.
/// # Panics
/// After `within`, with `what` did not come true.
pub async fn until_so(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let so = until(what, within, async || Ok(is_so().await.then_some(())));
    so.await.unwrap_or_else(|error| panic!("{error}"));
}
