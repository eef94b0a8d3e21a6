//! How a simulator is started.

use crate::fault::FaultMix;
use crate::status::StatusPlan;
use domain::{Clock, Secret, SystemClock};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Everything a simulator is started with. `default()` suits tests: a free port on loopback, no faults, no page.
#[derive(Clone, Debug)]
pub struct SimulatorOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The Meta app's secret, which signs every webhook.
    pub app_secret: Secret,
    /// The business numbers the simulator serves.
    pub accounts: Vec<AccountOptions>,
    /// Where webhooks go, plain http; several are used in turn. Empty: nothing is posted until
    /// [`Simulator::set_webhook_urls`](crate::Simulator::set_webhook_urls).
    pub webhook_urls: Vec<String>,
    /// How webhooks are repeated.
    pub webhooks: WebhookOptions,
    /// How long every ordinary answer takes.
    pub latency: Duration,
    /// Which status webhooks follow an acceptance.
    pub statuses: StatusPlan,
    /// Faults dealt out at random.
    pub faults: FaultMix,
    /// Seed of everything random.
    pub seed: u64,
    /// How many calls the log keeps; older ones go, their sums stay.
    pub keep_calls: usize,
    /// The customer's phone; `None`: no page, and no threads are kept.
    pub phone: Option<PhoneOptions>,
    /// Runs on a thread of its own, so that a busy caller neither delays answers nor disturbs the rate accounting.
    pub own_thread: bool,
    /// The time written into webhooks and the log.
    pub clock: Arc<dyn Clock>,
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            app_secret: Secret::new("simulated-app-secret"),
            accounts: vec![AccountOptions::new("106540352242922", "simulated-token")],
            webhook_urls: Vec::new(),
            webhooks: WebhookOptions::default(),
            latency: Duration::ZERO,
            statuses: StatusPlan::default(),
            faults: FaultMix::default(),
            seed: 1,
            keep_calls: 200_000,
            phone: None,
            own_thread: false,
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl SimulatorOptions {
    /// What `--demo` uses: the customer's phone with a few customers, unhurried ticks, no faults.
    pub fn demo() -> Self {
        Self {
            latency: Duration::from_millis(180),
            statuses: StatusPlan::phone(),
            phone: Some(PhoneOptions::default()),
            keep_calls: 10_000,
            ..Self::default()
        }
    }
}

/// A business number at the provider.
#[derive(Clone, Debug)]
pub struct AccountOptions {
    /// Names it in URLs and webhooks.
    pub phone_number_id: String,
    /// The bearer token that may send from it; another one is answered 190.
    pub access_token: Secret,
    /// The WhatsApp business account it belongs to: `entry[].id`.
    pub waba_id: String,
    /// As people write the number.
    pub display_phone_number: String,
    /// As customers see the business.
    pub name: String,
    /// Calls a second the accounting allows; `0` allows any number.
    pub rate_per_second: f64,
    /// Answers 130429 beyond the rate instead of only noting it.
    pub enforce_rate: bool,
    /// Messages to one recipient the accounting allows; `None` allows any number.
    pub pair: Option<PairLimit>,
}

impl AccountOptions {
    /// A number without limits.
    pub fn new(phone_number_id: impl Into<String>, access_token: impl Into<String>) -> Self {
        Self {
            phone_number_id: phone_number_id.into(),
            access_token: Secret::new(access_token),
            waba_id: "900000000000001".into(),
            display_phone_number: "+971 4 555 0100".into(),
            name: "Demo business".into(),
            rate_per_second: 0.0,
            enforce_rate: false,
            pair: None,
        }
    }

    /// The same number with a rate the accounting holds callers to.
    pub fn with_rate(mut self, calls_per_second: f64) -> Self {
        self.rate_per_second = calls_per_second;
        self
    }
}

/// How often one recipient may be written to. Meta: one message per 6 s after a burst of 45.
#[derive(Clone, Copy, Debug)]
pub struct PairLimit {
    /// Time between two messages in the long run.
    pub interval: Duration,
    /// Messages that may go at once.
    pub burst: u32,
    /// Answers 131056 beyond it instead of only noting it.
    pub enforce: bool,
}

/// How webhooks are posted and repeated. Meta repeats for up to seven days; here it is a matter of minutes.
#[derive(Clone, Copy, Debug)]
pub struct WebhookOptions {
    /// Wait before the first repetition; doubles from there.
    pub retry_first: Duration,
    /// Longest wait between two tries.
    pub retry_cap: Duration,
    /// After this long a webhook is given up, and counted as abandoned.
    pub give_up_after: Duration,
    /// Longest wait for one answer.
    pub per_try: Duration,
    /// How many posts may be open at once.
    pub concurrency: usize,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_millis(100),
            retry_cap: Duration::from_secs(2),
            give_up_after: Duration::from_secs(300),
            per_try: Duration::from_secs(20),
            concurrency: 64,
        }
    }
}

/// The customer's phone, a page at `/`.
#[derive(Clone, Debug)]
pub struct PhoneOptions {
    /// Whose phones can be picked up from the start.
    pub customers: Vec<Customer>,
    /// After this long a message counts as read although no page has shown it, so that a demo ticks to the end by
    /// itself. `None`: only the page delivers and reads.
    pub auto_read: Option<Duration>,
    /// Linked from the page: where the answers are written.
    pub inbox_url: Option<String>,
}

impl Default for PhoneOptions {
    fn default() -> Self {
        let customer = |number: &str, name: &str, ideas: &[&str]| Customer {
            number: number.into(),
            name: name.into(),
            ideas: ideas.iter().map(|idea| (*idea).to_owned()).collect(),
        };
        Self {
            customers: vec![
                customer(
                    "971500000101",
                    "Layla Haddad",
                    &[
                        "Hi! Is the two-bedroom at the marina still free?",
                        "Could I see it on Saturday?",
                        "Thank you 🙏",
                    ],
                ),
                customer(
                    "971500000102",
                    "عمر الفارسي",
                    &["السلام عليكم، كم سعر الشقة؟", "هل يمكنني زيارتها غدًا الساعة 5؟", "شكرًا جزيلًا"],
                ),
                customer(
                    "351912000103",
                    "Rita Lopes",
                    &[
                        "Good morning, do you ship to Braga?",
                        "Which documents do you need from me?",
                        "Perfect, see you then",
                    ],
                ),
            ],
            auto_read: Some(Duration::from_millis(1500)),
            inbox_url: None,
        }
    }
}

/// A person with a phone.
#[derive(Clone, Debug)]
pub struct Customer {
    /// Digits, country code first, as WhatsApp writes them.
    pub number: String,
    /// The profile's name.
    pub name: String,
    /// Messages offered with one tap.
    pub ideas: Vec<String>,
}
