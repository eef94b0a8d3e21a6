//! Everything Roost knows about providers, and nothing that touches the network: who signs a webhook and how to read it
//! ([`SourceKind`]), what a channel can send and what its provider's answers mean ([`ChannelKind`]).
//!
//! A new provider is one folder here and one line in [`source_kinds`] or [`channel_kinds`].

mod items;
mod json;
pub mod meta;
pub mod whatsapp;

use domain::{
    Accepted, Account, AccountKey, Call, Channel, Item, Outgoing, Refused, Reply, SendError, SendJob, Source,
    Timestamp, Window,
};
use std::fmt;

/// A webhook before it is trusted: what ingress has.
#[derive(Clone, Copy)]
pub struct Webhook<'a> {
    /// The request's headers.
    pub headers: &'a http::HeaderMap,
    /// The body, byte for byte as it arrived: signatures are computed over exactly this.
    pub body: &'a [u8],
    /// When all of it was there.
    pub received_at: Timestamp,
}

impl fmt::Debug for Webhook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({} bytes at {})", self.body.len(), self.received_at)
    }
}

/// A webhook that was verified, as its frame carries it: what ingest has.
#[derive(Clone, Copy)]
pub struct Arrived<'a> {
    /// The headers ingress kept, see [`SourceKind::kept_headers`].
    pub headers: &'a [(String, String)],
    /// The body, byte for byte as it arrived.
    pub body: &'a [u8],
    /// When ingress had all of it.
    pub received_at: Timestamp,
}

impl fmt::Debug for Arrived<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrived({} bytes at {})", self.body.len(), self.received_at)
    }
}

/// Answer to a provider that asks, before it subscribes, whether the address is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// 200, `text/plain`, exactly this and nothing else.
    Challenge(String),
    /// 403.
    WrongToken,
    /// 400: this parameter is missing or unusable.
    Missing(&'static str),
    /// 500: the source has no verify token.
    NotConfigured,
}

/// A webhook that is not proven to be the provider's. Says nothing of what would have been right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Forged {
    /// There is no signature.
    #[error("the signature is missing")]
    MissingSignature,
    /// There is something, but it does not have a signature's form.
    #[error("the signature is malformed")]
    MalformedSignature,
    /// A well-formed signature that none of the source's secrets made over these bytes.
    #[error("the signature is wrong")]
    BadSignature,
}

impl Forged {
    /// Short code under which refusals are counted.
    pub const fn reason(self) -> &'static str {
        match self {
            Forged::MissingSignature => "missing_signature",
            Forged::MalformedSignature => "malformed_signature",
            Forged::BadSignature => "bad_signature",
        }
    }
}

/// A whole body that cannot be taken apart; it becomes one dead letter. Its words quote nothing of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// More bytes than any webhook of this kind may have.
    #[error("{bytes} bytes, more than the {limit} a webhook may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Nested deeper than any webhook is, and not inside one item that could be set aside alone.
    #[error("nested {depth} levels deep, more than {}", json::MAX_DEPTH)]
    TooDeep {
        /// Its depth.
        depth: usize,
    },
    /// More items than any webhook has.
    #[error("more than {limit} items")]
    TooManyItems {
        /// The limit.
        limit: usize,
    },
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// JSON, but not what this kind of source sends.
    #[error("not a webhook: {0}")]
    NotAWebhook(&'static str),
}

impl Malformed {
    /// Short code for grouping dead letters.
    pub const fn code(&self) -> &'static str {
        match self {
            Malformed::TooLarge { .. } => "TOO_LARGE",
            Malformed::TooDeep { .. } => "TOO_DEEP",
            Malformed::TooManyItems { .. } => "TOO_MANY_ITEMS",
            Malformed::NotJson(_) => "NOT_JSON",
            Malformed::NotAWebhook(_) => "NOT_A_WEBHOOK",
        }
    }
}

/// One item that cannot be used; it becomes a dead letter of its own and its neighbours do not notice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadItem {
    /// For which account, where the payload says so.
    pub account: Option<AccountKey>,
    /// Short code for grouping dead letters, such as `NO_SENDER`.
    pub code: &'static str,
    /// What is wrong with it, for a person; quotes nothing of the item.
    pub reason: String,
    /// The item's own bytes as they arrived.
    pub raw: String,
}

/// Who signs webhooks: a kind of source.
pub trait SourceKind: Send + Sync + fmt::Debug {
    /// The `kind` of a source in the configuration.
    fn kind(&self) -> &'static str;

    /// Names (lower case) of the headers that [`SourceKind::parse`] needs: ingress copies these into the frame.
    fn kept_headers(&self) -> &'static [&'static str];

    /// Answers a `GET` on the source's address. `query` is the raw query string, without the `?`.
    fn handshake(&self, query: &str, source: &Source) -> Handshake;

    /// Proves that the provider sent exactly these bytes. Fails closed: no secret, no trust.
    /// # Errors
    /// Whatever is missing or wrong; the answer is then 401 and nothing of the webhook goes any further.
    fn verify(&self, hook: &Webhook<'_>, source: &Source) -> Result<(), Forged>;

    /// Takes a webhook apart. Pure: the same bytes give the same items in the same order.
    /// # Errors
    /// Only when the body as a whole cannot be taken apart. One bad item is an `Err` among the others.
    fn parse(&self, hook: &Arrived<'_>) -> Result<Vec<Result<Item, BadItem>>, Malformed>;
}

/// Where a message goes: one channel's rules, calls and answers.
pub trait ChannelKind: Send + Sync + fmt::Debug {
    /// Which channel.
    fn channel(&self) -> Channel;

    /// Whether the provider would take this message now, as far as can be known without asking.
    /// # Errors
    /// Names the field of the request and what to change.
    fn check(&self, draft: &Outgoing, account: &Account, window: Window) -> Result<(), Refused>;

    /// The call that sends this message.
    /// # Errors
    /// [`SendError::Rejected`] when no call can be made of it; nothing has been sent then.
    fn request(&self, job: &SendJob, account: &Account) -> Result<Call, SendError>;

    /// What the provider's complete answer means.
    /// # Errors
    /// Everything that is not "taken, and this is its id".
    fn outcome(&self, reply: &Reply) -> Result<Accepted, SendError>;

    /// What of this account must never appear in a log.
    fn secrets<'a>(&self, account: &'a Account) -> Vec<&'a str>;
}

/// Every kind of source.
pub fn source_kinds() -> &'static [&'static dyn SourceKind] {
    &[&meta::Meta]
}

/// Every channel that can send.
pub fn channel_kinds() -> &'static [&'static dyn ChannelKind] {
    &[&whatsapp::WhatsApp]
}

/// The kind of source with this name; `None` for a name no provider here has.
pub fn source_kind(kind: &str) -> Option<&'static dyn SourceKind> {
    source_kinds().iter().copied().find(|known| known.kind() == kind)
}

/// The rules of this channel; `None` where nothing is sent to a provider.
pub fn channel_kind(channel: Channel) -> Option<&'static dyn ChannelKind> {
    channel_kinds().iter().copied().find(|known| known.channel() == channel)
}
