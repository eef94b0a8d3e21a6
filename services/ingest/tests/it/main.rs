//! Ingest from outside: webhooks go into the queue, rows come out of the store. On SQLite with the embedded queue and on
//! PostgreSQL with RabbitMQ.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod beats;
mod bodies;
mod clearing;
mod dead;
mod duplicates;
mod evidence;
mod gauges;
mod isolation;
mod keeper;
mod outage;
mod people;
mod receipts;
mod reports;
mod said;
mod sends;
mod support;
mod webhooks;
