//! What WhatsApp's answers mean. The error code decides; the HTTP status only where there is none, since throttling alone
//! comes as 400, 403 and 429.

use super::errors::ErrorObject;
use super::statuses::MAX_ID;
use crate::json::{Clean, List, Text, cut, object};
use domain::outbound::ThrottleScope;
use domain::{Accepted, Reply, SendError};
use std::time::Duration;

object! {
    struct Answer {
        error: ErrorObject<'a> = "error",
        messages: List<'a> = "messages",
    }
    struct Taken {
        id: Text<'a> = "id",
        message_status: Text<'a> = "message_status",
    }
}

/// What a code means for the message, the pair, the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Too fast: the same message later; at least this long.
    Throttled(ThrottleScope, Duration),
    /// Failed for now: at least this long, and after so many attempts for good.
    Transient(Duration, Option<u32>),
    /// Never, for this message.
    Rejected,
    /// Never, for any message of this account, until somebody repairs it.
    AccountBroken,
}

const AT_ONCE: Duration = Duration::ZERO;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Attempts where a code can also mean that the request itself is wrong.
const FEW: Option<u32> = Some(3);

/// The table. `None`: a code we have not met, which the HTTP status decides.
fn meaning(code: i64) -> Option<Meaning> {
    use Meaning::{AccountBroken, Rejected, Throttled, Transient};
    Some(match code {
        // Limits. A pair that is too fast holds up that pair only, a number that is too fast the whole number.
        4 | 613 => Throttled(ThrottleScope::App, AT_ONCE),
        80007 => Throttled(ThrottleScope::Parent, AT_ONCE),
        130_429 => Throttled(ThrottleScope::Account, AT_ONCE),
        131_048 | 133_016 => Throttled(ThrottleScope::Account, HOUR),
        131_056 => Throttled(ThrottleScope::Pair, Duration::from_secs(6)),
        // A group and a flow have limits of their own; neither may hold up the number.
        131_208 | 132_069 => Throttled(ThrottleScope::Pair, AT_ONCE),

        // For now.
        1 | 131_053 => Transient(AT_ONCE, FEW),
        2 | 131_000 | 131_016 | 133_004 => Transient(AT_ONCE, None),
        131_057 => Transient(MINUTE, None),
        134_101 => Transient(MINUTE.saturating_mul(10), None),

        // The account: token, permission, policy, payment, registration.
        0 | 3 | 10 | 33 | 190 | 200..=299 | 368 => AccountBroken,
        131_005 | 131_031 | 131_037 | 131_042 | 131_044 | 131_045 => AccountBroken,
        133_000 | 133_005 | 133_006 | 133_008..=133_010 | 133_015 => AccountBroken,

        // This message: its parameters, its recipient, its window, its template.
        100 | 130_472 | 130_497 => Rejected,
        131_008 | 131_009 | 131_020 | 131_021 | 131_026 | 131_030 | 131_041 | 131_047 => Rejected,
        131_049..=131_052 | 131_055 | 131_062..=131_064 | 131_200..=131_299 => Rejected,
        132_000 | 132_001 | 132_005 | 132_007 | 132_008 | 132_012 | 132_015 | 132_016 | 132_068 => Rejected,
        135_000 | 137_000 | 138_000..=139_999 | 147_000..=147_999 => Rejected,
        _ => return None,
    })
}

/// Judges a complete answer.
pub(super) fn outcome(reply: &Reply) -> Result<Accepted, SendError> {
    let body = Clean::new(&reply.body);
    let answer: Answer<'_> = serde_json::from_str(body.text()).unwrap_or_default();
    let taken: Option<Taken<'_>> = answer.messages.iter().next().and_then(|m| serde_json::from_str(m.get()).ok());
    let taken = taken.unwrap_or_default();
    let good = (200..300).contains(&reply.status);

    if good && let Some(id) = taken.id.get().map(str::trim).filter(|id| id.len() <= MAX_ID) {
        if taken.message_status.get() == Some("paused") {
            return Err(SendError::Rejected {
                code: "paused".into(),
                reason: "WhatsApp has paused this template: the message will not be delivered".into(),
            });
        }
        return Ok(Accepted { provider_message_id: id.to_owned() });
    }
    let known = answer.error.code.integer().and_then(meaning);
    Err(match known {
        Some(meaning) => by_meaning(meaning, reply, &answer.error),
        None => by_http_status(reply, &answer.error),
    })
}

fn by_meaning(meaning: Meaning, reply: &Reply, error: &ErrorObject<'_>) -> SendError {
    let code = code(reply, error);
    let reason = words(reply, error);
    // The provider's wish and the table's: the longer one.
    let at_least = |wait: Duration| reply.retry_after.max(Some(wait)).filter(|wait| !wait.is_zero());
    match meaning {
        Meaning::Throttled(scope, wait) => SendError::Throttled { scope, code, reason, retry_after: at_least(wait) },
        Meaning::Transient(wait, give_up_after) => {
            SendError::Transient { code, reason, retry_after: at_least(wait), give_up_after }
        }
        Meaning::Rejected => SendError::Rejected { code, reason },
        Meaning::AccountBroken => SendError::AccountBroken { code, reason },
    }
}

/// What is left when no code decides. Graph's own 5xx, also without a body, says that nothing was taken. A 502 or 504
/// without an error object of Graph's is a gateway's word: it could not read the answer, or did not wait for it, so the
/// request may well have been taken, and sending again could send twice.
fn by_http_status(reply: &Reply, error: &ErrorObject<'_>) -> SendError {
    let meaning = match reply.status {
        // Perhaps it was taken and the answer is damaged: only a status webhook can tell.
        200..=299 => return SendError::OutcomeUnknown(format!("HTTP {} without a message id", reply.status)),
        502 | 504 if !error.is_there() => {
            return SendError::OutcomeUnknown(format!("HTTP {} from a gateway on the way", reply.status));
        }
        429 => Meaning::Throttled(ThrottleScope::Account, AT_ONCE),
        _ if error.is_transient.0 == Some(true) => Meaning::Transient(AT_ONCE, None),
        500.. => Meaning::Transient(AT_ONCE, None),
        400..=499 => Meaning::Rejected,
        // A redirect or something stranger: nobody has taken it, and something in between is set up wrong.
        _ => Meaning::Transient(AT_ONCE, FEW),
    };
    by_meaning(meaning, reply, error)
}

fn code(reply: &Reply, error: &ErrorObject<'_>) -> String {
    error.code.get().map_or_else(|| format!("http_{}", reply.status), |code| cut(code, 40))
}

fn words(reply: &Reply, error: &ErrorObject<'_>) -> String {
    Some(error.words()).filter(|words| !words.is_empty()).unwrap_or_else(|| format!("HTTP status {}", reply.status))
}
