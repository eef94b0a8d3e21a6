//! Meta's webhooks: one signature and one envelope for WhatsApp, Messenger and Instagram.

mod envelope;
mod handshake;
mod signature;

pub(crate) use envelope::ABOVE_CHANGE;
pub use signature::sign;

use crate::{Arrived, BadItem, Forged, Handshake, Malformed, SourceKind, Webhook};
use domain::{Item, Source};

/// A Meta app. One app secret signs for every account of the app, whatever its channel.
#[derive(Clone, Copy, Debug)]
pub struct Meta;

impl SourceKind for Meta {
    fn kind(&self) -> &'static str {
        "meta"
    }

    /// None: everything Meta says is in the body.
    fn kept_headers(&self) -> &'static [&'static str] {
        &[]
    }

    fn handshake(&self, query: &str, source: &Source) -> Handshake {
        handshake::answer(query, source)
    }

    fn verify(&self, hook: &Webhook<'_>, source: &Source) -> Result<(), Forged> {
        signature::verify(hook, source)
    }

    fn parse(&self, hook: &Arrived<'_>) -> Result<Vec<Result<Item, BadItem>>, Malformed> {
        envelope::items(hook)
    }
}
