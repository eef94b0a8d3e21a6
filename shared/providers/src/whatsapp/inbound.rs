//! `messages[]`: what people wrote. Text and files are read; every other type is kept as `unsupported` with its bytes and
//! WhatsApp's word for it, so that a later parser can read it from the same bytes.

use super::statuses::{MAX_ID, time};
use crate::items::Items;
use crate::json::{Flag, List, Raw, Text, cut, object};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use domain::contact::phone_of_wa_id;
use domain::inbound::{InboundMedia, InboundMessage};
use domain::{AccountKey, Identity, IdentityKind, Inbound, MessageType, Scope};
use serde_json::{Map, Value, json};

/// Longest name, user name or file name kept, in characters.
const MAX_NAME: usize = 255;

object! {
    /// One of `contacts[]`.
    struct Sender {
        wa_id: Text<'a> = "wa_id",
        user_id: Text<'a> = "user_id",
        profile: Profile<'a> = "profile",
    }
    struct Profile {
        name: Text<'a> = "name",
        username: Text<'a> = "username",
    }
    struct Message {
        from: Text<'a> = "from",
        from_user_id: Text<'a> = "from_user_id",
        id: Text<'a> = "id",
        timestamp: Text<'a> = "timestamp",
        kind: Text<'a> = "type",
        group_id: Text<'a> = "group_id",
        text: Words<'a> = "text",
        image: Raw<'a> = "image",
        audio: Raw<'a> = "audio",
        video: Raw<'a> = "video",
        document: Raw<'a> = "document",
        sticker: Raw<'a> = "sticker",
        context: Context<'a> = "context",
        referral: Raw<'a> = "referral",
    }
    struct Words {
        body: Text<'a> = "body",
    }
    struct Context {
        id: Text<'a> = "id",
        forwarded: Flag = "forwarded",
        frequently_forwarded: Flag = "frequently_forwarded",
        referred_product: Raw<'a> = "referred_product",
    }
    struct File {
        id: Text<'a> = "id",
        mime_type: Text<'a> = "mime_type",
        sha256: Text<'a> = "sha256",
        caption: Text<'a> = "caption",
        filename: Text<'a> = "filename",
        voice: Flag = "voice",
        animated: Flag = "animated",
    }
}

/// `contacts[]` of a change, those that can be read.
pub(super) fn senders<'a>(contacts: &List<'a>) -> Vec<Sender<'a>> {
    contacts.iter().filter_map(|contact| serde_json::from_str(contact.get()).ok()).collect()
}

/// Reads one message.
pub(super) fn message(part: &str, account: Option<&AccountKey>, senders: &[Sender<'_>], items: &mut Items<'_>) {
    let message: Message<'_> = match serde_json::from_str(part) {
        Ok(message) => message,
        Err(error) => return items.bad(account, "UNREADABLE", format!("a message that cannot be read: {error}"), part),
    };
    if account.is_none() {
        return items.bad(None, "NO_ACCOUNT", "a message without a phone_number_id", part);
    }
    let addresses = || [&message.from, &message.from_user_id].into_iter().filter_map(Text::get).map(str::trim);
    if addresses().next().is_none() {
        return items.bad(account, "NO_SENDER", "a message with neither from nor from_user_id", part);
    }
    // By address, never by position: the arrays need not have the same order, nor the same length.
    let sender = senders.iter().find(|sender| {
        [&sender.wa_id, &sender.user_id]
            .into_iter()
            .filter_map(Text::get)
            .any(|id| addresses().any(|from| from == id.trim()))
    });
    let identities = identities(&message, sender);
    if identities.is_empty() {
        return items.bad(account, "NO_SENDER", "a message whose sender has no usable address", part);
    }

    let content = Content::of(&message);
    let group = message.group_id.get().filter(|id| id.len() <= MAX_ID);
    let occurred_at = time(&message.timestamp, items.received_at);
    let id = message.id.get().map(str::trim).filter(|id| id.len() <= MAX_ID && !id.contains(char::is_control));
    let mut notes = content.note.into_iter().collect::<Vec<_>>();
    if items.body.is_repaired(part) {
        notes.push("characters were replaced");
    }
    if occurred_at.is_none() && message.timestamp.get().is_some() {
        notes.push("the provider's time cannot be");
    }
    if id.is_none() && message.id.get().is_some() {
        notes.push("the provider's id cannot be");
    }

    let profile = sender.map(|sender| &sender.profile);
    let inbound = InboundMessage {
        provider_message_id: id.map(str::to_owned),
        phone: identities.iter().find(|id| id.kind == IdentityKind::WaId).and_then(|id| phone_of_wa_id(&id.value)),
        identities,
        display_name: profile.and_then(|profile| profile.name.get()).map(|name| cut(name, MAX_NAME)),
        username: profile
            .and_then(|profile| profile.username.get())
            .map(|name| cut(name.trim().trim_start_matches('@'), MAX_NAME))
            .filter(|name| !name.is_empty()),
        // What is said in a group must not look as if it was said to us alone.
        thread_key: group.map(|id| format!("group:{id}")).unwrap_or_default(),
        occurred_at,
        opens_window: group.is_none() && opens_window(content.word),
        kind: if group.is_some() { MessageType::Unsupported } else { content.kind },
        body: content.body,
        media: content.media.into_iter().collect(),
        reply_to: message.context.id.get().map(str::trim).filter(|id| id.len() <= MAX_ID).map(str::to_owned),
        payload: payload(&message, content.word, content.file, content.kind, group, &notes),
    };
    items.good(account, Inbound::Message(Box::new(inbound)), part);
}

