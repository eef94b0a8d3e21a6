//! Enums of messages and conversations. The text is what the database and the API carry; every enum here is ours, so a
//! provider's unknown value never has to fit.

use serde::{Deserialize, Serialize};

/// Declares an enum with one text per variant, `as_str`, `parse` (exact) and serde by that text.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// The text stored in the database and shown by the API.
            pub const fn as_str(self) -> &'static str { match self { $($name::$variant => $text,)* } }
            /// Reads the stored text; `None` for anything else.
            pub fn parse(text: &str) -> Option<Self> { match text { $($text => Some($name::$variant),)* _ => None } }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    )*};
}
pub(crate) use texts;

texts! {
    /// Where a conversation takes place.
    Channel {
        WhatsApp = "WHATSAPP",
        Email = "EMAIL",
        Instagram = "INSTAGRAM",
        /// Facebook Messenger.
        Facebook = "FACEBOOK",
        Webchat = "WEBCHAT",
        /// Notes of the team; they have no account and never leave the house.
        InternalNote = "INTERNAL_NOTE",
    }

    /// Who spoke.
    Direction {
        Inbound = "INBOUND",
        Outbound = "OUTBOUND",
    }

    /// How far a message has come. Moves only upwards by [`Status::rank`].
    Status {
        Received = "RECEIVED",
        Queued = "QUEUED",
        Sending = "SENDING",
        Sent = "SENT",
        Failed = "FAILED",
        Delivered = "DELIVERED",
        Read = "READ",
    }

    /// What a message is made of. Lower case because the CRM's client switches on these words.
    MessageType {
        Text = "text",
        Image = "image",
        Audio = "audio",
        Video = "video",
        Document = "document",
        Sticker = "sticker",
        Location = "location",
        Contacts = "contacts",
        Template = "template",
        Interactive = "interactive",
        Button = "button",
        Order = "order",
        System = "system",
        Note = "note",
        Reaction = "reaction",
        /// Anything Roost has no word for yet; the item is kept as it arrived.
        Unsupported = "unsupported",
    }

    /// Whether a conversation asks for somebody's attention.
    ConversationStatus {
        Open = "OPEN",
        Waiting = "WAITING",
        Snoozed = "SNOOZED",
        Closed = "CLOSED",
    }

    /// Where a row of `sends` stands. The first four are in the lane, the last two outside it.
    SendState {
        Waiting = "WAITING",
        Dispatched = "DISPATCHED",
        InFlight = "IN_FLIGHT",
        Unknown = "UNKNOWN",
        Scheduled = "SCHEDULED",
        /// May have been sent: a person decides.
        Held = "HELD",
    }

    /// How one attempt to send ended.
    AttemptOutcome {
        Accepted = "ACCEPTED",
        Retry = "RETRY",
        Throttled = "THROTTLED",
        Rejected = "REJECTED",
        AccountBroken = "ACCOUNT_BROKEN",
        Unknown = "UNKNOWN",
    }

    /// Who brought a message into being.
    Origin {
        Contact = "CONTACT",
        Agent = "AGENT",
        Ai = "AI",
        Automation = "AUTOMATION",
        Api = "API",
        /// Typed on the business's own phone; the provider told us.
        Echo = "ECHO",
    }

    /// What a user may do; each role may do what the ones before it may.
    Role {
        Viewer = "viewer",
        Agent = "agent",
        Operator = "operator",
        Admin = "admin",
    }
}

impl Status {
    /// Order in which a status may be raised. FAILED stands between SENT and DELIVERED: a failure after SENT counts, proof
    /// of delivery beats a failure, and a late `sent` revives nothing.
    pub const fn rank(self) -> i16 {
        match self {
            Status::Received => 0,
            Status::Queued => 10,
            Status::Sending => 20,
            Status::Sent => 30,
            Status::Failed => 35,
            Status::Delivered => 40,
            Status::Read => 50,
        }
    }

    /// Accepts any case and the CRM's older words (`PENDING`, `played`, `accepted`).
    pub fn from_legacy(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        match upper.as_str() {
            "PENDING" => Some(Status::Queued),
            "PLAYED" => Some(Status::Read),
            "ACCEPTED" => Some(Status::Sent),
            other => Status::parse(other),
        }
    }
}

impl Channel {
    /// Accepts any case and the CRM's older words.
    pub fn from_legacy(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        match upper.as_str() {
            "MESSENGER" | "META_LEAD_ADS" => Some(Channel::Facebook),
            "WEBSITE" => Some(Channel::Webchat),
            "INTERNAL" | "NOTES" => Some(Channel::InternalNote),
            other => Channel::parse(other),
        }
    }
}

impl Direction {
    /// Accepts any case and the CRM's `IN`, `OUT`, `internal`.
    pub fn from_legacy(text: &str) -> Option<Self> {
        match text.to_ascii_uppercase().as_str() {
            "IN" | "INBOUND" => Some(Direction::Inbound),
            "OUT" | "OUTBOUND" | "INTERNAL" => Some(Direction::Outbound),
            _ => None,
        }
    }
}

impl Role {
    /// Whether this role may do what `needed` may.
    pub fn may(self, needed: Role) -> bool {
        self as u8 >= needed as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn ranks_follow_the_declared_order() {
        assert!(Status::ALL.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
    }

    #[rstest]
    #[case("IN", Direction::Inbound)]
    #[case("inbound", Direction::Inbound)]
    #[case("OUT", Direction::Outbound)]
    #[case("internal", Direction::Outbound)]
    fn old_directions_are_understood(#[case] text: &str, #[case] want: Direction) {
        assert_eq!(Direction::from_legacy(text), Some(want));
    }

    #[rstest]
    #[case("whatsapp", Channel::WhatsApp)]
    #[case("messenger", Channel::Facebook)]
    #[case("Website", Channel::Webchat)]
    #[case("notes", Channel::InternalNote)]
    fn old_channels_are_understood(#[case] text: &str, #[case] want: Channel) {
        assert_eq!(Channel::from_legacy(text), Some(want));
    }

    #[test]
    fn a_role_may_do_what_lesser_roles_may() {
        assert!(Role::Admin.may(Role::Viewer) && Role::Agent.may(Role::Agent) && !Role::Viewer.may(Role::Agent));
    }
}
