//! What everything behind a running simulator shares, and what customers do through it.

use crate::batcher::Batcher;
use crate::fault::FaultMix;
use crate::inbound::{BatchItem, CustomerMessage};
use crate::ledger::Ledger;
use crate::load::Load;
use crate::locked;
use crate::options::{AccountOptions, SimulatorOptions};
use crate::phone::Phone;
use crate::postman::{BadWebhookUrl, Delivery, Forgery, ItemRef, Postman};
use crate::script::Scripts;
use crate::server::ConnectionFault;
use crate::simulator::{Handshaken, Stats};
use crate::status::{Receipt, StatusPlan};
use crate::webhook::{Change, body};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many customers' messages can be repeated: the newest.
const REMEMBERED: usize = 20_000;
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
    /// Everything as `options` say; nothing runs yet.
    pub(crate) fn new(options: SimulatorOptions, address: SocketAddr, runtime: Handle) -> Result<Self, BadWebhookUrl> {
        let postman = Postman::new(options.webhooks, options.app_secret.clone());
        postman.set_urls(&options.webhook_urls)?;
        let stop = CancellationToken::new();
        Ok(Self {
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
            runtime,
            latency_micros: AtomicU64::new(u64::try_from(options.latency.as_micros()).unwrap_or(u64::MAX)),
            written: Mutex::default(),
            ids: AtomicU64::new(1),
            id_prefix: uuid::Uuid::new_v4().as_u64_pair().0,
            options,
        })
    }

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