/// Every address the payload names for the sender, the number first: that is the one to answer.
fn identities(message: &Message<'_>, sender: Option<&Sender<'_>>) -> Vec<Identity> {
    let from_contact = sender.map(|sender| [&sender.wa_id, &sender.user_id]);
    let named: Vec<&str> = [&message.from, &message.from_user_id]
        .into_iter()
        .chain(from_contact.into_iter().flatten())
        .filter_map(Text::get)
        .map(str::trim)
        .collect();
    // `from` and `wa_id` have been seen holding a BSUID, so each address is taken for what it looks like.
    let numbers = named.iter().filter_map(|address| Identity::wa_id(address));
    let users = named.iter().filter_map(|address| Identity::wa_bsuid(address));
    let mut found: Vec<Identity> = Vec::with_capacity(2);
    for identity in numbers.chain(users) {
        if !found.contains(&identity) {
            found.push(identity);
        }
    }
    if found.is_empty() {
        // A form of address we do not know yet: it can be read, though not answered.
        let unknown = named.iter().find(|address| address.len() <= MAX_ID && !address.contains(char::is_control));
        found.extend(unknown.map(|address| Identity {
            kind: IdentityKind::External,
            scope: Scope::Account,
            value: (*address).to_owned(),
        }));
    }
    found
}

/// What a message is made of.
struct Content<'a> {
    kind: MessageType,
    /// WhatsApp's word for it.
    word: &'a str,
    body: Option<String>,
    media: Option<InboundMedia>,
    file: Option<File<'a>>,
    note: Option<&'static str>,
}

impl<'a> Content<'a> {
    fn of(message: &'a Message<'a>) -> Self {
        let words = message.text.body.get();
        let word = message.kind.get().map(str::trim).unwrap_or(if words.is_some() { "text" } else { "unknown" });
        let (kind, file) = match word {
            "text" => return Self::text(word, words),
            "image" => (MessageType::Image, message.image),
            "audio" => (MessageType::Audio, message.audio),
            "video" => (MessageType::Video, message.video),
            "document" => (MessageType::Document, message.document),
            "sticker" => (MessageType::Sticker, message.sticker),
            _ => return Self::unsupported(word, None),
        };
        let file: File<'_> = file.read();
        let Some(id) = file.id.get().map(str::trim).filter(|id| id.len() <= MAX_ID) else {
            return Self::unsupported(word, Some("the file is missing"));
        };
        let owned = |text: &Text<'_>| text.get().map(|text| cut(text, MAX_NAME));
        let caption = file.caption.get().map(str::to_owned);
        let media = InboundMedia {
            kind,
            provider_media_id: Some(id.to_owned()),
            mime_type: owned(&file.mime_type),
            filename: owned(&file.filename),
            sha256: file.sha256.get().and_then(digest),
            caption: caption.clone(),
        };
        Self { kind, word, body: caption, media: Some(media), file: Some(file), note: None }
    }

    fn text(word: &'a str, words: Option<&str>) -> Self {
        match words {
            Some(words) => Self {
                kind: MessageType::Text,
                word,
                body: Some(words.to_owned()),
                media: None,
                file: None,
                note: None,
            },
            // Shown as a placeholder rather than as an empty bubble.
            None => Self::unsupported(word, Some("the text is empty")),
        }
    }

    fn unsupported(word: &'a str, note: Option<&'static str>) -> Self {
        Self { kind: MessageType::Unsupported, word, body: None, media: None, file: None, note }
    }
}

/// A SHA-256 as WhatsApp writes it: base64 in webhooks, hex in answers, so both are taken.
fn digest(text: &str) -> Option<Vec<u8>> {
    let bytes = if text.len() == 64 { hex::decode(text).ok()? } else { BASE64.decode(text).ok()? };
    (bytes.len() == 32).then_some(bytes)
}

/// Whether the type is something a person typed or tapped. Reactions, system notes and changes to earlier messages are not.
fn opens_window(word: &str) -> bool {
    !matches!(word, "reaction" | "system" | "request_welcome" | "edit" | "revoke" | "pin" | "keep_in_chat")
}

/// What the message carried beyond its text; `None` when it carried nothing.
fn payload(
    message: &Message<'_>,
    word: &str,
    file: Option<File<'_>>,
    kind: MessageType,
    group: Option<&str>,
    notes: &[&'static str],
) -> Option<Value> {
    let mut payload = Map::new();
    if kind == MessageType::Unsupported || group.is_some() {
        payload.insert("type".into(), json!(cut(word, 64)));
    }
    if let Some(group) = group {
        payload.insert("group_id".into(), json!(group));
    }
    let (voice, animated) = file.map_or((None, None), |file| (file.voice.0, file.animated.0));
    let flags = [
        ("voice", voice),
        ("animated", animated),
        ("forwarded", message.context.forwarded.0),
        ("frequently_forwarded", message.context.frequently_forwarded.0),
    ];
    for (name, _) in flags.into_iter().filter(|(_, flag)| *flag == Some(true)) {
        payload.insert(name.into(), json!(true));
    }
    for (name, part) in [("referral", message.referral), ("referred_product", message.context.referred_product)] {
        if let Some(value) = part.get().and_then(|part| serde_json::from_str(part).ok()) {
            payload.insert(name.into(), value);
        }
    }
    if !notes.is_empty() {
        payload.insert("notes".into(), json!(notes));
    }
    (!payload.is_empty()).then_some(Value::Object(payload))
}
