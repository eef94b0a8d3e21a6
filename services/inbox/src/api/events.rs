//! `GET /api/events`: what changed, as it changes. As an event stream (`Last-Event-ID`, or `?since=`), or with
//! `Accept: application/json` as a long poll. An event carries ids, never text: enough to fetch what changed.

use super::answer;
use crate::feed::{Listener, News};
use crate::form::Fields;
use crate::guard::Caller;
use crate::problem::Problem;
use crate::{OpenStream, Shared};
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use store::feed_read::{Cursor, FeedRow};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Event streams at once in this process.
const MOST_STREAMS: usize = 2_000;
/// Time between two signs of life of a stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often a stream asks whether its session still holds.
const STILL_SIGNED_IN: Duration = Duration::from_secs(60);
/// Longest a long poll waits.
const LONG_POLL: Duration = Duration::from_secs(25);
/// After an error of the database a stream looks again.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// The handler.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let asked = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    // A browser repeats what it last heard; a place that cannot be read is like one that is gone.
    let (since, unreadable) = match asked.or_else(|| query.get("since")) {
        None => (None, false),
        Some(text) => match text.parse::<Cursor>() {
            Ok(cursor) => (Some(cursor), false),
            Err(_) => (None, true),
        },
    };
    let (listener, gone) = shared.hub.listen(since).await?;
    let reset = gone || unreadable;
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("application/json") {
        let wait = query.get("wait").and_then(|wait| wait.parse().ok()).map_or(LONG_POLL, Duration::from_secs);
        return Ok(long_poll(listener, reset, wait.min(LONG_POLL)).await);
    }
    let open = shared.open_stream(MOST_STREAMS);
    let open = open.ok_or_else(|| Problem::unavailable("too_many_streams", "Too many event streams are open."))?;
    let beat = query.get("beat").and_then(|beat| beat.parse().ok()).map(|s: u64| Duration::from_secs(s.clamp(2, 60)));
    Ok(event_stream(shared, caller, listener, reset, beat, open))
}

/// One change as JSON.
fn change(row: &FeedRow) -> Value {
    let message = (row.kind == "message_status").then_some(row.entity_id).flatten();
    json!({
        "id": row.cursor().to_string(),
        "kind": row.kind,
        "conversationId": row.conversation_id,
        "contactId": row.contact_id,
        "messageId": message,
        "status": row.status,
        "at": row.created_at,
    })
}

async fn long_poll(mut listener: Listener, reset: bool, wait: Duration) -> Response {
    let mut events = Vec::new();
    let mut reset = reset;
    if !reset {
        match tokio::time::timeout(wait, listener.next()).await {
            Ok(Ok(News::Changes(rows))) => events.extend(rows.iter().map(change)),
            Ok(Ok(News::Reset)) => reset = true,
            Ok(Ok(News::Over)) | Err(_) => {}
            Ok(Err(error)) => return Problem::from(error).into_response(),
        }
    }
    let next = listener.at().to_string();
    answer(StatusCode::OK, &json!({ "ok": true, "events": events, "data": events, "next": next, "reset": reset }))
}

/// What an event stream carries along.
struct Streaming {
    shared: Arc<Shared>,
    caller: Caller,
    listener: Listener,
    /// Sent before anything else.
    greeting: Option<String>,
    /// The comment that keeps proxies from closing an idle line.
    heartbeat: Interval,
    /// Asked for by pages: an event that their script sees, so that a dead line is noticed.
    beat: Option<Interval>,
    check: Interval,
    _open: OpenStream,
}

fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn event_stream(
    shared: Arc<Shared>,
    caller: Caller,
    listener: Listener,
    reset: bool,
    beat: Option<Duration>,
    open: OpenStream,
) -> Response {
    let at = listener.at();
    let mut greeting = "retry: 1000\n".to_owned();
    // An id alone moves the browser's memory without an event.
    let _ = write!(greeting, "id: {at}\n\n");
    if reset {
        greeting.push_str(&reset_event(at));
    }
    let streaming = Streaming {
        shared,
        caller,
        listener,
        greeting: Some(greeting),
        heartbeat: every(HEARTBEAT),
        beat: beat.map(every),
        check: every(STILL_SIGNED_IN),
        _open: open,
    };
    // The stream is pulled: a client that reads slowly is read for slowly, and catches up from the feed. Nothing piles up.
    let body = Body::from_stream(stream::unfold(streaming, |mut streaming| async move {
        let text = streaming.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), streaming))
    }));
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn reset_event(at: Cursor) -> String {
    format!("id: {at}\nevent: reset\ndata: {{}}\n\n")
}

impl Streaming {
    /// The next piece of the stream; `None`: it is over.
    async fn next(&mut self) -> Option<String> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            let beat = async {
                match &mut self.beat {
                    Some(beat) => beat.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                news = self.listener.next() => match news {
                    Ok(News::Changes(rows)) => {
                        let mut text = String::new();
                        for row in &rows {
                            let _ = write!(text, "id: {}\ndata: {}\n\n", row.cursor(), change(row));
                        }
                        return Some(text);
                    }
                    Ok(News::Reset) => return Some(reset_event(self.listener.at())),
                    Ok(News::Over) => return None,
                    Err(error) => {
                        tracing::debug!(%error, "An event stream cannot read on just now");
                        tokio::time::sleep(AFTER_ERROR).await;
                    }
                },
                _ = beat => return Some(format!("id: {}\nevent: beat\ndata: {{}}\n\n", self.listener.at())),
                _ = self.heartbeat.tick() => return Some(format!(": alive\nid: {}\n\n", self.listener.at())),
                _ = self.check.tick() => if !self.still_signed_in().await { return None },
            }
        }
    }

    /// A session that ended ends its streams. When the database does not answer, the benefit of the doubt holds.
    async fn still_signed_in(&self) -> bool {
        let crate::auth::By::Session { sha256, .. } = &self.caller.who.by else { return true };
        let found = async {
            let mut tx = self.shared.deps.store.read().await?;
            store::session::find(&mut tx, sha256, self.shared.deps.clock.now()).await
        };
        match found.await {
            Ok(session) => session.is_some(),
            Err(error) => {
                tracing::debug!(%error, "Whether a stream's session still holds cannot be asked just now");
                true
            }
        }
    }
}
