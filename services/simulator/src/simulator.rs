//! The handle a program holds, and what stands behind it.

use crate::fault::FaultMix;
use crate::inbound::{BatchItem, CustomerMessage};
use crate::ledger::{AcceptedTwice, AccountRate, Call, CallStats, Overlap};
use crate::load::{Load, LoadPlan};
use crate::locked;
use crate::options::SimulatorOptions;
use crate::postman::{Acknowledged, BadWebhookUrl, Delivery, Forgery, ItemRef, WebhookStats};
use crate::script::Script;
use crate::server::{ConnectionFault, serve};
use crate::shared::Shared;
use crate::status::StatusPlan;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};

/// How long a shutdown waits for connections to end.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on ({source})")]
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

/// A running simulator. Dropping it stops it, too, but does not wait.
pub struct Simulator {
    shared: Arc<Shared>,
    _own_runtime: Option<OwnRuntime>,
}

/// A runtime that may be dropped inside another one, where waiting for its threads would panic.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
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
            Some(OwnRuntime(Some(builder.build().map_err(StartError::Runtime)?)))
        } else {
            None
        };
        let own = own_runtime.as_ref().and_then(|own| own.0.as_ref());
        let runtime = own.map_or_else(Handle::current, |runtime| runtime.handle().clone());

        let listening = |source| StartError::Listen { address: options.listen, source };
        let listener = std::net::TcpListener::bind(options.listen).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(listening)?
        };

        let shared = Arc::new(Shared::new(options, address, runtime.clone())?);
        shared.tasks.spawn_on(serve(Arc::clone(&shared), listener), &runtime);
        // Whoever starts it tells its address to people.
        tracing::debug!(%address, "Simulator listening on {address}");
        Ok(Self { shared, _own_runtime: own_runtime })
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
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("Simulator connections did not end in time");
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

    /// Forgets log, sums, scripts and faults; back to what it was started with. Webhooks on their way go on, and the
    /// phone keeps its threads.
    pub fn reset(&self) {
        self.shared.reset();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
