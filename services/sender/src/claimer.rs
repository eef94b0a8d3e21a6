//! The sender's one decision: which of the references at hand become calls in the next 100 milliseconds. Room first, then
//! slots for all accounts in one statement, then the recipients' pace, then the claim of exactly as many rows, and each call
//! at its slot.

use crate::Shared;
use crate::call::{self, At};
use crate::database_clock::DatabaseClock;
use crate::desk::Taken;
use crate::fence::{Boottime, Lease};
use crate::reports::Finished;
use crate::shares::Permit;
use crate::slots::{Slot, join};
use domain::limits::{SLOT_HORIZON, SLOT_TOLERANCE};
use domain::{Account, AccountId, Call, MessageId, MessageType, SendError, Timestamp, Window};
use providers::ChannelKind;
use runtime::reconnect::Reconnect;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};
use store::rate_limit::{self, Grant, PairLimit, Wish, account_scope};
use store::send::{self, Claimed, Claims};
use store::{Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};
use uuid::Uuid;

/// A scope blocked for longer than this keeps its sends in the database, not here.
const SHORT_BLOCK: Duration = Duration::from_secs(1);
/// How long before a slot it is asked for.
const ASK_BEFORE: Duration = Duration::from_millis(60);
/// Longest pause between two rounds, taken so that a round has more than a row or two to claim.
const LONGEST_LINGER: Duration = Duration::from_millis(4);

/// A claimed message, ready to be called.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) claim: Claimed,
    pub(crate) account: Arc<Account>,
    pub(crate) kind: &'static dyn ChannelKind,
    pub(crate) call: Call,
    pub(crate) lease: Lease,
    pub(crate) token: Arc<str>,
    pub(crate) taken: Taken,
    pub(crate) permit: Permit,
    pub(crate) claimed_at: Instant,
}

/// References of one account in one round, each with room for its call.
#[derive(Debug, Default)]
struct Group {
    fresh: Vec<(Taken, Permit)>,
    /// Claimed before; their slot was missed.
    #[expect(clippy::vec_box, reason = "they come boxed and go boxed")]
    late: Vec<Box<Job>>,
}

/// The loop that claims.
#[derive(Debug)]
pub(crate) struct Claimer {
    shared: Arc<Shared>,
    late: mpsc::UnboundedReceiver<Box<Job>>,
    /// Claimed, and in want of another slot.
    #[expect(clippy::vec_box, reason = "they come boxed and go boxed")]
    waiting: Vec<Box<Job>>,
    calls: TaskTracker,
    clock: DatabaseClock,
    /// How long it takes from asking for slots to having claimed.
    takes: Duration,
    /// How long the last round took.
    round: Duration,
}

impl Claimer {
    pub(crate) fn new(shared: Arc<Shared>, late: mpsc::UnboundedReceiver<Box<Job>>, calls: TaskTracker) -> Self {
        let clock = DatabaseClock::new();
        let (takes, round) = (Duration::from_millis(5), Duration::ZERO);
        Self { shared, late, waiting: Vec::new(), calls, clock, takes, round }
    }

