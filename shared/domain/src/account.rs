//! Accounts and sources as the configuration names them. Secrets live here and never in the database.

use crate::Channel;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A secret value: no `Debug`, no `Serialize`; read it only where it is used.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The secret itself. Never log it, never put it into an error.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                let valid = (1..=40).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                if valid { Ok(Self(name)) } else { Err(BadName(name)) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> { Self::try_from(name.to_owned()) }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    )*};
}

/// A name that is not 1 to 40 of `a-z`, `0-9`, `-`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a valid name: use 1 to 40 of a-z, 0-9 and -")]
pub struct BadName(String);

names! {
    /// The configuration's name of an account; its queue is `roost.outbound.<name>`.
    AccountName;
    /// The configuration's name of a source; its webhooks arrive at `/webhooks/<name>`.
    SourceName;
}

/// Who signs webhooks: a Meta app, a mail provider's server, a webchat site.
#[derive(Clone, Debug)]
pub struct Source {
    /// The configuration's name.
    pub name: SourceName,
    /// Which provider verifies and parses it: `meta`, …
    pub kind: String,
    /// Signing secrets, several while rotating; never empty.
    pub secrets: Vec<Secret>,
    /// Answer to the subscription handshake, where the kind has one.
    pub verify_token: Option<Secret>,
    /// Largest body accepted, in bytes.
    pub max_body: usize,
    /// Whether the CRM's old address `/api/webhooks/whatsapp` belongs to this source.
    pub crm_alias: bool,
}

/// What happens to an attempt of unknown outcome once its evidence window has passed in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// A person decides (the default on Meta channels).
    Hold,
    /// Send again.
    Resend,
}

/// One phone number, page, mailbox or widget of ours, as configured.
#[derive(Clone, Debug)]
pub struct Account {
    /// The configuration's name.
    pub name: AccountName,
    /// Its channel.
    pub channel: Channel,
    /// The source that signs for it: an item from another source never reaches it.
    pub source: SourceName,
    /// The provider's id: phone_number_id, page id, mailbox, widget name. Unique per channel.
    pub external_id: String,
    /// WABA id, or the page behind an Instagram account.
    pub parent_external_id: Option<String>,
    /// Meta business portfolio: the scope of BSUIDs. Without it they are scoped to the account.
    pub portfolio_id: Option<String>,
    /// What people call the address, such as `+971 4 …`.
    pub display_address: Option<String>,
    /// Base of the provider's API with its version, such as `https://graph.facebook.com/v25.0`; no trailing slash.
    pub api_base: String,
    /// The provider's access token.
    pub access_token: Secret,
    /// Calls a second over all replicas.
    pub rate_per_second: f64,
    /// Least time between two messages to one recipient, after the provider's burst; zero means no limit.
    pub pair_interval: Duration,
    /// How many messages to one recipient may go before `pair_interval` bites.
    pub pair_burst: u32,
    /// How long after the last inbound free text may be sent; `None`: always.
    pub window: Option<Duration>,
    /// What follows an unknown outcome.
    pub on_unknown: OnUnknown,
}

impl Account {
    /// Under which key this account's portfolio-scoped identities live.
    pub fn portfolio_scope(&self) -> &str {
        self.portfolio_id.as_deref().unwrap_or(&self.external_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!("sales-2".parse::<AccountName>().is_ok());
        for bad in ["", "Sales", "a b", "a/b", &"x".repeat(41)] {
            assert!(bad.parse::<AccountName>().is_err(), "{bad}");
        }
    }
}
