//! The database: PostgreSQL for a fleet, SQLite for one process, one behaviour.
//!
//! A file per noun. A statement is a named constant beside the one function that runs it; both dialects share the text
//! wherever they can, and where they cannot a `match` of two constants says why. Functions take `&mut Tx`, so that the
//! caller decides what commits together.

mod at;
mod batch;
mod changes;
mod column;
mod error;
mod line;
mod migrate;
mod open;
mod set;
mod tx;

pub mod accept;
pub mod account;
pub mod attempt;
pub mod audit;
pub mod backlog;
pub mod contact;
pub mod conversation;
pub mod dead_letter;
pub mod decide;
pub mod feed;
pub mod feed_read;
pub mod heartbeat;
pub mod inbox_list;
pub mod lead;
pub mod lease;
pub mod media;
pub mod message;
pub mod note;
pub mod promises;
pub mod rate_limit;
pub mod receipt;
pub mod result;
pub mod retention;
pub mod send;
pub mod session;
pub mod start;
pub mod thread;
pub mod token;
pub mod user;
pub mod webhook_event;

pub use at::At;
pub use column::Column;
pub use error::{Result, StoreError};
pub use line::Line;
pub use migrate::SchemaState;
pub use open::{Store, StoreOptions, StoreUrl};
pub use tx::{PgTx, Tx};
