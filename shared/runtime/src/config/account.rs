//! `[[accounts]]`: the phone numbers, pages and mailboxes that are ours.

use super::reader::TableReader;
use domain::{Account, AccountName, Channel, OnUnknown, Secret, SourceName};
use std::net::IpAddr;
use std::time::Duration;
use url::{Host, Url};

/// Where Meta's Graph API lives.
pub const GRAPH_API: &str = "https://graph.facebook.com";
/// The version of the Graph API we speak unless `api_version` says otherwise.
pub const GRAPH_VERSION: &str = "v25.0";
/// Calls a second of a WhatsApp number; Meta raises it to 1,000 for busy ones.
pub const WHATSAPP_RATE: f64 = 80.0;
/// The highest rate there can be, ten times what Meta gives: two seconds of an account's messages wait in its queue, where
/// neither a pause nor the order of the lanes reaches them at once, and at this rate these are 20,000.
pub const MOST_RATE: f64 = 10_000.0;
/// Least time between two messages to one recipient once the burst is used up.
pub const WHATSAPP_PAIR_INTERVAL: Duration = Duration::from_secs(6);
/// How many messages to one recipient may go in one go.
pub const WHATSAPP_PAIR_BURST: u32 = 45;
/// How long after a customer's last message free text may be sent.
pub const WHATSAPP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// A WhatsApp number with everything else at its default. `api_base` comes with its version, as [`api_base`] makes it.
pub fn whatsapp(
    name: AccountName,
    source: SourceName,
    phone_number_id: String,
    api_base: String,
    token: Secret,
) -> Account {
    Account {
        name,
        channel: Channel::WhatsApp,
        source,
        external_id: phone_number_id,
        parent_external_id: None,
        portfolio_id: None,
        display_address: None,
        api_base,
        access_token: token,
        rate_per_second: WHATSAPP_RATE,
        pair_interval: WHATSAPP_PAIR_INTERVAL,
        pair_burst: WHATSAPP_PAIR_BURST,
        window: Some(WHATSAPP_WINDOW),
        on_unknown: OnUnknown::Hold,
    }
}

/// The base a provider's paths are appended to: `https://graph.facebook.com` and `v25.0` give
/// `https://graph.facebook.com/v25.0`.
pub fn api_base(base: &str, version: &str) -> String {
    format!("{}/{version}", base.trim_end_matches('/'))
}

/// Reads one `[[accounts]]`; `None` when it cannot stand, which has then been said. `plain_http` lets an `api_base` without
/// TLS point at another machine, for trying things.
pub(super) fn read(table: TableReader<'_, '_>, plain_http: bool) -> Option<Account> {
    let name =
        table.needed_text("name", "names the account in the API, in logs and in its queue roost.outbound.<name>");
    let name = name.and_then(|name| match name.parse::<AccountName>() {
        Ok(name) => Some(name),
        Err(_) => {
            table.wrong("name", "must be 1 to 40 of a-z, 0-9 and -");
            None
        }
    });
    let channel = table.needed_text("channel", "says where messages go, such as \"WHATSAPP\"")?;
    match Channel::parse(&channel) {
        Some(Channel::WhatsApp) => {}
        Some(Channel::InternalNote) => {
            table.wrong("channel", "must not be \"INTERNAL_NOTE\": notes need no account");
            return None;
        }
        Some(_) => {
            table.wrong("channel", format!("is {channel:?}, which is not served by this version yet"));
            return None;
        }
        None => {
            let hint = Channel::from_legacy(&channel).filter(|known| *known == Channel::WhatsApp);
            let hint = if hint.is_some() { "; write it in capitals" } else { "" };
            table.wrong("channel", format!("must be \"WHATSAPP\", not {channel:?}{hint}"));
            return None;
        }
    }
    read_whatsapp(table, name, plain_http)
}

fn read_whatsapp(table: TableReader<'_, '_>, name: Option<AccountName>, plain_http: bool) -> Option<Account> {
    let source = table.needed_text("source", "names the [[sources]] entry that signs this number's webhooks");
    let source = source.and_then(|source| match source.parse::<SourceName>() {
        Ok(source) => Some(source),
        Err(_) => {
            table.wrong("source", "must be the name of a [[sources]] entry: 1 to 40 of a-z, 0-9 and -");
            None
        }
    });
    let phone_number_id =
        table.needed_text("phone_number_id", "is Meta's id of the number, digits only, not the number itself");
    let digits = phone_number_id.as_deref().is_none_or(|id| id.bytes().all(|byte| byte.is_ascii_digit()));
    if !digits {
        table.wrong("phone_number_id", "must be Meta's id of the number: digits only, without + or spaces");
    }
    if !table.has("access_token") {
        table.missing("access_token", "is the system user's token, such as \"env:WHATSAPP_TOKEN\"");
    }
    let token = table.secret("access_token");
    let base = read_api_base(&table, plain_http);
    let rate = table.number("rate_per_second", 0.1..=MOST_RATE);
    let pair_interval = table.whole("pair_interval_ms", 0..=3_600_000).map(Duration::from_millis);
    let pair_burst = table.whole("pair_burst", 1..=1000).and_then(|burst| u32::try_from(burst).ok());
    let on_unknown = table.choice("on_unknown", &["hold", "resend"]).map(|word| match word {
        "resend" => OnUnknown::Resend,
        _ => OnUnknown::Hold,
    });
    let parent = table.text("waba_id");
    let portfolio = table.text("portfolio_id");
    let display = table.text("display_address");
    table.finish();
    let defaults = whatsapp(name?, source?, phone_number_id.filter(|_| digits)?, base, token?);
    Some(Account {
        parent_external_id: parent,
        portfolio_id: portfolio,
        display_address: display,
        rate_per_second: rate.unwrap_or(defaults.rate_per_second),
        pair_interval: pair_interval.unwrap_or(defaults.pair_interval),
        pair_burst: pair_burst.unwrap_or(defaults.pair_burst),
        on_unknown: on_unknown.unwrap_or(defaults.on_unknown),
        ..defaults
    })
}

fn read_api_base(table: &TableReader<'_, '_>, plain_http: bool) -> String {
    let base = table.text("api_base").unwrap_or_else(|| GRAPH_API.to_owned());
    let version = table.text("api_version").unwrap_or_else(|| GRAPH_VERSION.to_owned());
    if !is_version(&version) {
        table.wrong("api_version", format!("must look like {GRAPH_VERSION:?}, not {version:?}"));
    }
    match Url::parse(&base) {
        Ok(url) if url.username() != "" || url.password().is_some() || url.query().is_some() => {
            table.wrong("api_base", "must not hold a user, a password or a query");
        }
        Ok(url) if url.scheme() == "https" => {}
        Ok(url) if url.scheme() == "http" => {
            if !plain_http && !is_loopback(&url) {
                table.wrong(
                    "api_base",
                    "must begin with https://: over plain http the access token could be read on the way",
                );
            }
        }
        _ => table.wrong("api_base", format!("must be an address such as {GRAPH_API:?}")),
    }
    api_base(&base, &version)
}

fn is_version(version: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    version
        .strip_prefix('v')
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(major, minor)| digits(major) && digits(minor))
}

/// Whether a URL points at this very machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        None => false,
    }
}
