//! What Meta posts, as JSON.

use serde_json::{Value, json};

pub(crate) const PHONE_NUMBER_ID: &str = "106540352242922";
pub(crate) const RITA: &str = "351912000333";
/// 2026-11-22T09:30:00Z.
pub(crate) const NOON_SECONDS: i64 = 1_795_339_800;

/// One body with one change for each of `values`.
pub(crate) fn body(values: &[Value]) -> String {
    let changes: Vec<Value> = values.iter().map(|value| json!({ "field": "messages", "value": value })).collect();
    json!({ "object": "whatsapp_business_account", "entry": [{ "id": "900000000000001", "changes": changes }] })
        .to_string()
}

/// A change's value for the account `phone_number_id`.
pub(crate) fn value_for(phone_number_id: &str, messages: &[Value], statuses: &[Value]) -> Value {
    let mut value = json!({
        "messaging_product": "whatsapp",
        "metadata": { "display_phone_number": "971 4 000 0000", "phone_number_id": phone_number_id },
    });
    let contacts: Vec<Value> = messages
        .iter()
        .filter_map(|message| message["from"].as_str())
        .map(|from| json!({ "profile": { "name": format!("Person {from}") }, "wa_id": from }))
        .collect();
    for (member, items) in [("contacts", contacts.as_slice()), ("messages", messages), ("statuses", statuses)] {
        if !items.is_empty() {
            value[member] = json!(items);
        }
    }
    value
}

pub(crate) fn value(messages: &[Value], statuses: &[Value]) -> Value {
    value_for(PHONE_NUMBER_ID, messages, statuses)
}

/// A text, said `second` seconds after noon.
pub(crate) fn text(from: &str, id: &str, words: &str, second: i64) -> Value {
    json!({
        "from": from, "id": id, "timestamp": (NOON_SECONDS + second).to_string(),
        "type": "text", "text": { "body": words },
    })
}

/// A body that holds one text.
pub(crate) fn one_text(from: &str, id: &str, words: &str, second: i64) -> String {
    body(&[value(&[text(from, id, words, second)], &[])])
}

/// A status of one of our messages.
pub(crate) fn status(id: &str, status: &str, second: i64) -> Value {
    json!({ "id": id, "status": status, "timestamp": (NOON_SECONDS + second).to_string(), "recipient_id": RITA })
}

/// A body that holds one status.
pub(crate) fn one_status(id: &str, word: &str, second: i64) -> String {
    body(&[value(&[], &[status(id, word, second)])])
}
