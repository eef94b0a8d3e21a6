//! What travels beside a message's bytes, the same on both backends.

use crate::dead::DeadHead;
use domain::{Clock, SystemClock, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a publisher says of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Ours, uuid v7. A retry keeps it, a publish repeated after an error should keep it too.
    pub message_id: Uuid,
    /// Which attempt to process it this is, from 1. [`Settle::RetryIn`](crate::Settle::RetryIn) raises it.
    pub attempt: u32,
    /// How many things it holds, so that depth can be told in webhooks rather than in batches.
    pub count: u32,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Envelope {
    /// The envelope of a new message that holds `count` things.
    pub fn holding(count: usize) -> Self {
        Self {
            message_id: Uuid::now_v7(),
            attempt: 1,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            traceparent: None,
        }
    }

    /// With a trace context.
    pub fn traced(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }
}

/// Everything beside the bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) envelope: Envelope,
    /// When it was first published; retries keep it, so that its age is its whole age.
    pub(crate) published_at: Timestamp,
    /// Set once it is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dead: Option<DeadHead>,
}

impl Head {
    pub(crate) fn new(envelope: Envelope) -> Self {
        Self { envelope, published_at: now(), dead: None }
    }

    /// The head of the copy that a retry publishes.
    pub(crate) fn again(&self, raise_attempt: bool) -> Self {
        let mut head = self.clone();
        if raise_attempt {
            head.envelope.attempt = head.envelope.attempt.saturating_add(1);
        }
        head
    }

    /// The head of the copy that goes to the dead letters. What died in the dead letters keeps its first origin.
    pub(crate) fn died(&self, origin: &str, reason_code: String, reason: String) -> Self {
        let origin = self.dead.as_ref().map_or_else(|| origin.to_owned(), |dead| dead.origin.clone());
        let dead = DeadHead { origin, reason_code, reason, died_at: now(), by_broker: None };
        Self { dead: Some(dead), ..self.clone() }
    }
}

/// The machine's clock: how long messages wait is for operators, who want the real time.
pub(crate) fn now() -> Timestamp {
    SystemClock::default().now()
}
