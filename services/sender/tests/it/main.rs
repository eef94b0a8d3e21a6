//! The sender against a simulated provider, on SQLite with the embedded queue and on PostgreSQL with RabbitMQ. What ingest
//! and dispatch do around it is played by `office.rs`, so that these tests end at the sender's own edges.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod answers;
mod fleet;
mod office;
mod outages;
mod unknown;
mod world;
