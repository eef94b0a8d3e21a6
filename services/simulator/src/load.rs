//! Customers who write by themselves: steady load with duplicates, batches, late, odd and forged webhooks.

use crate::inbound::{BatchItem, CustomerMessage, Says};
use crate::postman::Forgery;
use crate::{Shared, locked};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the customers do. Shares are between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadPlan {
    /// New messages a second.
    pub per_second: f64,
    /// Ends after this many messages; `None`: when stopped.
    pub messages: Option<u64>,
    /// How many customers take turns.
    pub customers: u32,
    /// Number of the first customer; the others follow.
    pub first_number: u64,
    /// phone_number_ids written to in turn, each customer always to the same; empty: all.
    pub accounts: Vec<String>,
    /// Share posted a second time, perhaps at once, perhaps later.
    pub duplicates: f64,
    /// Share that travels with others in one body.
    pub batched: f64,
    /// Share posted up to a second late, so that later messages overtake.
    pub reordered: f64,
    /// Share of additional webhooks with a wrong signature.
    pub forged: f64,
    /// Share of other kinds: media, reactions, unknown types, empty texts.
    pub odd: f64,
    /// Seed of the dice.
    pub seed: u64,
    /// Begins every text, to tell loads apart.
    pub label: String,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            per_second: 20.0,
            messages: None,
            customers: 50,
            first_number: 971_560_000_000,
            accounts: Vec::new(),
            duplicates: 0.1,
            batched: 0.15,
            reordered: 0.15,
            forged: 0.02,
            odd: 0.03,
            seed: 1,
            label: "load".into(),
        }
    }
}

/// A message the load has written. It must be stored exactly once if its webhook was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSent {
    /// Its id.
    pub wamid: String,
    /// phone_number_id it was written to.
    pub account: String,
    /// The customer's digits.
    pub from: String,
    /// What a person reads.
    pub text: String,
}

/// What the customers have done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Every message, in the order of writing.
    pub sent: Vec<LoadSent>,
    /// Bodies posted again.
    pub duplicates: u64,
    /// Bodies with several messages.
    pub batches: u64,
    /// Messages posted late.
    pub reordered: u64,
    /// Forgeries posted.
    pub forged: u64,
    /// Messages of other kinds.
    pub odd: u64,
}

/// A running load.
#[derive(Clone, Debug)]
pub struct Load {
    report: Arc<Mutex<LoadReport>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Load {
    pub(crate) fn start(shared: &Arc<Shared>, plan: LoadPlan) -> Self {
        let load = Self { report: Arc::default(), stop: shared.stop.child_token(), tasks: TaskTracker::new() };
        let writer = Writer { shared: Arc::clone(shared), load: load.clone(), plan };
        load.tasks.spawn_on(writer.run(), &shared.runtime);
        load.tasks.close();
        load
    }

    /// What was done so far.
    pub fn report(&self) -> LoadReport {
        locked(&self.report).clone()
    }

    /// Waits until a plan with an end has written its last message. Webhooks may still be on their way: see
    /// [`Simulator::settled`](crate::Simulator::settled).
    pub async fn finished(&self) -> LoadReport {
        self.tasks.wait().await;
        self.report()
    }

    /// Ends the writing; the report is complete then.
    pub async fn stop(&self) -> LoadReport {
        self.stop.cancel();
        self.finished().await
    }
}

struct Writer {
    shared: Arc<Shared>,
    load: Load,
    plan: LoadPlan,
}

impl Writer {
    async fn run(self) {
        let mut rng = StdRng::seed_from_u64(self.plan.seed);
        let mut accounts = self.plan.accounts.clone();
        if accounts.is_empty() {
            accounts = locked(&self.shared.accounts).iter().map(|account| account.phone_number_id.clone()).collect();
        }
        let gap = Duration::from_secs_f64(1.0 / self.plan.per_second.clamp(0.001, 1_000_000.0));
        let mut next = tokio::time::Instant::now();
        let mut gathered: Vec<CustomerMessage> = Vec::new();
        let mut number = 0_u64;
        while self.plan.messages.is_none_or(|most| number < most) {
            tokio::select! {
                () = self.load.stop.cancelled() => break,
                () = tokio::time::sleep_until(next) => {}
            }
            next += gap;
            let Some(message) = self.write(number, &accounts, &mut rng) else { break };
            number += 1;
            if rng.random_bool(self.plan.batched.clamp(0.0, 1.0)) {
                gathered.push(message);
                if gathered.len() >= rng.random_range(2..7) {
                    self.post_together(std::mem::take(&mut gathered));
                }
            } else {
                self.post_alone(message, &mut rng);
            }
            if rng.random_bool(self.plan.forged.clamp(0.0, 1.0)) {
                self.forge(&mut rng);
            }
        }
        if !gathered.is_empty() {
            self.post_together(gathered);
        }
    }