    /// Claims until the process stops; then everything that was not called goes back.
    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        let tuning = &shared.deps.tuning;
        let mut waits = Reconnect::new(tuning.reconnect_first / 2, tuning.reconnect_most.min(Duration::from_secs(2)));
        let mut idle = true;
        while !shared.stop.is_cancelled() {
            if idle {
                self.wait().await;
            }
            if shared.reports.is_stuck(4 * tuning.report_batch) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                idle = false; // whatever woke us is still to be done
                continue;
            }
            // Company comes while the last round is digested.
            tokio::time::sleep(tuning.sender_linger.max(self.round / 2).min(LONGEST_LINGER)).await;
            if shared.stop.is_cancelled() {
                break;
            }
            let began = Instant::now();
            match self.round().await {
                Ok(claimed) => {
                    idle = claimed == 0;
                    shared.database_answers();
                    waits.connected();
                }
                Err(error) => {
                    idle = false;
                    shared.database_is_away(&error);
                    tokio::select! {
                        () = shared.stop.cancelled() => break,
                        () = tokio::time::sleep(waits.next_wait()) => {}
                    }
                }
            }
            self.round = began.elapsed();
        }
        self.waiting.into_iter().for_each(|job| shared.give_back(job));
        self.late.close();
        while let Some(job) = self.late.recv().await {
            shared.give_back(job);
        }
    }

    /// Waits until there is something to do.
    async fn wait(&self) {
        let late =
            self.waiting.iter().filter_map(|job| self.shared.desk.held_until(job.claim.channel_account_id)).min();
        let held = self.shared.desk.next_ready_at().into_iter().chain(late).min();
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = self.shared.wake.notified() => {}
            () = async { tokio::time::sleep_until(held.unwrap_or_else(Instant::now)).await }, if held.is_some() => {}
        }
    }

    /// How far ahead the first slot may begin. It can be used late: half of that time is for rounds that take longer.
    fn lead(&self) -> Duration {
        self.takes.saturating_sub(SLOT_TOLERANCE / 2)
    }

    /// One round; says how many calls it led to.
    async fn round(&mut self) -> Result<usize, StoreError> {
        let mut groups = self.gather();
        if groups.is_empty() {
            return Ok(0);
        }
        let (asked, sent) = (Boottime::now(), StdInstant::now());
        let slots = match self.take_slots(&groups).await {
            Ok((now, grants)) => {
                self.clock.observe(sent, StdInstant::now(), now);
                self.share_out(now, &grants, &mut groups)
            }
            Err(error) => {
                self.put_back(groups);
                return Err(error);
            }
        };
        let Some((now, mut slots)) = slots else { return Ok(0) };
        let lease = Lease::from(asked, self.shared.deps.tuning.lease);
        let mut begun = self.late_first(&mut groups, &mut slots);

        // Exactly as many rows as there are slots; the rest waits in front of its line.
        let mut chosen: BTreeMap<AccountId, Vec<(Taken, Permit)>> = BTreeMap::new();
        for (account, group) in groups {
            let mut fresh = group.fresh;
            let count = slots.get(&account).map_or(0, Vec::len).min(fresh.len());
            let rest = fresh.split_off(count);
            self.shared.desk.put_back(account, rest.into_iter().map(|(taken, _)| taken).collect());
            if !fresh.is_empty() {
                chosen.insert(account, fresh);
            }
        }
        if chosen.is_empty() {
            return Ok(begun);
        }
        let chosen = self.keep_pace(chosen, now).await?;
        begun += self.claim(chosen, &mut slots, now, lease).await?;
        // Slow to trust a quick round, quick to believe a slow one.
        let took = sent.elapsed();
        self.takes = if took > self.takes { took } else { self.takes.mul_f64(0.8) + took.mul_f64(0.2) };
        Ok(begun)
    }

    /// What there is to do and room to do it: late jobs, and references of every account in equal parts.
    fn gather(&mut self) -> BTreeMap<AccountId, Group> {
        let mut groups: BTreeMap<AccountId, Group> = BTreeMap::new();
        while let Ok(job) = self.late.try_recv() {
            self.waiting.push(job);
        }
        for job in std::mem::take(&mut self.waiting) {
            let id = job.claim.channel_account_id;
            if !job.lease.covers(self.shared.deps.tuning.call_timeout + SLOT_HORIZON) {
                self.shared.give_back(job);
            } else if self.shared.desk.held_until(id).is_some() {
                self.waiting.push(job);
            } else {
                groups.entry(id).or_default().late.push(job);
            }
        }
        let ready = self.shared.desk.ready();
        let part = (self.shared.deps.tuning.claim_batch / ready.len().max(1)).max(1);
        let mut seen = HashSet::new();
        for (account, waiting) in ready {
            let mut permits = self.shared.shares.take(account, waiting.min(part));
            let taken = self.shared.desk.take(account, permits.len());
            // A message may have been referred to twice: it is one row, one place in its recipient's pace, and one call.
            let (taken, again): (Vec<Taken>, Vec<Taken>) = taken.into_iter().partition(|one| seen.insert(one.message));
            again.into_iter().for_each(Taken::done);
            permits.truncate(taken.len());
            if !taken.is_empty() {
                groups.entry(account).or_default().fresh = taken.into_iter().zip(permits).collect();
            }
        }
        groups
    }

    async fn take_slots(&self, groups: &BTreeMap<AccountId, Group>) -> Result<(Timestamp, Vec<Grant>), StoreError> {
        let mut wishes: BTreeMap<String, Wish> = BTreeMap::new();
        for (id, group) in groups {
            let wanted = u32::try_from(group.fresh.len() + group.late.len()).unwrap_or(u32::MAX);
            let own = account_scope(*id);
            wishes.insert(own.clone(), Wish { scope: own, wanted, shared_rate: None });
            let shared = self.shared.directory.account(*id).map(|account| self.shared.directory.shared_scopes(account));
            for (scope, rate) in shared.unwrap_or_default() {
                let wish = wishes.entry(scope.clone()).or_insert(Wish { scope, wanted: 0, shared_rate: Some(rate) });
                wish.wanted = wish.wanted.saturating_add(wanted);
            }
        }
        let wishes: Vec<Wish> = wishes.into_values().collect();
        let mut tx = self.shared.deps.store.autocommit().await?;
        let taken = rate_limit::take_slots(&mut tx, &wishes, self.lead()).await?;
        tx.commit().await?;
        Ok(taken)
    }

    /// Each account's slots. Accounts that got fewer than they wished for are held until it is time to ask again; those of
    /// a blocked scope go back to the lane. `None`: nobody got any.
    fn share_out(
        &mut self,
        now: Timestamp,
        grants: &[Grant],
        groups: &mut BTreeMap<AccountId, Group>,
    ) -> Option<(Timestamp, HashMap<AccountId, Vec<Slot>>)> {
        let shared = self.shared.clone();
        let directory = &shared.directory;
        let by_scope: HashMap<&str, &Grant> = grants.iter().map(|grant| (grant.scope.as_str(), grant)).collect();
        let (mut own, mut limiting, mut granted) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        let mut ask_again: HashMap<AccountId, Timestamp> = HashMap::new();
        let ids: Vec<AccountId> = groups.keys().copied().collect();
        for id in ids {
            let Some(account) = directory.account(id) else { continue };
            let scope = account_scope(id);
            let Some(grant) = by_scope.get(scope.as_str()) else {
                error!(account = %account.name, "{} has no rate; is the database another one than at the start?", account.name);
                continue;
            };
            self.shared.lessons.rate_is(&scope, grant.rate, account.rate_per_second);
            self.shared.deps.metrics.rate_limit(&format!("account:{}", account.name), grant.rate);
            let (mut blocked, mut next) = (grant.blocked_until, grant.next);
            let mut scopes = Vec::new();
            for (scope, rate) in directory.shared_scopes(account) {
                let Some(grant) = by_scope.get(scope.as_str()) else { continue };
                self.shared.lessons.rate_is(&scope, grant.rate, rate);
                blocked = blocked.max(grant.blocked_until);
                if let Some(starts) = &grant.starts {
                    granted.insert(scope.clone(), starts.clone());
                    next = next.max(grant.next);
                    scopes.push(scope);
                }
            }
            if let Some(until) = blocked {
                self.blocked(id, until, now, groups);
                continue;
            }
            own.insert(id, grant.starts.clone().unwrap_or_default());
            limiting.insert(id, scopes);
            ask_again.insert(id, next);
        }
        let joined = join(&own, &limiting, &granted);
        for (id, group) in groups.iter() {
            let wanted = group.fresh.len() + group.late.len();
            if joined.get(id).map_or(0, Vec::len) < wanted {
                let asked = ask_again.get(id).and_then(|next| self.clock.here(*next));
                let soon = Instant::now() + Duration::from_millis(5);
                let at = asked.map_or(soon, |at| (Instant::from_std(at) - ASK_BEFORE).max(soon));
                let held = self.shared.desk.held_until(*id).unwrap_or(at);
                self.shared.desk.hold(*id, at.max(held));
            }
        }
        if joined.is_empty() {
            self.put_back(std::mem::take(groups));
            return None;
        }
        Some((now, joined))
    }

    /// Nothing goes for this account until then: what is here waits shortly, or goes back to where a pause or a change of
    /// mind can reach it.
    fn blocked(&self, id: AccountId, until: Timestamp, now: Timestamp, groups: &mut BTreeMap<AccountId, Group>) {
        let wait = until.since(now);
        if wait <= SHORT_BLOCK {
            self.shared.desk.hold(id, Instant::now() + wait);
            return;
        }
        let Some(group) = groups.remove(&id) else { return };
        group.late.into_iter().for_each(|job| self.shared.give_back(job));
        let mut taken: Vec<Taken> = group.fresh.into_iter().map(|(taken, _)| taken).collect();
        taken.extend(self.shared.desk.take(id, usize::MAX));
        let shared = self.shared.clone();
        self.calls.spawn(async move { set_back(&shared, id, taken, now).await });
    }

    /// Jobs that missed their slot go before all others.
    fn late_first(
        &mut self,
        groups: &mut BTreeMap<AccountId, Group>,
        slots: &mut HashMap<AccountId, Vec<Slot>>,
    ) -> usize {
        let mut begun = 0;
        for (id, group) in groups {
            for job in std::mem::take(&mut group.late) {
                match slots.get_mut(id).filter(|slots| !slots.is_empty()) {
                    Some(slots) => {
                        let slot = slots.remove(0);
                        begun += usize::from(self.launch(job, slot));
                    }
                    None => self.waiting.push(job),
                }
            }
        }
        begun
    }

    /// Leaves out, and back in the lane, those whose recipient has had enough for now.
    async fn keep_pace(
        &mut self,
        mut chosen: BTreeMap<AccountId, Vec<(Taken, Permit)>>,
        now: Timestamp,
    ) -> Result<BTreeMap<AccountId, Vec<(Taken, Permit)>>, StoreError> {
        let mut limits = HashMap::new();
        for id in chosen.keys() {
            if let Some(account) = self.shared.directory.account(*id)
                && account.pair_interval > Duration::ZERO
            {
                limits.insert(*id, PairLimit { interval: account.pair_interval, burst: account.pair_burst });
            }
        }
        let paced: Vec<MessageId> = chosen
            .iter()
            .filter(|(id, _)| limits.contains_key(id))
            .flat_map(|(_, group)| group.iter().map(|(taken, _)| taken.message))
            .collect();
        if paced.is_empty() {
            return Ok(chosen);
        }
        let waiting = match take_pairs(&self.shared.deps.store, &paced, &limits, now).await {
            Ok(waiting) => waiting,
            Err(error) => {
                self.put_back(only_fresh(chosen));
                return Err(error);
            }
        };
        for (message, earliest) in waiting {
            for (id, group) in &mut chosen {
                let Some(at) = group.iter().position(|(taken, _)| taken.message == message) else { continue };
                let (taken, _permit) = group.remove(at);
                debug!(message.id = %message, "Message {message} waits: its recipient has had enough for now");
                let (shared, id) = (self.shared.clone(), *id);
                self.calls.spawn(async move { set_back(&shared, id, vec![taken], earliest).await });
                break;
            }
        }
        Ok(chosen)
    }

    async fn claim(
        &self,
        chosen: BTreeMap<AccountId, Vec<(Taken, Permit)>>,
        slots: &mut HashMap<AccountId, Vec<Slot>>,
        now: Timestamp,
        lease: Lease,
    ) -> Result<usize, StoreError> {
        let token: Arc<str> = Uuid::new_v4().to_string().into();
        let messages: Vec<MessageId> =
            chosen.values().flat_map(|group| group.iter().map(|(taken, _)| taken.message)).collect();
        if messages.is_empty() {
            return Ok(0);
        }
        let lease_until = now + self.shared.deps.tuning.lease;
        let asked = Instant::now();
        let claims = Claims { lease_token: &token, lease_until, now, messages: &messages, tokens: &self.shared.tokens };
        let claimed = match claim(&self.shared.deps.store, &claims).await {
            Ok(claimed) => claimed,
            Err(error) => {
                self.find_out(&token, &messages, chosen, asked).await;
                return Err(error);
            }
        };
        let mut claimed: HashMap<MessageId, Claimed> = claimed.into_iter().map(|row| (row.message_id, row)).collect();
        let mut begun = 0;
        for (id, group) in chosen {
            let mut not_ours = Vec::new();
            for (taken, permit) in group {
                match claimed.remove(&taken.message) {
                    Some(row) => {
                        let slot = slots.get_mut(&id).filter(|slots| !slots.is_empty()).map(|slots| slots.remove(0));
                        begun += usize::from(self.prepare(row, (taken, permit), &token, lease, slot));
                    }
                    None => not_ours.push(taken),
                }
            }
            if !not_ours.is_empty() {
                // Somebody's, done, or not to be sent now. Only the last is still DISPATCHED, and goes back.
                let shared = self.shared.clone();
                self.calls.spawn(async move { set_back(&shared, id, not_ours, now).await });
            }
        }
        Ok(begun)
    }

    /// A claimed row becomes a call, or a report that it cannot. `false`: no call.
    fn prepare(
        &self,
        claim: Claimed,
        (taken, permit): (Taken, Permit),
        token: &Arc<str>,
        lease: Lease,
        slot: Option<Slot>,
    ) -> bool {
        let Some(account) = self.shared.directory.account(claim.channel_account_id).cloned() else {
            self.shared.return_claim(token.clone(), taken, claim.channel_account_id);
            return false;
        };
        match self.call_for(&claim, &account) {
            Ok((kind, call)) => {
                let (token, claimed_at) = (token.clone(), Instant::now());
                let job = Box::new(Job { claim, account, kind, call, lease, token, taken, permit, claimed_at });
                match slot {
                    Some(slot) => self.launch(job, slot),
                    None => {
                        self.shared.again(job);
                        false
                    }
                }
            }
            Err(error) => {
                let report = call::report(&self.shared, &claim, self.shared.deps.clock.now(), None, Err(error));
                call::tell(&self.shared, account.name.as_str(), &report, Duration::ZERO);
                self.shared.reports.leave(Finished { report, taken });
                false
            }
        }
    }

    fn call_for(&self, claim: &Claimed, account: &Account) -> Result<(&'static dyn ChannelKind, Call), SendError> {
        let now = self.shared.deps.clock.now();
        let window = Window::of(account.window.is_some(), claim.window_expires_at, claim.last_inbound_at, now);
        if matches!(window, Window::Closed { .. }) && claim.kind != MessageType::Template {
            let reason = "The 24-hour window closed before it could be sent: send an approved template.".to_owned();
            return Err(SendError::Rejected { code: call::WINDOW_CLOSED.to_owned(), reason });
        }
        let kind = call::kind_of(account.channel)?;
        let job = call::job_of(claim)?;
        Ok((kind, kind.request(&job, account)?))
    }

    /// `false`: the slot cannot be placed, and the job waits for another one.
    fn launch(&self, job: Box<Job>, slot: Slot) -> bool {
        let Some(start) = self.clock.here(slot.start).map(Instant::from_std) else {
            self.shared.again(job);
            return false;
        };
        let at = At { start, end: start + slot.end.since(slot.start) };
        self.calls.spawn(call::make(self.shared.clone(), job, at));
        true
    }

    /// The database did not say whether the claim was made. It is asked until it answers, and no sooner than the statement,
    /// should it still be on its way, has become void. What was claimed goes back, since its slots are lost, and what was not
    /// stays at the front of its line.
    async fn find_out(
        &self,
        token: &Arc<str>,
        messages: &[MessageId],
        chosen: BTreeMap<AccountId, Vec<(Taken, Permit)>>,
        asked: Instant,
    ) {
        let mut waits = Reconnect::new(Duration::from_millis(50), Duration::from_secs(2));
        let until = asked + self.shared.deps.tuning.lease;
        tokio::time::sleep_until(asked + send::CLAIM_WITHIN).await;
        let claimed: Vec<MessageId> = loop {
            // Once the lease is over the answer is of no use.
            let answer = timeout_at(until, claimed_under(&self.shared.deps.store, token, messages)).await;
            match answer.unwrap_or(Err(StoreError::Unanswered)) {
                Ok(claimed) => break claimed,
                Err(error) if Instant::now() < until && !self.shared.stop.is_cancelled() => {
                    debug!(%error, "Whether a claim was made is not known yet");
                    tokio::time::sleep(waits.next_wait()).await;
                }
                Err(error) => {
                    warn!(%error, "Whether a claim was made was not learnt; its lease ends it");
                    break Vec::new();
                }
            }
        };
        for (id, group) in chosen {
            let (ours, others): (Vec<_>, Vec<_>) =
                group.into_iter().map(|(taken, _)| taken).partition(|taken| claimed.contains(&taken.message));
            for taken in ours {
                self.shared.return_claim(token.clone(), taken, id);
            }
            self.shared.desk.put_back(id, others);
        }
    }

    fn put_back(&mut self, groups: BTreeMap<AccountId, Group>) {
        for (id, group) in groups {
            self.waiting.extend(group.late);
            self.shared.desk.put_back(id, group.fresh.into_iter().map(|(taken, _)| taken).collect());
        }
    }
}

