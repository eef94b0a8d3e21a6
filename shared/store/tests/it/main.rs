//! The conformance suite of the store: every promise on both databases.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod promises;
mod feed_read;
mod people;
mod plans;
mod inbox;
mod schema;
mod contact;
mod inbound;
mod operations;
mod receipt;
mod sql;
mod accept;
mod accounts;
mod claim;
mod lane;
mod leases;
mod limits;
mod results;
mod sending;
