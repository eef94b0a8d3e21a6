//! Meta's envelope: `{"object": …, "entry": [{"id", "changes": [{"field", "value"}]}]}`, the same for every product.
//! Every entry and every change is walked; a whole body fails only when it is not an envelope at all.

use crate::items::Items;
use crate::json::{Clean, Each, List, Text, object};
use crate::{Arrived, BadItem, Malformed, whatsapp};
use domain::Item;

/// Largest body this parser takes apart, in bytes. Meta's are at most 3 MB; ingress accepts 4 MB by default.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// Levels of the body above one change: body, `entry`, an entry, `changes`.
pub(crate) const ABOVE_CHANGE: usize = 4;

object! {
    struct Envelope {
        object: Text<'a> = "object",
        entry: Each<Entry<'a>> = "entry",
    }
    struct Entry {
        changes: List<'a> = "changes",
        messaging: List<'a> = "messaging",
        standby: List<'a> = "standby",
    }
}

/// Every item of every change of every entry.
/// # Errors
/// When the body is too large, not JSON, not an envelope, or nested too deep outside its items.
pub(crate) fn items(hook: &Arrived<'_>) -> Result<Vec<Result<Item, BadItem>>, Malformed> {
    if hook.body.len() > MAX_BODY {
        return Err(Malformed::TooLarge { bytes: hook.body.len(), limit: MAX_BODY });
    }
    let body = Clean::new(hook.body);
    let envelope: Envelope<'_> =
        serde_json::from_str(body.text()).map_err(|error| Malformed::NotJson(error.to_string()))?;
    if !body.text().trim_start().starts_with('{') {
        return Err(Malformed::NotAWebhook("the body is not an object"));
    }
    let object = envelope.object.get().unwrap_or("no object");
    let mut items = Items::of(&body, hook.received_at);

    for entry in envelope.entry.0.iter().flatten() {
        items.has_room(entry.changes.len() + entry.messaging.len() + entry.standby.len())?;
        if object == whatsapp::OBJECT {
            for change in entry.changes.iter() {
                whatsapp::change(change.get(), &mut items)?;
            }
        } else {
            unread(&mut items, object, "changes", &entry.changes);
        }
        unread(&mut items, object, "messaging", &entry.messaging);
        unread(&mut items, object, "standby", &entry.standby);
    }
    // Whatever else it was: it is one event of the source, and its raw webhook has the rest.
    let nothing_said = envelope.entry.0.as_ref().is_some_and(Vec::is_empty);
    if items.is_empty() && !nothing_said {
        items.event(None, object, None);
    }
    items.finish()
}

/// Keeps what nobody here reads yet, one event for each element.
fn unread(items: &mut Items<'_>, object: &str, member: &str, list: &List<'_>) {
    for element in list.iter() {
        if !items.too_deep(element.get(), ABOVE_CHANGE, None) {
            items.event(None, &format!("{object}.{member}"), Some(element.get()));
        }
    }
}
