//! What every role needs once: configuration, logs and metrics, the HTTP server loop and client, reconnecting, health,
//! shutdown, and the object store for large bodies.

pub mod config;
pub mod http_server;
pub mod password;
pub mod telemetry;

pub use config::{Config, ConfigError, Env, Mode};
