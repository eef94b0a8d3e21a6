//! The handle a program holds, and what stands behind it.

use crate::batcher::Batcher;
use crate::fault::FaultMix;
use crate::inbound::{BatchItem, CustomerMessage};
use crate::ledger::{AcceptedTwice, AccountRate, Call, CallStats, Ledger, Overlap};
use crate::load::{Load, LoadPlan};
use crate::locked;
use crate::options::{AccountOptions, SimulatorOptions};
use crate::phone::Phone;
use crate::postman::{Acknowledged, BadWebhookUrl, Delivery, Forgery, ItemRef, Postman, WebhookStats};
use crate::script::{Script, Scripts};
use crate::server::{ConnectionFault, serve};
use crate::status::{Receipt, StatusPlan};
use crate::webhook::{Change, body};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many customers' messages can be repeated: the newest.
const REMEMBERED: usize = 20_000;
/// How long a shutdown waits for connections to end.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread of its own cannot be started.
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
    /// A webhook address is unusable.
    #[error(transparent)]
    WebhookUrl(#[from] BadWebhookUrl),
}

/// All sums in one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Calls to the messages endpoint.
    pub calls: CallStats,
    /// How fast each number was called.
    pub rates: Vec<AccountRate>,
    /// Webhooks.
    pub webhooks: WebhookStats,
    /// One-off scripts not yet used.
    pub scripts_left: u64,
}

/// The answer to a subscription handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshaken {
    /// HTTP status.
    pub status: u16,
    /// Whether it was 200 with exactly the challenge.
    pub echoed: bool,
}

pub(crate) struct Shared {
    pub(crate) options: SimulatorOptions,
    pub(crate) address: SocketAddr,
    pub(crate) accounts: Mutex<Vec<AccountOptions>>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) postman: Postman,
    pub(crate) batcher: Batcher,
    pub(crate) scripts: Mutex<Scripts>,
    pub(crate) mix: Mutex<FaultMix>,
    pub(crate) statuses: Mutex<StatusPlan>,
    pub(crate) connection_faults: Mutex<VecDeque<ConnectionFault>>,
    pub(crate) rng: Mutex<StdRng>,
    pub(crate) phone: Option<Phone>,
    pub(crate) load: Mutex<Option<Load>>,
    pub(crate) down: watch::Sender<Duration>,
    pub(crate) connections: Mutex<CancellationToken>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) runtime: Handle,
    latency_micros: AtomicU64,
    written: Mutex<Written>,
    ids: AtomicU64,
    id_prefix: u64,
}

/// Bodies by the wamid they carry, for repetition.
#[derive(Default)]
struct Written {
    bodies: HashMap<String, Bytes>,
    order: VecDeque<String>,
}

