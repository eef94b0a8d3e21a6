//! One call: wait for its slot, look at the fence, call, judge, report.

use crate::Shared;
use crate::claimer::Job;
use crate::lessons;
use crate::reports::Finished;
use domain::wire::AttemptReport;
use domain::{AttemptOutcome, Call, Content, MessageType, Recipient, SendError, SendJob, Timestamp};
use providers::ChannelKind;
use runtime::http_client::TransportError;
use std::sync::Arc;
use std::time::Duration;
use store::send::Claimed;
use tokio::time::Instant;
use tracing::{debug, info};

/// Our own codes, where there is no provider's.
const UNREACHABLE: &str = "unreachable";
const NO_ANSWER: &str = "no_answer";
/// The window has shut since the message was accepted.
pub(crate) const WINDOW_CLOSED: &str = "window_closed";

/// When a call may be made, by our clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Not before.
    pub(crate) start: Instant,
    /// Not after: the slot is lost then.
    pub(crate) end: Instant,
}

/// Makes the call at its slot. A slot that was missed costs another one; a lease that is nearly over, or a process that
/// stops, costs the claim, which goes back without having counted.
pub(crate) async fn make(shared: Arc<Shared>, job: Box<Job>, at: At) {
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => return shared.give_back(job),
        () = tokio::time::sleep_until(at.start) => {}
    }
    if Instant::now() > at.end {
        return shared.again(job);
    }
    let timeout = shared.deps.tuning.call_timeout;
    // The last look before the first byte: nobody can call for us any more, and nothing can stop this call later.
    if shared.stop.is_cancelled() || !job.lease.covers(timeout) {
        return shared.give_back(job);
    }
    shared.deps.metrics.rate_wait(job.account.name.as_str(), job.claimed_at.elapsed());
    let (started_at, began) = (shared.deps.clock.now(), Instant::now());
    // Boxed where it is large: many wait for their slot with nothing of it.
    let (http_status, outcome) = Box::pin(answer(&shared, &job, timeout)).await;
    shared.deps.metrics.provider_call(job.account.name.as_str(), began.elapsed());
    let Job { claim, account, taken, permit, .. } = *job;
    drop(permit);
    match &outcome {
        Ok(_) => shared.lessons.succeeded(claim.channel_account_id),
        Err(error) => {
            let lesson = lessons::learn(&shared, claim.channel_account_id, &account, claim.conversation_id, error);
            Box::pin(lesson).await;
        }
    }
    let report = report(&shared, &claim, started_at, http_status, outcome);
    tell(&shared, account.name.as_str(), &report, began.elapsed());
    shared.reports.leave(Finished { report, taken });
}

/// What the provider says, or that it does not say.
async fn answer(shared: &Shared, job: &Job, timeout: Duration) -> (Option<u16>, Result<String, SendError>) {
    let Call::Http(call) = &job.call else {
        let reason = "this version cannot make this kind of call".to_owned();
        return (None, Err(SendError::Rejected { code: "unsupported".to_owned(), reason }));
    };
    match shared.deps.http.call(call, timeout).await {
        Ok(reply) => {
            let judged = job.kind.outcome(&reply);
            (Some(reply.status), judged.map(|accepted| accepted.provider_message_id))
        }
        Err(TransportError::NotSent(why)) => (None, Err(SendError::Unreachable(why))),
        Err(TransportError::AfterSend(why)) => (None, Err(SendError::OutcomeUnknown(why))),
    }
}

