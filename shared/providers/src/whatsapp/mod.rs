//! WhatsApp Cloud API: what its webhooks say, what can be sent, and what its answers mean.

mod errors;
mod inbound;
mod outbound;
mod replies;
mod statuses;

use crate::items::Items;
use crate::json::{List, Raw, Text, object};
use crate::meta::ABOVE_CHANGE;
use crate::{ChannelKind, Malformed};
use domain::{Accepted, Account, AccountKey, Call, Channel, Outgoing, Refused, Reply, SendError, SendJob, Window};

/// Meta's `object` of WhatsApp's webhooks.
pub(crate) const OBJECT: &str = "whatsapp_business_account";

/// Levels of the body above one message or status: those above a change, the change, `value`, the array.
const ABOVE_ITEM: usize = ABOVE_CHANGE + 3;

/// A WhatsApp number on the Cloud API.
#[derive(Clone, Copy, Debug)]
pub struct WhatsApp;

impl ChannelKind for WhatsApp {
    fn channel(&self) -> Channel {
        Channel::WhatsApp
    }

    fn check(&self, draft: &Outgoing, _account: &Account, window: Window) -> Result<(), Refused> {
        outbound::check(draft, window)
    }

    fn request(&self, job: &SendJob, account: &Account) -> Result<Call, SendError> {
        outbound::request(job, account)
    }

    fn outcome(&self, reply: &Reply) -> Result<Accepted, SendError> {
        replies::outcome(reply)
    }

    fn secrets<'a>(&self, account: &'a Account) -> Vec<&'a str> {
        vec![account.access_token.expose()]
    }
}

object! {
    struct Change {
        field: Text<'a> = "field",
        value: Value<'a> = "value",
    }
    /// What a change carries; any of the arrays may be there, and several at once.
    struct Value {
        metadata: Metadata<'a> = "metadata",
        contacts: List<'a> = "contacts",
        messages: List<'a> = "messages",
        statuses: List<'a> = "statuses",
        errors: List<'a> = "errors",
    }
    struct Metadata {
        phone_number_id: Text<'a> = "phone_number_id",
    }
    /// The same members, when they turned out not to be arrays.
    struct OddChange {
        value: OddValue<'a> = "value",
    }
    struct OddValue {
        messages: Raw<'a> = "messages",
        statuses: Raw<'a> = "statuses",
    }
}

/// Takes one change apart. Fields other than `messages` (templates, quality, calls, echoes of the business's own phone, and
/// whatever comes next) are one event each; they carry the change's bytes.
/// # Errors
/// [`Malformed::TooManyItems`]; everything else that is wrong with it is a bad item.
pub(crate) fn change(part: &str, items: &mut Items<'_>) -> Result<(), Malformed> {
    let change: Change<'_> = match serde_json::from_str(part) {
        Ok(change) => change,
        Err(error) => {
            items.bad(None, "UNREADABLE", format!("a change that cannot be read: {error}"), part);
            return Ok(());
        }
    };
    let value = change.value;
    items.has_room(value.messages.len() + value.statuses.len() + value.errors.len())?;
    let account = value
        .metadata
        .phone_number_id
        .get()
        .map(|id| AccountKey { channel: Channel::WhatsApp, external_id: id.trim().to_owned() });
    let account = account.as_ref();

    let field = change.field.get().unwrap_or("messages");
    let says_nothing = value.messages.is_empty() && value.statuses.is_empty() && value.errors.is_empty();
    if field != "messages" || says_nothing {
        if items.too_deep(part, ABOVE_CHANGE, account) {
            return Ok(());
        }
        if field == "messages" && has_odd_members(part) {
            items.bad(account, "UNREADABLE", "messages or statuses that are not an array", part);
        } else {
            items.event(account, field, Some(part));
        }
        return Ok(());
    }

    let senders = inbound::senders(&value.contacts);
    for message in value.messages.iter() {
        if !items.too_deep(message.get(), ABOVE_ITEM, account) {
            inbound::message(message.get(), account, &senders, items);
        }
    }
    for status in value.statuses.iter() {
        if !items.too_deep(status.get(), ABOVE_ITEM, account) {
            statuses::status(status.get(), account, items);
        }
    }
    // A problem of the account's, with no message attached.
    for error in value.errors.iter() {
        if !items.too_deep(error.get(), ABOVE_ITEM, account) {
            items.event(account, "errors", Some(error.get()));
        }
    }
    Ok(())
}

/// Whether a change that seems to say nothing says something in a form we do not read. That is set aside, not passed over.
fn has_odd_members(part: &str) -> bool {
    let odd: OddChange<'_> = serde_json::from_str(part).unwrap_or_default();
    [odd.value.messages, odd.value.statuses].into_iter().filter_map(Raw::get).any(|member| !member.starts_with('['))
}
