//! The people's side of Roost: the API that the CRM calls, the page where people read and answer, live events, and the
//! acceptance of sends. An accepted send is two rows in one transaction; this service never calls a provider.
//!
//! ```text
//! guard      who asks, may they, is it our own page; every answer's headers
//! api        /api/inbox/…, /api/events            JSON for programs
//! pages      /inbox, /login, /assets              HTML for people, the same functions behind
//! feed       one reader of the change feed, many listeners
//! send       validate, check the window, accept, kick the dispatcher
//! decide     what a person decides about a message: it arrived, again, not at all
//! ```
//!
//! [`Inbox::start`] makes it ready, as often as that takes, and [`Inbox::handle`] answers one request of `runtime`'s server.

mod api;
mod auth;
mod decide;
mod feed;
mod form;
mod guard;
mod pages;
mod problem;
mod send;
mod views;

use auth::throttle::Buckets;
use axum::Router;
pub use axum::body::Body;
use domain::{Account, AccountId, Clock, Role, Timestamp, TokenId, UserId};
use http::{Request, Response};
use problem::Problem;
use runtime::config::{ApiToken, Tuning, User};
use runtime::health::{Health, Part};
use runtime::http_server::RequestBody;
use runtime::metrics::Metrics;
use runtime::reconnect::Reconnect;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::account::Directory;
use store::start::when_ready;
use store::user::{Declared, UserRow};
use store::{SchemaState, Store, StoreError};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// What the service is built from.
#[derive(Clone)]
pub struct Deps {
    /// The database.
    pub store: Store,
    /// Publishes due heads of lanes.
    pub dispatcher: dispatch::Dispatcher,
    /// The configured accounts.
    pub accounts: Arc<[Account]>,
    /// Who may sign in.
    pub users: Arc<[User]>,
    /// Which programs may use the API.
    pub api_tokens: Arc<[ApiToken]>,
    /// Secret of the one-time login link `/login/once/<secret>`; `None`: there is no such link.
    pub login_once: Option<String>,
    /// Where "now" comes from.
    pub clock: Arc<dyn Clock>,
    /// Clocks and sizes of the machinery.
    pub tuning: Tuning,
    /// Counters.
    pub metrics: Metrics,
    /// Whether this role can do its job.
    pub health: Health,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("users", &self.users.len())
            .field("accounts", &self.accounts.len())
            .finish_non_exhaustive()
    }
}

/// Who sent a request: put into its extensions before the router sees it, so that requests are counted by address.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
    router: Router,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("deps", &self.shared.deps).finish_non_exhaustive()
    }
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) deps: Deps,
    pub(crate) hub: feed::Hub,
    pub(crate) quotas: Quotas,
    /// Passwords being checked: each takes 19 MiB on purpose.
    pub(crate) checking: Semaphore,
    pub(crate) streams: AtomicUsize,
    /// The login link's secret until it is used.
    pub(crate) login_once: Mutex<Option<String>>,
    people: OnceCell<People>,
    tokens_seen: Mutex<HashMap<TokenId, Timestamp>>,
}

/// How much anybody may ask for.
pub(crate) struct Quotas {
    pub(crate) per_ip: Buckets,
    pub(crate) per_caller: Buckets,
    pub(crate) logins_per_ip: Buckets,
    pub(crate) logins_per_email: Buckets,
}

/// The configuration's people and accounts with the ids of their rows.
#[derive(Debug)]
pub(crate) struct People {
    pub(crate) directory: Directory,
    pub(crate) users: Vec<UserRow>,
    pub(crate) tokens: Vec<(ApiToken, TokenId)>,
    /// Who the login link signs in.
    pub(crate) owner: Option<UserId>,
}

/// The e-mail of the user that the login link signs in when the configuration names no administrator.
const OWNER_EMAIL: &str = "owner@localhost";

impl Inbox {
    /// Starts the service. The database may be away and the schema not migrated yet: it says so on `health`, answers 503,
    /// and keeps trying. On `stop` event streams end; `tasks` are over a moment later.
    pub fn start(deps: Deps, stop: &CancellationToken, tasks: &TaskTracker) -> Self {
        let part = deps.health.part("inbox");
        let shared = Arc::new(Shared::new(deps, stop.clone()));
        let inbox = Self { router: router(shared.clone()), shared: shared.clone() };
        tasks.spawn(keep_house(shared, part, stop.clone()));
        inbox
    }

