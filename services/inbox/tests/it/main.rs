//! The inbox over HTTP, as programs and browsers use it, on both databases.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod contract;
mod decisions;
mod events;
mod hostile;
mod pages;
mod people;
mod sends;
mod support;
