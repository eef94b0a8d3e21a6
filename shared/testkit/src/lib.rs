//! What tests need: fresh databases and queues, servers that may be killed, a proxy that cuts lines. Development only.

pub mod database;

pub use database::{Database, TestDatabase, fresh_store};
