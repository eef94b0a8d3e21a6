//! Answers written down beforehand: for the next call that fits, or for all of them.

use crate::fault::Fault;
use crate::ledger::Sent;
use crate::status::StatusPlan;
use serde::{Deserialize, Serialize};

/// Which calls a script is for: every member that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// phone_number_id of the sending number.
    pub account: Option<String>,
    /// Digits or BSUID of the recipient.
    pub recipient: Option<String>,
    /// Part of the message's text.
    pub text: Option<String>,
    /// Message id within our correlation.
    pub message: Option<i64>,
    /// Attempt within our correlation.
    pub attempt: Option<i64>,
}

impl When {
    /// Every call.
    pub fn any() -> Self {
        Self::default()
    }

    /// Calls to one recipient.
    pub fn to(recipient: impl Into<String>) -> Self {
        Self { recipient: Some(recipient.into()), ..Self::default() }
    }

    /// Calls from one number.
    pub fn from(account: impl Into<String>) -> Self {
        Self { account: Some(account.into()), ..Self::default() }
    }

    /// Calls whose text contains this.
    pub fn saying(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    fn fits(&self, sent: &Sent) -> bool {
        let ours = sent.ours.as_ref();
        self.account.as_ref().is_none_or(|account| *account == sent.account)
            && self.recipient.as_ref().is_none_or(|recipient| *recipient == sent.recipient)
            && self.text.as_ref().is_none_or(|text| sent.text.contains(text.as_str()))
            && self.message.is_none_or(|message| ours.is_some_and(|ours| ours.message == message))
            && self.attempt.is_none_or(|attempt| ours.is_some_and(|ours| ours.attempt == attempt))
    }
}

/// A fault kept ready for the calls it fits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Which calls.
    #[serde(default)]
    pub when: When,
    /// What happens to them.
    pub fault: Fault,
    /// For how many calls; `None`: for all, until scripts are cleared.
    #[serde(default = "once")]
    pub times: Option<u32>,
    /// Which statuses follow, if it accepts; otherwise as usual.
    #[serde(default)]
    pub statuses: Option<StatusPlan>,
}

#[expect(clippy::unnecessary_wraps, reason = "the shape serde asks for")]
fn once() -> Option<u32> {
    Some(1)
}

impl Script {
    /// For the next call that fits.
    pub fn once(when: When, fault: Fault) -> Self {
        Self { when, fault, times: Some(1), statuses: None }
    }

    /// For every call that fits, until scripts are cleared.
    pub fn always(when: When, fault: Fault) -> Self {
        Self { when, fault, times: None, statuses: None }
    }

    /// The same, for this many calls.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// The same, with statuses of its own.
    pub fn with_statuses(mut self, plan: StatusPlan) -> Self {
        self.statuses = Some(plan);
        self
    }
}

/// The scripts in force, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Scripts(Vec<Script>);

impl Scripts {
    pub(crate) fn add(&mut self, script: Script) {
        self.0.push(script);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// How many one-off answers are still to come.
    pub(crate) fn left(&self) -> u64 {
        self.0.iter().filter_map(|script| script.times).map(u64::from).sum()
    }

    /// The first script that fits this call; a used-up one is gone.
    pub(crate) fn take(&mut self, sent: &Sent) -> Option<(Fault, Option<StatusPlan>)> {
        let at = self.0.iter().position(|script| script.times != Some(0) && script.when.fits(sent))?;
        let script = self.0.get_mut(at)?;
        let answer = (script.fault.clone(), script.statuses.clone());
        if let Some(times) = &mut script.times {
            *times -= 1;
            if *times == 0 {
                self.0.remove(at);
            }
        }
        Some(answer)
    }
}
