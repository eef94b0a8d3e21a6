//! What one connection and all of them together may take.

use std::time::Duration;

/// Limits of a listener. Deadlines are kept to within an eighth of the shortest of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; the next one is told 503 and closed.
    pub connections: usize,
    /// Open connections of one address. Behind a proxy all come from one, so it is generous.
    pub connections_per_ip: usize,
    /// Bytes of request bodies that were read and not yet answered; what would go over it is told 503.
    pub body_bytes_in_flight: usize,
    /// From a request's first byte (or from the connection's start) to the end of its head.
    pub head_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Between two pieces of a body.
    pub body_idle_timeout: Duration,
    /// How long a connection may stay open between two requests.
    pub idle_timeout: Duration,
    /// From the end of the head to the first byte of the response; then 503.
    pub request_timeout: Duration,
    /// How long a client may take nothing of a response that is ready for it.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            connections_per_ip: 2_048,
            body_bytes_in_flight: 64 << 20,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(40),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How often deadlines are looked at.
    pub(super) fn tick(&self) -> Duration {
        let shortest = [
            self.head_timeout,
            self.body_timeout,
            self.body_idle_timeout,
            self.idle_timeout,
            self.request_timeout,
            self.write_timeout,
        ];
        let shortest = shortest.into_iter().min().unwrap_or(Duration::from_secs(1));
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}

/// What every listener refuses whatever it is told, in bytes: a head larger than this is told 431.
pub const MAX_HEAD: usize = 16 * 1024;
