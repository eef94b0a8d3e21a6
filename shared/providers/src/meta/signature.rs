//! `X-Hub-Signature-256`: HMAC-SHA256 of the raw body under the app secret.
//!
//! Meta signs the escaped form (`\u00e4`, `\/`) and sends that very form, so the bytes are hashed as they arrived and never
//! written anew. The signature carries no time: a repeated webhook is caught by the keys of its items, not here.

use crate::{Forged, Webhook};
use domain::Source;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Header with the signature. The older `X-Hub-Signature` (SHA-1) comes along and is never looked at.
const HEADER: &str = "x-hub-signature-256";

/// What stands before the 64 hex digits.
const PREFIX: &str = "sha256=";

/// The header's value for `body`, as Meta would send it.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let tag = keyed(secret).map(|mac| mac.chain_update(body).finalize().into_bytes());
    format!("{PREFIX}{}", tag.map(hex::encode).unwrap_or_default())
}

/// Whether one of the source's secrets made the signature over exactly these bytes.
/// # Errors
/// Exactly one header of exactly `sha256=` and 64 lower-case hex digits is looked at; everything else is refused, and so is
/// everything when there is no secret.
pub(crate) fn verify(hook: &Webhook<'_>, source: &Source) -> Result<(), Forged> {
    let mut values = hook.headers.get_all(HEADER).iter();
    let value = values.next().ok_or(Forged::MissingSignature)?;
    if value.is_empty() {
        return Err(Forged::MissingSignature);
    }
    if values.next().is_some() {
        return Err(Forged::MalformedSignature);
    }
    let tag = decode(value.as_bytes()).ok_or(Forged::MalformedSignature)?;

    // Every secret is tried, whether or not an earlier one fitted: how long this takes tells nobody which one it was.
    let mut genuine = false;
    for secret in source.secrets.iter().map(domain::Secret::expose).filter(|secret| !secret.is_empty()) {
        let mac = keyed(secret).ok_or(Forged::BadSignature)?;
        genuine |= mac.chain_update(hook.body).verify_slice(&tag).is_ok();
    }
    if genuine { Ok(()) } else { Err(Forged::BadSignature) }
}

/// HMAC takes a key of any length, so this is never `None`.
fn keyed(secret: &str) -> Option<Hmac<Sha256>> {
    Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()
}

fn decode(value: &[u8]) -> Option<[u8; 32]> {
    let digits = value.strip_prefix(PREFIX.as_bytes())?;
    if !digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut tag = [0; 32];
    hex::decode_to_slice(digits, &mut tag).ok()?;
    Some(tag)
}
