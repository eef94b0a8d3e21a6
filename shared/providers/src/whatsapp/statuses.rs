//! `statuses[]`: how far our messages have come. Any order, any repetition; which one counts is for the store to decide.

use super::errors::ErrorObject;
use crate::items::Items;
use crate::json::{List, Raw, Text, cut, object};
use domain::{AccountKey, Inbound, Receipt, Status, Timestamp};

/// Longest id of a provider's that is believed, in bytes. Real ones have about 60.
pub(super) const MAX_ID: usize = 512;

object! {
    struct StatusObject {
        id: Text<'a> = "id",
        kind: Text<'a> = "type",
        status: Text<'a> = "status",
        timestamp: Text<'a> = "timestamp",
        biz_opaque_callback_data: Text<'a> = "biz_opaque_callback_data",
        pricing: Raw<'a> = "pricing",
        errors: List<'a> = "errors",
    }
}

/// Reads one status.
pub(super) fn status(part: &str, account: Option<&AccountKey>, items: &mut Items<'_>) {
    let status: StatusObject<'_> = match serde_json::from_str(part) {
        Ok(status) => status,
        Err(error) => return items.bad(account, "UNREADABLE", format!("a status that cannot be read: {error}"), part),
    };
    let id = status.id.get().map(str::trim).filter(|id| id.len() <= MAX_ID);
    // Calls report through the same array, under ids of their own.
    if status.kind.get() == Some("call") || id.is_some_and(|id| id.starts_with("wacid.")) {
        return items.event(account, "calls", Some(part));
    }
    let Some(provider_status) = status.status.get() else { return items.event(account, "statuses", Some(part)) };
    let Some(id) = id else { return items.bad(account, "NO_MESSAGE_ID", "a status of no message", part) };
    if account.is_none() {
        return items.bad(None, "NO_ACCOUNT", "a status without a phone_number_id", part);
    }

    let error = status.errors.iter().next().map(|error| {
        let error: ErrorObject<'_> = serde_json::from_str(error.get()).unwrap_or_default();
        (error.code.get().map(|code| cut(code, 40)), Some(error.words()).filter(|words| !words.is_empty()))
    });
    let (error_code, error_message) = error.unwrap_or_default();
    let receipt = Receipt {
        provider_message_id: id.to_owned(),
        status: our_status(provider_status),
        provider_status: cut(provider_status, 40),
        occurred_at: time(&status.timestamp, items.received_at),
        correlation: status.biz_opaque_callback_data.get().filter(|data| data.len() <= MAX_ID).map(str::to_owned),
        error_code,
        error_message,
        pricing: status.pricing.get().and_then(|pricing| serde_json::from_str(pricing).ok()),
    };
    items.good(account, Inbound::Receipt(Box::new(receipt)), part);
}

/// `played` is a voice message that was listened to. `deleted`, `warning` and whatever comes next change nothing.
fn our_status(word: &str) -> Option<Status> {
    let is = |ours: &str| word.trim().eq_ignore_ascii_case(ours);
    match () {
        () if is("sent") => Some(Status::Sent),
        () if is("delivered") => Some(Status::Delivered),
        () if is("read") || is("played") => Some(Status::Read),
        () if is("failed") => Some(Status::Failed),
        () => None,
    }
}

/// The provider's time, when it is there and can be believed.
pub(super) fn time(timestamp: &Text<'_>, received_at: Timestamp) -> Option<Timestamp> {
    timestamp.integer().map(Timestamp::from_provider_unix).filter(|time| time.plausible_at(received_at))
}
