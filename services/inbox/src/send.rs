//! Accepting a send: the window rule and the provider's own rules first, then message and send row in one transaction, then
//! the dispatcher is told. Both the API and the page come through here.

use crate::Shared;
use crate::api::actions;
use crate::auth::By;
use crate::guard::Caller;
use crate::problem::{FieldError, Problem};
use crate::views;
use domain::{
    Account, Channel, Content, ConversationId, MessageId, Origin, Outgoing, Refused, Role, Timestamp, Window,
};
use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use store::accept::{AcceptOutcome, NewSend};
use store::inbox_list::{self, ConversationRow};
use store::thread::{self, MessageRow, TemplateRow};

/// Longest key a caller may give, in characters.
pub(crate) const KEY_MOST: usize = 200;
/// How far ahead a send may be scheduled.
const SCHEDULE_MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What somebody wants sent.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) content: Content,
    /// The caller's key.
    pub(crate) key: Option<String>,
    pub(crate) reply_to: Option<MessageId>,
    pub(crate) send_at: Option<Timestamp>,
    pub(crate) traceparent: Option<String>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) message: MessageRow,
    /// It had been accepted before, under the same key.
    pub(crate) was_duplicate: bool,
}

/// Accepts a send, or says why not.
pub(crate) async fn accept(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    wanted: Wanted,
) -> Result<Taken, Problem> {
    caller.needs(Role::Agent)?;
    let hash = request_hash(&wanted);
    let mut tx = shared.deps.store.read().await?;
    let row = inbox_list::get(&mut tx, id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let known = match &wanted.key {
        Some(key) => thread::under_key(&mut tx, id, key).await?,
        None => None,
    };
    // What was accepted once stays accepted, also when it could not be accepted any more.
    if let Some(known) = known {
        if known.request_hash.as_deref() != Some(&hash[..]) {
            return Err(other_request());
        }
        let message = thread::message(&mut tx, id, known.id).await?.ok_or_else(Problem::internal)?;
        return Ok(Taken { message, was_duplicate: true });
    }
    let templates = match wanted.content {
        Content::Template { .. } => thread::templates(&mut tx, id).await?,
        _ => Vec::new(),
    };
    let reply_to = match wanted.reply_to {
        None => None,
        Some(answered) => match thread::message(&mut tx, id, answered).await? {
            Some(answered) => answered.provider_message_id.filter(|id| !id.starts_with("x:")),
            None => return Err(Problem::field("replyToMessageId", "is no message of this conversation")),
        },
    };
    drop(tx);
    let account = check_sender(&row, shared.account(row.account_id).await?)?;
    check_time(wanted.send_at, caller.now())?;
    check_rules(&row, &account, &wanted.content, reply_to, caller.now())?;
    let text = known_text(&wanted.content, &templates);
    store_it(shared, caller, id, &wanted, &hash, text.as_deref()).await
}

async fn store_it(
    shared: &Arc<Shared>,
    caller: &Caller,
    id: ConversationId,
    wanted: &Wanted,
    hash: &[u8],
    text: Option<&str>,
) -> Result<Taken, Problem> {
    let deps = &shared.deps;
    let new = NewSend {
        conversation: id,
        content: &wanted.content,
        text,
        client_message_id: wanted.key.as_deref(),
        request_hash: Some(hash),
        reply_to: wanted.reply_to,
        origin: if matches!(caller.who.by, By::Token(_)) { Origin::Api } else { Origin::Agent },
        created_by: caller.who.user(),
        bulk: false,
        deadline: deps.tuning.send_deadline,
        now: caller.now(),
        send_at: wanted.send_at,
        hold: Some(deps.tuning.undo_hold).filter(|hold| !hold.is_zero() && caller.who.user().is_some()),
        traceparent: wanted.traceparent.as_deref(),
    };
    let mut tx = deps.store.begin().await?;
    let (accepted, was_duplicate) = match store::accept::accept(&mut tx, &new).await? {
        AcceptOutcome::Created(row) => (row, false),
        AcceptOutcome::Duplicate(row) => (row, true),
        AcceptOutcome::Conflict => return Err(other_request()),
        AcceptOutcome::NoConversation => return Err(Problem::not_found("conversation")),
    };
    if !was_duplicate {
        let kind = if matches!(wanted.content, Content::Template { .. }) { "template" } else { "text" };
        let detail = json!({ "conversation": id, "type": kind, "scheduled": wanted.send_at.is_some() });
        actions::trail(&mut tx, caller, "message.send", "message", &accepted.id.to_string(), detail).await?;
    }
    let message = thread::message(&mut tx, id, accepted.id).await?.ok_or_else(Problem::internal)?;
    tx.commit().await?;
    if !was_duplicate {
        deps.store.wake_readers();
        deps.dispatcher.kick_lanes([(accepted.channel_account_id, id)]);
        tracing::info!(message.id = %accepted.id, conversation.id = %id, request.id = %caller.context.request_id,
            "Accepted message {} for conversation {id}", accepted.id);
    }
    Ok(Taken { message, was_duplicate })
}

fn other_request() -> Problem {
    let detail = "This client id was used for another message of this conversation.";
    let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "client_id_reused", detail);
    problem.hint("Give every message a client id of its own; repeat it only to repeat the very same request.")
}

