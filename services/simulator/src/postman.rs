//! Posts webhooks and repeats them until they are acknowledged with 200, as Meta does.

use crate::options::WebhookOptions;
use crate::webhook::signature;
use crate::{Shared, locked};
use bytes::Bytes;
use domain::{Secret, Timestamp};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// One thing a webhook tells: a message by its id, or a status of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ItemRef {
    /// The wamid.
    pub id: String,
    /// `message`, or the status's word.
    pub what: String,
}

/// Something a receiver has acknowledged with 200 and must therefore have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acknowledged {
    /// What.
    #[serde(flatten)]
    pub item: ItemRef,
    /// When for the first time.
    pub at: Timestamp,
    /// How often: duplicates are acknowledged too.
    pub times: u64,
}

/// How a webhook fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    /// Whether it was answered 200.
    pub acknowledged: bool,
    /// The last answer's status; `None` when there was none.
    pub status: Option<u16>,
    /// How often it was tried.
    pub tries: u32,
    /// From the first try to the last answer, in milliseconds.
    pub took_ms: u64,
}

/// A webhook on its way. Dropping this does not stop it.
#[derive(Clone, Debug)]
pub struct Delivery {
    items: Vec<ItemRef>,
    done: watch::Receiver<Option<Posted>>,
}

impl Delivery {
    /// What it tells, in its order.
    pub fn items(&self) -> &[ItemRef] {
        &self.items
    }

    /// The id of its first item; empty if it has none.
    pub fn wamid(&self) -> &str {
        self.items.first().map_or("", |item| item.id.as_str())
    }

    /// Waits until it is acknowledged or given up.
    pub async fn done(mut self) -> Posted {
        let done = self.done.wait_for(Option::is_some).await.map(|posted| *posted);
        done.ok().flatten().unwrap_or(Posted { acknowledged: false, status: None, tries: 0, took_ms: 0 })
    }
}

/// How a signature can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forgery {
    /// No header.
    Missing,
    /// An empty header.
    Empty,
    /// Not `sha256=` and 64 hex digits.
    Malformed,
    /// Under another secret.
    WrongSecret,
    /// Of another body.
    OtherBody,
    /// SHA-1 under `sha1=`.
    OldScheme,
}

impl Forgery {
    /// All of them.
    pub const ALL: [Forgery; 6] = [
        Forgery::Missing,
        Forgery::Empty,
        Forgery::Malformed,
        Forgery::WrongSecret,
        Forgery::OtherBody,
        Forgery::OldScheme,
    ];

    fn header(self, secret: &Secret, body: &[u8]) -> Option<String> {
        match self {
            Forgery::Missing => None,
            Forgery::Empty => Some(String::new()),
            Forgery::Malformed => Some("sha256=not-a-digest".into()),
            Forgery::WrongSecret => Some(signature(&Secret::new("another-app-secret"), body)),
            Forgery::OtherBody => Some(signature(secret, b"{}")),
            Forgery::OldScheme => Some(format!("sha1={}", "0".repeat(40))),
        }
    }
}

/// Sums over all webhooks since the start or the last reset.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WebhookStats {
    /// Bodies to deliver.
    pub posted: u64,
    /// Tries in all.
    pub tries: u64,
    /// Bodies answered 200.
    pub acknowledged: u64,
    /// Tries that were answered otherwise or not at all.
    pub failed_tries: u64,
    /// Bodies given up.
    pub abandoned: u64,
    /// Work not finished: bodies on their way and statuses still to come.
    pub pending: u64,
    /// Forgeries refused with 401 or 403.
    pub forged_refused: u64,
    /// Forgeries answered with any 2xx: must stay 0.
    pub forged_accepted: u64,
    /// Tries by answer; `0`: no answer.
    pub by_status: BTreeMap<u16, u64>,
    /// Slowest 200, in milliseconds.
    pub slowest_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    urls: Vec<Uri>,
    stats: WebhookStats,
    acknowledged: Vec<Acknowledged>,
    index: HashMap<ItemRef, usize>,
    abandoned: Vec<ItemRef>,
}

