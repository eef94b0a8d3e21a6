//! What tests need: fresh databases and queues, servers that may be killed, a proxy that cuts lines. Development only.

pub mod amqp;
#[cfg(feature = "store")]
pub mod database;
#[cfg(feature = "store")]
pub mod look;
pub mod proxy;
#[cfg(feature = "store")]
pub mod rows;
pub mod servers;
pub mod wait;

#[cfg(feature = "store")]
pub use database::{Database, TestDatabase, fresh_store};
