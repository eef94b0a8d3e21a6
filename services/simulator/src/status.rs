//! The status webhooks that follow an acceptance: when, how often, in which order, or not at all.

use crate::Shared;
use crate::fault::code_words;
use crate::locked;
use crate::postman::{ItemRef, Pending};
use crate::webhook::{Change, seconds};
use domain::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What a status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tick {
    /// One tick.
    Sent,
    /// Two ticks.
    Delivered,
    /// Two coloured ticks.
    Read,
    /// A voice message was listened to.
    Played,
    /// It will not arrive.
    Failed,
}

impl Tick {
    /// The provider's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Tick::Sent => "sent",
            Tick::Delivered => "delivered",
            Tick::Read => "read",
            Tick::Played => "played",
            Tick::Failed => "failed",
        }
    }
}

/// One status and its time after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What it says.
    pub status: Tick,
    /// Milliseconds after the answer.
    pub after_ms: u64,
}

/// Which status webhooks follow an acceptance. Shares are between 0 and 1 and drawn for each message: 0 never, 1 always.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusPlan {
    /// The ordinary course.
    pub steps: Vec<Step>,
    /// Share whose first status is posted before the call is answered.
    pub early: f64,
    /// How long before, in milliseconds.
    pub early_by_ms: u64,
    /// Share whose statuses all come late.
    pub late: f64,
    /// How late, in milliseconds.
    pub late_by_ms: u64,
    /// Share whose statuses are all posted twice, at once.
    pub doubled: f64,
    /// Share whose statuses swap their times.
    pub reordered: f64,
    /// Share whose statuses travel with others in one body.
    pub batched: f64,
    /// Share without any status: silent evidence.
    pub silent: f64,
    /// Share that fails after all.
    pub failed: f64,
    /// With which code.
    pub failed_code: i64,
    /// `delivered` and `read` come from the customer's phone instead of the steps.
    pub by_phone: bool,
}

impl Default for StatusPlan {
    fn default() -> Self {
        let step = |status, after_ms| Step { status, after_ms };
        Self {
            steps: vec![step(Tick::Sent, 10), step(Tick::Delivered, 40), step(Tick::Read, 90)],
            early: 0.0,
            early_by_ms: 200,
            late: 0.0,
            late_by_ms: 3_000,
            doubled: 0.0,
            reordered: 0.0,
            batched: 0.0,
            silent: 0.0,
            failed: 0.0,
            failed_code: 131_026,
            by_phone: false,
        }
    }
}

impl StatusPlan {
    /// No status at all.
    pub fn silent() -> Self {
        Self { silent: 1.0, ..Self::default() }
    }

    /// These statuses, each this many milliseconds after the answer.
    pub fn steps(steps: &[(Tick, u64)]) -> Self {
        Self { steps: steps.iter().map(|&(status, after_ms)| Step { status, after_ms }).collect(), ..Self::default() }
    }

    /// Posted this long before the call is answered.
    pub fn early(by: Duration) -> Self {
        Self { early: 1.0, early_by_ms: millis(by), ..Self::default() }
    }

    /// All of them this much later.
    pub fn late(by: Duration) -> Self {
        Self { late: 1.0, late_by_ms: millis(by), ..Self::default() }
    }

    /// Accepted, then failed with this code.
    pub fn failed(code: i64) -> Self {
        Self { failed: 1.0, failed_code: code, ..Self::default() }
    }

    /// `sent` at once; the rest when the customer's phone shows the message.
    pub fn phone() -> Self {
        Self { steps: vec![Step { status: Tick::Sent, after_ms: 120 }], by_phone: true, ..Self::default() }
    }

    /// A bit of everything Meta does: for chaos runs.
    pub fn unruly() -> Self {
        Self {
            early: 0.15,
            late: 0.1,
            late_by_ms: 1_500,
            doubled: 0.2,
            reordered: 0.3,
            batched: 0.25,
            ..Self::default()
        }
    }

