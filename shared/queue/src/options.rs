//! Which queue to open.

use crate::OpenError;
use crate::backoff::Waits;
use domain::Secret;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the queue is.
#[derive(Clone, Debug)]
pub enum QueueUrl {
    /// `amqp://…` or `amqps://…`, with its password.
    Amqp(Secret),
    /// Path of `queue.db`.
    Embedded(PathBuf),
}

impl QueueUrl {
    /// Reads the configuration's `queue.url`: `embedded` (the file is `queue.db` in `data_dir`), `amqp://…`, `amqps://…`.
    /// # Errors
    /// Any other text, with a sentence saying what is expected. The text itself is not repeated: it may hold a password.
    pub fn parse(text: &str, data_dir: &Path) -> Result<Self, OpenError> {
        if text == "embedded" {
            return Ok(Self::Embedded(data_dir.join("queue.db")));
        }
        if !(text.starts_with("amqp://") || text.starts_with("amqps://")) {
            return Err(OpenError::BadUrl("it must be `embedded` or begin with amqp:// or amqps://".into()));
        }
        crate::rabbitmq::check_url(text)?;
        Ok(Self::Amqp(Secret::new(text)))
    }

    /// Whether the queue lives in this process.
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }
}

/// What [`Queue::open`](crate::Queue::open) needs to know.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Where the queue is.
    pub url: QueueUrl,
    /// Put before the name of every queue and exchange: empty in production, `t<random>.` in tests, which share a broker.
    /// What carries a prefix vanishes from the broker half an hour after its last use.
    pub prefix: String,
    /// This process' roles, for the connection's name.
    pub role: String,
    /// This process, for the connection's name.
    pub instance: String,
    /// How long to wait for what.
    pub timing: Timing,
}

/// How long the queue waits for what. The configuration's `[tuning]` sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a publish may take until its confirm. After that its outcome is unknown and it is an error.
    pub confirm_timeout: Duration,
    /// How long a whole connect to the broker may take: TCP, TLS, AMQP.
    pub connect_timeout: Duration,
    /// First wait before a lost connection is tried again, at most; doubles from there.
    pub reconnect_first: Duration,
    /// Longest wait between two tries.
    pub reconnect_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            confirm_timeout: crate::CONFIRM_DEADLINE,
            connect_timeout: Duration::from_secs(3),
            reconnect_first: Duration::from_millis(200),
            reconnect_most: Duration::from_secs(10),
        }
    }
}

impl Timing {
    pub(crate) fn waits(&self) -> Waits {
        Waits { first: self.reconnect_first, most: self.reconnect_most }
    }

    /// When a publish that begins now must be confirmed.
    pub(crate) fn publish_deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.confirm_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_which_backend_and_keeps_its_password() {
        let dir = Path::new("/data");
        assert!(
            matches!(QueueUrl::parse("embedded", dir).unwrap(), QueueUrl::Embedded(path) if path == Path::new("/data/queue.db"))
        );
        let url = QueueUrl::parse("amqp://roost:hunter2@mq:5672/%2f", dir).unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
        for bad in ["", "redis://mq", "amqp:mq", "amqp://mq:port/%2f"] {
            let error = QueueUrl::parse(bad, dir).unwrap_err();
            assert!(matches!(error, OpenError::BadUrl(_)), "{bad}: {error}");
        }
    }
}
