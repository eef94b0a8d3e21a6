//! Conversations and messages as people see them, before they become JSON or HTML: which name to show, which flags are up,
//! how far a message has come.

use domain::{Account, Direction, IdentityKind, SendState, Status, Timestamp, Window};
use std::time::Duration;
use store::inbox_list::ConversationRow;
use store::thread::MessageRow;

/// After so long an unanswered message needs a reply.
const NEEDS_REPLY_AFTER: Duration = Duration::from_secs(15 * 60);
/// After so long it is overdue.
const SLA: Duration = Duration::from_secs(60 * 60);
/// From this score on a conversation is hot.
const HOT: i16 = 70;
/// Something that runs out within this time is worth a flag.
const EXPIRY_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// The best name there is: the person's, the one they gave themselves, else their address. Placeholders are never stored.
pub(crate) fn best_name(row: &ConversationRow) -> String {
    let named = [&row.contact_name, &row.identity_display_name, &row.identity_username];
    let named = named.into_iter().flatten().map(|name| name.trim()).find(|name| !name.is_empty());
    named.map_or_else(|| best_address(row).unwrap_or_else(|| format!("#{}", row.contact_id)), str::to_owned)
}

/// The address to show: a phone with its `+`, an e-mail, else the identity itself.
pub(crate) fn best_address(row: &ConversationRow) -> Option<String> {
    if let Some(phone) = &row.contact_phone {
        return Some(phone.clone());
    }
    match (row.identity_kind, &row.identity_value) {
        (Some(IdentityKind::WaId), Some(value)) => Some(format!("+{value}")),
        (_, Some(value)) => Some(row.contact_email.clone().unwrap_or_else(|| value.clone())),
        (_, None) => row.contact_email.clone(),
    }
}

/// What deserves attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) unread: bool,
    pub(crate) needs_reply: bool,
    pub(crate) sla_breach: bool,
    pub(crate) expiry_soon: bool,
    pub(crate) overdue_follow_up: bool,
    pub(crate) hot: bool,
}

impl Flags {
    pub(crate) fn of(row: &ConversationRow, now: Timestamp) -> Self {
        let closed = row.status == domain::ConversationStatus::Closed;
        let waiting = waits_since(row).filter(|_| !closed).map(|since| now.since(since));
        Self {
            unread: row.unread_count > 0,
            needs_reply: waiting.is_some_and(|waiting| waiting >= NEEDS_REPLY_AFTER),
            sla_breach: waiting.is_some_and(|waiting| waiting >= SLA) || row.sla_breach_at.is_some_and(|at| at <= now),
            expiry_soon: row.lead_expiry_date.is_some_and(|at| at >= now && at <= now + EXPIRY_SOON),
            overdue_follow_up: row.lead_next_follow_up_at.is_some_and(|at| at < now),
            hot: row.priority_score >= HOT || row.lead_score.is_some_and(|score| score >= HOT),
        }
    }
}

/// Since when the person waits for an answer.
pub(crate) fn waits_since(row: &ConversationRow) -> Option<Timestamp> {
    match row.last_message_direction {
        Some(Direction::Inbound) => row.needs_reply_since.or(row.last_inbound_at),
        _ => row.needs_reply_since,
    }
}

/// The window for free text. Without its account's configuration nothing can be sent anyway; then the row decides.
pub(crate) fn window_of(row: &ConversationRow, account: Option<&Account>, now: Timestamp) -> Window {
    let has_window = account.map_or(row.window_expires_at.is_some(), |account| account.window.is_some());
    Window::of(has_window, row.window_expires_at, row.last_inbound_at, now)
}

/// How far a message has come, as people see it: a call in flight reads as SENDING although the row still says QUEUED.
pub(crate) fn shown_status(message: &MessageRow) -> Status {
    match (message.status, message.send_state) {
        (Status::Queued, Some(SendState::InFlight)) => Status::Sending,
        (status, _) => status,
    }
}

/// Whether a person has to decide: it may have been sent.
pub(crate) fn is_held(message: &MessageRow) -> bool {
    message.send_state == Some(SendState::Held)
}