    pub(crate) fn draw(&self, rng: &mut StdRng) -> Course {
        let mut roll = |share: f64| share > 0.0 && rng.random::<f64>() < share;
        if roll(self.silent) {
            return Course::default();
        }
        let early = roll(self.early).then_some(self.early_by_ms);
        let late = if roll(self.late) { self.late_by_ms } else { 0 };
        let copies = if roll(self.doubled) { 2 } else { 1 };
        let batched = roll(self.batched);
        let reordered = roll(self.reordered);
        let mut steps = self.steps.clone();
        if roll(self.failed) {
            steps.truncate(1);
            let after_ms = steps.first().map_or(10, |step| step.after_ms);
            steps = vec![Step { status: Tick::Failed, after_ms }];
        }
        let mut times: Vec<u64> = steps.iter().map(|step| step.after_ms + late).collect();
        if reordered {
            times.shuffle(rng);
        }
        let mut posts: Vec<(u64, Step)> = times.into_iter().zip(steps).collect();
        posts.sort_by_key(|(at, _)| *at);
        Course { early_ms: early, posts, copies, batched, failed_code: self.failed_code, by_phone: self.by_phone }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A plan with its dice thrown, for one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    pub(crate) early_ms: Option<u64>,
    /// When to post (milliseconds after the answer), and what; the step keeps the time it truly happened.
    posts: Vec<(u64, Step)>,
    copies: u8,
    batched: bool,
    failed_code: i64,
    pub(crate) by_phone: bool,
}

/// Whom a status is about.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) account: usize,
    pub(crate) recipient: String,
    pub(crate) wamid: String,
    pub(crate) correlation: Option<String>,
}

impl Receipt {
    /// The member of `statuses[]`.
    pub(crate) fn to_json(&self, status: Tick, at: Timestamp, code: i64) -> Value {
        let mut json = json!({"id": self.wamid, "status": status.as_str(), "timestamp": seconds(at)});
        // A BSUID has letters and a dot; a phone has neither.
        let key = if self.recipient.contains('.') { "recipient_user_id" } else { "recipient_id" };
        json[key] = Value::from(self.recipient.as_str());
        if let Some(correlation) = &self.correlation {
            json["biz_opaque_callback_data"] = Value::from(correlation.as_str());
        }
        match status {
            Tick::Failed => {
                let (_, title) = code_words(code);
                json["errors"] = json!([{"code": code, "title": title, "message": title,
                    "error_data": {"details": title},
                    "href": "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes/"}]);
            }
            Tick::Sent | Tick::Delivered => {
                json["pricing"] = json!({"billable": false, "pricing_model": "PMP", "type": "free_customer_service", "category": "service"});
            }
            Tick::Read | Tick::Played => {}
        }
        json
    }
}

/// Posts the course of a message; `answer_in`: how long from now its answer goes out. The task counts as pending work
/// until its last status is acknowledged or given up.
pub(crate) fn follow(shared: &Arc<Shared>, receipt: Receipt, course: Course, answer_in: Duration) {
    if course.posts.is_empty() {
        return;
    }
    let pending = Pending::begin(&shared.postman);
    let shared = Arc::clone(shared);
    let runtime = shared.runtime.clone();
    runtime.spawn(async move {
        let _pending = pending;
        let start = tokio::time::Instant::now() + answer_in;
        let now = shared.options.clock.now() + answer_in;
        for (place, (post_at, step)) in course.posts.iter().enumerate() {
            // An early first status does not wait for the answer, and what follows it keeps its time.
            if !(place == 0 && course.early_ms.is_some()) {
                tokio::select! {
                    () = tokio::time::sleep_until(start + Duration::from_millis(*post_at)) => {}
                    () = shared.stop.cancelled() => return,
                }
            }
            let happened = now + Duration::from_millis(step.after_ms);
            for _ in 0..course.copies {
                post(&shared, &receipt, step.status, happened, course.failed_code, course.batched);
            }
        }
    });
}

/// Posts one status now.
pub(crate) fn post(shared: &Arc<Shared>, receipt: &Receipt, status: Tick, at: Timestamp, code: i64, batched: bool) {
    let json = receipt.to_json(status, at, code);
    let item = ItemRef { id: receipt.wamid.clone(), what: status.as_str().into() };
    if batched {
        shared.batcher.add(shared, receipt.account, json, item);
        return;
    }
    let accounts = locked(&shared.accounts);
    let Some(account) = accounts.get(receipt.account) else { return };
    let change = Change { statuses: vec![json], ..Change::of(account) };
    drop(accounts);
    shared.postman.post(shared, crate::webhook::body(&[vec![change]]), vec![item]);
}
