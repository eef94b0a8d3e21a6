//! What customers write, in WhatsApp's shapes.

use crate::webhook::{Change, seconds};
use domain::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A message by a customer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerMessage {
    /// phone_number_id it is written to; `None`: the simulator's first account.
    #[serde(default)]
    pub account: Option<String>,
    /// Digits; empty for a customer who shows only a BSUID.
    #[serde(default)]
    pub from: String,
    /// Business-scoped user id.
    #[serde(default)]
    pub bsuid: Option<String>,
    /// The profile's name; `None`: the webhook has no contact.
    #[serde(default)]
    pub name: Option<String>,
    /// Its id; `None`: a new one.
    #[serde(default)]
    pub wamid: Option<String>,
    /// When it was written; `None`: now.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// wamid of the message it quotes.
    #[serde(default)]
    pub reply_to: Option<String>,
    /// What it says.
    pub says: Says,
}

impl CustomerMessage {
    /// A text.
    pub fn text(from: impl Into<String>, name: impl Into<String>, body: impl Into<String>) -> Self {
        Self::of(from, name, Says::Text { body: body.into() })
    }

    /// Anything.
    pub fn of(from: impl Into<String>, name: impl Into<String>, says: Says) -> Self {
        Self {
            account: None,
            from: from.into(),
            bsuid: None,
            name: Some(name.into()),
            wamid: None,
            at: None,
            reply_to: None,
            says,
        }
    }

    /// The same, to this number.
    pub fn to_account(mut self, phone_number_id: impl Into<String>) -> Self {
        self.account = Some(phone_number_id.into());
        self
    }

    /// The same, under this id.
    pub fn with_wamid(mut self, wamid: impl Into<String>) -> Self {
        self.wamid = Some(wamid.into());
        self
    }

    /// The same, written at this time.
    pub fn written_at(mut self, at: Timestamp) -> Self {
        self.at = Some(at);
        self
    }

    pub(crate) fn add_to(&self, change: &mut Change, wamid: &str, now: Timestamp) {
        if let Some(name) = &self.name {
            let mut contact = json!({"profile": {"name": name}});
            if !self.from.is_empty() {
                contact["wa_id"] = self.from.as_str().into();
            }
            if let Some(bsuid) = &self.bsuid {
                contact["user_id"] = bsuid.as_str().into();
            }
            if !change.contacts.contains(&contact) {
                change.contacts.push(contact);
            }
        }
        let mut message = json!({"id": wamid, "timestamp": seconds(self.at.unwrap_or(now))});
        if !self.from.is_empty() {
            message["from"] = self.from.as_str().into();
        }
        if let Some(bsuid) = &self.bsuid {
            message["from_user_id"] = bsuid.as_str().into();
        }
        if let Some(quoted) = &self.reply_to {
            let business: String = change.display_phone_number.chars().filter(char::is_ascii_digit).collect();
            message["context"] = json!({"from": business, "id": quoted});
        }
        let (kind, members) = self.says.members();
        message["type"] = kind.into();
        if let (Value::Object(message), Value::Object(members)) = (&mut message, members) {
            message.extend(members);
        }
        change.messages.push(message);
    }
}

/// What a customer's message says. In JSON: `{"type": "text", "body": "…"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Says {
    /// A text.
    Text {
        /// Its words.
        body: String,
    },
    /// A picture.
    Image {
        /// Words under it.
        #[serde(default)]
        caption: Option<String>,
    },
    /// A file.
    Document {
        /// Its name.
        filename: String,
        /// Words under it.
        #[serde(default)]
        caption: Option<String>,
    },
    /// A voice message.
    Voice,
    /// A film.
    Video {
        /// Words under it.
        #[serde(default)]
        caption: Option<String>,
    },
    /// A sticker.
    Sticker,
    /// A place.
    Location {
        /// Degrees north.
        latitude: f64,
        /// Degrees east.
        longitude: f64,
        /// Its name.
        #[serde(default)]
        name: Option<String>,
    },
    /// A contact card.
    Contacts {
        /// The name on it.
        name: String,
        /// The number on it.
        phone: String,
    },
    /// A reaction; an empty emoji takes it back.
    Reaction {
        /// wamid of the message reacted to.
        to: String,
        /// The emoji.
        emoji: String,
    },
    /// A tap on a template's quick reply.
    Button {
        /// What the button says.
        text: String,
        /// What the template gave it.
        payload: String,
    },
    /// A choice from a list.
    ListReply {
        /// The row's id.
        id: String,
        /// The row's title.
        title: String,
    },
    /// New words for an earlier message.
    Edit {
        /// wamid of the earlier message.
        of: String,
        /// The new words.
        body: String,
    },
    /// An earlier message is taken back.
    Revoke {
        /// wamid of the earlier message.
        of: String,
    },
    /// What Meta itself does not support: code 131051.
    Unsupported,
    /// A type nobody has heard of, with members to match.
    Unheard,
    /// Any members, word for word.
    Raw {
        /// `type`.
        kind: String,
        /// The members beside id, timestamp, from and type.
        members: Value,
    },
}