    /// Answers one request of `runtime`'s HTTP server.
    pub async fn handle(&self, request: Request<RequestBody>) -> Response<Body> {
        let peer = Peer(request.body().peer());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        match self.router.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

impl Shared {
    fn new(deps: Deps, stop: CancellationToken) -> Self {
        let quotas = Quotas {
            per_ip: Buckets::new(600, 100.0),
            per_caller: Buckets::new(300, 50.0),
            logins_per_ip: Buckets::new(20, 1.0 / 30.0),
            logins_per_email: Buckets::new(10, 1.0 / 60.0),
        };
        let watch = feed::Watch { clock: deps.clock.clone(), metrics: deps.metrics.clone() };
        Self {
            hub: feed::Hub::new(deps.store.clone(), watch, stop),
            quotas,
            checking: Semaphore::new(2),
            streams: AtomicUsize::new(0),
            login_once: Mutex::new(deps.login_once.clone()),
            people: OnceCell::new(),
            tokens_seen: Mutex::default(),
            deps,
        }
    }

    /// The people, once the database knows them.
    pub(crate) async fn people(&self) -> Result<&People, Problem> {
        if self.people.get().is_none() && self.deps.store.schema_state().await? != SchemaState::Fits {
            return Err(Problem::unavailable("starting", "The database has not been migrated yet."));
        }
        Ok(self.mirrored().await?)
    }

    /// The people, brought in line unless they are already. The schema must be there.
    async fn mirrored(&self) -> Result<&People, StoreError> {
        self.people.get_or_try_init(|| self.mirror()).await
    }

    /// Brings the rows in line with the configuration. Every process does it at its start; repeating it changes nothing.
    async fn mirror(&self) -> Result<People, StoreError> {
        let deps = &self.deps;
        let declared = |user: &User| Declared { email: user.email.clone(), name: user.name.clone(), role: user.role };
        let mut users: Vec<Declared> = deps.users.iter().map(declared).collect();
        if deps.login_once.is_some() && !users.iter().any(|user| user.role == Role::Admin) {
            users.push(Declared { email: OWNER_EMAIL.to_owned(), name: "Owner".to_owned(), role: Role::Admin });
        }
        let names: Vec<String> = deps.api_tokens.iter().map(|token| token.name.clone()).collect();
        let now = deps.clock.now();
        let mut tx = deps.store.begin().await?;
        let directory = store::account::mirror(&mut tx, &deps.accounts, now).await?;
        let users = store::user::mirror(&mut tx, &users, now).await?;
        let rows = store::token::mirror(&mut tx, &names, now).await?;
        tx.commit().await?;
        let id_of = |token: &ApiToken| rows.iter().find(|row| row.name == token.name).map(|row| row.id);
        let tokens = deps.api_tokens.iter().filter_map(|token| Some((token.clone(), id_of(token)?))).collect();
        let owner = users.iter().find(|user| user.role == Role::Admin).map(|user| user.id);
        Ok(People { directory, users, tokens, owner })
    }

    /// The configuration of an account; `None` for one that left it.
    pub(crate) async fn account(&self, id: Option<AccountId>) -> Result<Option<Arc<Account>>, Problem> {
        let people = self.people().await?;
        Ok(id.and_then(|id| people.directory.account(id)).cloned())
    }

    /// Notes that a token was used, at most once a minute.
    pub(crate) async fn token_seen(&self, id: TokenId) {
        let now = self.deps.clock.now();
        {
            let mut seen = self.tokens_seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.get(&id).is_some_and(|last| now.since(*last) < Duration::from_secs(60)) {
                return;
            }
            seen.insert(id, now);
        }
        let noted = async {
            let mut tx = self.deps.store.autocommit().await?;
            store::token::used(&mut tx, id, now).await?;
            tx.commit().await
        };
        if let Err(error) = noted.await {
            tracing::debug!(%error, "could not note that a token was used");
        }
    }

    /// Counts an event stream for as long as the guard lives; `None`: there are too many.
    pub(crate) fn open_stream(self: &Arc<Self>, most: usize) -> Option<OpenStream> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= most {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(OpenStream(self.clone()))
    }
}

/// An event stream being served.
pub(crate) struct OpenStream(Arc<Shared>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .merge(api::routes())
        .merge(pages::routes())
        .fallback(async || Problem::not_found("address"))
        .method_not_allowed_fallback(async |method: http::Method| Problem::method_not_allowed(&method))
        .layer(axum::middleware::from_fn_with_state(shared.clone(), guard::guard))
        .with_state(shared)
}

/// How often ended sessions are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Makes the service ready, as often as it takes, and forgets ended sessions until `stop`.
async fn keep_house(shared: Arc<Shared>, part: Part, stop: CancellationToken) {
    let tuning = &shared.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    let work = async || shared.mirrored().await.map(|_| ());
    let ready = when_ready(&shared.deps.store, |missing| part.not_ready(missing), || waits.next_wait(), work);
    if stop.run_until_cancelled(ready).await.is_none() {
        return;
    }
    part.ready();
    loop {
        if let Err(error) = forget_sessions(&shared).await {
            tracing::debug!(%error, "ended sessions are not forgotten just now");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
    }
}

async fn forget_sessions(shared: &Shared) -> Result<(), StoreError> {
    let mut tx = shared.deps.store.autocommit().await?;
    store::session::forget(&mut tx, shared.deps.clock.now()).await?;
    tx.commit().await
}
