//! The session cookie: a random token that only the browser knows; the database keeps its SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// How long a session lasts.
pub(crate) const LASTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// 32 random bytes as text: a session, a login link.
pub(crate) fn random_token() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// What the database keeps of a token.
pub(crate) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether the person came over https: a proxy in front of us says so. A client that lies about it only keeps itself out.
pub(crate) fn is_secure(headers: &HeaderMap) -> bool {
    let scheme = headers.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok()).unwrap_or_default();
    scheme.split(',').next().is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"))
}

/// `__Host-` makes the browser refuse the cookie unless it came over https, for this host and every path.
fn name(secure: bool) -> &'static str {
    if secure { "__Host-roost_session" } else { "roost_session" }
}

/// The session token a request carries.
pub(crate) fn presented(headers: &HeaderMap, secure: bool) -> Option<String> {
    cookie(headers, name(secure)).filter(|token| token.len() == 43).map(str::to_owned)
}

/// One cookie of a request.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs =
        headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn header(text: String) -> HeaderValue {
    // Built from our own words and base64 only.
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Gives the browser its session.
pub(crate) fn set(token: &str, secure: bool) -> HeaderValue {
    let flags = if secure { "; Secure" } else { "" };
    header(format!("{}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{flags}", name(secure), LASTS.as_secs()))
}

/// Takes it back.
pub(crate) fn clear(secure: bool) -> HeaderValue {
    let flags = if secure { "; Secure" } else { "" };
    header(format!("{}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0{flags}", name(secure)))
}

/// A choice of the reader's (language, theme), kept for a year. Not a secret: the page's script may write it too.
pub(crate) fn preference(name: &'static str, value: &'static str) -> HeaderValue {
    header(format!("{name}={value}; Path=/; SameSite=Lax; Max-Age=31536000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others_and_only_whole() {
        let mut headers = HeaderMap::new();
        let token = random_token();
        headers.append(COOKIE, HeaderValue::from_str(&format!("a=1; roost_session={token}; b=2")).unwrap());
        assert_eq!(presented(&headers, false), Some(token));
        assert_eq!(presented(&headers, true), None, "over https only the __Host- cookie counts");
        headers.insert(COOKIE, HeaderValue::from_static("xroost_session=abc; roost_session=short"));
        assert_eq!(presented(&headers, false), None);
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites() {
        let plain = set("t", false);
        let secure = set("t", true);
        for cookie in [&plain, &secure] {
            let text = cookie.to_str().unwrap();
            assert!(text.contains("HttpOnly") && text.contains("SameSite=Lax") && text.contains("Path=/"), "{text}");
        }
        assert!(!plain.to_str().unwrap().contains("Secure"));
        assert!(
            secure.to_str().unwrap().starts_with("__Host-roost_session=t;")
                && secure.to_str().unwrap().contains("; Secure")
        );
    }
}
