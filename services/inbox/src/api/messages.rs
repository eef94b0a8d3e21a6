//! Writing to a person, and one message with its history.

use super::{JsonBody, answer, id_in_path, json};
use crate::Shared;
use crate::guard::{Caller, read_body};
use crate::problem::{FieldError, Problem};
use crate::send::{self, KEY_MOST, Taken, Wanted};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use domain::{Channel, Content, ConversationId, Direction, MessageId, Status};
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use std::sync::Arc;
use store::inbox_list;
use store::thread;

/// More than any channel takes; the channel's own limit is said by its provider.
const TEXT_MOST: usize = 65_536;
const NAME_MOST: usize = 1_000;
const PARAMS_MOST: usize = 100;

/// `POST /api/inbox/conversations/{id}/messages`
pub(super) async fn send(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = id_in_path(&id, "conversation")?;
    let body = JsonBody::parse(&read_body(body).await?)?;
    let (request, warnings) = read_send(body, &headers)?;
    check_channel(&shared, id, request.channel).await?;
    let taken = send::accept(&shared, &caller, id, request.wanted).await?;
    taken_answer(id, &taken, &warnings)
}

/// `POST /api/inbox/conversations/{id}/reply`: `{text, clientMessageId}`
pub(super) async fn reply(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    send(State(shared), caller, Path(id), headers, body).await
}

/// A request to send, read.
struct SendRequest {
    wanted: Wanted,
    /// The channel the caller believes to write on.
    channel: Option<Channel>,
}

fn read_send(mut body: JsonBody, headers: &HeaderMap) -> Result<(SendRequest, Vec<FieldError>), Problem> {
    refuse_media(&mut body)?;
    let has_text = body.has("text") || body.has("body");
    // The CRM's lead page says `body` where its inbox says `text`.
    let text = body.text("text", TEXT_MOST).or_else(|| body.text("body", TEXT_MOST));
    let name = body.text("templateName", NAME_MOST);
    let language = body.text("templateLanguage", NAME_MOST);
    let params = body.texts("templateParams", PARAMS_MOST, TEXT_MOST);
    let key = body.text("clientMessageId", KEY_MOST);
    let reply_to = body.id("replyToMessageId").map(MessageId::new);
    let send_at = body.time("sendAt");
    let channel = body.text("channel", NAME_MOST).and_then(|channel| {
        let known = Channel::from_legacy(&channel);
        if known.is_none() {
            body.wrong("channel", "is no channel of ours");
        }
        known
    });
    if let Some(direction) = body.text("direction", NAME_MOST)
        && Direction::from_legacy(&direction) != Some(Direction::Outbound)
    {
        body.wrong("direction", "must be OUTBOUND: this is what is sent");
    }
    body.ignore("type");
    let key = one_key(&mut body, key, headers);
    let content = match (text, name) {
        (Some(_), Some(_)) => {
            body.wrong("templateName", "cannot stand beside text");
            None
        }
        (Some(text), None) => Some(Content::Text { body: text }),
        (None, Some(name)) => {
            let language = language.unwrap_or_else(|| "en".to_owned());
            Some(Content::Template { name, language, params: params.unwrap_or_default() })
        }
        (None, None) => {
            if !has_text {
                body.wrong("text", "is missing: give text, or templateName");
            }
            None
        }
    };
    let warnings = body.finish()?;
    let content = content.ok_or_else(|| Problem::field("text", "must not be empty"))?;
    let traceparent = runtime::traceparent::of(headers).map(str::to_owned);
    Ok((SendRequest { wanted: Wanted { content, key, reply_to, send_at, traceparent }, channel }, warnings))
}

/// Files are not sent by this version, and it says so by name rather than sending the text alone.
fn refuse_media(body: &mut JsonBody) -> Result<(), Problem> {
    let asked: Vec<_> = ["mediaUrl", "mediaId"].into_iter().filter(|name| body.has(name)).collect();
    for name in ["mediaType", "caption", "filename", "mime", "size"] {
        body.ignore(name);
    }
    if asked.is_empty() {
        return Ok(());
    }
    let errors = asked.iter().map(|name| FieldError::new(*name, "sending files is not supported yet")).collect();
    let detail = format!("{}: sending files is not supported yet. Nothing was sent.", asked.join(", "));
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_supported_yet", detail).errors(errors))
}

/// The caller's key: in the body, or as the header `Idempotency-Key`, which is another name for it.
fn one_key(body: &mut JsonBody, key: Option<String>, headers: &HeaderMap) -> Option<String> {
    let header = headers.get("idempotency-key").map(|value| value.to_str().map(str::to_owned));
    let header = match header {
        None => None,
        Some(Ok(header)) if !header.is_empty() && header.chars().count() <= KEY_MOST => Some(header),
        Some(_) => {
            body.wrong("Idempotency-Key", format!("must be 1 to {KEY_MOST} plain characters"));
            None
        }
    };
    if key.as_deref().is_some_and(str::is_empty) {
        body.wrong("clientMessageId", "must not be empty");
    }
    match (key, header) {
        (Some(key), Some(header)) if key != header => {
            body.wrong("Idempotency-Key", "is not the clientMessageId of the body; give one of them");
            None
        }
        (key, header) => key.or(header),
    }
}

/// A caller that names a channel must mean this conversation's.
async fn check_channel(shared: &Arc<Shared>, id: ConversationId, named: Option<Channel>) -> Result<(), Problem> {
    let Some(named) = named else { return Ok(()) };
    let mut tx = shared.deps.store.read().await?;
    let row = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    if row.channel == named {
        return Ok(());
    }
    Err(Problem::field("channel", format!("is {named}, but this conversation is on {}", row.channel)))
}

fn taken_answer(id: ConversationId, taken: &Taken, warnings: &[FieldError]) -> Result<Response, Problem> {
    let unfinished = matches!(taken.message.status, Status::Queued | Status::Sending);
    let status = if unfinished || !taken.was_duplicate { StatusCode::ACCEPTED } else { StatusCode::OK };
    let body = json!({
        "ok": true,
        "wasDuplicate": taken.was_duplicate,
        "message": json::message(&taken.message, &[]),
        "warnings": warnings,
    });
    let mut response = answer(status, &body);
    let location = HeaderValue::from_str(&json::location(id, taken.message.id)).map_err(|_| Problem::internal())?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// `GET /api/inbox/conversations/{id}/messages/{message}`: one message with everything that was said of it.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    _caller: Caller,
    Path((id, message)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = id_in_path(&id, "conversation")?;
    let message = id_in_path(&message, "message")?;
    let mut tx = shared.deps.store.read().await?;
    let row = thread::message(&mut tx, id, message).await?.ok_or_else(|| Problem::not_found("message"))?;
    let media = thread::media_of(&mut tx, id, std::slice::from_ref(&row)).await?;
    let history = thread::status_history(&mut tx, message).await?;
    let attempts = thread::attempts(&mut tx, message).await?;
    let mut value = json::message(&row, &media);
    if let Some(object) = value.as_object_mut() {
        object.insert("statusEvents".into(), json!(json::history(&history)));
        object.insert("attempts".into(), json!(json::attempts(&attempts)));
    }
    Ok(answer(StatusCode::OK, &json!({ "ok": true, "message": value })))
}
