//! Reads a request to the messages endpoint as strictly as Meta does.

use crate::ledger::{Ours, Sent};
use serde_json::Value;

/// What a request to the messages endpoint wants.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// A message is to be sent.
    Message {
        sent: Sent,
        /// The address as it was given.
        input: String,
        template: bool,
        /// A BSUID stands where a phone belongs: answered with an id, never delivered.
        misaddressed: bool,
    },
    /// The customer's message is marked as read, perhaps with a typing hint.
    Read { wamid: String, typing: bool },
}

/// What is wrong with a request: code and details of the error object.
pub(crate) type Wrong = (i64, String);

/// Reads the body of `POST /{phone_number_id}/messages`.
pub(crate) fn read(account: &str, body: &[u8]) -> Result<Wanted, Wrong> {
    let json: Value = serde_json::from_slice(body).map_err(|_| invalid("the body is not valid JSON"))?;
    if json["messaging_product"] != "whatsapp" {
        return Err(invalid("messaging_product must be \"whatsapp\""));
    }
    if let Some(status) = json.get("status").and_then(Value::as_str) {
        let wamid = json["message_id"].as_str().ok_or_else(|| missing("message_id"))?.to_owned();
        if status != "read" {
            return Err(invalid("status must be \"read\""));
        }
        return Ok(Wanted::Read { wamid, typing: json.get("typing_indicator").is_some() });
    }
    match json.get("recipient_type").and_then(Value::as_str) {
        None | Some("individual" | "group") => {}
        Some(_) => return Err(invalid("recipient_type must be individual or group")),
    }
    let correlation = match json.get("biz_opaque_callback_data") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.len() <= 512 => Some(text.clone()),
        Some(_) => return Err(invalid("biz_opaque_callback_data must be a string of at most 512 characters")),
    };
    let (input, recipient, misaddressed) = address(&json)?;
    let kind = json.get("type").and_then(Value::as_str).unwrap_or("text").to_owned();
    let text = words(&kind, &json)?;
    let ours = correlation.as_deref().and_then(Ours::read);
    let template = kind == "template";
    let sent = Sent { account: account.to_owned(), recipient, kind, text, correlation, ours };
    Ok(Wanted::Message { sent, input, template, misaddressed })
}

/// The address as given, the address the log uses, and whether it is a BSUID in the wrong place. `to` wins over
/// `recipient`.
fn address(json: &Value) -> Result<(String, String, bool), Wrong> {
    let given = |key: &str| match json.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    if let Some(to) = given("to") {
        if is_bsuid(&to) {
            return Ok((to.clone(), to, true));
        }
        let digits: String = to.chars().filter(char::is_ascii_digit).collect();
        let odd = to.chars().any(|c| !(c.is_ascii_digit() || matches!(c, '+' | ' ' | '-' | '(' | ')')));
        if odd || !(5..=15).contains(&digits.len()) {
            return Err((131_009, "Parameter value is not valid: to".into()));
        }
        return Ok((to, digits, false));
    }
    match given("recipient") {
        Some(bsuid) if is_bsuid(&bsuid) => Ok((bsuid.clone(), bsuid, false)),
        Some(_) => Err((131_009, "Parameter value is not valid: recipient".into())),
        None => Err(missing("to")),
    }
}

