//! What every table needs.

use domain::inbound::InboundMessage;
use domain::{Account, Channel, Inbound, Item, OnUnknown, Receipt, Secret, Source, Timestamp};
use providers::{Arrived, BadItem, Malformed, source_kind};
use std::time::Duration;

/// A sample in the provider's own format.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../src/whatsapp/fixtures/", $name, ".json"))
    };
}
pub(crate) use fixture;

/// 2026-11-22T09:31:00Z: a minute after the samples' messages.
pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_795_339_860);

/// The number the samples are for.
pub(crate) const NUMBER: &str = "200000000000002";

pub(crate) fn source(secrets: &[&str], verify_token: Option<&str>) -> Source {
    Source {
        name: "meta".parse().unwrap(),
        kind: "meta".into(),
        secrets: secrets.iter().map(|secret| Secret::new(*secret)).collect(),
        verify_token: verify_token.map(Secret::new),
        max_body: 4 << 20,
        crm_alias: false,
    }
}

pub(crate) fn account() -> Account {
    Account {
        name: "sales".parse().unwrap(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: NUMBER.into(),
        parent_external_id: None,
        portfolio_id: None,
        display_address: None,
        api_base: "https://graph.facebook.com/v25.0".into(),
        access_token: Secret::new("EAAexampletoken"),
        rate_per_second: 80.0,
        pair_interval: Duration::from_secs(6),
        pair_burst: 45,
        window: Some(Duration::from_secs(24 * 3600)),
        on_unknown: OnUnknown::Hold,
    }
}

pub(crate) type Parsed = Result<Vec<Result<Item, BadItem>>, Malformed>;

pub(crate) fn parse(body: impl AsRef<[u8]>) -> Parsed {
    let hook = Arrived { headers: &[], body: body.as_ref(), received_at: NOW };
    source_kind("meta").unwrap().parse(&hook)
}

/// The only item of a body.
pub(crate) fn only(body: impl AsRef<[u8]>) -> Item {
    let mut items = parse(body).unwrap();
    assert_eq!(items.len(), 1, "{items:?}");
    items.remove(0).unwrap()
}

pub(crate) fn message(body: impl AsRef<[u8]>) -> InboundMessage {
    let item = only(body);
    assert_eq!(item.account.unwrap().external_id, NUMBER);
    match item.kind {
        Inbound::Message(message) => *message,
        other => panic!("not a message: {other:?}"),
    }
}

pub(crate) fn receipt(body: impl AsRef<[u8]>) -> Receipt {
    let item = only(body);
    assert_eq!(item.account.unwrap().external_id, NUMBER);
    match item.kind {
        Inbound::Receipt(receipt) => *receipt,
        other => panic!("not a receipt: {other:?}"),
    }
}

/// A webhook of one change with this `value`.
pub(crate) fn webhook(value: &str) -> String {
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"9","changes":[{{"value":{value},"field":"messages"}}]}}]}}"#
    )
}

/// A webhook of these messages for [`NUMBER`].
pub(crate) fn webhook_of(messages: &[&str]) -> String {
    webhook(&format!(r#"{{"metadata":{{"phone_number_id":"{NUMBER}"}},"messages":[{}]}}"#, messages.join(",")))
}
