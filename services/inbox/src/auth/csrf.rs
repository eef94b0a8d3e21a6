//! That an unsafe request of a signed-in browser comes from our own page: the browser says so (`Sec-Fetch-Site`, `Origin`),
//! and the request repeats a token that only our pages carry. Programs with a bearer token send no cookie and need neither.

use crate::problem::Problem;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Name of the header in which a script repeats the token.
pub(crate) const HEADER: &str = "x-csrf-token";
/// Name of the field in which a form repeats it.
pub(crate) const FIELD: &str = "csrf";

/// The token of a session: nothing to store, and useless without the session itself.
pub(crate) fn token_for(session: &str) -> String {
    let digest = Sha256::new().chain_update(b"roost csrf 1:").chain_update(session.as_bytes()).finalize();
    URL_SAFE_NO_PAD.encode(digest)
}

/// Whether a method may change something.
pub(crate) fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether the browser says that another site sent this. A proxy may hide the name people typed from `Host`; then
/// `X-Forwarded-Host` has it, which no form of another site can set.
///
/// Our own pages have the referrer policy `no-referrer`, under which a plain form posts `Origin: null`; so `null` alone
/// proves nothing in either direction, and the token decides.
pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let foreign = || Problem::forbidden("foreign_origin", "The request came from another site.");
    if let Some(site) = headers.get("sec-fetch-site") {
        return match site.as_bytes() {
            b"same-origin" | b"none" => Ok(()),
            _ => Err(foreign()),
        };
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().map_err(|_| foreign())?;
    if origin == "null" {
        return Ok(());
    }
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    let names = [headers.get(HOST), headers.get("x-forwarded-host")];
    let mut names = names.into_iter().flatten().filter_map(|name| name.to_str().ok()).filter(|name| !name.is_empty());
    if names.any(|name| name.eq_ignore_ascii_case(authority)) { Ok(()) } else { Err(foreign()) }
}

/// Whether the request repeats the session's token.
pub(crate) fn check_token(expected: &str, presented: Option<&str>) -> Result<(), Problem> {
    let right = presented.is_some_and(|token| bool::from(token.as_bytes().ct_eq(expected.as_bytes())));
    if right && !expected.is_empty() {
        return Ok(());
    }
    let problem = Problem::forbidden("csrf", "The form is too old or does not come from this page.");
    Err(problem.hint("Load the page again and repeat what you did."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn with(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_the_browser_calls_foreign_is_refused() {
        for ours in [
            with(&[("host", "roost.example:8080"), ("origin", "http://roost.example:8080")]),
            with(&[
                ("host", "10.0.0.1:8080"),
                ("x-forwarded-host", "inbox.example"),
                ("origin", "https://inbox.example"),
            ]),
            with(&[("host", "h"), ("origin", "null")]),
            with(&[("host", "h"), ("origin", "null"), ("sec-fetch-site", "same-origin")]),
            with(&[("host", "h")]),
        ] {
            assert!(check_origin(&ours).is_ok(), "{ours:?}");
        }
        for foreign in [
            with(&[("host", "roost.example"), ("origin", "https://evil.example")]),
            with(&[("host", "roost.example"), ("origin", "http://roost.example.evil.example")]),
            with(&[("host", "h"), ("origin", "http://h"), ("sec-fetch-site", "cross-site")]),
            with(&[("host", "h"), ("origin", "null"), ("sec-fetch-site", "same-site")]),
            with(&[("host", ""), ("origin", "rubbish")]),
        ] {
            assert_eq!(check_origin(&foreign).unwrap_err().code, "foreign_origin", "{foreign:?}");
        }
    }

    #[test]
    fn a_token_belongs_to_its_session() {
        assert!(check_token(&token_for("a"), Some(&token_for("a"))).is_ok());
        for wrong in [None, Some(""), Some("x"), Some(token_for("b").as_str())] {
            assert!(check_token(&token_for("a"), wrong).is_err());
        }
        assert!(check_token("", Some("")).is_err());
    }
}
