//! The conformance suite of the store: every promise on both databases.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod accept;
mod accounts;
mod backlog;
mod claim;
mod contact;
mod decide;
mod errors;
mod feed_read;
mod inbound;
mod inbox;
mod lane;
mod leases;
mod limits;
mod operations;
mod people;
mod plans;
mod promises;
mod receipt;
mod results;
mod schema;
mod sending;
mod silence;
mod sql;
mod start;
mod waiting;
mod witness;
