//! What people do by forms. A browser without the script is sent back to the thread; the script asks for JSON and puts the
//! changed pieces in place itself.

use super::inbox::{Looking, open_page};
use super::page;
use crate::Shared;
use crate::api::actions::{self, NOTE_MOST};
use crate::api::{answer, id_in_path};
use crate::decide::{self, Decision};
use crate::form::Fields;
use crate::guard::{Caller, read_body};
use crate::problem::Problem;
use crate::send::{self, KEY_MOST, Wanted};
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Redirect, Response};
use domain::{Content, ConversationId, ConversationStatus, MessageId, Role, UserId};
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use std::sync::Arc;
use store::thread::Handler;

/// A posted form and where it came from.
struct Posted {
    fields: Fields,
    id: ConversationId,
    query: String,
    by_script: bool,
}

async fn posted(id: &str, query: Option<String>, headers: &HeaderMap, body: Body) -> Result<Posted, Problem> {
    let id = id_in_path(id, "conversation")?;
    let fields = Fields::of(&read_body(body).await?);
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    Ok(Posted { fields, id, query: query.unwrap_or_default(), by_script: accept.contains("application/json") })
}

impl Posted {
    /// Back to the thread, or a word to the script.
    fn done(&self, message: Option<MessageId>) -> Response {
        if self.by_script {
            return answer(StatusCode::OK, &json!({ "ok": true, "messageId": message }));
        }
        let query = Looking::of(&Fields::of(self.query.as_bytes())).query();
        let anchor = message.map(|id| format!("#m{id}")).unwrap_or_default();
        Redirect::to(&format!("/inbox/{}{query}{anchor}", self.id)).into_response()
    }
}

/// `POST /inbox/{id}/send`: `text`, or `templateName`, `templateLanguage` and `templateParams` with one value per line.
pub(super) async fn send(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let posted = posted(&id, query, &headers, body).await?;
    let fields = &posted.fields;
    let line_ends = |text: &str| text.replace("\r\n", "\n");
    let content = match fields.get("templateName") {
        Some(name) => Content::Template {
            name: name.trim().to_owned(),
            language: fields.get("templateLanguage").unwrap_or("en").trim().to_owned(),
            params: line_ends(fields.get("templateParams").unwrap_or_default())
                .split('\n')
                .map(str::trim)
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .collect(),
        },
        None => Content::Text { body: line_ends(fields.get("text").unwrap_or_default()) },
    };
    let key = fields.get("clientMessageId").filter(|key| key.chars().count() <= KEY_MOST && !key.contains('\0'));
    let wanted = Wanted { content, key: key.map(str::to_owned), reply_to: None, send_at: None, traceparent: None };
    match send::accept(&shared, &caller, posted.id, wanted).await {
        Ok(taken) => Ok(posted.done(Some(taken.message.id))),
        Err(problem) => refused(&shared, &caller, &posted, problem).await,
    }
}

/// Without the script the page comes back with what was typed, and says what was wrong.
async fn refused(
    shared: &Arc<Shared>,
    caller: &Caller,
    posted: &Posted,
    problem: Problem,
) -> Result<Response, Problem> {
    let can_go_on = matches!(problem.status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT);
    if posted.by_script || !can_go_on {
        return Err(problem);
    }
    let mut inbox = open_page(shared, caller, posted.id, &posted.query).await?;
    if let Some(thread) = &mut inbox.thread {
        thread.composer.text = posted.fields.get("text").unwrap_or_default().to_owned();
        thread.composer.error = Some(problem.detail.clone());
    }
    let mut response = page(&inbox)?;
    *response.status_mut() = problem.status;
    Ok(response)
}

/// `POST /inbox/{id}/messages/{message}/{decision}`: `it-arrived`, `send-again`, `retry` or `cancel`.
pub(super) async fn decide(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path((id, message, decision)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let message: MessageId = id_in_path(&message, "message")?;
    let posted = posted(&id, query, &headers, body).await?;
    let decision = match (decision.as_str(), caller.who.user()) {
        ("it-arrived", Some(user)) => Decision::ItArrived(user),
        ("it-arrived", None) => {
            return Err(Problem::forbidden("person_needed", "Only a person can say that it arrived."));
        }
        ("send-again", _) => Decision::SendAgain,
        ("retry", _) => Decision::Retry,
        ("cancel", _) => Decision::Cancel,
        _ => return Err(Problem::not_found("address")),
    };
    match decide::decide(&shared, &caller, posted.id, message, decision, None).await {
        Ok(row) => Ok(posted.done(Some(row.id))),
        Err(problem) => refused(&shared, &caller, &posted, problem).await,
    }
}

/// `POST /inbox/{id}/note`
pub(super) async fn note(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let posted = posted(&id, query, &headers, body).await?;
    let text = posted.fields.get("text").unwrap_or_default().replace("\r\n", "\n");
    if text.trim().is_empty() || text.contains('\0') || text.chars().count() > NOTE_MOST {
        return Err(Problem::field("text", format!("must have 1 to {NOTE_MOST} characters")));
    }
    let written = actions::write_note(&shared, &caller, posted.id, &text).await?;
    Ok(posted.done(Some(written)))
}

/// `POST /inbox/{id}/assign`: `to` is `me`, `none` or a user's id.
pub(super) async fn assign(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let posted = posted(&id, query, &headers, body).await?;
    let nobody = || Problem::field("to", "must be me, none or a user's id");
    let to = match posted.fields.get("to") {
        Some("none") => Handler::Nobody,
        Some("me") => Handler::User(caller.who.user().ok_or_else(nobody)?),
        Some(user) => Handler::User(UserId::new(user.parse().map_err(|_| nobody())?)),
        None => return Err(nobody()),
    };
    actions::hand_over(&shared, &caller, posted.id, to).await?;
    Ok(posted.done(None))
}

/// `POST /inbox/{id}/close`
pub(super) async fn close(
    state: State<Arc<Shared>>,
    caller: Caller,
    path: Path<String>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    set_status(state, caller, path, query, headers, body, ConversationStatus::Closed).await
}

/// `POST /inbox/{id}/reopen`
pub(super) async fn reopen(
    state: State<Arc<Shared>>,
    caller: Caller,
    path: Path<String>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    set_status(state, caller, path, query, headers, body, ConversationStatus::Open).await
}

async fn set_status(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
    status: ConversationStatus,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let posted = posted(&id, query, &headers, body).await?;
    actions::set_status(&shared, &caller, posted.id, status).await?;
    Ok(posted.done(None))
}
