//! What somebody decides about a message: `…/it-arrived`, `…/send-again`, `…/retry`, and DELETE to take it back.

use super::{JsonBody, answer, id_in_path, json};
use crate::Shared;
use crate::decide::{Decision, decide};
use crate::guard::{Caller, read_body};
use crate::problem::{FieldError, Problem};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use domain::{ConversationId, MessageId, Role, UserId};
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// Conversation and message of an address.
type Named = Path<(String, String)>;

fn named(Path((id, message)): Named) -> Result<(ConversationId, MessageId), Problem> {
    Ok((id_in_path(&id, "conversation")?, id_in_path(&message, "message")?))
}

/// `POST …/messages/{message}/it-arrived`: on the word of whoever is signed in. A program has no word of its own: it names
/// the person, `{confirmedByUserId}`.
pub(super) async fn it_arrived(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    path: Named,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let named = named(path)?;
    let mut body = JsonBody::parse(&read_body(body).await?)?;
    let word_of = body.id("confirmedByUserId").map(UserId::new);
    let by = match (caller.who.user(), word_of) {
        (Some(user), None) => Some(user),
        (Some(user), Some(word_of)) if user == word_of => Some(user),
        (Some(_), Some(_)) => {
            body.wrong("confirmedByUserId", "is somebody else: everybody gives their own word");
            None
        }
        (None, Some(word_of)) => Some(word_of),
        (None, None) => {
            body.wrong("confirmedByUserId", "is missing: the user who says that it arrived");
            None
        }
    };
    let warnings = body.finish()?;
    let decision = Decision::ItArrived(by.ok_or_else(Problem::internal)?);
    decided(&shared, &caller, named, decision, None, &warnings).await
}

/// `POST …/messages/{message}/send-again`
pub(super) async fn send_again(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    path: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    again(&shared, &caller, path, &headers, body, Decision::SendAgain).await
}

/// `POST …/messages/{message}/retry`
pub(super) async fn retry(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    path: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    again(&shared, &caller, path, &headers, body, Decision::Retry).await
}

/// Either way it goes again, and nothing more is asked for than that.
async fn again(
    shared: &Arc<Shared>,
    caller: &Caller,
    path: Named,
    headers: &HeaderMap,
    body: Body,
    decision: Decision,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let warnings = JsonBody::parse(&read_body(body).await?)?.finish()?;
    decided(shared, caller, named(path)?, decision, runtime::traceparent::of(headers), &warnings).await
}

/// `DELETE …/messages/{message}`
pub(super) async fn cancel(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    path: Named,
) -> Result<Response, Problem> {
    decided(&shared, &caller, named(path)?, Decision::Cancel, None, &[]).await
}

/// 202 for what goes again, 200 for what is over.
async fn decided(
    shared: &Arc<Shared>,
    caller: &Caller,
    (id, message): (ConversationId, MessageId),
    decision: Decision,
    traceparent: Option<&str>,
    warnings: &[FieldError],
) -> Result<Response, Problem> {
    let row = decide(shared, caller, id, message, decision, traceparent).await?;
    let status = match decision {
        Decision::SendAgain | Decision::Retry => StatusCode::ACCEPTED,
        Decision::ItArrived(_) | Decision::Cancel => StatusCode::OK,
    };
    let body = json!({ "ok": true, "message": json::message(&row, &[]), "warnings": warnings });
    let mut response = answer(status, &body);
    let location = HeaderValue::from_str(&json::location(id, message)).map_err(|_| Problem::internal())?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}
