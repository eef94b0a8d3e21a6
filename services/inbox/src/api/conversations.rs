//! Reading conversations.

use super::{answer, id_in_path, json};
use crate::Shared;
use crate::form::Fields;
use crate::guard::Caller;
use crate::problem::{FieldError, Problem};
use crate::views;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{Channel, ConversationId, ConversationStatus, MessageId, Timestamp, UserId};
use http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use store::inbox_list::{self, Assigned, ConversationRow, ListCursor, ListFilter};
use store::thread::{self, MessageRow, ThreadCursor};

/// Without paging the CRM's client gets so many, as it always did.
const UNPAGED: i64 = 500;
/// Most rows of a page.
const MOST: i64 = 100;
/// Messages of a page.
const MESSAGES: i64 = 50;

/// `GET /api/inbox/conversations?channel=&search=&status=&assigned=&limit=&after=`
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let mut errors = Vec::new();
    let filter = filter_of(&query, caller.who.user(), &mut errors);
    let limit = query.get("limit").map(|limit| match limit.parse::<i64>() {
        Ok(limit @ 1..=MOST) => limit,
        _ => {
            errors.push(FieldError::new("limit", format!("must be a number from 1 to {MOST}")));
            1
        }
    });
    let after = query.get("after").and_then(|after| match decode_cursor(after) {
        Some((at, id)) => Some(ListCursor { at, id: ConversationId::new(id) }),
        None => {
            errors.push(FieldError::new("after", "must be the `next` of the page before"));
            None
        }
    });
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let paged = limit.is_some() || after.is_some();
    let limit = limit.unwrap_or(if paged { MOST } else { UNPAGED });
    let mut tx = shared.deps.store.read().await?;
    let mut rows = inbox_list::list(&mut tx, &filter, after, limit + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next =
        rows.last().filter(|_| more).map(|row: &ConversationRow| encode_cursor(row.last_message_at, row.id.get()));
    let conversations: Vec<_> = rows.iter().map(|row| json::conversation(row, caller.now())).collect();
    let body = json!({ "ok": true, "conversations": conversations, "data": conversations, "next": next, "prev": query.get("after") });
    Ok(answer(StatusCode::OK, &body))
}

/// The filter of a query; what cannot be read is noted. Any case is taken, and the CRM's older words.
pub(crate) fn filter_of(query: &Fields, me: Option<UserId>, errors: &mut Vec<FieldError>) -> ListFilter {
    let mut filter = ListFilter::default();
    let given = |name: &str| query.get(name).filter(|value| !value.eq_ignore_ascii_case("all"));
    if let Some(channel) = given("channel") {
        filter.channel = Channel::from_legacy(channel);
        if filter.channel.is_none() {
            errors.push(FieldError::new("channel", "is no channel of ours"));
        }
    }
    if let Some(statuses) = given("status") {
        for status in statuses.split(',') {
            match ConversationStatus::parse(&status.trim().to_ascii_uppercase()) {
                Some(status) => filter.statuses.push(status),
                None => errors.push(FieldError::new("status", "must be open, waiting, snoozed, closed or all")),
            }
        }
    }
    if let Some(assigned) = given("assigned") {
        filter.assigned = match (assigned.to_ascii_lowercase().as_str(), me) {
            ("none" | "unassigned", _) => Assigned::Nobody,
            ("me" | "mine", Some(me)) => Assigned::User(me),
            ("me" | "mine", None) => {
                errors.push(FieldError::new("assigned", "`me` needs a signed-in person; a token has no conversations"));
                Assigned::Any
            }
            (id, _) => match id.parse() {
                Ok(id) if id > 0 => Assigned::User(UserId::new(id)),
                _ => {
                    errors.push(FieldError::new("assigned", "must be me, none, all or a user's id"));
                    Assigned::Any
                }
            },
        };
    }
    filter.search = query.get("search").map(str::to_owned);
    filter
}

/// `GET /api/inbox/conversations/{id}?before=`
pub(super) async fn detail(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id: ConversationId = id_in_path(&id, "conversation")?;
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let before = match query.get("before") {
        None => None,
        Some(before) => Some(thread_cursor(before)?),
    };
    let mut tx = shared.deps.store.read().await?;
    let row = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let party = thread::party(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let (messages, next) = page(&mut tx, id, before).await?;
    let media = thread::media_of(&mut tx, id, &messages).await?;
    drop(tx);
    let account = shared.account(row.account_id).await?;
    let messages: Vec<_> = messages.iter().map(|message| json::message(message, &media)).collect();
    let contact = json::contact_detail(&row, &party);
    let lead = json::lead(&party);
    let mut conversation = json::conversation(&row, caller.now());
    if let Some(object) = conversation.as_object_mut() {
        object.insert("contact".into(), contact.clone());
        object.insert("lead".into(), json!(lead));
        object.insert("leadId".into(), json!(row.lead_id));
        object.insert("assignedUserId".into(), json!(row.assigned_user_id));
        object.insert("window".into(), json::window(views::window_of(&row, account.as_deref(), caller.now())));
        object.insert("messages".into(), json!(messages));
    }
    let body = json!({
        "ok": true, "conversation": conversation, "contact": contact, "lead": lead, "messages": messages, "next": next,
    });
    Ok(answer(StatusCode::OK, &body))
}

/// A page of a thread, oldest first, and where the one before it begins.
pub(crate) async fn page(
    tx: &mut store::Tx,
    id: ConversationId,
    before: Option<ThreadCursor>,
) -> Result<(Vec<MessageRow>, Option<String>), Problem> {
    let mut messages = thread::page(tx, id, before, MESSAGES + 1).await?;
    let more = i64::try_from(messages.len()).unwrap_or(i64::MAX) > MESSAGES;
    if more {
        messages.remove(0);
    }
    let first = messages.first().filter(|_| more);
    let next = first.map(|message| encode_cursor(message.occurred_at, message.id.get()));
    Ok((messages, next))
}

/// Reads the `before` of a thread.
pub(crate) fn thread_cursor(text: &str) -> Result<ThreadCursor, Problem> {
    let (at, id) =
        decode_cursor(text).ok_or_else(|| Problem::field("before", "must be the `next` of the page before"))?;
    Ok(ThreadCursor { at, id: MessageId::new(id) })
}

/// A place in a list, opaque to clients.
pub(crate) fn encode_cursor(at: Timestamp, id: i64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}:{id}", at.micros()))
}

/// Reads [`encode_cursor`].
pub(crate) fn decode_cursor(text: &str) -> Option<(Timestamp, i64)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (micros, id) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    // Beyond year 9999 and before year 1 no database follows.
    let micros = micros
        .parse::<i64>()
        .ok()
        .filter(|micros| (-62_135_596_800_000_000..253_402_300_800_000_000).contains(micros))?;
    Some((Timestamp::from_micros(micros), id.parse().ok()?))
}
