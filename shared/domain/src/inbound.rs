//! What a webhook says, in our words. A provider's parser turns one body into many of these; none knows a database id.

use crate::{Channel, Identity, MessageType, Status, Timestamp};
use serde::{Deserialize, Serialize};

/// Which account an item is for, as the payload names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    /// The account's channel.
    pub channel: Channel,
    /// The provider's id of the account (`phone_number_id`, page id, …).
    pub external_id: String,
}

/// One thing a webhook told us.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// For which account. `None`: for the whole source (an account event of Meta's); it stays in its raw webhook only.
    pub account: Option<AccountKey>,
    /// The item's own bytes as they arrived, or `None` where the provider gives an item no bytes of its own.
    pub raw: Option<String>,
    /// What it says.
    pub kind: Inbound,
}

/// What one item says.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Inbound {
    /// A person wrote, or something happened that is shown like a message.
    Message(Box<InboundMessage>),
    /// The provider says how far one of our messages has come.
    Receipt(Box<Receipt>),
    /// Something about the account; kept with its raw webhook, shown to operators.
    AccountEvent {
        /// The provider's word for it.
        field: String,
    },
}

/// A message from a person.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundMessage {
    /// The provider's id. `None`: a key is derived from the item's bytes.
    pub provider_message_id: Option<String>,
    /// Every address the payload names for the sender, at least one, the one to answer first.
    pub identities: Vec<Identity>,
    /// The sender's own name for display; never a key.
    pub display_name: Option<String>,
    /// The sender's user name; never a key.
    pub username: Option<String>,
    /// E.164 phone where the payload gives one, for display and search.
    pub phone: Option<String>,
    /// Which thread of the identity: empty where there is one per identity.
    pub thread_key: String,
    /// The provider's time; `None` when absent or absurd, then the arrival counts.
    pub occurred_at: Option<Timestamp>,
    /// What it is made of.
    pub kind: MessageType,
    /// Text shown: the body, a caption, a button's title.
    pub body: Option<String>,
    /// Files, to be fetched later.
    pub media: Vec<InboundMedia>,
    /// Provider id of the message this one answers.
    pub reply_to: Option<String>,
    /// What the item carried beyond its text, as JSON.
    pub payload: Option<serde_json::Value>,
    /// Whether it opens the window for free text: anything a person typed or tapped does.
    pub opens_window: bool,
}

/// A file of an inbound message, not fetched yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundMedia {
    /// image, audio, video, document, sticker.
    pub kind: MessageType,
    /// The provider's id to fetch it by.
    pub provider_media_id: Option<String>,
    /// As the provider says.
    pub mime_type: Option<String>,
    /// As the sender named it.
    pub filename: Option<String>,
    /// Hash the provider announced, for checking what was fetched.
    pub sha256: Option<Vec<u8>>,
    /// Text beside it.
    pub caption: Option<String>,
}

/// What the provider says of one of our messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The provider's id of our message.
    pub provider_message_id: String,
    /// Our word for it; `None` for a value we do not map (the event is kept, the status stays).
    pub status: Option<Status>,
    /// The provider's word.
    pub provider_status: String,
    /// The provider's time; `None` when absent or absurd.
    pub occurred_at: Option<Timestamp>,
    /// The string we gave when sending, if the provider returned one.
    pub correlation: Option<String>,
    /// Provider's error code of a failure.
    pub error_code: Option<String>,
    /// Provider's words for a failure.
    pub error_message: Option<String>,
    /// Price information, stored and never required.
    pub pricing: Option<serde_json::Value>,
}
