//! What people do to a conversation beside writing: look at it, hand it over, note something.

use super::{JsonBody, answer, id_in_path, json};
use crate::Shared;
use crate::guard::{Caller, read_body};
use crate::problem::Problem;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use domain::{ConversationId, ConversationStatus, MessageId, Role, UserId};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use store::audit::{self, Entry};
use store::thread::{self, Handler};
use store::{Tx, inbox_list, note};

/// Longest note, in characters.
pub(crate) const NOTE_MOST: usize = 10_000;

/// `POST /api/inbox/conversations/{id}/read`
pub(super) async fn read(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let id = id_in_path(&id, "conversation")?;
    let warnings = JsonBody::parse(&read_body(body).await?)?.finish()?;
    mark_read(&shared, &caller, id).await?;
    conversation_answer(&shared, &caller, id, json!(warnings)).await
}

/// Somebody looked at a conversation.
pub(crate) async fn mark_read(shared: &Arc<Shared>, caller: &Caller, id: ConversationId) -> Result<(), Problem> {
    let mut tx = shared.deps.store.begin().await?;
    if thread::mark_read(&mut tx, id, caller.who.user(), caller.now()).await? {
        tx.commit().await?;
        shared.deps.store.wake_readers();
    }
    Ok(())
}

/// `POST /api/inbox/conversations/{id}/assign`: `{assignedUserId}` (`null`: nobody) or `{assignedToAI: true}`
pub(super) async fn assign(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let id = id_in_path(&id, "conversation")?;
    let bytes = read_body(body).await?;
    let trimmed: &[u8] = bytes.trim_ascii();
    let (to, warnings) = if trimmed == b"null" {
        (Handler::Nobody, Vec::new())
    } else {
        let mut body = JsonBody::parse(&bytes)?;
        let named = body.has("assignedUserId");
        let user = body.id("assignedUserId");
        let to_ai = body.flag("assignedToAI");
        let to = match (user, to_ai) {
            (Some(_), Some(true)) => {
                body.wrong("assignedToAI", "cannot stand beside assignedUserId");
                Handler::Nobody
            }
            (Some(user), _) => Handler::User(UserId::new(user)),
            (None, Some(true)) => Handler::Ai,
            (None, to_ai) => {
                if !named && to_ai.is_none() {
                    body.wrong("assignedUserId", "is missing: a user's id, or null for nobody");
                }
                Handler::Nobody
            }
        };
        (to, body.finish()?)
    };
    hand_over(&shared, &caller, id, to).await?;
    conversation_answer(&shared, &caller, id, json!(warnings)).await
}

/// Hands a conversation to somebody, and says so in the trail.
pub(crate) async fn hand_over(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    to: Handler,
) -> Result<(), Problem> {
    let mut tx = shared.deps.store.begin().await?;
    let detail = match to {
        Handler::User(user) => {
            if store::user::by_id(&mut tx, user).await?.is_none() {
                return Err(Problem::field("assignedUserId", "is not a user who may sign in"));
            }
            json!({ "to": user })
        }
        Handler::Ai => json!({ "to": "AI" }),
        Handler::Nobody => json!({ "to": null }),
    };
    if !thread::assign(&mut tx, id, to, caller.now()).await? {
        return Err(Problem::not_found("conversation"));
    }
    trail(&mut tx, caller, "conversation.assign", "conversation", &id.to_string(), detail).await?;
    tx.commit().await?;
    shared.deps.store.wake_readers();
    Ok(())
}

/// Closes or reopens a conversation.
pub(crate) async fn set_status(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    status: ConversationStatus,
) -> Result<(), Problem> {
    let mut tx = shared.deps.store.begin().await?;
    if thread::set_status(&mut tx, id, status, caller.now()).await? {
        let action = if status == ConversationStatus::Closed { "conversation.close" } else { "conversation.reopen" };
        trail(&mut tx, caller, action, "conversation", &id.to_string(), json!({})).await?;
        tx.commit().await?;
        shared.deps.store.wake_readers();
    } else if inbox_list::get(&mut tx, id).await?.is_none() {
        return Err(Problem::not_found("conversation"));
    }
    Ok(())
}

/// `POST /api/inbox/conversations/{id}/internal-note`
pub(super) async fn internal_note(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    caller.needs(Role::Agent)?;
    let id: ConversationId = id_in_path(&id, "conversation")?;
    let mut body = JsonBody::parse(&read_body(body).await?)?;
    let text = body.text("text", NOTE_MOST).or_else(|| body.text("body", NOTE_MOST));
    if text.as_deref().is_none_or(|text| text.trim().is_empty()) {
        body.wrong("text", "must not be empty");
    }
    let warnings = body.finish()?;
    let written = write_note(&shared, &caller, id, &text.unwrap_or_default()).await?;
    let mut tx = shared.deps.store.read().await?;
    let row = thread::message(&mut tx, id, written).await?.ok_or_else(Problem::internal)?;
    let note = json::message(&row, &[]);
    let body = json!({ "ok": true, "message": note, "note": note, "warnings": warnings });
    Ok(answer(StatusCode::OK, &body))
}

/// Writes a note.
pub(crate) async fn write_note(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    text: &str,
) -> Result<MessageId, Problem> {
    let mut tx = shared.deps.store.begin().await?;
    let written = note::add(&mut tx, id, text, caller.who.user(), caller.now()).await?;
    let written = written.ok_or_else(|| Problem::not_found("conversation"))?;
    trail(&mut tx, caller, "note.write", "message", &written.to_string(), json!({ "conversation": id })).await?;
    tx.commit().await?;
    shared.deps.store.wake_readers();
    Ok(written)
}

/// One line of the audit trail, in the transaction of what it tells of.
pub(crate) async fn trail(
    tx: &mut Tx,
    caller: &Caller,
    action: &str,
    target_type: &str,
    target_id: &str,
    detail: Value,
) -> Result<(), Problem> {
    let ip = caller.context.ip_text();
    let entry = Entry {
        actor: caller.who.actor(),
        action,
        target_type,
        target_id,
        detail,
        request_id: Some(&caller.context.request_id),
        ip: ip.as_deref(),
    };
    Ok(audit::record(tx, &entry, caller.now()).await?)
}

async fn conversation_answer(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    warnings: Value,
) -> Result<Response, Problem> {
    let mut tx = shared.deps.store.read().await?;
    let row = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let body = json!({ "ok": true, "conversation": json::conversation(&row, caller.now()), "warnings": warnings });
    Ok(answer(StatusCode::OK, &body))
}
