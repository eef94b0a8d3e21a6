//! The inbox page: the list, and one thread beside it.

use super::bubble;
use super::context::{Composer, Head, InboxPage, List, Row, Thread, tabs};
use super::page;
use super::part::reader;
use crate::Shared;
use crate::api::actions;
use crate::api::conversations::{self, decode_cursor, encode_cursor, thread_cursor};
use crate::form::{self, Fields};
use crate::guard::Caller;
use crate::problem::Problem;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use domain::{ConversationId, ConversationStatus, Role, UserId};
use http::HeaderMap;
use std::sync::Arc;
use store::feed_read::{self, Cursor};
use store::inbox_list::{self, Assigned, ConversationRow, ListCursor, ListFilter};
use store::{Tx, thread};

/// Rows of a page of the list.
const ROWS: i64 = 50;

/// Which list the reader looks at; lives in the address, so that it survives everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Looking {
    pub(super) view: String,
    pub(super) search: String,
    after: Option<ListCursor>,
}

impl Looking {
    pub(super) fn of(query: &Fields) -> Self {
        let view = query.get("view").filter(|view| ["mine", "unassigned", "closed"].contains(view)).unwrap_or("all");
        let after = query.get("after").and_then(decode_cursor);
        Self {
            view: view.to_owned(),
            search: query.get("search").unwrap_or_default().trim().chars().take(200).collect(),
            after: after.map(|(at, id)| ListCursor { at, id: ConversationId::new(id) }),
        }
    }

    pub(super) fn filter(&self, me: Option<UserId>) -> ListFilter {
        let open = vec![ConversationStatus::Open, ConversationStatus::Waiting, ConversationStatus::Snoozed];
        let mut filter = ListFilter { statuses: open, ..ListFilter::default() };
        match self.view.as_str() {
            "mine" => filter.assigned = Assigned::User(me.unwrap_or(UserId::new(i64::MAX))),
            "unassigned" => filter.assigned = Assigned::Nobody,
            "closed" => filter.statuses = vec![ConversationStatus::Closed],
            // Whoever searches wants it found wherever it is.
            _ if !self.search.is_empty() => filter.statuses.clear(),
            _ => {}
        }
        filter.search = Some(self.search.clone()).filter(|search| !search.is_empty());
        filter
    }

    /// As a query string, with its `?`, or nothing.
    pub(super) fn query(&self) -> String {
        let mut parts = Vec::new();
        if self.view != "all" {
            parts.push(format!("view={}", self.view));
        }
        if !self.search.is_empty() {
            parts.push(format!("search={}", form::encode(&self.search)));
        }
        if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
    }
}

/// `GET /inbox`
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let looking = Looking::of(&query);
    let mut tx = shared.deps.store.read().await?;
    let (list, cursor) = read_list(&mut tx, &caller, &looking, None).await?;
    page(&whole(&caller, list, None, cursor))
}

/// `GET /inbox/{id}`: opening it is looking at it.
pub(super) async fn open(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: ConversationId = crate::api::id_in_path(&id, "conversation")?;
    // A browser that only guesses the next click has seen nothing.
    let guessing = headers.contains_key("sec-purpose") || headers.contains_key("purpose");
    if !guessing && caller.who.role.may(Role::Agent) && caller.who.user().is_some() {
        actions::mark_read(&shared, &caller, id).await?;
    }
    page(&open_page(&shared, &caller, id, &query.unwrap_or_default()).await?)
}

/// The page of an open conversation.
pub(super) async fn open_page(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    query: &str,
) -> Result<InboxPage, Problem> {
    let query = Fields::of(query.as_bytes());
    let looking = Looking::of(&query);
    let before = query.get("before").map(thread_cursor).transpose()?;
    let w = caller.context.look.language.words();
    let people = &shared.people().await?.users;
    let mut tx = shared.deps.store.read().await?;
    let row = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let (list, cursor) = read_list(&mut tx, caller, &looking, Some(id)).await?;
    let (messages, older) = conversations::page(&mut tx, id, before).await?;
    let media = thread::media_of(&mut tx, id, &messages).await?;
    let templates = thread::templates(&mut tx, id).await?;
    drop(tx);
    let account = shared.account(row.account_id).await?;
    let mut composer = Composer::of(&row, account.as_ref(), &templates, &caller.who, caller.now(), w);
    composer.query = looking.query();
    let list_query = looking.query();
    let thread = Thread {
        head: Head::of(&row, &caller.who, people, &looking.query(), w),
        bubbles: bubble::thread(&messages, &media, caller.now(), reader(caller, &list_query)),
        older: older.map(|before| older_address(id, &looking, &before)),
        earlier_page: before.is_some(),
        composer,
    };
    Ok(whole(caller, list, Some(thread), cursor))
}

/// Address of the messages before a page.
pub(super) fn older_address(id: ConversationId, looking: &Looking, before: &str) -> String {
    let query = looking.query();
    let join = if query.is_empty() { "?" } else { "&" };
    format!("/inbox/{id}{query}{join}before={before}")
}

fn whole(caller: &Caller, list: List, thread: Option<Thread>, cursor: Cursor) -> InboxPage {
    let mut frame = InboxPage::frame_of(&caller.context, &caller.who);
    if let Some(thread) = &thread {
        frame.title.clone_from(&thread.head.name);
    }
    frame.cursor = cursor.to_string();
    InboxPage { w: caller.context.look.language.words(), frame, csrf: caller.who.csrf().to_owned(), list, thread }
}

async fn read_list(
    tx: &mut Tx,
    caller: &Caller,
    looking: &Looking,
    open: Option<ConversationId>,
) -> Result<(List, Cursor), Problem> {
    let w = caller.context.look.language.words();
    let me = caller.who.user();
    let mut rows = inbox_list::list(tx, &looking.filter(me), looking.after, ROWS + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > ROWS;
    rows.truncate(usize::try_from(ROWS).unwrap_or(usize::MAX));
    let counts = inbox_list::counts(tx, me).await?;
    let cursor = feed_read::head(tx).await?;
    let query = looking.query();
    let next = rows.last().filter(|_| more).map(|row: &ConversationRow| {
        let join = if query.is_empty() { "?" } else { "&" };
        format!("/inbox{query}{join}after={}", encode_cursor(row.last_message_at, row.id.get()))
    });
    let list = List {
        tabs: tabs(&looking.view, counts, w),
        rows: rows.iter().map(|row| Row::of(row, &query, Some(row.id) == open, caller.now(), w)).collect(),
        view: looking.view.clone(),
        search: looking.search.clone(),
        next,
        later_page: looking.after.is_some(),
        unread: counts.unread,
    };
    Ok((list, cursor))
}
