//! The bytes of a WhatsApp webhook and their signature, as Meta writes them.

use crate::options::AccountOptions;
use bytes::Bytes;
use domain::{Secret, Timestamp};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// `changes[]` of one number: what one notification tells about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    pub(crate) waba_id: String,
    pub(crate) display_phone_number: String,
    pub(crate) phone_number_id: String,
    pub(crate) field: Option<String>,
    pub(crate) contacts: Vec<Value>,
    pub(crate) messages: Vec<Value>,
    pub(crate) statuses: Vec<Value>,
    pub(crate) extra: Map<String, Value>,
}

impl Change {
    pub(crate) fn of(account: &AccountOptions) -> Self {
        Self {
            waba_id: account.waba_id.clone(),
            display_phone_number: account.display_phone_number.clone(),
            phone_number_id: account.phone_number_id.clone(),
            ..Self::default()
        }
    }

    fn to_json(&self) -> Value {
        let mut value = Map::new();
        value.insert("messaging_product".into(), "whatsapp".into());
        let digits: String = self.display_phone_number.chars().filter(char::is_ascii_digit).collect();
        value.insert(
            "metadata".into(),
            json!({"display_phone_number": digits, "phone_number_id": self.phone_number_id}),
        );
        for (key, items) in [("contacts", &self.contacts), ("messages", &self.messages), ("statuses", &self.statuses)] {
            if !items.is_empty() {
                value.insert(key.into(), Value::Array(items.clone()));
            }
        }
        value.extend(self.extra.clone());
        json!({"value": value, "field": self.field.as_deref().unwrap_or("messages")})
    }
}

/// A whole notification: entries of changes.
pub(crate) fn body(entries: &[Vec<Change>]) -> Bytes {
    let entry = |changes: &Vec<Change>| {
        let id = changes.first().map(|change| change.waba_id.clone()).unwrap_or_default();
        json!({"id": id, "changes": changes.iter().map(Change::to_json).collect::<Vec<_>>()})
    };
    let entries: Vec<Value> = entries.iter().map(entry).collect();
    escaped(&json!({"object": "whatsapp_business_account", "entry": entries}))
}

/// JSON in Meta's spelling: everything outside ASCII as `\uXXXX` in lower-case hex, and `/` as `\/`. The signature is
/// over these bytes.
pub fn escaped(value: &Value) -> Bytes {
    let plain = value.to_string();
    let mut out = String::with_capacity(plain.len() + plain.len() / 8);
    for character in plain.chars() {
        match character {
            // A slash appears only inside strings, and there serde_json leaves it alone.
            '/' => out.push_str("\\/"),
            character if character.is_ascii() => out.push(character),
            character => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str("\\u");
                    out.push_str(&hex::encode(unit.to_be_bytes()));
                }
            }
        }
    }
    Bytes::from(out)
}

/// The value of `X-Hub-Signature-256`: HMAC-SHA256 of the bytes under the app secret.
pub fn signature(secret: &Secret, body: &[u8]) -> String {
    let digest = match Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) {
        Ok(mut mac) => {
            mac.update(body);
            hex::encode(mac.finalize().into_bytes())
        }
        Err(_) => String::new(), // an HMAC key has no wrong length
    };
    format!("sha256={digest}")
}

/// Unix seconds as text, as WhatsApp writes times.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.micros().div_euclid(1_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_documented_one() {
        assert_eq!(
            signature(&Secret::new("example-app-secret"), br#"{"object":"page","entry":[]}"#),
            "sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649"
        );
    }

    #[test]
    fn a_body_is_spelled_as_meta_spells_it_and_reads_back_the_same() {
        let value = json!({"text": "ä/б 🙂 \\/ \"مرحبا\"", "n": 1});
        let bytes = escaped(&value);
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.is_ascii());
        assert!(text.contains(r"\u00e4\/\u0431 \ud83d\ude42"), "{text}");
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), value);
    }
}
