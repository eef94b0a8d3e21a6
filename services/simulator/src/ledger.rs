//! The log of every call, and what it proves: second acceptances, overlaps, order, rates.

use crate::locked;
use crate::options::AccountOptions;
use crate::rate::{PairPace, SlidingSecond, breaks_rate};
use domain::{Clock, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A message as a caller asked for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) account: String,
    pub(crate) recipient: String,
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) correlation: Option<String>,
    pub(crate) ours: Option<Ours>,
}

/// Our own correlation, `r1.<deployment>.<message>.<generation>.<attempt>`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ours {
    pub(crate) deployment: String,
    pub(crate) message: i64,
    pub(crate) generation: i64,
    pub(crate) attempt: i64,
}

impl Ours {
    pub(crate) fn read(correlation: &str) -> Option<Self> {
        let mut parts = correlation.split('.');
        if parts.next()? != "r1" {
            return None;
        }
        let deployment = parts.next()?.to_owned();
        let mut number = || parts.next()?.parse().ok();
        let ours = Self { deployment, message: number()?, generation: number()?, attempt: number()? };
        parts.next().is_none().then_some(ours)
    }

    /// What must be accepted once: a message in a generation. A person's retry is a new generation.
    fn once(&self) -> String {
        format!("{}.{}.{}", self.deployment, self.message, self.generation)
    }
}

/// One call to the messages endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Counts calls from 1, by arrival.
    pub seq: u64,
    /// When its request was read.
    pub at: Timestamp,
    /// The same in microseconds since the simulator started, by a clock that nobody sets.
    pub at_micros: u64,
    /// phone_number_id.
    pub account: String,
    /// Digits or BSUID.
    pub recipient: String,
    /// `text`, `template`, …
    pub kind: String,
    /// What the customer would read.
    pub text: String,
    /// SHA-256 of the text, in hex.
    pub text_sha256: String,
    /// `biz_opaque_callback_data`.
    pub correlation: Option<String>,
    /// Name of what the simulator did: `accept`, `error_130429`, `cut_after`, …
    pub verdict: String,
    /// Status of the answer, if one was begun.
    pub http_status: Option<u16>,
    /// The id, if the message was accepted.
    pub wamid: Option<String>,
    /// Place among all acceptances, from 1.
    pub accepted_no: Option<u64>,
    /// Whether the complete answer was handed to the connection.
    pub answered: bool,
    /// When the call ended, in microseconds since the start; `None`: still open.
    pub ended_micros: Option<u64>,
}

/// A message the provider accepted more than once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedTwice {
    /// `<deployment>.<message>.<generation>`.
    pub message: String,
    /// The calls that were accepted, in order.
    pub calls: Vec<u64>,
}

/// Two calls to one recipient that were open at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overlap {
    /// phone_number_id.
    pub account: String,
    /// Digits or BSUID.
    pub recipient: String,
    /// The call that was open.
    pub first: u64,
    /// The call that came in meanwhile.
    pub second: u64,
}

/// How fast one number was called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountRate {
    /// phone_number_id.
    pub account: String,
    /// Calls in all.
    pub calls: u64,
    /// Calls a second the accounting allows; 0: any number.
    pub allowed: f64,
    /// Most calls in any second.
    pub most_in_a_second: u64,
    /// Calls that were more than one above the rate.
    pub violations: u64,
    /// Messages that came too soon after others to the same recipient.
    pub pair_violations: u64,
}

/// Sums over all calls since the start or the last reset.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CallStats {
    /// Calls to the messages endpoint that carried a readable message.
    pub calls: u64,
    /// Calls open now.
    pub open: u64,
    /// Messages accepted, second acceptances included.
    pub accepted: u64,
    /// Calls whose answer was complete, whatever it said.
    pub answered: u64,
    /// Calls whose caller cannot know whether the message was taken.
    pub ambiguous: u64,
    /// Those of them that were accepted.
    pub ambiguous_accepted: u64,
    /// Calls whose caller went away before its answer.
    pub caller_gone: u64,
    /// Acceptances of a message and generation already accepted.
    pub accepted_twice: u64,
    /// Calls to a recipient who had one open.
    pub overlaps: u64,
    /// Calls above an account's rate.
    pub rate_violations: u64,
    /// Calls above a pair's rate.
    pub pair_violations: u64,
    /// BSUIDs given in `to`: answered with an id and dropped, as Meta does.
    pub misaddressed: u64,
    /// Calls refused before any verdict: wrong token, unreadable body, unknown number.
    pub refused: u64,
    /// Messages marked as read by the business.
    pub marked_read: u64,
    /// Calls by verdict.
    pub by_verdict: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Account {
    second: SlidingSecond,
    calls: u64,
    allowed: f64,
    violations: u64,
    pair_violations: u64,
}

#[derive(Debug, Default)]
struct State {
    stats: CallStats,
    calls: VecDeque<Call>,
    last_seq: u64,
    open: HashMap<(String, String), Vec<u64>>,
    overlaps: Vec<Overlap>,
    accepted: HashMap<String, Vec<u64>>,
    accounts: BTreeMap<String, Account>,
    pairs: HashMap<(String, String), PairPace>,
}

