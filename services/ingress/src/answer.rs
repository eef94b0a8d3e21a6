//! Every answer ingress can give. Never 429 or another 4xx for "not now": SendGrid drops a mail for good on 4xx, and
//! Postmark stops on 403. Never anything of the body or of the expected signature.

use crate::batcher::NotKept;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;

/// How long a provider should wait after a 503, in seconds.
const RETRY_AFTER: &str = "5";

#[derive(Debug)]
pub(crate) enum Answer {
    /// The queue has it.
    Kept,
    /// The same, in the words the CRM's old address used.
    KeptOnAlias,
    Challenge(String),
    WrongToken,
    MissingParameter(&'static str),
    NotConfigured,
    Forged,
    /// The CRM's old address said 403.
    ForgedOnAlias,
    NotFound,
    MethodNotAllowed,
    TimedOut,
    TooLarge,
    Broken,
    NotKept(NotKept),
}

impl Answer {
    /// For the counter of webhooks by outcome.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Answer::Kept | Answer::KeptOnAlias => "kept",
            Answer::Forged | Answer::ForgedOnAlias => "forged",
            Answer::TimedOut => "timed_out",
            Answer::TooLarge => "too_large",
            Answer::Broken => "broken",
            Answer::NotKept(reason) => reason.as_str(),
            Answer::Challenge(_)
            | Answer::WrongToken
            | Answer::MissingParameter(_)
            | Answer::NotConfigured
            | Answer::NotFound
            | Answer::MethodNotAllowed => "not_a_webhook",
        }
    }

    pub(crate) fn respond(self) -> Response<Full<Bytes>> {
        let (status, body): (StatusCode, Bytes) = match &self {
            Answer::Kept => (StatusCode::OK, Bytes::new()),
            Answer::KeptOnAlias => (StatusCode::OK, Bytes::from_static(b"{\"success\":true}")),
            Answer::Challenge(challenge) => (StatusCode::OK, Bytes::copy_from_slice(challenge.as_bytes())),
            Answer::WrongToken => (StatusCode::FORBIDDEN, Bytes::from_static(b"wrong verify token\n")),
            Answer::MissingParameter(name) => (StatusCode::BAD_REQUEST, Bytes::from(format!("missing {name}\n"))),
            Answer::NotConfigured => (
                StatusCode::INTERNAL_SERVER_ERROR,
                Bytes::from_static(b"no verify_token is configured for this source\n"),
            ),
            Answer::Forged => (StatusCode::UNAUTHORIZED, Bytes::from_static(b"signature refused\n")),
            Answer::ForgedOnAlias => (StatusCode::FORBIDDEN, Bytes::from_static(b"signature refused\n")),
            Answer::NotFound => (StatusCode::NOT_FOUND, Bytes::from_static(b"no such source\n")),
            Answer::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"GET or POST\n")),
            Answer::TimedOut => (StatusCode::REQUEST_TIMEOUT, Bytes::from_static(b"the body took too long\n")),
            Answer::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Bytes::from_static(b"the body is too large\n")),
            Answer::Broken => (StatusCode::BAD_REQUEST, Bytes::from_static(b"the body ended early\n")),
            Answer::NotKept(_) => (StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"not kept: send it again\n")),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let content_type = if matches!(self, Answer::KeptOnAlias) { "application/json" } else { "text/plain" };
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
        match self {
            Answer::NotKept(_) => {
                headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
            }
            Answer::MethodNotAllowed => {
                headers.insert(header::ALLOW, header::HeaderValue::from_static("GET, POST"));
            }
            // The rest of the body is not read: the connection cannot be used again.
            Answer::TooLarge | Answer::TimedOut | Answer::Broken => {
                headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