pub(crate) struct Postman {
    client: Client<HttpConnector, Full<Bytes>>,
    options: WebhookOptions,
    secret: Secret,
    state: Mutex<State>,
    turn: AtomicUsize,
    permits: Semaphore,
    pending: watch::Sender<usize>,
}

/// Unfinished work; ends when dropped.
#[derive(Debug)]
pub(crate) struct Pending(watch::Sender<usize>);

impl Pending {
    pub(crate) fn begin(postman: &Postman) -> Self {
        postman.pending.send_modify(|pending| *pending += 1);
        Self(postman.pending.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.send_modify(|pending| *pending = pending.saturating_sub(1));
    }
}

/// Why webhooks cannot go to an address.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an absolute http:// address")]
pub struct BadWebhookUrl(String);

impl Postman {
    pub(crate) fn new(options: WebhookOptions, secret: Secret) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self {
            client,
            options,
            secret,
            state: Mutex::default(),
            turn: AtomicUsize::new(0),
            permits: Semaphore::new(options.concurrency.max(1)),
            pending: watch::Sender::new(0),
        }
    }

    pub(crate) fn set_urls(&self, urls: &[String]) -> Result<(), BadWebhookUrl> {
        let parse = |url: &String| match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.authority().is_some() => Ok(uri),
            _ => Err(BadWebhookUrl(url.clone())),
        };
        locked(&self.state).urls = urls.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The next address in turn.
    pub(crate) fn url(&self) -> Option<Uri> {
        let state = locked(&self.state);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        state.urls.get(turn.checked_rem(state.urls.len())?).cloned()
    }

    /// Signs a body and delivers it, however long it takes.
    pub(crate) fn post(&self, shared: &Arc<Shared>, body: Bytes, items: Vec<ItemRef>) -> Delivery {
        let (done, receiver) = watch::channel(None);
        let delivery = Delivery { items: items.clone(), done: receiver };
        locked(&self.state).stats.posted += 1;
        let pending = Pending::begin(self);
        let shared = Arc::clone(shared);
        shared.runtime.clone().spawn(async move {
            let posted = shared.postman.deliver(&shared, body, &items).await;
            shared.postman.note_end(&shared, &items, posted);
            done.send_replace(Some(posted));
            drop(pending);
        });
        delivery
    }

