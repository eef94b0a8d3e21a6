//! The traffic: WhatsApp text messages of ten thousand contacts, most of it from a fifth of them.

use bytes::Bytes;
use domain::{Clock, SystemClock};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// People who write.
pub(crate) const CONTACTS: u32 = 10_000;
/// This share of them…
const BUSY_CONTACTS: u32 = CONTACTS / 5;
/// …sends this share of the messages.
const BUSY_SHARE: f64 = 0.8;
/// Our numbers. Each may make 1,000 calls a second, the most there is: so many limit nothing that is measured.
pub(crate) const ACCOUNTS: u32 = 20;
/// Size of the webhook that ingress is asked to take, in bytes.
pub(crate) const INGRESS_BODY: usize = 1_050;

/// Messages that come in a second of the time that their timestamps tell.
const A_SECOND: usize = 100;

/// Words to make texts of.
const WORDS: [&str; 16] = [
    "hello",
    "is",
    "the",
    "apartment",
    "still",
    "available",
    "thanks",
    "tomorrow",
    "please",
    "send",
    "documents",
    "visa",
    "office",
    "morning",
    "price",
    "when",
];

/// A webhook with one message in it.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    /// The bytes Meta would post.
    pub(crate) body: Bytes,
    /// The message's id.
    pub(crate) wamid: String,
}

/// Name of an account in the configuration.
pub(crate) fn account_name(account: u32) -> String {
    format!("number-{account:02}")
}

/// Meta's id of an account's number.
pub(crate) fn phone_number_id(account: u32) -> String {
    format!("2000000000001{account:02}")
}

/// What a contact's messages come from.
fn wa_id(contact: u32) -> String {
    format!("9715000{contact:05}")
}

/// One message of every contact, in order: what makes contacts, leads and conversations exist.
pub(crate) fn first_messages() -> Vec<Webhook> {
    let mut rng = StdRng::seed_from_u64(1);
    let long_ago = now() - 3_600;
    (0..CONTACTS).map(|contact| webhook(&mut rng, contact, 12, long_ago)).collect()
}

/// Messages with random ids, 80 % of them from 20 % of the contacts, a hundred to a second until now: a conversation's next
/// message is later than its last one, so that its row moves in the indexes as it does in real life.
pub(crate) fn traffic(messages: usize, seed: u64) -> Vec<Webhook> {
    let mut rng = StdRng::seed_from_u64(seed);
    let begin = now() - i64::try_from(messages / A_SECOND).unwrap_or(0);
    let mut message = |n: usize| {
        let busy = rng.random_bool(BUSY_SHARE);
        let contact = rng.random_range(if busy { 0..BUSY_CONTACTS } else { BUSY_CONTACTS..CONTACTS });
        webhook(&mut rng, contact, 18, begin + i64::try_from(n / A_SECOND).unwrap_or(0))
    };
    (0..messages).map(&mut message).collect()
}

/// Now, in seconds, as Meta writes times.
fn now() -> i64 {
    SystemClock::default().now().micros() / 1_000_000
}

/// A webhook of [`INGRESS_BODY`] bytes.
pub(crate) fn for_ingress() -> Webhook {
    let mut rng = StdRng::seed_from_u64(2);
    let short = webhook(&mut rng, 1, 1, now());
    let padding = "x".repeat(INGRESS_BODY.saturating_sub(short.body.len()));
    let text = String::from_utf8_lossy(&short.body).replacen("\"body\":\"", &format!("\"body\":\"{padding}"), 1);
    Webhook { body: Bytes::from(text), wamid: short.wamid }
}

fn webhook(rng: &mut StdRng, contact: u32, words: usize, seconds: i64) -> Webhook {
    let from = wa_id(contact);
    // As Meta's: a common beginning, the number, then what is random.
    let wamid = format!("wamid.HBgM{from}FQIAEhgU{:032X}AA==", rng.random::<u128>());
    let text: Vec<&str> = (0..words).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect();
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "900000000000001", "changes": [{"value": {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "97145550100", "phone_number_id": phone_number_id(contact % ACCOUNTS)},
        "contacts": [{"profile": {"name": format!("Contact {contact}")}, "wa_id": from}],
        "messages": [{"from": from, "id": wamid, "timestamp": seconds.to_string(), "type": "text",
            "text": {"body": text.join(" ")}}]},
        "field": "messages"}]}]});
    Webhook { body: body.to_string().into(), wamid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_are_unique_and_a_fifth_of_the_contacts_writes_most() {
        let traffic = traffic(2_000, 7);
        assert_eq!(traffic.iter().map(|webhook| &webhook.wamid).collect::<HashSet<_>>().len(), 2_000);
        let busy: HashSet<String> = (0..BUSY_CONTACTS).map(wa_id).collect();
        let from_busy = traffic.iter().filter(|webhook| busy.contains(&webhook.wamid[10..22])).count();
        assert!((1_500..1_700).contains(&from_busy), "{from_busy}");
        assert_eq!(for_ingress().body.len(), INGRESS_BODY);
    }
}
