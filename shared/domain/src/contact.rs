//! Addresses of people. A contact is a person, an identity is one address; only identities are keys.

use crate::message::texts;
use serde::{Deserialize, Serialize};

texts! {
    /// What kind of address an identity is.
    IdentityKind {
        /// E.164 with `+`.
        Phone = "PHONE",
        /// WhatsApp's own form of a phone number: digits only. Replies go to exactly this.
        WaId = "WA_ID",
        /// WhatsApp's business-scoped user id, per portfolio.
        WaBsuid = "WA_BSUID",
        /// Messenger's page-scoped id.
        Psid = "PSID",
        /// Instagram's account-scoped id.
        Igsid = "IGSID",
        Email = "EMAIL",
        /// A webchat visitor, per site.
        Visitor = "VISITOR",
        External = "EXTERNAL",
    }
}

/// Within which bounds an identity's value is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Everywhere: phones, wa_ids, e-mail addresses.
    Global,
    /// Within the portfolio of the account it was seen on (BSUID).
    Portfolio,
    /// Within the account it was seen on (PSID, IGSID, visitors).
    Account,
}

/// One address of a person, as a webhook names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// What kind of address.
    pub kind: IdentityKind,
    /// Where its value is unique.
    pub scope: Scope,
    /// The value as the key holds it.
    pub value: String,
}

impl Identity {
    /// A WhatsApp id: 6 to 15 digits. `None` for anything else, such as a BSUID where a number was expected.
    pub fn wa_id(value: &str) -> Option<Self> {
        let digits = value.strip_prefix('+').unwrap_or(value);
        let valid = (6..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| Self { kind: IdentityKind::WaId, scope: Scope::Global, value: digits.to_owned() })
    }

    /// A business-scoped user id, `CC.` and up to 128 alphanumerics, `CC.ENT.` for linked portfolios.
    pub fn wa_bsuid(value: &str) -> Option<Self> {
        let (country, rest) = value.split_once('.')?;
        let rest = rest.strip_prefix("ENT.").unwrap_or(rest);
        let valid = country.len() == 2
            && country.bytes().all(|b| b.is_ascii_uppercase())
            && (1..=128).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_alphanumeric());
        valid.then(|| Self { kind: IdentityKind::WaBsuid, scope: Scope::Portfolio, value: value.to_owned() })
    }
}

/// The E.164 form of a wa_id: `+` and the digits. Used for display and search only; replies go to the wa_id as given.
/// `None` when the digits cannot be a phone number (E.164: 7 to 15 digits, no leading zero).
pub fn phone_of_wa_id(wa_id: &str) -> Option<String> {
    ((7..=15).contains(&wa_id.len()) && !wa_id.starts_with('0')).then(|| format!("+{wa_id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bsuid_is_never_taken_for_a_number_nor_a_number_for_a_bsuid() {
        assert!(Identity::wa_id("PT.48151623420001").is_none());
        assert!(Identity::wa_bsuid("351912000333").is_none());
        assert_eq!(Identity::wa_id("351912000333").unwrap().kind, IdentityKind::WaId);
        assert_eq!(Identity::wa_bsuid("PT.ENT.48151623420001").unwrap().value, "PT.ENT.48151623420001");
    }
}
