//! What a person asks to send, what the sender hands to a provider, and what comes back.

use crate::{Correlation, MessageId, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Content {
    /// Free text.
    Text {
        /// The words.
        body: String,
    },
    /// A template the provider has approved.
    Template {
        /// The template's name.
        name: String,
        /// Its language code, such as `en_US`.
        language: String,
        /// One value per variable of the body, in order.
        params: Vec<String>,
    },
}

/// A message as asked for, before it is accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// What it says.
    pub content: Content,
    /// Provider id of the message it answers.
    pub reply_to: Option<String>,
}

/// Whether free text may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The channel has no window.
    None,
    /// Open until then.
    Open(Timestamp),
    /// Closed: a template first. Carries the last inbound, if there ever was one.
    Closed {
        /// When the person last wrote.
        last_inbound_at: Option<Timestamp>,
    },
}

impl Window {
    /// The window of a conversation. On a channel with a window, no `expires_at` means closed: nobody has written yet.
    pub fn of(
        has_window: bool,
        expires_at: Option<Timestamp>,
        last_inbound_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        match (has_window, expires_at) {
            (false, _) => Window::None,
            (true, Some(until)) if until > now => Window::Open(until),
            (true, _) => Window::Closed { last_inbound_at },
        }
    }
}

/// Why a message is refused before it is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The free-text window is closed.
    #[error("the 24-hour window is closed: send an approved template first")]
    WindowClosed {
        /// When the person last wrote.
        last_inbound_at: Option<Timestamp>,
    },
    /// A field of the request breaks a rule of the provider's.
    #[error("{path}: {message}")]
    Invalid {
        /// Which field, as the API names it.
        path: &'static str,
        /// What is wrong with it, for a person.
        message: String,
    },
}

/// To which address a message goes: the conversation's identity and the others known to be the same person's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipient {
    /// WhatsApp's digits, exactly as the webhook gave them.
    pub wa_id: Option<String>,
    /// WhatsApp's business-scoped id.
    pub wa_bsuid: Option<String>,
    /// Any other address.
    pub other: Option<String>,
}

/// One message, claimed, ready for its provider.
#[derive(Clone, Debug)]
pub struct SendJob {
    /// Which message.
    pub message: MessageId,
    /// Deployment, message, generation and attempt, for the provider to return.
    pub correlation: Correlation,
    /// To whom.
    pub recipient: Recipient,
    /// What.
    pub content: Content,
    /// Provider id of the message it answers.
    pub reply_to: Option<String>,
}

/// A call to be made. The provider's code builds it, the sender's transport makes it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Call {
    /// Over HTTP.
    Http(HttpCall),
}

/// An HTTP call.
#[derive(Clone, Debug)]
pub struct HttpCall {
    /// `GET`, `POST`, …
    pub method: &'static str,
    /// Absolute URL; carries no secret.
    pub url: String,
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Option<Secret>,
    /// Body and its content type.
    pub body: Option<(&'static str, Vec<u8>)>,
}

/// A provider's complete answer over HTTP.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, as a duration from now.
    pub retry_after: Option<Duration>,
    /// The body, cut at 64 KiB.
    pub body: Vec<u8>,
}

impl Reply {
    /// A reply without `Retry-After`.
    pub fn http(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, retry_after: None, body: body.into() }
    }
}

/// The provider took the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The provider's id for it.
    pub provider_message_id: String,
}

/// Whose limit a throttling reply speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThrottleScope {
    /// The account (number, page).
    Account,
    /// This recipient on this account.
    Pair,
    /// The provider's app: every account of the source.
    App,
    /// The account's parent (WABA).
    Parent,
}

/// Why a message was not accepted. It says what happened; [`SendError::outcome`] says what follows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Nothing left us: connection refused, DNS, TLS. Tried again, costs an attempt.
    #[error("provider unreachable: {0}")]
    Unreachable(String),
    /// The request may have arrived, its answer did not: wait for evidence.
    #[error("the answer never came: {0}")]
    OutcomeUnknown(String),
    /// The provider failed for now. Tried again, costs an attempt.
    #[error("provider failed for now: {code} {reason}")]
    Transient {
        /// Provider's code.
        code: String,
        /// Provider's words.
        reason: String,
        /// The provider's wish; can only lengthen our wait.
        retry_after: Option<Duration>,
        /// After so many attempts the message fails, where the code means "perhaps your request is wrong".
        give_up_after: Option<u32>,
    },
    /// Too fast. Tried again, costs no attempt, slows the scope.
    #[error("throttled by provider: {code} {reason}")]
    Throttled {
        /// Whose limit.
        scope: ThrottleScope,
        /// Provider's code.
        code: String,
        /// Provider's words.
        reason: String,
        /// The provider's wish.
        retry_after: Option<Duration>,
    },
    /// Refused for good; the person sees the reason.
    #[error("rejected by provider: {code} {reason}")]
    Rejected {
        /// Provider's code.
        code: String,
        /// Provider's words.
        reason: String,
    },
    /// The account cannot send (token, ban, payment): it is paused, nothing fails.
    #[error("account is broken: {code} {reason}")]
    AccountBroken {
        /// Provider's code.
        code: String,
        /// Provider's words.
        reason: String,
    },
}

impl SendError {
    /// How the attempt counts.
    pub fn outcome(&self) -> crate::AttemptOutcome {
        use crate::AttemptOutcome as O;
        match self {
            SendError::Unreachable(_) | SendError::Transient { .. } => O::Retry,
            SendError::OutcomeUnknown(_) => O::Unknown,
            SendError::Throttled { .. } => O::Throttled,
            SendError::Rejected { .. } => O::Rejected,
            SendError::AccountBroken { .. } => O::AccountBroken,
        }
    }
}