fn only_fresh(chosen: BTreeMap<AccountId, Vec<(Taken, Permit)>>) -> BTreeMap<AccountId, Group> {
    chosen.into_iter().map(|(id, fresh)| (id, Group { fresh, late: Vec::new() })).collect()
}

async fn take_pairs(
    store: &Store,
    messages: &[MessageId],
    limits: &HashMap<AccountId, PairLimit>,
    now: Timestamp,
) -> Result<Vec<(MessageId, Timestamp)>, StoreError> {
    let mut tx = store.begin().await?;
    let waiting = rate_limit::take_pairs(&mut tx, messages, limits, now).await?;
    tx.commit().await?;
    Ok(waiting)
}

async fn claim(store: &Store, claims: &Claims<'_>) -> Result<Vec<Claimed>, StoreError> {
    let mut tx = store.autocommit().await?;
    let claimed = send::claim(&mut tx, claims).await?;
    tx.commit().await?;
    Ok(claimed)
}

/// Waits for a claim that is being made at this moment.
async fn claimed_under(store: &Store, token: &str, messages: &[MessageId]) -> Result<Vec<MessageId>, StoreError> {
    let mut tx = store.begin().await?;
    let rows = send::lock(&mut tx, messages).await?;
    tx.rollback().await?;
    let ours = rows.into_iter().filter(|row| row.lease_token.as_deref() == Some(token));
    Ok(ours.map(|row| row.message_id).collect())
}

/// Puts rows that are still DISPATCHED back into the lane, not before `due_at`, and forgets their references. When the
/// database is away they stay at hand.
async fn set_back(shared: &Shared, id: AccountId, taken: Vec<Taken>, due_at: Timestamp) {
    let messages: Vec<MessageId> = taken.iter().map(|one| one.message).collect();
    let done = async {
        let mut tx = shared.deps.store.autocommit().await?;
        send::set_back(&mut tx, &messages, due_at).await?;
        tx.commit().await
    };
    match done.await {
        Ok(()) => taken.into_iter().for_each(Taken::done),
        Err(error) => {
            let error: StoreError = error;
            debug!(%error, "References stay at hand: they cannot be set back");
            shared.desk.put_back(id, taken);
            shared.desk.hold(id, Instant::now() + Duration::from_millis(500));
        }
    }
}
