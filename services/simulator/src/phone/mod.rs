//! The customer's phone: what it holds, and when it delivers and reads.

mod events;
mod page;
mod routes;

pub(crate) use routes::handle;

use crate::inbound::CustomerMessage;
use crate::options::{Customer, PhoneOptions};
use crate::postman::{ItemRef, Posted};
use crate::status::{Receipt, Tick, post};
use crate::{Shared, locked};
use domain::{Clock, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast;

/// The most bubbles a thread keeps.
const KEEP_BUBBLES: usize = 300;
/// The most threads there are; a load of thousands of customers is not for looking at.
const KEEP_THREADS: usize = 200;
/// The most lines "under the hood" keeps.
const KEEP_LINES: usize = 60;
/// How long a message lies on the screen before it counts as read.
const READING: Duration = Duration::from_millis(700);
/// How soon a phone that nobody looks at takes a message in.
const ARRIVAL: Duration = Duration::from_millis(350);

/// Which thread: business number and customer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ThreadKey {
    pub(crate) account: String,
    pub(crate) customer: String,
}

/// How far a bubble has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// The webhook is on its way, or the answer not read yet.
    Underway,
    /// The business's server did not take it yet; it is tried again.
    Trying,
    /// The business's server has it.
    Taken,
    /// The phone has it.
    Delivered,
    /// It was read.
    Read,
}

#[derive(Clone, Debug)]
pub(crate) struct Bubble {
    pub(crate) no: u64,
    pub(crate) wamid: String,
    /// By the customer, whose phone this is.
    pub(crate) mine: bool,
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) at: Timestamp,
    pub(crate) progress: Progress,
    /// Needed to report delivery and reading of the business's messages.
    receipt: Option<Receipt>,
    by_phone: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Thread {
    pub(crate) bubbles: Vec<Bubble>,
}

impl Thread {
    pub(crate) fn unread(&self) -> usize {
        self.bubbles.iter().filter(|bubble| !bubble.mine && bubble.progress < Progress::Read).count()
    }
}

/// A line under the hood: what went over the wire.
#[derive(Clone, Debug)]
pub(crate) struct HoodLine {
    pub(crate) at: Timestamp,
    pub(crate) tone: Tone,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Out,
    In,
    Bad,
}

/// Something changed; listeners look up what it is now.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Bubble(ThreadKey, u64),
    Typing(ThreadKey),
    Hood(HoodLine),
}

#[derive(Debug, Default)]
struct State {
    customers: Vec<Customer>,
    threads: HashMap<ThreadKey, Thread>,
    /// Which thread and bubble a message id belongs to.
    by_wamid: HashMap<String, (ThreadKey, u64)>,
    hood: Vec<HoodLine>,
    last_no: u64,
}

impl State {
    fn bubble(&mut self, key: &ThreadKey, no: u64) -> Option<&mut Bubble> {
        self.threads.get_mut(key)?.bubbles.iter_mut().find(|bubble| bubble.no == no)
    }

    fn add(&mut self, key: &ThreadKey, name: Option<&str>, mut bubble: Bubble) -> Option<u64> {
        if self.by_wamid.contains_key(&bubble.wamid) {
            return None; // a duplicate webhook is not a second message
        }
        if !self.threads.contains_key(key) && self.threads.len() >= KEEP_THREADS {
            return None;
        }
        if !self.customers.iter().any(|known| known.number == key.customer) {
            let name = name.unwrap_or(&key.customer).to_owned();
            self.customers.push(Customer { number: key.customer.clone(), name, ideas: Vec::new() });
        }
        let thread = self.threads.entry(key.clone()).or_default();
        self.last_no += 1;
        bubble.no = self.last_no;
        self.by_wamid.insert(bubble.wamid.clone(), (key.clone(), bubble.no));
        if thread.bubbles.len() >= KEEP_BUBBLES {
            let oldest = thread.bubbles.remove(0);
            self.by_wamid.remove(&oldest.wamid);
        }
        thread.bubbles.push(bubble);
        Some(self.last_no)
    }
}

/// All customers' phones.
pub(crate) struct Phone {
    pub(crate) options: PhoneOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
}

impl Phone {
    pub(crate) fn new(options: PhoneOptions, clock: Arc<dyn Clock>) -> Self {
        let state = State { customers: options.customers.clone(), ..State::default() };
        Self { options, clock, state: Mutex::new(state), changes: broadcast::Sender::new(256) }
    }

    fn changed(&self, change: Change) {
        // Nobody listening is not a failure.
        let _ = self.changes.send(change);
    }

    /// Writes a line under the hood.
    fn hood(&self, tone: Tone, text: String) {
        let line = HoodLine { at: self.clock.now(), tone, text };
        {
            let mut state = locked(&self.state);
            if state.hood.len() >= KEEP_LINES {
                state.hood.remove(0);
            }
            state.hood.push(line.clone());
        }
        self.changed(Change::Hood(line));
    }

    /// A customer's message sets out.
    pub(crate) fn customer_wrote(&self, message: &CustomerMessage, account: &str, wamid: &str, now: Timestamp) {
        let customer = match (&message.bsuid, message.from.as_str()) {
            (Some(bsuid), "") => bsuid.clone(),
            (_, from) => from.to_owned(),
        };
        let key = ThreadKey { account: account.to_owned(), customer };
        let bubble = Bubble {
            no: 0,
            wamid: wamid.to_owned(),
            mine: true,
            kind: "text".into(),
            text: message.says.words(),
            at: message.at.unwrap_or(now),
            progress: Progress::Underway,
            receipt: None,
            by_phone: false,
        };
        let added = locked(&self.state).add(&key, message.name.as_deref(), bubble);
        if let Some(no) = added {
            self.changed(Change::Bubble(key, no));
        }
    }

