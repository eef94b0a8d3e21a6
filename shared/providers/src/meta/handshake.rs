//! The subscription check: `GET ?hub.mode=subscribe&hub.verify_token=T&hub.challenge=C`. The dots are literal.

use crate::Handshake;
use domain::Source;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Longest challenge that is echoed, in bytes. Meta's have about ten digits.
const MAX_CHALLENGE: usize = 256;

/// Answers the check. The challenge is echoed only to whoever knows the token, and only if it is short and printable.
pub(crate) fn answer(query: &str, source: &Source) -> Handshake {
    let (mut mode, mut token, mut challenge) = (None, None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let slot = match &*name {
            "hub.mode" => &mut mode,
            "hub.verify_token" => &mut token,
            "hub.challenge" => &mut challenge,
            _ => continue,
        };
        slot.get_or_insert(value);
    }
    let Some(mode) = mode else { return Handshake::Missing("hub.mode") };
    let Some(token) = token else { return Handshake::Missing("hub.verify_token") };
    let Some(challenge) = challenge else { return Handshake::Missing("hub.challenge") };
    let Some(ours) = source.verify_token.as_ref().map(domain::Secret::expose).filter(|ours| !ours.is_empty()) else {
        return Handshake::NotConfigured;
    };
    if !same(&token, ours) || mode != "subscribe" {
        return Handshake::WrongToken;
    }
    let printable = (1..=MAX_CHALLENGE).contains(&challenge.len()) && challenge.bytes().all(|b| b.is_ascii_graphic());
    if printable { Handshake::Challenge(challenge.into_owned()) } else { Handshake::Missing("hub.challenge") }
}

/// Compares digests, so that neither the place of the first difference nor the token's length can be timed.
fn same(theirs: &str, ours: &str) -> bool {
    Sha256::digest(theirs).ct_eq(&Sha256::digest(ours)).into()
}
