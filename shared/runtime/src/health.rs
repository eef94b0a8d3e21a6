//! Whether this process lives, and whether it can do its job.

use crate::http_server::{Handler, RequestBody};
use crate::metrics::Metrics;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a part says before it has said anything.
const STARTING: &str = "starting";

/// What each part of the process says of itself. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Option<String>>>>);

/// How much a health page tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Ready or not: for the public listener.
    Bare,
    /// With the reasons: for the admin listener.
    Reasons,
}

/// One part that must be ready before the process is: the broker, the store, the schema. It has one reason at a time not to
/// be; what can be wrong beside something else is a cause of its own ([`Part::cause`]).
#[derive(Clone, Debug)]
pub struct Part {
    health: Health,
    name: String,
}

impl Health {
    /// Nothing registered: ready.
    pub fn new() -> Self {
        Self::default()
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a part, which is not ready before it says so.
    pub fn part(&self, name: &str) -> Part {
        self.parts().insert(name.to_owned(), Some(STARTING.into()));
        Part { health: self.clone(), name: name.to_owned() }
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.parts().values().all(Option::is_none)
    }

    /// Which parts are not ready, and why.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.parts().iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?))).collect()
    }

    /// Answers `GET /healthz` and `GET /readyz`; `None` for every other path.
    pub fn respond(&self, method: &Method, path: &str, detail: Detail) -> Option<Response<Full<Bytes>>> {
        let (status, body) = match path {
            "/healthz" => (StatusCode::OK, serde_json::json!({ "alive": true })),
            "/readyz" => {
                let reasons = self.reasons();
                let ready = reasons.is_empty();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let body = match detail {
                    Detail::Bare => serde_json::json!({ "ready": ready }),
                    Detail::Reasons => serde_json::json!({ "ready": ready, "notReady": reasons }),
                };
                (status, body)
            }
            _ => return None,
        };
        if method != Method::GET && method != Method::HEAD {
            return Some(plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain; charset=utf-8",
                "method not allowed\n".into(),
            ));
        }
        Some(plain(status, "application/json", format!("{body}\n")))
    }
}

impl Part {
    /// Something that can keep this part from its job while other things do as well: its end says nothing of theirs. Begins
    /// as ready, and is listed under the part's name and its own.
    pub fn cause(&self, cause: &str) -> Part {
        let name = format!("{}: {cause}", self.name);
        self.health.parts().entry(name.clone()).or_insert(None);
        Part { health: self.health.clone(), name }
    }

    /// This part can do its job.
    pub fn ready(&self) {
        self.set(None);
    }

    /// This part cannot, for a reason an operator understands.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let mut parts = self.health.parts();
        let before = match parts.get_mut(&self.name) {
            Some(before) if *before == reason => return,
            Some(before) => std::mem::replace(before, reason.clone()),
            None => parts.insert(self.name.clone(), reason.clone()).flatten(),
        };
        drop(parts);
        match reason {
            // Nobody was told of trouble, so nobody waits for its end.
            None if before.as_deref() == Some(STARTING) => {
                tracing::debug!(part = self.name, "{} is ready", self.name);
            }
            None => tracing::info!(part = self.name, "{} is ready", self.name),
            Some(reason) => tracing::warn!(part = self.name, reason, "{} is not ready: {reason}", self.name),
        }
    }
}

/// What the admin listener serves: `/metrics`, and health with its reasons.
#[derive(Clone, Debug)]
pub struct Admin {
    health: Health,
    metrics: Metrics,
}

impl Admin {
    /// The admin pages.
    pub fn new(health: Health, metrics: Metrics) -> Self {
        Self { health, metrics }
    }
}

impl Handler for Admin {
    type Body = Full<Bytes>;

    async fn call(&self, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(response) = self.health.respond(request.method(), path, Detail::Reasons) {
            return response;
        }
        match (request.method(), path) {
            (&Method::GET, "/metrics") => {
                plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            (_, "/metrics") => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "method not allowed\n".into())
            }
            _ => plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n".into()),
        }
    }
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_overlapping_troubles_the_end_of_one_leaves_the_other() {
        let health = Health::new();
        let part = health.part("sender");
        part.ready();
        let (database, broker) = (part.cause("database"), part.cause("results"));
        assert!(health.is_ready(), "nothing is wrong with a cause that has not said so: {:?}", health.reasons());
        for (first, last, left) in [(&database, &broker, "sender: results"), (&broker, &database, "sender: database")] {
            database.not_ready("away");
            broker.not_ready("away as well");
            assert_eq!(health.reasons().len(), 2);
            first.ready();
            assert_eq!(health.reasons().into_keys().collect::<Vec<_>>(), [left]);
            assert!(!health.is_ready());
            last.ready();
            assert!(health.is_ready());
        }
    }

    #[test]
    fn a_cause_known_already_keeps_what_it_says() {
        let health = Health::new();
        let part = health.part("ingest");
        part.ready();
        part.cause("database").not_ready("away");
        let same = part.cause("database");
        assert!(!health.is_ready());
        same.ready();
        assert!(health.is_ready());
    }
}
