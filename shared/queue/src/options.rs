//! Which queue to open.

use crate::OpenError;
use domain::Secret;
use std::path::{Path, PathBuf};

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