/// The message as its provider's code needs it.
/// # Errors
/// When a row holds what this version cannot send.
pub(crate) fn job_of(claim: &Claimed) -> Result<SendJob, SendError> {
    let rejected = |reason: &str| SendError::Rejected { code: "unsupported".to_owned(), reason: reason.to_owned() };
    let content = match claim.kind {
        MessageType::Text => Content::Text { body: claim.body.clone().unwrap_or_default() },
        MessageType::Template => {
            let (Some(name), Some(language)) = (claim.template_name.clone(), claim.template_language.clone()) else {
                return Err(rejected("The template has no name or no language."));
            };
            let params = claim.template_params.clone().unwrap_or_else(|| serde_json::Value::Array(Vec::new()));
            let params =
                serde_json::from_value(params).map_err(|_| rejected("The template's parameters are no texts."))?;
            Content::Template { name, language, params }
        }
        _ => return Err(rejected("This version cannot send this kind of message.")),
    };
    let deployment = claim.deployment.parse().map_err(|_| rejected("The deployment has no usable id."))?;
    let (message, generation, attempt) = (claim.message_id, claim.generation, claim.attempt);
    Ok(SendJob {
        message,
        correlation: domain::Correlation { deployment, message, generation, attempt },
        recipient: Recipient {
            wa_id: claim.wa_id.clone(),
            wa_bsuid: claim.wa_bsuid.clone(),
            other: claim.other.clone(),
        },
        content,
        reply_to: claim.reply_to.clone(),
    })
}

/// What is reported of a call, or of a claim that could not become one.
pub(crate) fn report(
    shared: &Shared,
    claim: &Claimed,
    started_at: Timestamp,
    http_status: Option<u16>,
    outcome: Result<String, SendError>,
) -> AttemptReport {
    let mut report = AttemptReport {
        message: claim.message_id,
        conversation: claim.conversation_id,
        account: claim.channel_account_id,
        generation: claim.generation,
        attempt: claim.attempt,
        worker: shared.deps.instance.clone(),
        started_at,
        finished_at: shared.deps.clock.now(),
        outcome: outcome.as_ref().map_or_else(SendError::outcome, |_| AttemptOutcome::Accepted),
        provider_message_id: None,
        http_status,
        code: None,
        reason: None,
        retry_after_ms: None,
        throttle_scope: None,
        give_up_after: None,
        traceparent: claim.traceparent.clone(),
    };
    let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Ok(id) => report.provider_message_id = Some(id),
        Err(SendError::Unreachable(why)) => (report.code, report.reason) = (Some(UNREACHABLE.to_owned()), Some(why)),
        Err(SendError::OutcomeUnknown(why)) => (report.code, report.reason) = (Some(NO_ANSWER.to_owned()), Some(why)),
        Err(SendError::Transient { code, reason, retry_after, give_up_after }) => {
            (report.code, report.reason) = (Some(code), Some(reason));
            report.retry_after_ms = retry_after.map(millis);
            report.give_up_after = give_up_after;
        }
        Err(SendError::Throttled { scope, code, reason, retry_after }) => {
            (report.code, report.reason) = (Some(code), Some(reason));
            report.retry_after_ms = retry_after.map(millis);
            report.throttle_scope = Some(scope);
        }
        Err(SendError::Rejected { code, reason } | SendError::AccountBroken { code, reason }) => {
            (report.code, report.reason) = (Some(code), Some(reason));
        }
    }
    report
}

/// One line per attempt with the verdict in it; never a text, an address or a token.
pub(crate) fn tell(shared: &Shared, account: &str, report: &AttemptReport, took: Duration) {
    let (message, attempt, outcome) = (report.message, report.attempt, report.outcome);
    let code = report.code.as_deref().unwrap_or_default();
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let trace = report.traceparent.as_deref().and_then(runtime::traceparent::trace_id);
    shared.deps.metrics.send_attempt(account, outcome.as_str(), code);
    if outcome == AttemptOutcome::Accepted {
        debug!(message.id = %message, trace.id = trace, attempt, account, took_ms, "Message {message} was accepted in {took_ms} ms");
    } else {
        info!(message.id = %message, trace.id = trace, attempt, account, took_ms, outcome = %outcome, code, http_status = report.http_status, "Attempt {attempt} of message {message} ended {outcome} ({code}) after {took_ms} ms");
    }
}

/// The rules of an account's channel.
/// # Errors
/// When this version sends nothing there.
pub(crate) fn kind_of(channel: domain::Channel) -> Result<&'static dyn ChannelKind, SendError> {
    providers::channel_kind(channel).ok_or_else(|| SendError::Rejected {
        code: "unsupported".to_owned(),
        reason: format!("This version sends nothing over {channel}."),
    })
}
