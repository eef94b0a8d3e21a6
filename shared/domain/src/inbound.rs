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
    /// The business wrote from somewhere else (its phone app): an outbound message that is not ours to send.
    Echo(Box<Echo>),
    /// Somebody put an emoji on a message, changed it, or took it away.
    Reaction(Box<Reaction>),
    /// The author changed a message after sending it.
    Edit(Box<Edit>),
    /// The author took a message back.
    Revoke(Box<Revoke>),
    /// A person's address has changed; the conversation stays the same.
    IdentityChange(Box<IdentityChange>),
    /// A person said whether they want to be written to.
    OptOut(Box<OptOut>),
    /// The provider says how far one of our messages has come.
    Receipt(Box<Receipt>),
    /// Something about the account; kept with its raw webhook, shown to operators.
    AccountEvent {
        /// The provider's word for it.
        field: String,
        /// What follows from it; `None` for what is only kept.
        effect: Option<Box<AccountEffect>>,
    },
}

/// Who did something to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Author {
    /// The customer.
    Person,
    /// The business, on a device of its own.
    Us,
}

/// A message the business wrote on a device of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Echo {
    /// What it says. Its identities, name and phone are the customer's it went to.
    pub message: InboundMessage,
    /// The string we gave when sending, if it was ours after all.
    pub correlation: Option<String>,
}

/// An emoji on a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Reaction {
    /// The provider's id of the reaction itself; `None` where it has none.
    pub provider_message_id: Option<String>,
    /// The customer's addresses, whoever reacted.
    pub identities: Vec<Identity>,
    /// Whose reaction it is.
    pub author: Author,
    /// Provider id of the message it is on; we may not know it yet.
    pub target: String,
    /// `None` takes the author's reaction away.
    pub emoji: Option<String>,
    /// The provider's time; the newest of an author wins.
    pub occurred_at: Option<Timestamp>,
}

/// A changed message.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Provider id of the message that was changed; we may not know it yet.
    pub target: String,
    /// Whose message it is.
    pub author: Author,
    /// What it says now. Its identities are the customer's; its id is the edit's own, not the target's.
    pub message: InboundMessage,
}

/// A message taken back.
#[derive(Clone, Debug, PartialEq)]
pub struct Revoke {
    /// The provider's id of the revoke itself.
    pub provider_message_id: Option<String>,
    /// Provider id of the message that was taken back; we may not know it yet.
    pub target: String,
    /// Whose message it was.
    pub author: Author,
    /// The customer's addresses.
    pub identities: Vec<Identity>,
    /// The provider's time.
    pub occurred_at: Option<Timestamp>,
}

/// A new address for the same person.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityChange {
    /// Addresses the person was known by.
    pub old: Vec<Identity>,
    /// Addresses that hold from now on.
    pub new: Vec<Identity>,
    /// The provider's time.
    pub occurred_at: Option<Timestamp>,
}

/// Whether a person wants to be written to.
#[derive(Clone, Debug, PartialEq)]
pub struct OptOut {
    /// The person's addresses.
    pub identities: Vec<Identity>,
    /// What kind of messages, in the provider's word (`marketing_messages`).
    pub category: String,
    /// Whether they want none of these any more; `false` takes it back.
    pub stop: bool,
    /// The provider's time.
    pub occurred_at: Option<Timestamp>,
}

/// What follows from an account event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccountEffect {
    /// The provider has judged a template.
    TemplateStatus {
        /// The provider's id of the template.
        id: Option<String>,
        /// Its name.
        name: String,
        /// Its language code.
        language: String,
        /// The provider's word (`APPROVED`, `PAUSED`, …).
        status: String,
        /// The provider's reason.
        reason: Option<String>,
    },
    /// The provider rates a template's quality anew.
    TemplateQuality {
        /// Its name.
        name: String,
        /// Its language code.
        language: String,
        /// The provider's word (`GREEN`, `RED`, …).
        quality: String,
    },
    /// The provider has moved a template to another category.
    TemplateCategory {
        /// Its name.
        name: String,
        /// Its language code.
        language: String,
        /// The new category.
        category: String,
    },
    /// A template's text changed: the templates have to be fetched again.
    TemplateComponents,
    /// The number's quality or its daily limit changed.
    NumberQuality {
        /// `UPGRADE`, `FLAGGED`, …
        event: String,
        /// `TIER_1K`, …
        limit: Option<String>,
    },
    /// Something happened to the account itself.
    Account {
        /// `ACCOUNT_RESTRICTION`, `DISABLED_UPDATE`, …
        event: String,
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
