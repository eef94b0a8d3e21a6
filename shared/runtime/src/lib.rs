//! What every role needs once: configuration, logs and metrics, the HTTP server loop and client, reconnecting, health,
//! shutdown, and the object store for large bodies.

pub mod blobs;
pub mod config;
pub mod health;
pub mod http_client;
pub mod http_server;
pub mod instance;
pub mod loops;
pub mod metrics;
pub mod password;
pub mod reconnect;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod traceparent;

pub use config::{Config, ConfigError, Env, Mode};
