//! Rows as the API shows them. The keys are the CRM's; what is new stands beside them.

use crate::views::{self, Flags};
use domain::{MessageId, Timestamp, Window};
use serde_json::{Value, json};
use store::inbox_list::ConversationRow;
use store::thread::{AttemptRow, MediaRow, MessageRow, PartyRow, StatusEventRow};

/// A conversation of the list.
pub(crate) fn conversation(row: &ConversationRow, now: Timestamp) -> Value {
    let flags = Flags::of(row, now);
    let last_message = row.last_message_id.map(|id| {
        json!({
            "id": id,
            "direction": row.last_message_direction,
            "body": row.last_message_preview,
            "createdAt": row.last_message_at,
        })
    });
    json!({
        "id": row.id,
        "contact": contact(row),
        "channel": row.channel,
        "status": row.status,
        "lastMessageAt": row.last_message_at,
        "lastInboundAt": row.last_inbound_at,
        "lastOutboundAt": row.last_outbound_at,
        "unreadCount": row.unread_count,
        "priorityScore": row.priority_score,
        "flags": {
            "UNREAD": flags.unread,
            "NEEDS_REPLY": flags.needs_reply,
            "SLA_BREACH": flags.sla_breach,
            "EXPIRY_SOON": flags.expiry_soon,
            "OVERDUE_FOLLOWUP": flags.overdue_follow_up,
            "HOT": flags.hot,
        },
        "lastMessage": last_message,
        "assignedUser": assigned_user(row),
        "assignedToAI": row.handler == "AI",
        "account": row.account_name,
        "windowExpiresAt": row.window_expires_at,
    })
}

/// Whoever answers a conversation.
pub(crate) fn assigned_user(row: &ConversationRow) -> Option<Value> {
    let id = row.assigned_user_id?;
    Some(json!({ "id": id, "name": row.assigned_user_name, "email": row.assigned_user_email }))
}

fn contact(row: &ConversationRow) -> Value {
    json!({
        "id": row.contact_id,
        "fullName": views::best_name(row),
        "phone": row.contact_phone,
        "email": row.contact_email,
        "language": row.contact_language,
    })
}

/// The person with what the CRM's lead page shows of them.
pub(crate) fn contact_detail(row: &ConversationRow, party: &PartyRow) -> Value {
    let mut value = contact(row);
    if let Some(object) = value.as_object_mut() {
        object.insert("nationality".into(), json!(party.nationality));
        object.insert("companyName".into(), json!(party.company_name));
        object.insert("source".into(), json!(party.contact_source));
    }
    value
}

/// The lead, if there is one.
pub(crate) fn lead(party: &PartyRow) -> Option<Value> {
    let id = party.lead_id?;
    Some(json!({
        "id": id,
        "stage": party.stage,
        "priority": party.priority,
        "serviceTypeEnum": party.service_type,
        "aiScore": party.ai_score,
        "notes": party.notes,
        "expiryDate": party.expiry_date,
        "nextFollowUpAt": party.next_follow_up_at,
        "assignedUserId": party.lead_assigned_user_id,
    }))
}

/// The window: `open`, `closed` or `none`.
pub(crate) fn window(window: Window) -> Value {
    match window {
        Window::None => json!({ "state": "none" }),
        Window::Open(until) => json!({ "state": "open", "expiresAt": until }),
        Window::Closed { last_inbound_at } => json!({ "state": "closed", "lastInboundAt": last_inbound_at }),
    }
}

/// A message.
pub(crate) fn message(row: &MessageRow, media: &[MediaRow]) -> Value {
    let files: Vec<Value> = media.iter().filter(|file| file.message_id == row.id).map(file).collect();
    let error = row
        .error_class
        .as_ref()
        .map(|class| json!({ "class": class, "code": row.error_code, "message": row.error_message }));
    json!({
        "id": row.id,
        "conversationId": row.conversation_id,
        "direction": row.direction,
        "channel": row.channel,
        "type": row.kind,
        "subject": row.subject,
        "body": row.body,
        "status": views::shown_status(row),
        "deliveryState": row.send_state,
        "outcomeUnknown": row.outcome_unknown,
        "confirmedBy": row.confirmed_by_name,
        "attempt": row.send_attempt,
        "dueAt": row.send_due_at,
        "error": error,
        "providerMessageId": row.provider_message_id,
        "clientMessageId": row.client_message_id,
        "templateName": row.template_name,
        "mediaUrl": Value::Null,
        "mediaMimeType": row.media_mime_type,
        "media": files,
        "origin": row.origin,
        "createdByUserId": row.created_by_user_id,
        "createdByName": row.created_by_name,
        "replyToMessageId": row.reply_to_message_id,
        "payload": row.payload,
        "rawPayload": row.raw_payload,
        "occurredAt": row.occurred_at,
        "createdAt": row.created_at,
        "sentAt": row.sent_at,
        "deliveredAt": row.delivered_at,
        "readAt": row.read_at,
        "failedAt": row.failed_at,
    })
}

/// A file; its address comes with the worker that fetches it.
fn file(row: &MediaRow) -> Value {
    json!({
        "id": row.id,
        "kind": row.kind,
        "mimeType": row.mime_type,
        "filename": row.filename,
        "size": row.size_bytes,
        "caption": row.caption,
        "state": row.state,
    })
}

/// Everything that was said about a message's status.
pub(crate) fn history(events: &[StatusEventRow]) -> Vec<Value> {
    let event = |event: &StatusEventRow| {
        json!({
            "status": event.status,
            "providerStatus": event.provider_status,
            "errorCode": event.error_code,
            "errorMessage": event.error_message,
            "source": event.source,
            "applied": event.applied,
            "occurredAt": event.occurred_at,
        })
    };
    events.iter().map(event).collect()
}

/// Every attempt to send a message.
pub(crate) fn attempts(rows: &[AttemptRow]) -> Vec<Value> {
    let attempt = |row: &AttemptRow| {
        json!({
            "generation": row.generation,
            "attempt": row.attempt,
            "outcome": row.outcome,
            "httpStatus": row.http_status,
            "code": row.provider_code,
            "reason": row.error_message,
            "finishedAt": row.finished_at,
        })
    };
    rows.iter().map(attempt).collect()
}

/// Where a message of a conversation can be asked for.
pub(crate) fn location(conversation: domain::ConversationId, message: MessageId) -> String {
    format!("/api/inbox/conversations/{conversation}/messages/{message}")
}