impl Shared {
    pub(crate) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_micros.load(Ordering::Relaxed))
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_micros.store(micros, Ordering::Relaxed);
    }

    /// A message id nobody else gives out: 16 hex digits of this process, 16 of a counter.
    pub(crate) fn new_wamid(&self) -> String {
        format!("wamid.HBg{:016X}{:016X}", self.id_prefix, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The account of this id, or the first one.
    pub(crate) fn account(&self, phone_number_id: Option<&str>) -> Option<(usize, AccountOptions)> {
        let accounts = locked(&self.accounts);
        let at = match phone_number_id {
            Some(id) => accounts.iter().position(|account| account.phone_number_id == id)?,
            None => 0,
        };
        Some((at, accounts.get(at)?.clone()))
    }

    /// The change a customer's message or a status makes; an account nobody configured is made up on the spot, since
    /// a webhook for a stranger's number is something receivers must cope with.
    fn change(&self, phone_number_id: Option<&str>) -> Change {
        match self.account(phone_number_id) {
            Some((_, account)) => Change::of(&account),
            None => Change::of(&AccountOptions::new(phone_number_id.unwrap_or("0"), "")),
        }
    }

    /// Builds and posts a body of entries of changes of items.
    pub(crate) fn post_batch(self: &Arc<Self>, entries: &[Vec<Vec<BatchItem>>]) -> Delivery {
        let now = self.options.clock.now();
        let mut refs = Vec::new();
        let mut built = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut changes = Vec::with_capacity(entry.len());
            for items in entry {
                let mut change = self.change(items.first().and_then(account_of));
                for item in items {
                    match item {
                        BatchItem::Message(message) => {
                            let id = message.wamid.clone().unwrap_or_else(|| self.new_wamid());
                            message.add_to(&mut change, &id, now);
                            if let Some(phone) = &self.phone {
                                phone.customer_wrote(message, &change.phone_number_id, &id, now);
                            }
                            refs.push(ItemRef { id, what: "message".into() });
                        }
                        BatchItem::Status { wamid, status, recipient, correlation, at, code, .. } => {
                            let receipt = Receipt {
                                account: 0,
                                recipient: recipient.clone(),
                                wamid: wamid.clone(),
                                correlation: correlation.clone(),
                            };
                            let json = receipt.to_json(*status, at.unwrap_or(now), code.unwrap_or(131_026));
                            change.statuses.push(json);
                            refs.push(ItemRef { id: wamid.clone(), what: status.as_str().into() });
                        }
                        BatchItem::Field { account, field, value } => {
                            let mut own = self.change(account.as_deref());
                            own.field = Some(field.clone());
                            own.extra.clone_from(value);
                            changes.push(own);
                        }
                    }
                }
                if !(change.messages.is_empty() && change.statuses.is_empty()) {
                    changes.push(change);
                }
            }
            built.push(changes);
        }
        let body = body(&built);
        let mut written = locked(&self.written);
        for item in refs.iter().filter(|item| item.what == "message") {
            if written.bodies.insert(item.id.clone(), body.clone()).is_none() {
                written.order.push_back(item.id.clone());
            }
            if written.order.len() > REMEMBERED
                && let Some(oldest) = written.order.pop_front()
            {
                written.bodies.remove(&oldest);
            }
        }
        drop(written);
        self.postman.post(self, body, refs)
    }

    pub(crate) fn customer_sends(self: &Arc<Self>, message: CustomerMessage) -> Delivery {
        self.post_batch(&[vec![vec![BatchItem::Message(message)]]])
    }

    /// Posts the body that carried this message again, byte for byte.
    pub(crate) fn repeat(self: &Arc<Self>, wamid: &str) -> Option<Delivery> {
        let body = locked(&self.written).bodies.get(wamid).cloned()?;
        let item = ItemRef { id: wamid.to_owned(), what: "message".into() };
        Some(self.postman.post(self, body, vec![item]))
    }

    pub(crate) async fn forge(self: &Arc<Self>, how: Forgery, message: &CustomerMessage) -> Option<u16> {
        let mut change = self.change(message.account.as_deref());
        let id = message.wamid.clone().unwrap_or_else(|| self.new_wamid());
        message.add_to(&mut change, &id, self.options.clock.now());
        self.postman.forge(how, body(&[vec![change]])).await
    }

    pub(crate) async fn handshake(&self, verify_token: &str) -> Option<Handshaken> {
        let challenge = locked(&self.rng).random_range(1_000_000_000_u64..9_999_999_999).to_string();
        let token: String = form_encoded(verify_token);
        let query = format!("hub.mode=subscribe&hub.verify_token={token}&hub.challenge={challenge}");
        let (status, body) = self.postman.get(&query).await?;
        Some(Handshaken { status, echoed: status == 200 && body == challenge.as_bytes() })
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            calls: self.ledger.stats(),
            rates: self.ledger.rates(),
            webhooks: self.postman.stats(),
            scripts_left: locked(&self.scripts).left(),
        }
    }

    pub(crate) fn set_rate(&self, phone_number_id: &str, per_second: f64, enforce: bool) -> bool {
        let mut accounts = locked(&self.accounts);
        let Some(account) = accounts.iter_mut().find(|account| account.phone_number_id == phone_number_id) else {
            return false;
        };
        account.rate_per_second = per_second;
        account.enforce_rate = enforce;
        true
    }

    pub(crate) fn reset(&self) {
        locked(&self.scripts).clear();
        *locked(&self.mix) = self.options.faults.clone();
        *locked(&self.statuses) = self.options.statuses.clone();
        locked(&self.connection_faults).clear();
        self.set_latency(self.options.latency);
        self.ledger.reset();
        self.postman.reset();
    }
}

fn account_of(item: &BatchItem) -> Option<&str> {
    match item {
        BatchItem::Message(message) => message.account.as_deref(),
        BatchItem::Status { account, .. } | BatchItem::Field { account, .. } => account.as_deref(),
    }
}

