//! What can go wrong, as the callers need to tell it apart.

use std::path::PathBuf;

/// The queue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be read.
    #[error("queue.url cannot be used: {0}")]
    BadUrl(String),
    /// Another process has the embedded queue open.
    #[error("{} is in use by another process; one data directory serves one process", .0.display())]
    InUse(PathBuf),
    /// The embedded queue's file was written by a newer version.
    #[error("{} has format {found}, this version reads up to {known}", .path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: i64,
        /// What we can read.
        known: i64,
    },
    /// The embedded queue's file cannot be opened.
    #[error("{} cannot be opened: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A publish that must not be taken for done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker is away.
    #[error("the queue is down: {0}")]
    Down(String),
    /// The broker takes nothing more for now (memory or disk alarm).
    #[error("the queue is blocked: {0}")]
    Blocked(String),
    /// No confirm, or no free slot, within the deadline.
    #[error("no confirm in time")]
    Timeout,
    /// The connection went away before the confirm.
    #[error("the connection was lost before the confirm: {0}")]
    Lost(String),
    /// No queue takes it: it was deleted, or never declared.
    #[error("no queue takes it: {0}")]
    Returned(String),
    /// The broker or the file said no: a full queue, a missing permission, a full disk.
    #[error("the queue refused it: {0}")]
    Refused(String),
    /// [`Queue::close`](crate::Queue::close) was called.
    #[error("the queue is closed")]
    Closed,
}

impl PublishError {
    /// Whether the message may be delivered although the publish failed. Every caller publishes again anyway.
    pub fn may_have_landed(&self) -> bool {
        matches!(self, Self::Timeout | Self::Lost(_) | Self::Blocked(_))
    }

    /// A short name for counting.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Down(_) => "down",
            Self::Blocked(_) => "blocked",
            Self::Timeout => "timeout",
            Self::Lost(_) => "lost",
            Self::Returned(_) => "returned",
            Self::Refused(_) => "refused",
            Self::Closed => "closed",
        }
    }
}

/// The queue cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It is away.
    #[error("the queue is down: {0}")]
    Down(String),
    /// No answer in time.
    #[error("the queue did not answer in time")]
    Timeout,
    /// It said no.
    #[error("the queue refused: {0}")]
    Refused(String),
}
