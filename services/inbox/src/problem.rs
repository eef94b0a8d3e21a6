//! What a refused request is told: RFC 9457's `application/problem+json` with the CRM's own members beside it, so that both
//! a new client and the CRM's present one understand it.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method};
use serde::Serialize;
use std::ops::Deref;
use store::StoreError;

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// Which field: its name in the body, or the query parameter's.
    pub(crate) path: String,
    /// What is wrong with it, for a person.
    pub(crate) message: String,
}

impl FieldError {
    /// `path` is wrong: `message`.
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// A refusal. Handlers return it; the outermost layer writes it as JSON or as a page and adds the request's id. Boxed,
/// because every handler's result has room for one and few have one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem(Box<Details>);

/// What a refusal says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Details {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// Stable word for programs.
    pub(crate) code: &'static str,
    /// What happened, for a person.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Which fields are wrong.
    pub(crate) errors: Vec<FieldError>,
    /// Whether a template would be accepted where this was not.
    pub(crate) requires_template: bool,
    /// How long ago the person last wrote.
    pub(crate) hours_since_last_inbound: Option<f64>,
    /// When to try again, in seconds.
    pub(crate) retry_after: Option<u64>,
}

impl Deref for Problem {
    type Target = Details;
    fn deref(&self) -> &Details {
        &self.0
    }
}

impl Problem {
    /// A refusal with nothing more to say.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(Details {
            status,
            code,
            detail: detail.into(),
            hint: None,
            errors: Vec::new(),
            requires_template: false,
            hours_since_last_inbound: None,
            retry_after: None,
        }))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// Names the fields that are wrong.
    pub(crate) fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Says how long ago the person wrote, and whether a template would be accepted.
    pub(crate) fn outside_window(mut self, requires_template: bool, hours: Option<f64>) -> Self {
        self.0.requires_template = requires_template;
        self.0.hours_since_last_inbound = hours;
        self
    }

    /// 404.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("There is no such {what}."))
    }

    /// 400: the body cannot be read at all.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 422: fields that break a rule.
    pub(crate) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.first() {
            Some(first) => format!("{}: {}.", first.path, first.message.trim_end_matches('.')),
            None => "The request breaks a rule.".to_owned(),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).errors(errors)
    }

    /// 422: one field that breaks a rule.
    pub(crate) fn field(path: &str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(path, message)])
    }

    /// 401.
    pub(crate) fn unauthenticated(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    /// 403.
    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 405.
    pub(crate) fn method_not_allowed(method: &Method) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("This address does not take {method}."))
    }

    /// 429.
    pub(crate) fn too_many(code: &'static str, detail: &str, seconds: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail).retry_after(seconds)
    }

    /// 503: this process cannot do its job just now.
    pub(crate) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(2)
    }

    /// 500, for what must not happen.
    pub(crate) fn internal() -> Self {
        let detail = "Something went wrong here. The request's id finds it in the log.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    fn title(&self) -> &'static str {
        self.status.canonical_reason().unwrap_or("Refused")
    }

    /// The JSON body, for the request `instance`.
    pub(crate) fn to_json(&self, instance: &str) -> serde_json::Value {
        let mut json = serde_json::json!({
            "type": format!("urn:roost:problem:{}", self.code.to_ascii_lowercase()),
            "title": self.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "errors": self.errors,
            "ok": false,
            "error": self.detail,
        });
        let mut optional = |key: &str, value: Option<serde_json::Value>| {
            if let (Some(value), Some(object)) = (value, json.as_object_mut()) {
                object.insert(key.to_owned(), value);
            }
        };
        optional("hint", self.hint.clone().map(Into::into));
        optional("retryAfter", self.retry_after.map(Into::into));
        optional("requiresTemplate", self.requires_template.then(|| true.into()));
        optional("hoursSinceLastInbound", self.hours_since_last_inbound.map(Into::into));
        json
    }

    /// As a JSON response, for the request `instance`.
    pub(crate) fn to_response(&self, instance: &str) -> Response {
        let mut response = (self.status, self.to_json(instance).to_string()).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        self.add_headers(&mut response);
        response
    }

    /// The headers that belong to the refusal, whatever its body.
    pub(crate) fn add_headers(&self, response: &mut Response) {
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"roost\""));
        }
    }
}

/// Only carries the problem outwards: the outermost layer knows the request's id and what the client reads.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.is_transient() || error.is_serialization() {
            tracing::warn!(%error, "the database did not answer in time");
            return Problem::unavailable("database_away", "The database does not answer just now. Try again shortly.");
        }
        tracing::error!(%error, "a statement failed");
        Problem::internal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_speaks_to_old_and_new_clients_in_one_object() {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "window_closed", "Closed.")
            .hint("Send a template.")
            .outside_window(true, Some(30.5));
        let json = problem.to_json("r-1");
        assert_eq!(json["ok"], false);
        assert_eq!(json["error"], json["detail"]);
        assert_eq!(json["requiresTemplate"], true);
        assert_eq!(json["hoursSinceLastInbound"], 30.5);
        assert_eq!((json["code"].as_str(), json["instance"].as_str()), (Some("window_closed"), Some("r-1")));
        assert_eq!(json["type"], "urn:roost:problem:window_closed");
        assert!(Problem::internal().to_json("r").get("requiresTemplate").is_none());
    }
}
