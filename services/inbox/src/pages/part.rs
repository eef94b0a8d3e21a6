//! Pieces of a page, rendered here and put in place by the script: what changed, and nothing else.

use super::bubble::{self, Bubble, BubblePart, Reader};
use super::context::{BubblesPart, Composer, ComposerPart, Head, HeadPart, Row, RowPart, count_text};
use super::inbox::{Looking, older_address};
use super::render;
use crate::Shared;
use crate::api::conversations::{self, thread_cursor};
use crate::api::{answer, id_in_path};
use crate::form::Fields;
use crate::guard::Caller;
use crate::problem::Problem;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use domain::{ConversationId, MessageId, Role};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use store::inbox_list::{self, ConversationRow, ListFilter};
use store::thread::{self, MessageRow};
use store::{Tx, feed_read};

/// Messages asked for by id at once.
const BY_ID: usize = 20;
/// The last messages that arrived, when something arrived.
const ARRIVED: i64 = 50;

/// `GET /inbox/{id}/part?view=&search=&open=1&messages=1,2`: a conversation's row (`null`: not in this list), the counts,
/// and if it is open its head, its composer and the named messages, or without names those that arrived last.
pub(super) async fn part(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id: ConversationId = id_in_path(&id, "conversation")?;
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let looking = Looking::of(&query);
    let is_open = query.get("open").is_some();
    let w = caller.context.look.language.words();
    let me = caller.who.user();
    let mut tx = shared.deps.store.read().await?;
    let filter = ListFilter { only: Some(id), ..looking.filter(me) };
    let listed = inbox_list::list(&mut tx, &filter, None, 1).await?;
    let counts = inbox_list::counts(&mut tx, me).await?;
    let cursor = feed_read::head(&mut tx).await?;
    let row = listed.first().map(|row| Row::of(row, &looking.query(), is_open, caller.now(), w));
    let row = row.map(|row| render(&RowPart { w, row: &row })).transpose()?;
    let mut body = json!({
        "row": row,
        "counts": {
            "all": count_text(counts.all), "mine": count_text(counts.mine), "unassigned": count_text(counts.unassigned),
        },
        "unread": counts.unread,
        "now": caller.now(),
        "cursor": cursor.to_string(),
    });
    if is_open {
        let open = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
        let messages = named_messages(&mut tx, id, query.get("messages")).await?;
        let media = thread::media_of(&mut tx, id, &messages).await?;
        let templates = thread::templates(&mut tx, id).await?;
        drop(tx);
        let list = looking.query();
        let reader = reader(&caller, &list);
        let bubbles: Vec<Bubble> = messages.iter().map(|row| Bubble::of(row, &media, reader)).collect();
        if let Some(object) = body.as_object_mut() {
            object.insert("messages".into(), rendered(&bubbles, &caller)?);
            let (head, composer) = around(&shared, &caller, &open, &templates, &looking).await?;
            object.insert("head".into(), head);
            object.insert("composer".into(), composer);
            object.insert("unreadHere".into(), open.unread_count.into());
        }
    }
    Ok(answer(StatusCode::OK, &body))
}

/// Who reads, coming from the list with this query.
pub(super) fn reader<'a>(caller: &Caller, query: &'a str) -> Reader<'a> {
    Reader { w: caller.context.look.language.words(), may_write: caller.who.role.may(Role::Agent), query }
}

/// The messages with these ids, in the thread's order; without ids those that arrived last.
async fn named_messages(tx: &mut Tx, id: ConversationId, ids: Option<&str>) -> Result<Vec<MessageRow>, Problem> {
    let Some(ids) = ids else {
        return Ok(thread::arrived(tx, id, MessageId::new(0), ARRIVED).await?);
    };
    let mut messages = Vec::new();
    for message in ids.split(',').filter_map(|id| id.parse().ok()).take(BY_ID) {
        messages.extend(thread::message(tx, id, message).await?);
    }
    messages.sort_by_key(|message| (message.occurred_at, message.id));
    Ok(messages)
}

fn rendered(bubbles: &[Bubble], caller: &Caller) -> Result<Value, Problem> {
    let (w, csrf) = (caller.context.look.language.words(), caller.who.csrf());
    let html: Result<Vec<String>, Problem> =
        bubbles.iter().map(|bubble| render(&BubblePart { w, csrf, bubble })).collect();
    Ok(json!(html?))
}

async fn around(
    shared: &Arc<Shared>,
    caller: &Caller,
    row: &ConversationRow,
    templates: &[thread::TemplateRow],
    looking: &Looking,
) -> Result<(Value, Value), Problem> {
    let w = caller.context.look.language.words();
    let people = &shared.people().await?.users;
    let account = shared.account(row.account_id).await?;
    let head = Head::of(row, &caller.who, people, &looking.query(), w);
    let mut composer = Composer::of(row, account.as_ref(), templates, &caller.who, caller.now(), w);
    composer.query = looking.query();
    let csrf = caller.who.csrf();
    let head = render(&HeadPart { w, csrf, head: &head })?;
    Ok((head.into(), render(&ComposerPart { w, csrf, composer: &composer })?.into()))
}

/// `GET /inbox/{id}/older?before=`: the page of messages before, as they stand in the thread.
pub(super) async fn older(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id: ConversationId = id_in_path(&id, "conversation")?;
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let before = query.get("before").map(thread_cursor).transpose()?;
    let w = caller.context.look.language.words();
    let mut tx = shared.deps.store.read().await?;
    let (messages, next) = conversations::page(&mut tx, id, before).await?;
    let media = thread::media_of(&mut tx, id, &messages).await?;
    drop(tx);
    let looking = Looking::of(&query);
    let list = looking.query();
    let bubbles = bubble::thread(&messages, &media, caller.now(), reader(&caller, &list));
    let older = next.map(|before| older_address(id, &looking, &before));
    let html = render(&BubblesPart { w, csrf: caller.who.csrf(), bubbles: &bubbles })?;
    Ok(answer(StatusCode::OK, &json!({ "html": html, "older": older })))
}
