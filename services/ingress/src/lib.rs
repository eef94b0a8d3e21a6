//! Provider webhooks over HTTP into the queue: verify the signature, stamp an id, publish, answer 200.
//!
//! A webhook is answered 2xx only after the queue has confirmed it; everything else is an answer that makes the provider
//! try again (503) or stop (401, 404, 413). Nothing here parses a body or opens a database.

mod answer;
mod batcher;
mod beat;
mod refusals;

use crate::answer::Answer;
use crate::batcher::{Handoff, NotKept, Pending};
use crate::refusals::RefusalCounts;
use bytes::Bytes;
use domain::wire::{Body, Frame, WebhookFrame, WebhookHead};
use domain::{Clock, Source};
use http::{Method, Request, Response};
use http_body_util::Full;
use providers::{SourceKind, Webhook};
use queue::Publisher;
use runtime::blobs::Blobs;
use runtime::config::Tuning;
use runtime::http_server::{BodyError, RequestBody, read_body};
use runtime::metrics::Metrics;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The CRM's address from before Roost; it belongs to one `meta` source.
const CRM_ALIAS: &str = "/api/webhooks/whatsapp";
/// Where every source's webhooks arrive.
const WEBHOOKS: &str = "/webhooks/";

/// What ingress needs.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Who may send webhooks.
    pub sources: Arc<[Source]>,
    /// The queue's publishing side.
    pub publisher: Publisher,
    /// Where bodies over 1 MiB go.
    pub blobs: Blobs,
    /// Now.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Metrics,
    /// This process.
    pub instance: String,
    /// Sizes and deadlines.
    pub tuning: Tuning,
}

/// The ingress: hand it requests. Cheap to clone.
#[derive(Clone)]
pub struct Ingress(Arc<Inner>);

struct Inner {
    sources: HashMap<String, Door>,
    /// Which source the CRM's old address belongs to.
    alias: Option<String>,
    handoff: Handoff,
    refusals: Arc<RefusalCounts>,
    deps: Deps,
}

/// A source with the code that verifies it.
struct Door {
    source: Source,
    kind: &'static dyn SourceKind,
}

impl std::fmt::Debug for Ingress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingress").field("sources", &self.0.sources.keys()).finish_non_exhaustive()
    }
}

/// A source of a kind no provider folder serves. The configuration refuses it before it gets here.
#[derive(Debug, thiserror::Error)]
#[error("source `{name}`: no provider verifies the kind `{kind}`")]
pub struct UnknownKind {
    name: String,
    kind: String,
}

/// Whether a request's path is for ingress; everything else on a shared listener is for people.
pub fn serves(path: &str) -> bool {
    path.starts_with(WEBHOOKS) || path == CRM_ALIAS
}

impl Ingress {
    /// Starts the batcher and the beat, which end after `stop`: what was handed over by then is still published.
    /// # Errors
    /// On a source whose kind nobody serves.
    pub fn start(deps: Deps, stop: &CancellationToken, tasks: &TaskTracker) -> Result<Self, UnknownKind> {
        let mut sources = HashMap::new();
        for source in deps.sources.iter() {
            let kind = providers::source_kind(&source.kind)
                .ok_or_else(|| UnknownKind { name: source.name.to_string(), kind: source.kind.clone() })?;
            sources.insert(source.name.to_string(), Door { source: source.clone(), kind });
        }
        let alias = deps.sources.iter().find(|source| source.crm_alias).map(|source| source.name.to_string());
        let handoff = batcher::start(
            deps.publisher.clone(),
            deps.metrics.clone(),
            batcher::Limits {
                frames: deps.tuning.ingress_batch,
                bytes: deps.tuning.ingress_batch_bytes,
                waiting: deps.tuning.ingress_backlog,
            },
            stop.clone(),
            tasks,
        );
        let refusals = Arc::new(RefusalCounts::default());
        tasks.spawn(beat::run(deps.clone(), handoff.clone(), refusals.clone(), stop.clone()));
        Ok(Self(Arc::new(Inner { sources, alias, handoff, refusals, deps })))
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let (name, by_alias) = match path.strip_prefix(WEBHOOKS) {
            Some(name) => (Some(name), false),
            None if path == CRM_ALIAS => (self.0.alias.as_deref(), true),
            None => (None, false),
        };
        let Some(door) = name.and_then(|name| self.0.sources.get(name)) else {
            self.count_refusal("unknown", "unknown_source");
            return Answer::NotFound.respond();
        };
        match *request.method() {
            Method::GET => door.handshake(request.uri().query().unwrap_or("")).respond(),
            Method::POST => {
                let begun = Instant::now();
                let answer = self.take_in(door, request, by_alias).await;
                self.0.deps.metrics.webhook_answered(door.source.name.as_str(), answer.outcome(), begun.elapsed());
                answer.respond()
            }
            _ => Answer::MethodNotAllowed.respond(),
        }
    }

