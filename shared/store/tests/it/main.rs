//! The conformance suite of the store: every promise on both databases.

mod promises;
mod schema;
