//! Row ids. One type per table, so that a conversation's id cannot be passed where a contact's is expected.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The id as the database and JSON carry it.
            pub const fn new(id: i64) -> Self { Self(id) }
            /// The number behind the id, for binding to a statement.
            pub const fn get(self) -> i64 { self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> { text.parse().map(Self) }
        }
    )*};
}

ids! {
    /// A row of `channel_accounts`: one phone number, page, mailbox or widget of ours.
    AccountId;
    /// A row of `contacts`: a person.
    ContactId;
    /// A row of `contact_identities`: an address of a person.
    IdentityId;
    /// A row of `leads`.
    LeadId;
    /// A row of `conversations`: one thread of one address with one account.
    ConversationId;
    /// A row of `messages`.
    MessageId;
    /// A row of `message_media`.
    MediaId;
    /// A row of `webhook_events`: one webhook request as it arrived.
    WebhookEventId;
    /// A row of `dead_letters`.
    DeadLetterId;
    /// A row of `users`: somebody who may open the page.
    UserId;
    /// A row of `api_tokens`.
    TokenId;
}
