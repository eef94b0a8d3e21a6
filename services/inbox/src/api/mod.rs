//! JSON for programs: the CRM's endpoints with their keys unchanged, and live events.

pub(crate) mod actions;
mod body;
pub(crate) mod conversations;
mod decisions;
mod events;
pub(crate) mod json;
mod messages;

pub(crate) use body::JsonBody;

use crate::Shared;
use crate::problem::Problem;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use std::sync::Arc;

/// Every route under `/api`.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/inbox/conversations", get(conversations::list))
        .route("/api/inbox/conversations/{id}", get(conversations::detail))
        .route("/api/inbox/conversations/{id}/messages", post(messages::send))
        .route("/api/inbox/conversations/{id}/messages/{message}", get(messages::one).delete(decisions::cancel))
        .route("/api/inbox/conversations/{id}/messages/{message}/it-arrived", post(decisions::it_arrived))
        .route("/api/inbox/conversations/{id}/messages/{message}/send-again", post(decisions::send_again))
        .route("/api/inbox/conversations/{id}/messages/{message}/retry", post(decisions::retry))
        .route("/api/inbox/conversations/{id}/reply", post(messages::reply))
        .route("/api/inbox/conversations/{id}/read", post(actions::read))
        .route("/api/inbox/conversations/{id}/assign", post(actions::assign))
        .route("/api/inbox/conversations/{id}/internal-note", post(actions::internal_note))
        .route("/api/events", get(events::events))
}

/// A JSON answer.
pub(crate) fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = (status, body.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An id in an address. What is no number names nothing.
pub(crate) fn id_in_path<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::not_found(what))
}
