//! What changes on the phone, as server-sent events. A connection begins with the whole thread, so that one that was
//! lost leaves no gap.

use super::{Change, Progress, ThreadKey, page, raise};
use crate::server::{Answer, Body};
use crate::{Shared, locked};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// So often something is said, or proxies and browsers take the line for dead.
const PULSE: Duration = Duration::from_secs(15);

struct Listener {
    shared: Arc<Shared>,
    key: ThreadKey,
    changes: Receiver<Change>,
    ready: VecDeque<String>,
}

/// The stream of one open phone.
pub(super) fn open(shared: &Arc<Shared>, key: ThreadKey) -> Answer {
    let Some(phone) = &shared.phone else { return Answer::default() };
    let mut listener = Listener {
        shared: Arc::clone(shared),
        key,
        changes: phone.changes.subscribe(),
        ready: VecDeque::from(["retry: 1000\n\n".to_owned()]),
    };
    listener.everything();
    let events = stream::unfold(listener, |mut listener| async move {
        let text = listener.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), listener))
    });
    let body: Body = StreamBody::new(events).boxed_unsync();
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

impl Listener {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(text) = self.ready.pop_front() {
                return Some(text);
            }
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(change) => self.tell(change),
                    Err(RecvError::Lagged(_)) => self.everything(),
                    Err(RecvError::Closed) => return None,
                },
                () = tokio::time::sleep(PULSE) => return Some(": still here\n\n".into()),
                () = self.shared.stop.cancelled() => return None,
            }
        }
    }

    fn say(&mut self, event: &str, json: &serde_json::Value) {
        self.ready.push_back(format!("event: {event}\ndata: {json}\n\n"));
    }

    fn everything(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(phone) = &shared.phone else { return };
        // A phone that is switched on takes in what waits for it.
        for no in phone.unread(&self.key) {
            raise(&shared, &self.key, no, Progress::Delivered);
        }
        self.say("thread", &json!({"html": page::bubbles(phone, &self.key)}));
        self.say("people", &json!({"html": page::people(phone, &self.key)}));
        self.say("hood", &json!({"html": page::hood(phone), "all": true}));
    }

    fn tell(&mut self, change: Change) {
        let shared = Arc::clone(&self.shared);
        let Some(phone) = &shared.phone else { return };
        match change {
            Change::Bubble(key, no) => {
                if key == self.key {
                    let bubble = locked(&phone.state).bubble(&key, no).cloned();
                    let Some(bubble) = bubble else { return };
                    if !bubble.mine && bubble.progress < Progress::Delivered {
                        raise(&shared, &key, no, Progress::Delivered);
                    }
                    self.say("bubble", &json!({"no": no, "html": page::bubble(&bubble)}));
                }
                self.say("people", &json!({"html": page::people(phone, &self.key)}));
            }
            Change::Typing(key) => {
                if key == self.key {
                    self.say("typing", &json!({}));
                }
            }
            Change::Hood(line) => self.say("hood", &json!({"html": page::hood_line(&line), "all": false})),
        }
    }
}
