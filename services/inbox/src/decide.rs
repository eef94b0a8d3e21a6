//! A person decides about a message of ours: it arrived, send it again, try again, take it back. The rules that an accepted
//! send has to keep hold for one that goes again, too. Both the API and the page come through here.

use crate::Shared;
use crate::api::actions;
use crate::guard::Caller;
use crate::problem::Problem;
use crate::send;
use domain::{ConversationId, MessageId, MessageType, Role, SendState, Status, UserId};
use http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use store::decide::{self, Again, Decided, Standing};
use store::thread::{self, MessageRow};
use store::{Tx, inbox_list};

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It arrived, on this person's word.
    ItArrived(UserId),
    /// What may have been sent goes again.
    SendAgain,
    /// What failed is tried again.
    Retry,
    /// What has not left yet does not go.
    Cancel,
}

impl Decision {
    /// As the audit trail calls it.
    const fn action(self) -> &'static str {
        match self {
            Decision::ItArrived(_) => "message.it_arrived",
            Decision::SendAgain => "message.send_again",
            Decision::Retry => "message.retry",
            Decision::Cancel => "message.cancel",
        }
    }

    /// Whether this is what there is to decide where a message stands so; what it takes to go again is asked only then.
    fn goes_again(self, message: &MessageRow) -> bool {
        match self {
            Decision::SendAgain => message.send_state == Some(SendState::Held),
            Decision::Retry => message.status == Status::Failed,
            Decision::ItArrived(_) | Decision::Cancel => false,
        }
    }
}

/// Whether a message of this kind can go again: this version sends texts and templates.
pub(crate) const fn can_go_again(kind: MessageType) -> bool {
    matches!(kind, MessageType::Text | MessageType::Template)
}

/// Carries a decision out and returns the message as it stands afterwards, or says why not.
pub(crate) async fn decide(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    message: MessageId,
    decision: Decision,
    traceparent: Option<&str>,
) -> Result<MessageRow, Problem> {
    caller.needs(Role::Agent)?;
    let deps = &shared.deps;
    let now = caller.now();
    let mut tx = deps.store.begin().await?;
    check(shared, caller, &mut tx, id, message, decision).await?;
    let again = Again { now, deadline: deps.tuning.send_deadline, traceparent };
    let decided = match decision {
        Decision::ItArrived(by) => decide::it_arrived(&mut tx, id, message, by, now).await?,
        Decision::SendAgain => decide::send_again(&mut tx, id, message, again).await?,
        Decision::Retry => decide::retry(&mut tx, id, message, again).await?,
        Decision::Cancel => decide::cancel(&mut tx, id, message, now).await?,
    };
    let account = match decided {
        Decided::Done { account, .. } => account,
        Decided::WrongState(standing) => return Err(wrong_state(decision, standing)),
        Decided::AccountDisabled => return Err(send::account_unavailable()),
        Decided::NotFound => return Err(Problem::not_found("message")),
    };
    let detail = match decision {
        Decision::ItArrived(by) => json!({ "conversation": id, "wordOf": by }),
        _ => json!({ "conversation": id }),
    };
    actions::trail(&mut tx, caller, decision.action(), "message", &message.to_string(), detail).await?;
    let row = thread::message(&mut tx, id, message).await?.ok_or_else(Problem::internal)?;
    tx.commit().await?;
    deps.store.wake_readers();
    deps.dispatcher.kick_lanes([(account, id)]);
    tracing::info!(message.id = %message, conversation.id = %id, request.id = %caller.context.request_id,
        "Decided about message {message}: {}", decision.action());
    Ok(row)
}

/// What goes again must be allowed to go now: the account, the person, the window.
async fn check(
    shared: &Arc<Shared>,
    caller: &Caller,
    tx: &mut Tx,
    id: ConversationId,
    message: MessageId,
    decision: Decision,
) -> Result<(), Problem> {
    let conversation = inbox_list::get(tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let message = thread::message(tx, id, message).await?.ok_or_else(|| Problem::not_found("message"))?;
    if let Decision::ItArrived(by) = decision
        && store::user::by_id(tx, by).await?.is_none()
    {
        return Err(Problem::field("confirmedByUserId", "is not a user who may sign in"));
    }
    if !decision.goes_again(&message) {
        return Ok(());
    }
    if !can_go_again(message.kind) {
        let detail = format!("Sending a message of type {} is not supported yet. Nothing was sent.", message.kind);
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_supported_yet", detail));
    }
    let account = send::check_sender(&conversation, shared.account(conversation.account_id).await?)?;
    if message.kind == MessageType::Text {
        send::check_window(&conversation, &account, caller.now())?;
    }
    Ok(())
}

/// 409: the message does not stand where this can be decided.
fn wrong_state(decision: Decision, standing: Standing) -> Problem {
    let detail = match (decision, standing.status, standing.state) {
        (Decision::Cancel, _, Some(SendState::InFlight | SendState::Unknown)) => {
            "It is already on its way and cannot be taken back."
        }
        (Decision::Cancel, _, Some(SendState::Held)) => "It may have been sent already and cannot be taken back.",
        (_, _, Some(SendState::Waiting | SendState::Dispatched | SendState::Scheduled)) => {
            "It is waiting to be sent; there is nothing to decide."
        }
        (_, _, Some(SendState::InFlight)) => "It is being sent just now.",
        (_, _, Some(SendState::Unknown)) => {
            "Its outcome is not known yet. Roost still looks for a sign of it before somebody has to decide."
        }
        (_, _, Some(SendState::Held)) => {
            "It may have been sent: say that it arrived, or send it again and accept that it may arrive twice."
        }
        (_, Status::Failed, None) => "It was not sent. Try it again instead.",
        (_, Status::Sent, None) => "It was sent already.",
        (_, Status::Delivered, None) => "It was delivered already.",
        (_, Status::Read, None) => "It was delivered and read already.",
        (_, Status::Received | Status::Queued | Status::Sending, None) => "There is nothing to decide about it.",
    };
    Problem::new(StatusCode::CONFLICT, "wrong_state", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decided_says_where_the_message_stands() {
        let decisions = [Decision::ItArrived(UserId::new(1)), Decision::SendAgain, Decision::Retry, Decision::Cancel];
        for decision in decisions {
            for status in Status::ALL {
                for state in std::iter::once(None).chain(SendState::ALL.iter().copied().map(Some)) {
                    let problem = wrong_state(decision, Standing { status: *status, state });
                    assert_eq!((problem.status, problem.code), (StatusCode::CONFLICT, "wrong_state"));
                }
            }
        }
        let in_flight = Standing { status: Status::Queued, state: Some(SendState::InFlight) };
        assert_eq!(
            wrong_state(Decision::Cancel, in_flight).detail,
            "It is already on its way and cannot be taken back."
        );
        assert_eq!(wrong_state(Decision::Retry, in_flight).detail, "It is being sent just now.");
    }
}
