//! Tests of what every role needs once, from the outside: real files, real sockets, real signals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test fails as the test does")]

mod blobs;
mod client;
mod config;
mod server;
mod shutdown;
mod telemetry;
mod wire;
