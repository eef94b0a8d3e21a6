//! A business with accounts and conversations, a provider, and as many senders as a test starts.

use crate::office::Office;
use domain::wire::SendRefs;
use domain::{
    Account, AccountId, AccountName, Channel, Content, ConversationId, MessageId, OnUnknown, Origin, Secret, SendState,
    Status, SystemClock, Timestamp,
};
use queue::topics::OUTBOUND;
use queue::{Queue, QueueHealth, QueueOptions, QueueUrl};
use runtime::config::Tuning;
use runtime::health::Health;
use runtime::http_client::{Http, HttpOptions};
use runtime::metrics::Metrics;
use simulator::{AccountOptions, Simulator, SimulatorOptions, StatusPlan};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::accept::{AcceptOutcome, NewSend, accept};
use store::attempt::{self, AttemptRow};
use store::send::{self, SendRow};
use store::thread::{self};
use store::{Store, account};
use testkit::amqp::{amqp_url, fresh_prefix};
use testkit::database::fresh_store_on;
use testkit::rows::{self, Seeded};
use testkit::{Database, TestDatabase, fresh_store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for what should come soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    SqliteEmbedded,
    PostgresRabbitMq,
}

/// What a test may ask for.
pub(crate) struct Setup {
    pub(crate) stack: Stack,
    /// Name and rate of each account.
    pub(crate) accounts: Vec<(&'static str, f64)>,
    pub(crate) conversations: usize,
    pub(crate) pair_burst: u32,
    /// Whether the customers have just written.
    pub(crate) window_open: bool,
    /// Another broker than the shared one.
    pub(crate) broker: Option<String>,
    /// Another database server than the shared one, and its longest statement.
    pub(crate) server: Option<(String, Duration)>,
}

impl Setup {
    pub(crate) fn on(stack: Stack) -> Self {
        Self {
            stack,
            accounts: vec![("sales", 1000.0)],
            conversations: 1,
            pair_burst: 1000,
            window_open: true,
            broker: None,
            server: None,
        }
    }
}

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) db: TestDatabase,
    pub(crate) queue: Queue,
    queue_options: QueueOptions,
    pub(crate) provider: Simulator,
    pub(crate) accounts: Vec<Account>,
    pub(crate) ids: HashMap<&'static str, AccountId>,
    /// Conversations of each account.
    pub(crate) conversations: HashMap<&'static str, Vec<Seeded>>,
    pub(crate) tuning: Tuning,
    _office: Office,
    conversation_of: Mutex<HashMap<MessageId, ConversationId>>,
    _folder: tempfile::TempDir,
}

/// A running sender.
pub(crate) struct Running {
    stop: CancellationToken,
    health: Health,
    task: JoinHandle<Result<(), runtime::loops::LoopEnded>>,
}

impl Running {
    /// Whether it says that it can do its job.
    pub(crate) fn is_ready(&self) -> bool {
        self.health.is_ready()
    }

    /// Stops it as a signal would and waits for its end.
    pub(crate) async fn stop(self) -> Duration {
        let began = Instant::now();
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap().unwrap();
        began.elapsed()
    }

    /// Ends it as a crash would: nothing is reported, nothing given back.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) fn now() -> Timestamp {
    domain::Clock::now(&SystemClock::default())
}

fn phone_number_id(index: usize) -> String {
    format!("10654035224{index:04}")
}