impl State {
    fn call(&mut self, seq: u64) -> Option<&mut Call> {
        let first = self.calls.front()?.seq;
        self.calls.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }
}

/// The log. Everything in it is in memory and goes with the process.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    keep: usize,
    clock: Arc<dyn Clock>,
    start: Instant,
}

/// What noting a call found out.
pub(crate) struct Opened {
    pub(crate) call: OpenCall,
    pub(crate) over_rate: bool,
    pub(crate) over_pair: bool,
}

impl Ledger {
    pub(crate) fn new(keep: usize, clock: Arc<dyn Clock>) -> Self {
        Self { state: Mutex::default(), keep: keep.max(1), clock, start: Instant::now() }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes a call that arrived at `arrived`.
    pub(crate) fn open(self: &Arc<Self>, sent: &Sent, account: &AccountOptions, arrived: Instant) -> Opened {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        state.last_seq += 1;
        let seq = state.last_seq;
        state.stats.calls += 1;
        state.stats.open += 1;

        let rate = state.accounts.entry(sent.account.clone()).or_default();
        rate.calls += 1;
        rate.allowed = account.rate_per_second;
        let over_rate = breaks_rate(rate.second.note(arrived), account.rate_per_second);
        let pair = (sent.account.clone(), sent.recipient.clone());
        let over_pair =
            account.pair.is_some_and(|limit| state.pairs.entry(pair.clone()).or_default().note(arrived, limit));
        rate.violations += u64::from(over_rate);
        rate.pair_violations += u64::from(over_pair);
        state.stats.rate_violations += u64::from(over_rate);
        state.stats.pair_violations += u64::from(over_pair);

        let others = state.open.entry(pair).or_default();
        if let Some(first) = others.first() {
            state.stats.overlaps += 1;
            state.overlaps.push(Overlap {
                account: sent.account.clone(),
                recipient: sent.recipient.clone(),
                first: *first,
                second: seq,
            });
        }
        others.push(seq);

        if state.calls.len() >= self.keep {
            state.calls.pop_front();
        }
        state.calls.push_back(Call {
            seq,
            at: self.clock.now(),
            at_micros: self.micros(arrived),
            account: sent.account.clone(),
            recipient: sent.recipient.clone(),
            kind: sent.kind.clone(),
            text: sent.text.clone(),
            text_sha256: hex::encode(Sha256::digest(sent.text.as_bytes())),
            correlation: sent.correlation.clone(),
            verdict: String::new(),
            http_status: None,
            wamid: None,
            accepted_no: None,
            answered: false,
            ended_micros: None,
        });
        let pair = (sent.account.clone(), sent.recipient.clone());
        let call = OpenCall { ledger: Arc::clone(self), seq, pair, accepted: false, ambiguous: false, closed: false };
        Opened { call, over_rate, over_pair }
    }

    /// Notes that a call's message was taken, at once or much later.
    pub(crate) fn accept(&self, seq: u64, ours: Option<&Ours>, wamid: &str) {
        let mut state = locked(&self.state);
        state.stats.accepted += 1;
        let place = state.stats.accepted;
        if let Some(call) = state.call(seq) {
            call.wamid = Some(wamid.to_owned());
            call.accepted_no = Some(place);
        }
        if let Some(ours) = ours {
            let calls = state.accepted.entry(ours.once()).or_default();
            calls.push(seq);
            let again = calls.len() > 1;
            state.stats.accepted_twice += u64::from(again);
        }
    }

    pub(crate) fn note_refused(&self) {
        locked(&self.state).stats.refused += 1;
    }

    pub(crate) fn note_misaddressed(&self) {
        locked(&self.state).stats.misaddressed += 1;
    }

    pub(crate) fn note_marked_read(&self) {
        locked(&self.state).stats.marked_read += 1;
    }

    pub(crate) fn stats(&self) -> CallStats {
        locked(&self.state).stats.clone()
    }

    pub(crate) fn rates(&self) -> Vec<AccountRate> {
        let state = locked(&self.state);
        let rate = |(account, of): (&String, &Account)| AccountRate {
            account: account.clone(),
            calls: of.calls,
            allowed: of.allowed,
            most_in_a_second: of.second.most as u64,
            violations: of.violations,
            pair_violations: of.pair_violations,
        };
        state.accounts.iter().map(rate).collect()
    }

    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        locked(&self.state).overlaps.clone()
    }

    pub(crate) fn accepted_twice(&self) -> Vec<AcceptedTwice> {
        let state = locked(&self.state);
        let mut twice: Vec<_> = state
            .accepted
            .iter()
            .filter(|(_, calls)| calls.len() > 1)
            .map(|(message, calls)| AcceptedTwice { message: message.clone(), calls: calls.clone() })
            .collect();
        twice.sort_by(|a, b| a.calls.cmp(&b.calls));
        twice
    }