/// Whether there is anything to send from and anybody to send to.
pub(crate) fn check_sender(row: &ConversationRow, account: Option<Arc<Account>>) -> Result<Arc<Account>, Problem> {
    let refuse = |code, detail: String| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail));
    if row.identity_opted_out_at.is_some() {
        return refuse("opted_out", "This person asked not to be written to.".to_owned());
    }
    if providers::channel_kind(row.channel).is_none() {
        return refuse("channel_unavailable", format!("Roost does not send on {} yet. Nothing was sent.", row.channel));
    }
    match account {
        Some(account) => Ok(account),
        None => Err(account_unavailable()),
    }
}

/// The refusal where there is nothing to send from.
pub(crate) fn account_unavailable() -> Problem {
    let detail = "The account of this conversation is not in the configuration any more. Nothing was sent.";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "account_unavailable", detail)
}

/// Whether free text may be sent now: what was accepted once may have to go again, and its window may have ended since.
pub(crate) fn check_window(row: &ConversationRow, account: &Account, now: Timestamp) -> Result<(), Problem> {
    match views::window_of(row, Some(account), now) {
        window @ Window::Closed { .. } => Err(window_closed(row.channel, window, now)),
        Window::None | Window::Open(_) => Ok(()),
    }
}

fn check_time(send_at: Option<Timestamp>, now: Timestamp) -> Result<(), Problem> {
    match send_at {
        Some(at) if at <= now => Err(Problem::field("sendAt", "must be in the future")),
        Some(at) if at.since(now) > SCHEDULE_MOST => Err(Problem::field("sendAt", "must be within a year")),
        _ => Ok(()),
    }
}

/// The window and the provider's own rules.
fn check_rules(
    row: &ConversationRow,
    account: &Account,
    content: &Content,
    reply_to: Option<String>,
    now: Timestamp,
) -> Result<(), Problem> {
    let window = views::window_of(row, Some(account), now);
    let draft = Outgoing { content: content.clone(), reply_to };
    let Some(kind) = providers::channel_kind(row.channel) else { return Err(Problem::internal()) };
    match kind.check(&draft, account, window) {
        Ok(()) => Ok(()),
        Err(Refused::Invalid { path, message }) => Err(Problem::invalid(vec![FieldError::new(path, message)])),
        Err(Refused::WindowClosed { .. }) => Err(window_closed(row.channel, window, now)),
    }
}