    async fn deliver(&self, shared: &Shared, body: Bytes, items: &[ItemRef]) -> Posted {
        let start = Instant::now();
        let header = signature(&self.secret, &body);
        let mut posted = Posted { acknowledged: false, status: None, tries: 0, took_ms: 0 };
        let mut wait = self.options.retry_first;
        loop {
            let Some(url) = self.url() else { return posted };
            let tried = {
                let Ok(_permit) = self.permits.acquire().await else { return posted };
                self.try_once(&url, Some(&header), body.clone()).await
            };
            posted.status = tried;
            posted.tries += 1;
            posted.took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            posted.acknowledged = tried == Some(200);
            self.note_try(&posted);
            if posted.acknowledged || start.elapsed() >= self.options.give_up_after {
                return posted;
            }
            if posted.tries == 1
                && let Some(phone) = &shared.phone
            {
                phone.not_delivered(items, posted);
            }
            let jitter = locked(&shared.rng).random_range(0.5..1.0);
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
                () = shared.stop.cancelled() => return posted,
            }
            wait = (wait * 2).min(self.options.retry_cap);
        }
    }

    /// One try; the answer's status, or `None` without a complete answer in time.
    async fn try_once(&self, url: &Uri, header: Option<&str>, body: Bytes) -> Option<u16> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url.clone())
            .header("content-type", "application/json")
            .header("user-agent", "facebookexternalua");
        if let Some(header) = header {
            request = request.header("x-hub-signature-256", header);
        }
        let request = request.body(Full::new(body)).ok()?;
        let answer = async {
            let response = self.client.request(request).await.ok()?;
            let status = response.status().as_u16();
            // Read to the end, or the connection cannot be used again.
            Limited::new(response.into_body(), 1 << 20).collect().await.ok()?;
            Some(status)
        };
        tokio::time::timeout(self.options.per_try, answer).await.ok().flatten()
    }

    fn note_try(&self, posted: &Posted) {
        let stats = &mut locked(&self.state).stats;
        stats.tries += 1;
        *stats.by_status.entry(posted.status.unwrap_or(0)).or_default() += 1;
        if posted.acknowledged {
            stats.slowest_ms = stats.slowest_ms.max(posted.took_ms);
        } else {
            stats.failed_tries += 1;
        }
    }

    fn note_end(&self, shared: &Shared, items: &[ItemRef], posted: Posted) {
        {
            let mut guard = locked(&self.state);
            let state = &mut *guard;
            if posted.acknowledged {
                state.stats.acknowledged += 1;
                let at = shared.options.clock.now();
                for item in items {
                    match state.index.get(item).and_then(|place| state.acknowledged.get_mut(*place)) {
                        Some(known) => known.times += 1,
                        None => {
                            state.index.insert(item.clone(), state.acknowledged.len());
                            state.acknowledged.push(Acknowledged { item: item.clone(), at, times: 1 });
                        }
                    }
                }
            } else {
                state.stats.abandoned += 1;
                state.abandoned.extend_from_slice(items);
            }
        }
        if let Some(phone) = &shared.phone {
            phone.delivered_to_business(items, posted);
        }
    }

    /// Posts a body once with a wrong signature; the answer's status.
    pub(crate) async fn forge(&self, how: Forgery, body: Bytes) -> Option<u16> {
        let url = self.url()?;
        let header = how.header(&self.secret, &body);
        let status = self.try_once(&url, header.as_deref(), body).await;
        let stats = &mut locked(&self.state).stats;
        match status {
            Some(401 | 403) => stats.forged_refused += 1,
            Some(200..=299) => stats.forged_accepted += 1,
            _ => {}
        }
        status
    }

    /// Posts bytes once under this header; the answer's status.
    pub(crate) async fn post_raw(&self, header: Option<&str>, body: Bytes) -> Option<u16> {
        let url = self.url()?;
        self.try_once(&url, header, body).await
    }

    /// Asks an address with a query; status and body.
    pub(crate) async fn get(&self, query: &str) -> Option<(u16, Bytes)> {
        let url = self.url()?;
        let uri = format!("http://{}{}?{query}", url.authority()?, url.path());
        let request = Request::builder().uri(uri).body(Full::new(Bytes::new())).ok()?;
        let answer = async {
            let response = self.client.request(request).await.ok()?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), 1 << 20).collect().await.ok()?.to_bytes();
            Some((status, body))
        };
        tokio::time::timeout(self.options.per_try, answer).await.ok().flatten()
    }

    pub(crate) fn stats(&self) -> WebhookStats {
        let pending = *self.pending.borrow() as u64;
        WebhookStats { pending, ..locked(&self.state).stats.clone() }
    }

    pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> {
        locked(&self.state).acknowledged.clone()
    }

    pub(crate) fn abandoned(&self) -> Vec<ItemRef> {
        locked(&self.state).abandoned.clone()
    }

    pub(crate) async fn settled(&self, within: Duration) -> bool {
        let mut pending = self.pending.subscribe();
        tokio::time::timeout(within, pending.wait_for(|pending| *pending == 0)).await.is_ok_and(|done| done.is_ok())
    }

    pub(crate) fn reset(&self) {
        let mut state = locked(&self.state);
        *state = State { urls: std::mem::take(&mut state.urls), ..State::default() };
    }
}