/// `CC.` or `CC.ENT.`, then 1 to 128 letters and digits.
pub(crate) fn is_bsuid(text: &str) -> bool {
    let Some((country, rest)) = text.split_once('.') else { return false };
    let id = rest.strip_prefix("ENT.").unwrap_or(rest);
    country.len() == 2
        && country.bytes().all(|b| b.is_ascii_uppercase())
        && (1..=128).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// What the customer would read; fails where the object of the type is missing or Meta would refuse it.
fn words(kind: &str, json: &Value) -> Result<String, Wrong> {
    let object = json.get(kind).ok_or_else(|| missing(kind))?;
    let text = |value: &Value, most: usize, name: &str| -> Result<String, Wrong> {
        match value.as_str() {
            Some("") | None => Err(missing(name)),
            Some(text) if text.chars().count() > most => {
                Err(invalid(&format!("Param {name} must be at most {most} characters long")))
            }
            Some(text) => Ok(text.to_owned()),
        }
    };
    match kind {
        "text" => text(&object["body"], 4096, "text['body']"),
        "template" => {
            let name = text(&object["name"], 512, "template['name']")?;
            text(&object["language"]["code"], 20, "template['language']['code']")?;
            let parameters: Vec<&str> = object["components"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|component| component["parameters"].as_array())
                .flatten()
                .filter_map(|parameter| parameter["text"].as_str())
                .collect();
            Ok(if parameters.is_empty() { name } else { format!("{name}: {}", parameters.join(" · ")) })
        }
        "image" | "video" | "audio" | "document" | "sticker" => {
            if object.get("id").is_none() && object.get("link").is_none() {
                return Err(missing(&format!("{kind}['id'] or {kind}['link']")));
            }
            Ok(object["caption"].as_str().map_or_else(|| format!("[{kind}]"), str::to_owned))
        }
        "reaction" => {
            text(&object["message_id"], 512, "reaction['message_id']")?;
            Ok(object["emoji"].as_str().unwrap_or_default().to_owned())
        }
        "interactive" => Ok(object["body"]["text"].as_str().unwrap_or("[choice]").to_owned()),
        "location" | "contacts" => Ok(format!("[{kind}]")),
        _ => Err((131_051, "Unsupported message type".into())),
    }
}

fn invalid(details: &str) -> Wrong {
    (100, details.to_owned())
}

fn missing(name: &str) -> Wrong {
    (131_008, format!("Required parameter is missing: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> i64 {
        match read("1", body.as_bytes()) {
            Err((code, _)) => code,
            Ok(wanted) => panic!("accepted: {wanted:?}"),
        }
    }

    #[test]
    fn what_meta_refuses_is_refused_with_its_code() {
        assert_eq!(code("{"), 100);
        assert_eq!(code(r#"{"to":"1"}"#), 100);
        assert_eq!(code(r#"{"messaging_product":"whatsapp","type":"text","text":{"body":"x"}}"#), 131_008);
        assert_eq!(code(r#"{"messaging_product":"whatsapp","to":"351912000333","type":"text"}"#), 131_008);
        assert_eq!(
            code(r#"{"messaging_product":"whatsapp","to":"351912000333","type":"text","text":{"body":""}}"#),
            131_008
        );
        assert_eq!(
            code(r#"{"messaging_product":"whatsapp","to":"ana@example.org","type":"text","text":{"body":"x"}}"#),
            131_009
        );
        assert_eq!(code(r#"{"messaging_product":"whatsapp","recipient":"351912000333","text":{"body":"x"}}"#), 131_009);
        assert_eq!(code(r#"{"messaging_product":"whatsapp","to":"351912000333","type":"dance","dance":{}}"#), 131_051);
        let long = "x".repeat(4097);
        assert_eq!(
            code(&format!(
                r#"{{"messaging_product":"whatsapp","to":"351912000333","type":"text","text":{{"body":"{long}"}}}}"#
            )),
            100
        );
    }

    #[test]
    fn phones_lose_their_plus_and_a_bsuid_in_to_is_noticed() {
        let read = |to: &str| {
            let body = format!(r#"{{"messaging_product":"whatsapp",{to},"type":"text","text":{{"body":"hi"}}}}"#);
            match super::read("1", body.as_bytes()) {
                Ok(Wanted::Message { sent, misaddressed, .. }) => (sent.recipient, misaddressed),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(read(r#""to":"+351 912 000 333""#), ("351912000333".into(), false));
        assert_eq!(read(r#""to":"PT.48151623420001""#), ("PT.48151623420001".into(), true));
        assert_eq!(read(r#""recipient":"PT.ENT.4815162342""#), ("PT.ENT.4815162342".into(), false));
        assert_eq!(read(r#""to":"351912000333","recipient":"PT.4815""#), ("351912000333".into(), false));
    }

    #[test]
    fn a_template_reads_as_its_name_and_parameters() {
        let body = br#"{"messaging_product":"whatsapp","to":"351912000333","type":"template","template":{"name":"order_ready",
            "language":{"code":"pt_PT"},"components":[{"type":"body","parameters":[{"type":"text","text":"Rita"},{"type":"text","text":"A17"}]}]}}"#;
        let Ok(Wanted::Message { sent, template: true, .. }) = read("1", body) else { panic!("not a template") };
        assert_eq!(sent.text, "order_ready: Rita · A17");
    }
}
