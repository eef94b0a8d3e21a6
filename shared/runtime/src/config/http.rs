//! `[http]`: where we listen, and what a connection may take.

use super::reader::TableReader;
use crate::http_server::Limits;
use std::net::SocketAddr;
use std::time::Duration;

/// Where and how HTTP is served.
#[derive(Clone, Debug)]
pub struct Http {
    /// Webhooks, API and page.
    pub listen: SocketAddr,
    /// Metrics, and health with its reasons.
    pub admin_listen: SocketAddr,
    /// What a connection and all of them together may take.
    pub limits: Limits,
}

impl Default for Http {
    /// Loopback only: what is reachable from elsewhere is said in the file.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            limits: Limits::default(),
        }
    }
}

pub(super) fn read(table: TableReader<'_, '_>) -> Http {
    let defaults = Http::default();
    let listen = address(&table, "listen").unwrap_or(defaults.listen);
    let admin_listen = address(&table, "admin_listen").unwrap_or(defaults.admin_listen);
    if listen == admin_listen && listen.port() != 0 {
        table.complain(format!("has {listen} for both `listen` and `admin_listen`: give each a port of its own"));
    }
    let limits = read_limits(&table, defaults.limits);
    table.finish();
    Http { listen, admin_listen, limits }
}

fn read_limits(table: &TableReader<'_, '_>, defaults: Limits) -> Limits {
    let count = |key, default: usize, most: u64| {
        table.whole(key, 1..=most).and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
    };
    let ms = |key, default: Duration| table.whole(key, 10..=3_600_000).map_or(default, Duration::from_millis);
    let limits = Limits {
        connections: count("max_connections", defaults.connections, 1_000_000),
        connections_per_ip: count("max_connections_per_ip", defaults.connections_per_ip, 1_000_000),
        body_bytes_in_flight: count("max_body_bytes_in_flight", defaults.body_bytes_in_flight, 1 << 40),
        head_timeout: ms("head_timeout_ms", defaults.head_timeout),
        body_timeout: ms("body_timeout_ms", defaults.body_timeout),
        body_idle_timeout: ms("body_idle_timeout_ms", defaults.body_idle_timeout),
        idle_timeout: ms("idle_timeout_ms", defaults.idle_timeout),
        request_timeout: ms("request_timeout_ms", defaults.request_timeout),
        write_timeout: ms("write_timeout_ms", defaults.write_timeout),
    };
    if limits.request_timeout < limits.body_timeout {
        table.complain(
            "must have `request_timeout_ms` at least as long as `body_timeout_ms`: the body is part of the request",
        );
    }
    if limits.body_timeout < limits.body_idle_timeout {
        table.complain("must have `body_timeout_ms` at least as long as `body_idle_timeout_ms`");
    }
    limits
}

fn address(table: &TableReader<'_, '_>, key: &'static str) -> Option<SocketAddr> {
    let text = table.text(key)?;
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.clone(),
    };
    let parsed = numeric.parse().ok();
    if parsed.is_none() {
        table.wrong(key, format!("must be an address and a port such as \"0.0.0.0:8080\", not {text:?}"));
    }
    parsed
}
