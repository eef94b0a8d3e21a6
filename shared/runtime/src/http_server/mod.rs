//! The one accept loop.
mod limits;
pub use limits::{Limits, MAX_HEAD};