    async fn take_in(&self, door: &Door, request: Request<RequestBody>, by_alias: bool) -> Answer {
        let source = door.source.name.as_str();
        let (head, body) = request.into_parts();
        let body = match read_body(body, door.source.max_body).await {
            Ok(body) => body,
            Err(error) => {
                let (answer, reason) = match error {
                    BodyError::TooLarge => (Answer::TooLarge, "too_large"),
                    BodyError::TimedOut => (Answer::TimedOut, "body_timeout"),
                    BodyError::Broken => (Answer::Broken, "body_broken"),
                    BodyError::NoRoom => (Answer::NotKept(NotKept::Full), "no_room"),
                };
                self.count_refusal(source, reason);
                return answer;
            }
        };
        let received_at = self.0.deps.clock.now();
        let hook = Webhook { headers: &head.headers, body: &body, received_at };
        if let Err(forged) = door.kind.verify(&hook, &door.source) {
            self.count_refusal(source, forged.reason());
            return if by_alias { Answer::ForgedOnAlias } else { Answer::Forged };
        }
        let headers = door.kind.kept_headers().iter().filter_map(|name| {
            let value = head.headers.get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), value.to_owned()))
        });
        let frame_head = WebhookHead {
            source: door.source.name.clone(),
            received_at,
            request_id: Uuid::now_v7(),
            traceparent: runtime::traceparent::of(&head.headers).map(str::to_owned),
            headers: headers.collect(),
            replay: false,
        };
        match self.keep(frame_head, body).await {
            Ok(()) if by_alias => Answer::KeptOnAlias,
            Ok(()) => Answer::Kept,
            Err(not_kept) => Answer::NotKept(not_kept),
        }
    }

    /// Hands a verified webhook to the batcher and waits for the queue's confirm.
    async fn keep(&self, head: WebhookHead, body: Bytes) -> Result<(), NotKept> {
        let body = if body.len() > self.0.deps.tuning.ingress_inline_body {
            let key = format!("raw/{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&body)));
            if let Err(error) = self.0.deps.blobs.put(&key, body).await {
                tracing::warn!(%error, "A webhook's body over 1 MiB could not be stored; its provider is told to try again");
                return Err(NotKept::Unstored);
            }
            Body::Stored(key)
        } else {
            Body::Inline(body)
        };
        let (pending, confirmed) = Pending::new(Frame::Webhook(WebhookFrame { head, body }));
        self.0.handoff.offer(pending)?;
        match tokio::time::timeout(self.0.deps.tuning.confirm_timeout, confirmed).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(NotKept::Stopping),
            // It may still be published later; the provider then tells us twice, and ingest keeps it once.
            Err(_) => Err(NotKept::Unconfirmed),
        }
    }

    fn count_refusal(&self, source: &str, reason: &'static str) {
        self.0.refusals.add(source, reason);
        self.0.deps.metrics.webhook_refused(source, reason);
    }
}

impl Door {
    fn handshake(&self, query: &str) -> Answer {
        use providers::Handshake;
        match self.kind.handshake(query, &self.source) {
            Handshake::Challenge(challenge) => Answer::Challenge(challenge),
            Handshake::WrongToken => Answer::WrongToken,
            Handshake::Missing(parameter) => Answer::MissingParameter(parameter),
            Handshake::NotConfigured => Answer::NotConfigured,
        }
    }
}