impl Says {
    /// What a person reads, for the phone.
    pub(crate) fn words(&self) -> String {
        let labelled = |label: &str, caption: &Option<String>| match caption {
            Some(caption) => format!("[{label}] {caption}"),
            None => format!("[{label}]"),
        };
        match self {
            Says::Text { body } => body.clone(),
            Says::Image { caption } => labelled("picture", caption),
            Says::Video { caption } => labelled("film", caption),
            Says::Document { filename, caption } => labelled(filename, caption),
            Says::Voice => "[voice message]".into(),
            Says::Sticker => "[sticker]".into(),
            Says::Location { name, .. } => labelled("place", name),
            Says::Contacts { name, .. } => format!("[contact] {name}"),
            Says::Reaction { emoji, .. } => emoji.clone(),
            Says::Button { text, .. } => text.clone(),
            Says::ListReply { title, .. } => title.clone(),
            Says::Edit { body, .. } => format!("[edited] {body}"),
            Says::Revoke { .. } => "[deleted]".into(),
            Says::Unsupported | Says::Unheard => "[something new]".into(),
            Says::Raw { kind, .. } => format!("[{kind}]"),
        }
    }

    /// The type and the members that go with it.
    fn members(&self) -> (String, Value) {
        let media = |mime: &str| json!({"id": media_id(), "mime_type": mime, "sha256": "q83vEjRWeJA="});
        let captioned = |mut media: Value, caption: &Option<String>| {
            if let Some(caption) = caption {
                media["caption"] = caption.as_str().into();
            }
            media
        };
        let (kind, members) = match self {
            Says::Text { body } => ("text", json!({"text": {"body": body}})),
            Says::Image { caption } => ("image", json!({"image": captioned(media("image/jpeg"), caption)})),
            Says::Video { caption } => ("video", json!({"video": captioned(media("video/mp4"), caption)})),
            Says::Document { filename, caption } => {
                let mut document = captioned(media("application/pdf"), caption);
                document["filename"] = filename.as_str().into();
                ("document", json!({"document": document}))
            }
            Says::Voice => {
                let mut audio = media("audio/ogg; codecs=opus");
                audio["voice"] = true.into();
                ("audio", json!({"audio": audio}))
            }
            Says::Sticker => {
                let mut sticker = media("image/webp");
                sticker["animated"] = false.into();
                ("sticker", json!({"sticker": sticker}))
            }
            Says::Location { latitude, longitude, name } => {
                let mut location = json!({"latitude": latitude, "longitude": longitude});
                if let Some(name) = name {
                    location["name"] = name.as_str().into();
                }
                ("location", json!({"location": location}))
            }
            Says::Contacts { name, phone } => (
                "contacts",
                json!({"contacts": [{"name": {"formatted_name": name, "first_name": name}, "phones": [{"phone": phone, "type": "CELL"}]}]}),
            ),
            Says::Reaction { to, emoji } => ("reaction", json!({"reaction": {"message_id": to, "emoji": emoji}})),
            Says::Button { text, payload } => ("button", json!({"button": {"text": text, "payload": payload}})),
            Says::ListReply { id, title } => (
                "interactive",
                json!({"interactive": {"type": "list_reply", "list_reply": {"id": id, "title": title}}}),
            ),
            Says::Edit { of, body } => (
                "edit",
                json!({"edit": {"original_message_id": of, "message": {"type": "text", "text": {"body": body}}}}),
            ),
            Says::Revoke { of } => ("revoke", json!({"revoke": {"original_message_id": of}})),
            Says::Unsupported => (
                "unsupported",
                json!({"errors": [{"code": 131_051, "title": "Message type unknown", "message": "Message type unknown",
                    "error_data": {"details": "Message type is currently not supported."}}]}),
            ),
            Says::Unheard => {
                ("hologram", json!({"hologram": {"depth": [1, 2, {"layers": null}], "id": 7, "spin": -1.5e-3}}))
            }
            Says::Raw { kind, members } => (kind.as_str(), members.clone()),
        };
        (kind.to_owned(), members)
    }
}

/// A media id: Meta's are long digit strings.
fn media_id() -> String {
    (uuid::Uuid::new_v4().as_u128() % 1_000_000_000_000_000).to_string()
}

/// One thing in a hand-made body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "snake_case")]
pub enum BatchItem {
    /// A customer's message.
    Message(CustomerMessage),
    /// A status of a message of ours.
    Status {
        /// phone_number_id; `None`: the first account.
        #[serde(default)]
        account: Option<String>,
        /// Of which message.
        wamid: String,
        /// What it says.
        status: crate::Tick,
        /// Digits or BSUID of the recipient.
        recipient: String,
        /// `biz_opaque_callback_data`.
        #[serde(default)]
        correlation: Option<String>,
        /// When; `None`: now.
        #[serde(default)]
        at: Option<Timestamp>,
        /// Error code of a `failed`.
        #[serde(default)]
        code: Option<i64>,
    },
    /// A change of another field, such as `message_template_status_update`. It gets a change of its own.
    Field {
        /// phone_number_id; `None`: the first account.
        #[serde(default)]
        account: Option<String>,
        /// `field`.
        field: String,
        /// Members of `value` beside the metadata.
        value: serde_json::Map<String, Value>,
    },
}
