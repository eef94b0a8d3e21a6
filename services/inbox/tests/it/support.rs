//! One inbox on a fresh database, and the clients that talk to it.

use domain::{Account, Channel, Clock, OnUnknown, Role, Secret, TestClock, Timestamp};
use inbox::{Deps, Inbox};
use queue::{Queue, QueueOptions, QueueUrl};
use reqwest::header::{HeaderMap, SET_COOKIE};
use reqwest::{Client, Method, RequestBuilder, Response};
use runtime::config::{ApiToken, Tuning, User, token_digest};
use runtime::health::Health;
use runtime::http_server::{Limits, RequestBody, Server};
use runtime::metrics::Metrics;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use testkit::rows::{self, NOON, Seeded};
use testkit::{Database, TestDatabase, fresh_store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for what should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// The program's token: may do what an agent may.
pub(crate) const CRM: &str = "crm-token-0123456789";
/// A token that may only read.
pub(crate) const VIEWER: &str = "viewer-token-0123456789";
/// Sara's password; she is an agent.
pub(crate) const PASSWORD: &str = "correct horse battery";
/// Secret of the login link.
pub(crate) const ONCE: &str = "once-secret";

/// An inbox being served.
pub(crate) struct World {
    pub(crate) store: Store,
    /// Its database, where it is dropped with it.
    _db: Option<TestDatabase>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) base: String,
    pub(crate) client: Client,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn sales() -> Account {
    Account {
        name: "sales".parse().unwrap(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: "sales".into(),
        parent_external_id: None,
        portfolio_id: None,
        display_address: Some("+971 4 000 0000".into()),
        api_base: "http://127.0.0.1:1/v25.0".into(),
        access_token: Secret::new("secret access token"),
        rate_per_second: 80.0,
        pair_interval: Duration::ZERO,
        pair_burst: 1,
        window: Some(rows::WINDOW),
        on_unknown: OnUnknown::Hold,
    }
}

/// argon2id of [`PASSWORD`], made once a process: it is slow on purpose.
fn password_hash() -> Secret {
    static HASH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    Secret::new(HASH.get_or_init(|| runtime::password::hash(PASSWORD).unwrap()).clone())
}

impl World {
    pub(crate) async fn on(database: Database) -> World {
        let db = fresh_store(database).await.unwrap();
        let mut world = Self::over(db.store.clone()).await;
        world._db = Some(db);
        world
    }

    pub(crate) async fn over(store: Store) -> World {
        runtime::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(QueueOptions {
            url: QueueUrl::Embedded(folder.path().join("queue.db")),
            prefix: String::new(),
            role: "inbox".into(),
            instance: "test".into(),
            timing: queue::Timing::default(),
        });
        let (health, stop, metrics) = (Health::new(), CancellationToken::new(), Metrics::new());
        let clock = Arc::new(TestClock::at(NOON));
        let token = |name: &str, token: &str, role| ApiToken { name: name.into(), sha256: token_digest(token), role };
        let user = |email: &str, name: &str, role| User {
            email: email.into(),
            name: name.into(),
            password_hash: password_hash(),
            role,
        };
        let deps = Deps {
            store: store.clone(),
            dispatcher: dispatch::Dispatcher::new(queue.await.unwrap(), store.clone()),
            accounts: vec![sales()].into(),
            users: vec![
                user("sara@example.com", "Sara", Role::Agent),
                user("omar@example.com", "Omar", Role::Admin),
                user("vera@example.com", "Vera", Role::Viewer),
            ]
            .into(),
            api_tokens: vec![token("crm", CRM, Role::Agent), token("screen", VIEWER, Role::Viewer)].into(),
            login_once: Some(ONCE.into()),
            clock: clock.clone(),
            tuning: Tuning::default(),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        let service = Inbox::start(deps, &stop, &TaskTracker::new());
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default(), metrics.clone()).unwrap();
        let base = format!("http://{}", server.local_addr());
        let handler = move |request: http::Request<RequestBody>| {
            let service = service.clone();
            async move { service.handle(request).await }
        };
        tokio::spawn(server.serve(handler, stop.clone(), Duration::from_millis(200)));
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        World { store, _db: None, clock, base, client, health, metrics, stop, _folder: folder }
    }

    /// A conversation whose person just wrote.
    pub(crate) async fn open_conversation(&self, name: &str, wa_id: &str) -> Seeded {
        let one = self.silent_conversation(name, wa_id).await;
        self.inbound(&one, "Hello, is anybody there?", self.clock.now()).await;
        one
    }

    /// A conversation whose person has never written.
    pub(crate) async fn silent_conversation(&self, name: &str, wa_id: &str) -> Seeded {
        let mut tx = self.store.begin().await.unwrap();
        let account = rows::account(&mut tx, "sales").await.unwrap();
        let one = rows::conversation(&mut tx, account, name, wa_id, NOON).await.unwrap();
        tx.commit().await.unwrap();
        one
    }

    /// The person writes, and the feed says so.
    pub(crate) async fn inbound(&self, to: &Seeded, body: &str, at: Timestamp) {
        let mut tx = self.store.begin().await.unwrap();
        let key = format!("in-{}-{}-{body}", to.conversation, at.micros());
        rows::inbound(&mut tx, to, &key, body, at).await.unwrap();
        let change = store::feed::Change::Conversation { conversation: to.conversation, contact: None };
        store::feed::write(&mut tx, &[change], at).await.unwrap();
        tx.commit().await.unwrap();
        self.store.wake_readers();
    }

    /// A request without any proof of who asks.
    pub(crate) fn anybody(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.anybody(Method::GET, path).bearer_auth(CRM)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.anybody(Method::POST, path).bearer_auth(CRM);
        request.header("content-type", "application/json").body(body.to_string())
    }

    /// A browser in which somebody signed in.
    pub(crate) async fn browser(&self, email: &str) -> Browser {
        let form = format!("email={email}&password={}", PASSWORD.replace(' ', "+"));
        let answer = self.form("/login", form).send().await.unwrap();
        assert_eq!(answer.status(), 303, "{email} signs in");
        Browser { cookie: cookie_of(answer.headers()), base: self.base.clone(), client: self.client.clone() }
    }

    /// A form posted by nobody.
    pub(crate) fn form(&self, path: &str, body: String) -> RequestBuilder {
        self.anybody(Method::POST, path).header("content-type", "application/x-www-form-urlencoded").body(body)
    }
}

/// `name=value` of the session cookie that an answer sets.
pub(crate) fn cookie_of(headers: &HeaderMap) -> String {
    let mut set = headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap());
    let session = set.rfind(|cookie| cookie.contains("roost_session=")).expect("a session cookie");
    session.split(';').next().unwrap().to_owned()
}

/// A signed-in browser.
pub(crate) struct Browser {
    pub(crate) cookie: String,
    base: String,
    client: Client,
}

impl Browser {
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        let request = self.client.get(format!("{}{path}", self.base));
        request.header("cookie", &self.cookie).header("accept", "text/html,application/xhtml+xml")
    }

    /// What forms must repeat, read from a page.
    pub(crate) async fn csrf(&self) -> String {
        let page = self.get("/inbox").send().await.unwrap().text().await.unwrap();
        page.split("data-csrf=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a token").to_owned()
    }

    /// A form posted as the browser does from our own page.
    pub(crate) fn post(&self, path: &str, body: &str) -> RequestBuilder {
        let request = self.client.post(format!("{}{path}", self.base)).header("cookie", &self.cookie);
        let request =
            request.header("accept", "text/html").header("origin", "null").header("sec-fetch-site", "same-origin");
        request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned())
    }
}

/// A JSON answer with the status it must have.
pub(crate) async fn json(answer: Response, status: u16) -> Value {
    let got = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    assert_eq!(got, status, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"))
}

/// The names of an object, sorted.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Whether an object has all of these names.
pub(crate) fn assert_has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "`{name}` is missing in {value}");
    }
}