/// The refusal of free text outside the window, with what to do instead.
fn window_closed(channel: Channel, window: Window, now: Timestamp) -> Problem {
    let last_inbound = match window {
        Window::Closed { last_inbound_at } => last_inbound_at,
        Window::None | Window::Open(_) => None,
    };
    let hours = last_inbound.map(|at| (now.since(at).as_secs_f64() / 360.0).round() / 10.0);
    let detail = match hours {
        Some(hours) => format!("The 24-hour window is closed: the last message from this person is {hours} hours old."),
        None => "The 24-hour window is closed: this person has not written yet.".to_owned(),
    };
    let code = match channel {
        // The CRM's client looks for this word.
        Channel::Instagram | Channel::Facebook => "OUTSIDE_ALLOWED_WINDOW",
        _ => "window_closed",
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
        .outside_window(channel == Channel::WhatsApp, hours)
        .hint("Send an approved template; the person's answer opens the window for 24 hours.")
}

/// What a caller asked for, condensed: the same key with another hash is refused. Independent of field order and spelling.
fn request_hash(wanted: &Wanted) -> [u8; 32] {
    let asked = json!([wanted.content, wanted.reply_to, wanted.send_at]);
    Sha256::digest(asked.to_string().as_bytes()).into()
}

/// A template's words with its values filled in, if the template is known: people read what was sent, not its name.
fn known_text(content: &Content, templates: &[TemplateRow]) -> Option<String> {
    let Content::Template { name, language, params } = content else { return None };
    let template = templates.iter().find(|template| template.name == *name && template.language == *language)?;
    Some(fill(template_body(template)?, params))
}

/// The text of a template's body.
pub(crate) fn template_body(template: &TemplateRow) -> Option<&str> {
    let parts = template.components.as_array()?;
    let is_body =
        |part: &&serde_json::Value| part["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("body"));
    parts.iter().find(is_body)?["text"].as_str()
}

/// Puts values into `{{1}}`, `{{2}}` …; what has no value stays as it is.
fn fill(text: &str, params: &[String]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let value = after.split_once("}}").and_then(|(number, tail)| {
            let position = number.trim().parse::<usize>().ok()?.checked_sub(1)?;
            Some((params.get(position)?, tail))
        });
        match value {
            Some((value, tail)) => {
                filled.push_str(value);
                rest = tail;
            }
            None => {
                filled.push_str("{{");
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_with_its_values() {
        let params = ["Amal".to_owned(), "{{1}}".to_owned()];
        assert_eq!(fill("Hello {{1}}, see {{ 2 }}. {{3}} {{x}} {{", &params), "Hello Amal, see {{1}}. {{3}} {{x}} {{");
    }

    #[test]
    fn what_was_asked_for_decides_about_a_repetition() {
        let wanted = |text: &str| Wanted {
            content: Content::Text { body: text.to_owned() },
            key: Some("k".to_owned()),
            reply_to: None,
            send_at: None,
            traceparent: None,
        };
        assert_eq!(request_hash(&wanted("a")), request_hash(&Wanted { key: None, ..wanted("a") }));
        assert_ne!(request_hash(&wanted("a")), request_hash(&wanted("b")));
        assert_ne!(
            request_hash(&wanted("a")),
            request_hash(&Wanted { reply_to: Some(MessageId::new(1)), ..wanted("a") })
        );
    }

    #[test]
    fn a_closed_window_says_how_long_and_what_to_do() {
        let now = Timestamp::from_seconds(1_795_339_800);
        let closed = |at| Window::Closed { last_inbound_at: at };
        let problem = window_closed(Channel::WhatsApp, closed(Some(now - Duration::from_secs(30 * 3600))), now);
        assert_eq!((problem.code, problem.requires_template), ("window_closed", true));
        assert_eq!(problem.hours_since_last_inbound, Some(30.0));
        let never = window_closed(Channel::WhatsApp, closed(None), now);
        assert_eq!(never.hours_since_last_inbound, None);
        assert_eq!(window_closed(Channel::Instagram, closed(None), now).code, "OUTSIDE_ALLOWED_WINDOW");
    }
}
