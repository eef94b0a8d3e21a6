//! The crate from outside: provider's words in, ours out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod answers;
mod batches;
mod handshakes;
mod messages;
mod poison;
mod registries;
mod requests;
mod signatures;
mod statuses;
mod support;