    /// The business's message was accepted.
    pub(crate) fn business_wrote(
        &self,
        shared: &Arc<Shared>,
        receipt: &Receipt,
        kind: &str,
        text: &str,
        by_phone: bool,
    ) {
        let Some(account) = locked(&shared.accounts).get(receipt.account).map(|a| a.phone_number_id.clone()) else {
            return;
        };
        let key = ThreadKey { account, customer: receipt.recipient.clone() };
        let bubble = Bubble {
            no: 0,
            wamid: receipt.wamid.clone(),
            mine: false,
            kind: kind.to_owned(),
            text: text.to_owned(),
            at: self.clock.now(),
            progress: Progress::Underway,
            receipt: Some(receipt.clone()),
            by_phone,
        };
        let Some(no) = locked(&self.state).add(&key, None, bubble) else { return };
        self.hood(Tone::In, "The business sent a message, accepted".into());
        self.changed(Change::Bubble(key.clone(), no));
        if let (Some(after), true) = (self.options.auto_read, by_phone) {
            let shared = Arc::clone(shared);
            shared.runtime.clone().spawn(async move {
                tokio::time::sleep(ARRIVAL.min(after)).await;
                raise(&shared, &key, no, Progress::Delivered);
                tokio::time::sleep(after.saturating_sub(ARRIVAL)).await;
                raise(&shared, &key, no, Progress::Read);
            });
        }
    }

    /// The business has marked a message, and those before it, as read.
    pub(crate) fn business_read(&self, wamid: &str, typing: bool) {
        let (key, raised) = {
            let mut state = locked(&self.state);
            let Some((key, no)) = state.by_wamid.get(wamid).cloned() else { return };
            let mut raised = Vec::new();
            let bubbles = state.threads.get_mut(&key).map(|thread| thread.bubbles.iter_mut());
            for bubble in bubbles.into_iter().flatten().filter(|bubble| bubble.mine && bubble.no <= no) {
                if bubble.progress < Progress::Read {
                    bubble.progress = Progress::Read;
                    raised.push(bubble.no);
                }
            }
            (key, raised)
        };
        for no in raised {
            self.changed(Change::Bubble(key.clone(), no));
        }
        if typing {
            self.changed(Change::Typing(key));
        }
    }

    /// A webhook was not taken at the first try.
    pub(crate) fn not_delivered(&self, items: &[ItemRef], posted: Posted) {
        let answer = posted.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        self.hood(Tone::Bad, format!("Webhook {} · {answer}, trying again", what(items)));
        self.raise_own(items, Progress::Trying);
    }

    /// A webhook was taken, or given up.
    pub(crate) fn delivered_to_business(&self, items: &[ItemRef], posted: Posted) {
        if posted.acknowledged {
            self.hood(Tone::Out, format!("Webhook {} · 200 in {} ms", what(items), posted.took_ms));
            self.raise_own(items, Progress::Taken);
        } else {
            self.hood(Tone::Bad, format!("Webhook {} · given up after {} tries", what(items), posted.tries));
        }
    }

    fn raise_own(&self, items: &[ItemRef], to: Progress) {
        for item in items.iter().filter(|item| item.what == "message") {
            let raised = {
                let mut state = locked(&self.state);
                let Some((key, no)) = state.by_wamid.get(&item.id).cloned() else { continue };
                match state.bubble(&key, no) {
                    Some(bubble) if bubble.progress < to => {
                        bubble.progress = to;
                        Some((key, no))
                    }
                    _ => None,
                }
            };
            if let Some((key, no)) = raised {
                self.changed(Change::Bubble(key, no));
            }
        }
    }

    /// Bubbles of the business that are not read yet.
    fn unread(&self, key: &ThreadKey) -> Vec<u64> {
        let state = locked(&self.state);
        let bubbles = state.threads.get(key).map(|thread| thread.bubbles.iter());
        bubbles
            .into_iter()
            .flatten()
            .filter(|bubble| !bubble.mine && bubble.progress < Progress::Read)
            .map(|bubble| bubble.no)
            .collect()
    }
}

fn what(items: &[ItemRef]) -> String {
    match items {
        [] => "of your own".into(),
        [one] => one.what.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.what, rest.len()),
    }
}

/// A message of the business has reached the phone, or was read there: shown, and told to the business once.
fn raise(shared: &Arc<Shared>, key: &ThreadKey, no: u64, to: Progress) {
    let Some(phone) = &shared.phone else { return };
    let (receipt, from) = {
        let mut state = locked(&phone.state);
        let Some(bubble) = state.bubble(key, no) else { return };
        if bubble.progress >= to {
            return;
        }
        let from = bubble.progress;
        bubble.progress = to;
        (bubble.receipt.clone().filter(|_| bubble.by_phone), from)
    };
    phone.changed(Change::Bubble(key.clone(), no));
    if let Some(receipt) = receipt {
        let now = shared.options.clock.now();
        if from < Progress::Delivered {
            post(shared, &receipt, Tick::Delivered, now, 0, false);
        }
        if to == Progress::Read {
            post(shared, &receipt, Tick::Read, now, 0, false);
        }
    }
}

/// The thread lies open before the customer: everything in it is delivered at once and read a moment later.
fn shown(shared: &Arc<Shared>, key: &ThreadKey) {
    let Some(phone) = &shared.phone else { return };
    let unread = phone.unread(key);
    if unread.is_empty() {
        return;
    }
    for no in &unread {
        raise(shared, key, *no, Progress::Delivered);
    }
    let (shared, key) = (Arc::clone(shared), key.clone());
    shared.runtime.clone().spawn(async move {
        tokio::time::sleep(READING).await;
        for no in unread {
            raise(&shared, &key, no, Progress::Read);
        }
    });
}