impl World {
    pub(crate) async fn new(setup: Setup) -> World {
        let sim_account = |(index, (_, rate)): (usize, &(&str, f64))| {
            AccountOptions::new(phone_number_id(index), "token").with_rate(*rate)
        };
        let options = SimulatorOptions {
            accounts: setup.accounts.iter().enumerate().map(sim_account).collect(),
            statuses: StatusPlan::silent(),
            own_thread: true,
            ..SimulatorOptions::default()
        };
        let provider = Simulator::start(options).await.unwrap();
        let accounts: Vec<Account> = setup
            .accounts
            .iter()
            .enumerate()
            .map(|(index, (name, rate))| configured(name, &phone_number_id(index), &provider, *rate, setup.pair_burst))
            .collect();

        let (database, url) = match setup.stack {
            Stack::SqliteEmbedded => (Database::Sqlite, "embedded".to_owned()),
            Stack::PostgresRabbitMq => {
                (Database::Postgres, setup.broker.clone().unwrap_or_else(|| amqp_url().unwrap()))
            }
        };
        let db = match &setup.server {
            Some((url, statement_timeout)) => fresh_store_on(url, *statement_timeout).await.unwrap(),
            None => fresh_store(database).await.unwrap(),
        };
        let folder = tempfile::tempdir().unwrap();
        let queue_options = QueueOptions {
            url: QueueUrl::parse(&url, folder.path()).unwrap(),
            prefix: fresh_prefix(),
            role: "test".into(),
            instance: "it".into(),
            timing: queue::Timing::default(),
        };
        let queue = open(&queue_options).await;
        let (mut ids, mut conversations) = (HashMap::new(), HashMap::new());
        let mut tx = db.store.begin().await.unwrap();
        let directory = account::mirror(&mut tx, &accounts, now()).await.unwrap();
        for (index, (name, _)) in setup.accounts.iter().enumerate() {
            let id = directory.id_named(&name.parse().unwrap()).unwrap();
            ids.insert(*name, id);
            let mut seeded = Vec::new();
            for n in 0..setup.conversations {
                let digits = format!("97150{index}{n:06}");
                let one = rows::conversation(&mut tx, id, "Person", &digits, now()).await.unwrap();
                if setup.window_open {
                    rows::inbound(&mut tx, &one, &format!("wamid.in.{index}.{n}"), "hello", now()).await.unwrap();
                }
                seeded.push(one);
            }
            conversations.insert(*name, seeded);
        }
        tx.commit().await.unwrap();
        let tuning = Tuning {
            call_timeout: Duration::from_millis(1500),
            lease: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            ..Tuning::default()
        };
        let _office = Office::open(&db.store, &queue);
        let stack = setup.stack;
        let _folder = folder;
        let conversation_of = Mutex::default();
        World {
            stack,
            db,
            queue,
            queue_options,
            provider,
            accounts,
            ids,
            conversations,
            tuning,
            _office,
            conversation_of,
            _folder,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.db.store
    }

    /// A sender of this process, on the handles the office has too.
    pub(crate) fn sender(&self, instance: &str) -> Running {
        self.sender_on(instance, self.queue.clone(), self.store().clone())
    }

    /// A sender as another process would be: its own connections. SQLite with the embedded queue is one process, whose
    /// handles are shared.
    pub(crate) async fn sender_of_its_own(&self, instance: &str) -> Running {
        match self.stack {
            Stack::SqliteEmbedded => self.sender(instance),
            Stack::PostgresRabbitMq => {
                let queue = open(&self.queue_options).await;
                let store = Store::open(&self.db.options).await.unwrap();
                self.sender_on(instance, queue, store)
            }
        }
    }

    pub(crate) fn sender_on(&self, instance: &str, queue: Queue, store: Store) -> Running {
        let (stop, health) = (CancellationToken::new(), Health::new());
        let deps = sender::Deps {
            queue,
            store,
            accounts: self.accounts.clone().into(),
            clock: Arc::new(SystemClock::default()),
            http: Http::new(&HttpOptions::of(&self.tuning)).unwrap(),
            tuning: self.tuning.clone(),
            instance: instance.to_owned(),
            metrics: Metrics::new(),
            health: health.clone(),
        };
        Running { stop: stop.clone(), health, task: tokio::spawn(sender::run(deps, stop)) }
    }

    /// Accepts a text into a conversation of the account.
    pub(crate) async fn accept(&self, account: &str, conversation: usize, text: &str) -> MessageId {
        self.accept_content(account, conversation, &Content::Text { body: text.to_owned() }).await
    }

    pub(crate) async fn accept_content(&self, account: &str, conversation: usize, content: &Content) -> MessageId {
        let new = NewSend {
            conversation: self.conversations[account][conversation].conversation,
            content,
            text: None,
            client_message_id: None,
            request_hash: None,
            reply_to: None,
            origin: Origin::Agent,
            created_by: None,
            bulk: false,
            deadline: Duration::from_secs(3600),
            now: now(),
            send_at: None,
            hold: None,
            traceparent: None,
        };
        let mut tx = self.store().begin().await.unwrap();
        let outcome = accept(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        let AcceptOutcome::Created(row) = outcome else { panic!("{outcome:?}") };
        self.conversation_of.lock().unwrap().insert(row.id, row.conversation_id);
        row.id
    }

    /// The recipient of a conversation, as the provider knows it.
    pub(crate) fn recipient(&self, account: &str, conversation: usize) -> String {
        let index = self.accounts.iter().position(|one| one.name.as_str() == account).unwrap();
        format!("97150{index}{conversation:06}")
    }

    pub(crate) async fn status(&self, message: MessageId) -> Status {
        self.message(message).await.status
    }

    pub(crate) async fn message(&self, message: MessageId) -> thread::MessageRow {
        let conversation = self.conversation_of.lock().unwrap()[&message];
        let mut tx = self.store().read().await.unwrap();
        thread::message(&mut tx, conversation, message).await.unwrap().unwrap()
    }

    pub(crate) async fn send_of(&self, message: MessageId) -> Option<SendRow> {
        let mut tx = self.store().read().await.unwrap();
        send::of(&mut tx, &[message]).await.unwrap().pop()
    }

    pub(crate) async fn state_of(&self, message: MessageId) -> Option<SendState> {
        self.send_of(message).await.map(|row| row.state)
    }

    pub(crate) async fn attempts(&self, message: MessageId) -> Vec<AttemptRow> {
        let mut tx = self.store().read().await.unwrap();
        attempt::of(&mut tx, &[message]).await.unwrap()
    }

    pub(crate) async fn account_status(&self, name: &str) -> String {
        let mut tx = self.store().read().await.unwrap();
        account::all(&mut tx).await.unwrap().into_iter().find(|row| row.name == name).unwrap().status
    }

    /// Publishes references beside the dispatcher's own, until the broker has them: a busy one may refuse.
    pub(crate) async fn refer(&self, account: &AccountName, references: &SendRefs) {
        self.until("the broker takes references", async || {
            self.queue.publisher().publish(&OUTBOUND, Some(account), references).await.is_ok()
        })
        .await;
    }

    /// Waits until all of these have come to `status`.
    pub(crate) async fn until_all(&self, messages: &[MessageId], status: Status) {
        for message in messages {
            self.until(&format!("message {message} is {status}"), async || self.status(*message).await == status).await;
        }
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds().await {
            assert!(Instant::now() < deadline, "in vain: {what}; provider: {:?}", self.provider.stats().calls);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What no test may ever find at the provider or in the database.
    pub(crate) async fn keeps_its_promises(&self) {
        assert!(self.provider.accepted_twice().is_empty(), "{:?}", self.provider.accepted_twice());
        assert!(self.provider.overlaps().is_empty(), "{:?}", self.provider.overlaps());
        let mut tx = self.store().read().await.unwrap();
        assert_eq!(store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap(), []);
    }
}

fn configured(name: &str, phone_number_id: &str, provider: &Simulator, rate: f64, pair_burst: u32) -> Account {
    Account {
        name: name.parse().unwrap(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: phone_number_id.to_owned(),
        parent_external_id: None,
        portfolio_id: None,
        display_address: None,
        api_base: format!("{}/v25.0", provider.url().trim_end_matches('/')),
        access_token: Secret::new("token"),
        rate_per_second: rate,
        pair_interval: Duration::from_secs(6),
        pair_burst,
        window: Some(Duration::from_secs(24 * 3600)),
        on_unknown: OnUnknown::Hold,
    }
}

async fn open(options: &QueueOptions) -> Queue {
    let queue = Queue::open(options.clone()).await.unwrap();
    let mut health = queue.health();
    tokio::time::timeout(SOON, health.wait_for(QueueHealth::is_up)).await.unwrap().unwrap();
    queue
}
