//! The crate from outside: provider's words in, ours out.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on has failed")]

mod answers;
mod batches;
mod handshakes;
mod messages;
mod poison;
mod registries;
mod requests;
mod signatures;
mod speed;
mod statuses;
mod support;
