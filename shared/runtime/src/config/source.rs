//! `[[sources]]`: who signs webhooks.

use super::reader::TableReader;
use domain::{Secret, Source, SourceName};

/// Largest webhook body of Meta's we accept, in bytes. Meta says it sends up to 3 MB.
pub const META_MAX_BODY: usize = 4_000_000;

/// Shortest signing secret we start with, in bytes: an HMAC with a guessable key is no signature.
pub const LEAST_SECRET: usize = 16;

/// Kinds of the configuration that a later version brings.
const LATER_KINDS: [&str; 6] = ["mailgun", "postmark", "sendgrid", "sns", "standard", "mime"];

/// A Meta app with everything else at its default.
pub fn meta(name: SourceName, secrets: Vec<Secret>, verify_token: Option<Secret>) -> Source {
    Source { name, kind: "meta".into(), secrets, verify_token, max_body: META_MAX_BODY, crm_alias: false }
}

/// Reads one `[[sources]]`; `None` when it cannot stand, which has then been said.
pub(super) fn read(table: TableReader<'_, '_>) -> Option<Source> {
    let name = table.needed_text("name", "is the last part of the webhook's address, /webhooks/<name>");
    let name = name.and_then(|name| match name.parse::<SourceName>() {
        Ok(name) => Some(name),
        Err(_) => {
            table.wrong("name", "must be 1 to 40 of a-z, 0-9 and -");
            None
        }
    });
    let kind = table.needed_text("kind", "says who signs the webhooks, such as \"meta\"")?;
    if LATER_KINDS.contains(&kind.as_str()) {
        table.wrong("kind", format!("is {kind:?}, which is not served by this version yet"));
        return None;
    }
    if kind != "meta" {
        table.wrong("kind", format!("must be \"meta\", not {kind:?}"));
        return None;
    }
    if !table.has("app_secret") {
        table.missing("app_secret", "is the Meta app's secret, such as [\"env:META_APP_SECRET\"]; without it nobody could tell a forged webhook");
    }
    let secrets = table.secrets("app_secret");
    if table.is_empty_list("app_secret") {
        table.wrong("app_secret", "is an empty list: without a secret nobody could tell a forged webhook");
    }
    for secret in &secrets {
        let length = secret.expose().len();
        if length < LEAST_SECRET {
            table.wrong("app_secret", format!("has {length} bytes; a signing secret needs at least {LEAST_SECRET}"));
        }
    }
    let verify_token = table.secret("verify_token");
    let crm_alias = table.flag("crm_alias").unwrap_or(false);
    table.finish();
    Some(Source { crm_alias, ..meta(name?, secrets, verify_token) })
}
