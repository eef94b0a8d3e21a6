//! The whole system from outside: the real binary, real servers, the simulator in the provider's place.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod acceptance;
mod browser;
mod chaos;
mod command_line;
mod flows;
mod outages;
mod shutdown;
mod starts;

/// The binary these tests start.
const ROOST: &str = env!("CARGO_BIN_EXE_roost-under-test");