    /// Calls after `seq`, oldest first.
    pub(crate) fn calls(&self, after: u64, limit: usize, wanted: impl Fn(&Call) -> bool) -> Vec<Call> {
        let state = locked(&self.state);
        state.calls.iter().filter(|call| call.seq > after && wanted(call)).take(limit).cloned().collect()
    }

    /// Texts accepted for a recipient, in the order of their acceptance.
    pub(crate) fn order(&self, account: Option<&str>, recipient: &str) -> Vec<String> {
        let state = locked(&self.state);
        let mut accepted: Vec<(u64, String)> = state
            .calls
            .iter()
            .filter(|call| call.recipient == recipient && account.is_none_or(|account| call.account == account))
            .filter_map(|call| Some((call.accepted_no?, call.text.clone())))
            .collect();
        accepted.sort_by_key(|(place, _)| *place);
        accepted.into_iter().map(|(_, text)| text).collect()
    }

    /// Forgets everything but the calls that are open, which are only forgotten as records.
    pub(crate) fn reset(&self) {
        let mut state = locked(&self.state);
        let last_seq = state.last_seq;
        let open = std::mem::take(&mut state.open);
        let still_open = state.stats.open;
        *state = State { last_seq, open, ..State::default() };
        state.stats.open = still_open;
    }

    fn close(&self, call: &OpenCall, status: Option<u16>, answered: bool, gone: bool) {
        let mut state = locked(&self.state);
        let ended = self.micros(Instant::now());
        if let Some(record) = state.call(call.seq) {
            record.http_status = status;
            record.answered = answered;
            record.ended_micros = Some(ended);
        }
        if let Some(open) = state.open.get_mut(&call.pair) {
            open.retain(|seq| *seq != call.seq);
            if open.is_empty() {
                state.open.remove(&call.pair);
            }
        }
        let unsure = call.ambiguous || gone;
        let stats = &mut state.stats;
        stats.open = stats.open.saturating_sub(1);
        stats.answered += u64::from(answered);
        stats.caller_gone += u64::from(gone);
        stats.ambiguous += u64::from(unsure);
        stats.ambiguous_accepted += u64::from(unsure && call.accepted);
    }
}

/// A call in progress. Dropped before it is finished, its caller went away.
pub(crate) struct OpenCall {
    ledger: Arc<Ledger>,
    pub(crate) seq: u64,
    pair: (String, String),
    accepted: bool,
    ambiguous: bool,
    closed: bool,
}

impl OpenCall {
    /// Notes what the simulator is about to do.
    pub(crate) fn judged(&mut self, verdict: &str, ambiguous: bool) {
        self.ambiguous = ambiguous;
        let mut state = locked(&self.ledger.state);
        *state.stats.by_verdict.entry(verdict.to_owned()).or_default() += 1;
        if let Some(call) = state.call(self.seq) {
            verdict.clone_into(&mut call.verdict);
        }
    }

    /// Notes that the message was taken.
    pub(crate) fn accept(&mut self, ours: Option<&Ours>, wamid: &str) {
        self.accepted = true;
        self.ledger.accept(self.seq, ours, wamid);
    }

    /// Ends the call with a complete answer.
    pub(crate) fn answered(mut self, status: u16) {
        self.closed = true;
        self.ledger.close(&self, Some(status), true, false);
    }

    /// Ends the call on purpose without one; `status` if its head went out.
    pub(crate) fn cut(mut self, status: Option<u16>) {
        self.closed = true;
        self.ledger.close(&self, status, false, false);
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if !self.closed {
            self.ledger.close(self, None, false, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::TestClock;

    #[test]
    fn only_our_own_correlation_is_taken_apart() {
        let ours = Ours::read("r1.abcdefghi0.77.0.3").unwrap();
        assert_eq!((ours.deployment.as_str(), ours.message, ours.generation, ours.attempt), ("abcdefghi0", 77, 0, 3));
        for foreign in ["", "out_01J", "r1.a.7.0", "r2.a.7.0.1", "r1.a.x.0.1", "r1.a.7.0.1.9"] {
            assert_eq!(Ours::read(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_second_acceptance_counts_within_a_generation_and_not_across() {
        let ledger = Arc::new(Ledger::new(10, Arc::new(TestClock::at(Timestamp::EPOCH))));
        for (seq, correlation) in
            [(1, "r1.d.7.0.1"), (2, "r1.d.7.1.1"), (3, "r1.d.8.0.1"), (4, "r1.d.7.0.2"), (5, "r1.e.7.0.1")]
        {
            ledger.accept(seq, Ours::read(correlation).as_ref(), "wamid.X");
        }
        let twice = ledger.accepted_twice();
        assert_eq!(twice.len(), 1);
        assert_eq!((twice[0].message.as_str(), twice[0].calls.as_slice()), ("d.7.0", [1, 4].as_slice()));
        assert_eq!(ledger.stats().accepted_twice, 1);
    }
}