/// Percent-encodes everything but letters and digits.
fn form_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// A running simulator. Dropping it stops it, too, but does not wait.
pub struct Simulator {
    shared: Arc<Shared>,
    own_runtime: Option<Runtime>,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Simulator {
    /// Starts listening; when this returns the address is known and answers.
    ///
    /// # Errors
    /// [`StartError::Listen`] if the address is taken, [`StartError::WebhookUrl`] if one is not `http://…`.
    #[expect(clippy::unused_async, reason = "starting may come to wait; callers are in a runtime anyway")]
    pub async fn start(options: SimulatorOptions) -> Result<Self, StartError> {
        let own_runtime = if options.own_thread {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name("simulator").enable_all();
            Some(builder.build().map_err(StartError::Runtime)?)
        } else {
            None
        };
        let runtime = own_runtime.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone());

        let listening = |source| StartError::Listen { address: options.listen, source };
        let listener = std::net::TcpListener::bind(options.listen).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(listening)?
        };

        let postman = Postman::new(options.webhooks, options.app_secret.clone());
        postman.set_urls(&options.webhook_urls)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            address,
            accounts: Mutex::new(options.accounts.clone()),
            ledger: Arc::new(Ledger::new(options.keep_calls, Arc::clone(&options.clock))),
            postman,
            batcher: Batcher::default(),
            scripts: Mutex::default(),
            mix: Mutex::new(options.faults.clone()),
            statuses: Mutex::new(options.statuses.clone()),
            connection_faults: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(options.seed)),
            phone: options.phone.clone().map(|phone| Phone::new(phone, Arc::clone(&options.clock))),
            load: Mutex::default(),
            down: watch::Sender::new(Duration::ZERO),
            connections: Mutex::new(stop.child_token()),
            tasks: TaskTracker::new(),
            stop,
            runtime: runtime.clone(),
            latency_micros: AtomicU64::new(u64::try_from(options.latency.as_micros()).unwrap_or(u64::MAX)),
            written: Mutex::default(),
            ids: AtomicU64::new(1),
            id_prefix: uuid::Uuid::new_v4().as_u64_pair().0,
            options,
        });
        shared.tasks.spawn_on(serve(Arc::clone(&shared), listener), &runtime);
        tracing::info!(%address, "Simulator listening on {address}");
        Ok(Self { shared, own_runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `http://…`, without a slash at the end: the `api_base` of an account, and the address of the phone.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Waits until somebody shuts it down.
    pub async fn stopped(&self) {
        self.shared.stop.cancelled().await;
    }

    /// Stops listening, ends all connections and forgets what was not delivered.
    pub async fn shutdown(mut self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("Simulator connections did not end in time");
        }
        if let Some(runtime) = self.own_runtime.take() {
            runtime.shutdown_background();
        }
    }

    // What goes wrong.

    /// Adds a scripted answer.
    pub fn script(&self, script: Script) {
        locked(&self.shared.scripts).add(script);
    }

    /// Forgets all scripted answers.
    pub fn clear_scripts(&self) {
        locked(&self.shared.scripts).clear();
    }

    /// Replaces the faults dealt out at random.
    pub fn set_faults(&self, mix: FaultMix) {
        *locked(&self.shared.mix) = mix;
    }

    /// Replaces the plan of status webhooks for acceptances to come.
    pub fn set_statuses(&self, plan: StatusPlan) {
        *locked(&self.shared.statuses) = plan;
    }

    /// How long ordinary answers take from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.set_latency(latency);
    }

    /// The rate of a number, and whether more is answered 130429. `false`: no such number.
    pub fn set_rate(&self, phone_number_id: &str, calls_per_second: f64, enforce: bool) -> bool {
        self.shared.set_rate(phone_number_id, calls_per_second, enforce)
    }

    /// Spoils the next `times` connections.
    pub fn spoil_connections(&self, fault: ConnectionFault, times: usize) {
        locked(&self.shared.connection_faults).extend(std::iter::repeat_n(fault, times));
    }

    /// Stops listening and cuts all connections for a while: callers are refused. The phone and the control are gone
    /// as well.
    pub fn go_down_for(&self, time: Duration) {
        self.shared.down.send_replace(time);
    }

    // What customers do.

    /// Where webhooks go from now on, in turn.
    ///
    /// # Errors
    /// If one is not an absolute `http://` address; nothing is changed then.
    pub fn set_webhook_urls(&self, urls: &[String]) -> Result<(), BadWebhookUrl> {
        self.shared.postman.set_urls(urls)
    }

    /// A customer writes to the first number.
    pub fn customer_writes(&self, from: &str, name: &str, text: &str) -> Delivery {
        self.customer_sends(CustomerMessage::text(from, name, text))
    }

    /// A customer sends anything to any number.
    pub fn customer_sends(&self, message: CustomerMessage) -> Delivery {
        self.shared.customer_sends(message)
    }

    /// One body of entries of changes of items.
    pub fn post_batch(&self, entries: &[Vec<Vec<BatchItem>>]) -> Delivery {
        self.shared.post_batch(entries)
    }

    /// The body that carried this message again, byte for byte; `None` if it is not remembered.
    pub fn repeat(&self, wamid: &str) -> Option<Delivery> {
        self.shared.repeat(wamid)
    }

    /// Posts a message once with a wrong signature; the answer's status, or `None` without one.
    pub async fn forge(&self, how: Forgery, message: &CustomerMessage) -> Option<u16> {
        self.shared.forge(how, message).await
    }

    /// Posts a body of one's own with a right signature, and repeats it until 200.
    pub fn post_signed(&self, body: impl Into<Bytes>) -> Delivery {
        self.shared.postman.post(&self.shared, body.into(), Vec::new())
    }

    /// Posts a body of one's own once, under this `X-Hub-Signature-256`; the answer's status, or `None` without one.
    pub async fn post_raw(&self, signature: Option<&str>, body: impl Into<Bytes>) -> Option<u16> {
        self.shared.postman.post_raw(signature, body.into()).await
    }

    /// Meta's subscription check; `None` without an answer.
    pub async fn handshake(&self, verify_token: &str) -> Option<Handshaken> {
        self.shared.handshake(verify_token).await
    }

    /// Starts customers who write by themselves.
    pub fn start_load(&self, plan: LoadPlan) -> Load {
        Load::start(&self.shared, plan)
    }

    // What happened.

    /// All sums.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Every call that is kept, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.ledger.calls(0, usize::MAX, |_| true)
    }

    /// The calls to one recipient, oldest first.
    pub fn calls_to(&self, recipient: &str) -> Vec<Call> {
        self.shared.ledger.calls(0, usize::MAX, |call| call.recipient == recipient)
    }

    /// Messages accepted more than once within one generation. Must be empty.
    pub fn accepted_twice(&self) -> Vec<AcceptedTwice> {
        self.shared.ledger.accepted_twice()
    }

    /// Calls to one recipient that were open at once. Must be empty.
    pub fn overlaps(&self) -> Vec<Overlap> {
        self.shared.ledger.overlaps()
    }

    /// Texts accepted for a recipient by any number, in the order of their acceptance.
    pub fn order(&self, recipient: &str) -> Vec<String> {
        self.shared.ledger.order(None, recipient)
    }

    /// Texts accepted for a recipient from one number, in the order of their acceptance.
    pub fn order_on(&self, phone_number_id: &str, recipient: &str) -> Vec<String> {
        self.shared.ledger.order(Some(phone_number_id), recipient)
    }

    /// What receivers have answered 200 for, and must therefore have.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.shared.postman.acknowledged()
    }

    /// What was given up.
    pub fn abandoned(&self) -> Vec<ItemRef> {
        self.shared.postman.abandoned()
    }

    /// Waits until every webhook is acknowledged or given up and no status is still to come; `false`: not in time.
    pub async fn settled(&self, within: Duration) -> bool {
        self.shared.postman.settled(within).await
    }

    /// Waits until the sums satisfy `wanted`; `false`: not in time.
    pub async fn wait_until(&self, within: Duration, mut wanted: impl FnMut(&Stats) -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if wanted(&self.stats()) {
                return true;
            }
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Forgets log, sums, scripts and faults; back to what it was started with. Webhooks on their way go on.
    pub fn reset(&self) {
        self.shared.reset();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(runtime) = self.own_runtime.take() {
            runtime.shutdown_background();
        }
    }
}
