//! The loops a role consists of: they run until the role is to stop, and one that ends before takes the role with it.

use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

/// A loop of a role that ended by itself: it panicked, or it returned without being asked to.
#[derive(Debug, thiserror::Error)]
#[error("a loop of {role} ended: {why}")]
pub struct LoopEnded {
    role: &'static str,
    why: String,
}

/// Whether a loop of `role` ended because `stop` is cancelled.
/// # Errors
/// It ended by itself.
pub fn in_good_order(
    role: &'static str,
    ended: Result<(), JoinError>,
    stop: &CancellationToken,
) -> Result<(), LoopEnded> {
    match ended {
        Ok(()) if stop.is_cancelled() => Ok(()),
        Ok(()) => Err(LoopEnded { role, why: "without being asked to".to_owned() }),
        Err(error) => Err(LoopEnded { role, why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_may_end_once_it_is_asked_to_and_may_never_panic() {
        let stop = CancellationToken::new();
        let returned = in_good_order("ingest", Ok(()), &stop).unwrap_err();
        assert_eq!(returned.to_string(), "a loop of ingest ended: without being asked to");
        stop.cancel();
        in_good_order("ingest", Ok(()), &stop).unwrap();
        let panicked = tokio::spawn(async { panic!("for the test") }).await;
        let panicked = in_good_order("ingest", panicked, &stop).unwrap_err();
        assert!(panicked.to_string().contains("panicked"), "{panicked}");
    }
}