    fn write(&self, number: u64, accounts: &[String], rng: &mut StdRng) -> Option<CustomerMessage> {
        let customer = rng.random_range(0..u64::from(self.plan.customers.max(1)));
        let from = (self.plan.first_number + customer).to_string();
        let account = accounts.get(usize::try_from(customer).ok()?.checked_rem(accounts.len())?)?.clone();
        let text = format!("{} {number}", self.plan.label);
        let odd = rng.random_bool(self.plan.odd.clamp(0.0, 1.0));
        let says = if odd { odd_message(rng, &text) } else { Says::Text { body: text } };
        let wamid = self.shared.new_wamid();
        let mut report = locked(&self.load.report);
        report.odd += u64::from(odd);
        report.sent.push(LoadSent {
            wamid: wamid.clone(),
            account: account.clone(),
            from: from.clone(),
            text: says.words(),
        });
        drop(report);
        let name = format!("Customer {customer}");
        Some(CustomerMessage::of(from, name, says).to_account(account).with_wamid(wamid))
    }

    fn post_alone(&self, message: CustomerMessage, rng: &mut StdRng) {
        let mut delays = vec![0];
        {
            let mut report = locked(&self.load.report);
            if rng.random_bool(self.plan.reordered.clamp(0.0, 1.0)) {
                report.reordered += 1;
                delays = vec![rng.random_range(100..1000)];
            }
            if rng.random_bool(self.plan.duplicates.clamp(0.0, 1.0)) {
                report.duplicates += 1;
                // Half of the copies race the original.
                let later = if rng.random_bool(0.5) { 0 } else { rng.random_range(50..2000) };
                delays.push(later);
            }
        }
        // The time of writing is now, however late it is posted.
        let message = CustomerMessage { at: Some(self.shared.options.clock.now()), ..message };
        for delay in delays {
            let (shared, message) = (Arc::clone(&self.shared), message.clone());
            if delay == 0 {
                shared.customer_sends(message);
                continue;
            }
            self.load.tasks.spawn_on(
                async move {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                    shared.customer_sends(message);
                },
                &self.shared.runtime,
            );
        }
    }

    /// One entry per account, changes of at most two messages.
    fn post_together(&self, messages: Vec<CustomerMessage>) {
        locked(&self.load.report).batches += 1;
        let mut entries: Vec<(Option<String>, Vec<Vec<BatchItem>>)> = Vec::new();
        for message in messages {
            let account = message.account.clone();
            let item = BatchItem::Message(message);
            match entries.iter_mut().find(|(of, _)| *of == account) {
                Some((_, changes)) => match changes.last_mut() {
                    Some(change) if change.len() < 2 => change.push(item),
                    _ => changes.push(vec![item]),
                },
                None => entries.push((account, vec![vec![item]])),
            }
        }
        let entries: Vec<_> = entries.into_iter().map(|(_, changes)| changes).collect();
        self.shared.post_batch(&entries);
    }

    fn forge(&self, rng: &mut StdRng) {
        locked(&self.load.report).forged += 1;
        let how = Forgery::ALL.get(rng.random_range(0..Forgery::ALL.len())).copied().unwrap_or(Forgery::Missing);
        let shared = Arc::clone(&self.shared);
        let message = CustomerMessage::text(self.plan.first_number.to_string(), "Forger", "forged");
        self.load.tasks.spawn_on(
            async move {
                shared.forge(how, &message).await;
            },
            &self.shared.runtime,
        );
    }
}

fn odd_message(rng: &mut StdRng, text: &str) -> Says {
    let caption = Some(text.to_owned());
    match rng.random_range(0..11) {
        0 => Says::Image { caption },
        1 => Says::Document { filename: "offer.pdf".into(), caption },
        2 => Says::Voice,
        3 => Says::Video { caption: None },
        4 => Says::Sticker,
        5 => Says::Location { latitude: 25.2, longitude: 55.27, name: caption },
        6 => Says::Contacts { name: text.to_owned(), phone: "+351 910 000 001".into() },
        7 => Says::Button { text: text.to_owned(), payload: "YES".into() },
        8 => Says::Unsupported,
        9 => Says::Text { body: String::new() },
        _ => Says::Unheard,
    }
}
