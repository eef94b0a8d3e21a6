//! Many things in one webhook: every one of them comes out, in order.

use crate::support::{NUMBER, Parsed, fixture, only, parse, webhook, webhook_of};
use domain::{Channel, Inbound};
use providers::Malformed;
use rstest::rstest;

/// Each item as one word and the account it is for.
fn told(parsed: Parsed) -> Vec<String> {
    let told = |item: &domain::Item| {
        let account = item.account.as_ref().map_or("-", |account| &account.external_id);
        match &item.kind {
            Inbound::Message(message) => format!("{account} {}", message.provider_message_id.as_deref().unwrap()),
            Inbound::Receipt(receipt) => {
                format!("{account} {} {}", receipt.provider_message_id, receipt.provider_status)
            }
            Inbound::AccountEvent { field, .. } => format!("{account} event {field}"),
            other => format!("{other:?}"),
        }
    };
    parsed.unwrap().iter().map(|item| item.as_ref().map_or_else(|bad| format!("bad {}", bad.code), told)).collect()
}

#[test]
fn every_entry_every_change_every_item() {
    assert_eq!(
        told(parse(fixture!("batch"))),
        [
            "200000000000002 wamid.B1",
            "200000000000002 wamid.B2",
            "200000000000002 wamid.B3",
            "200000000000002 wamid.B4 delivered",
            "200000000000002 wamid.B4 read",
            "- event phone_number_quality_update",
            "200000000000009 wamid.B5",
        ]
    );
}

#[rstest]
#[case(fixture!("event_template_status"), &["- event message_template_status_update"])]
#[case(fixture!("event_echo"), &["200000000000002 event smb_message_echoes"])]
#[case(fixture!("event_call"), &["200000000000002 event calls"])]
#[case(fixture!("event_error"), &["200000000000002 event errors"])]
#[case(fixture!("event_page"), &["- event page.messaging", "- event page.messaging"])]
#[case(r#"{"object":"instagram","entry":[{"id":"1","changes":[{"field":"comments","value":{}}]}]}"#, &["- event instagram.changes"])]
#[case(r#"{"object":"permissions","entry":[{"id":"1","surprise":true}]}"#, &["- event permissions"])]
#[case(r#"{"object":"whatsapp_business_account","entry":{"id":"1"}}"#, &["- event whatsapp_business_account"])]
#[case(r#"{"object":"whatsapp_business_account","entry":[{"changes":[{"field":"field_of_tomorrow","value":"x"}]}]}"#, &["- event field_of_tomorrow"])]
#[case(r#"{"object":"whatsapp_business_account","entry":[{"changes":[{"field":"messages","value":{}}]}]}"#, &["- event messages"])]
#[case(r#"{"object":"whatsapp_business_account","entry":[{"changes":[7,null]}]}"#, &["- event messages", "- event messages"])]
#[case("{}", &["- event no object"])]
#[case(r#"{"object":"page","entry":[]}"#, &[])]
fn what_is_no_message_is_an_event(#[case] body: &str, #[case] want: &[&str]) {
    assert_eq!(told(parse(body)), want);
}

#[test]
fn an_event_keeps_its_change() {
    let body = fixture!("event_echo");
    let raw = only(body).raw.unwrap();
    assert!(body.contains(&raw) && raw.contains("wamid.ECHO01"));
}

#[rstest]
#[case(r#"{"messages":{"id":"wamid.1"}}"#)]
#[case(r#"{"statuses":"sent"}"#)]
fn a_list_that_is_none_is_set_aside_rather_than_passed_over(#[case] value: &str) {
    assert_eq!(told(parse(webhook(value))), ["bad UNREADABLE"]);
}

#[test]
fn the_account_is_told_by_number_and_never_by_display_number() {
    let account = only(fixture!("inbound_text")).account.unwrap();
    assert_eq!((account.channel, account.external_id.as_str()), (Channel::WhatsApp, NUMBER));
}

#[rstest]
#[case("7")]
#[case("null")]
#[case("[]")]
#[case(r#"{"id":"wamid.bad"}"#)]
#[case(r#"{"from":{"a":1},"id":["x"],"type":7}"#)]
#[case(r#"{"from":1e999,"id":"wamid.bad","type":"text"}"#)]
fn a_bad_item_never_loses_its_neighbours(#[case] bad: &str) {
    let good = |id: &str| format!(r#"{{"from":"351912000333","id":"{id}","type":"text","text":{{"body":"x"}}}}"#);
    let told = told(parse(webhook_of(&[&good("wamid.1"), bad, &good("wamid.2")])));
    assert_eq!(told.len(), 3);
    assert_eq!(told[0], format!("{NUMBER} wamid.1"));
    assert!(told[1].starts_with("bad "), "{}", told[1]);
    assert_eq!(told[2], format!("{NUMBER} wamid.2"));
}

#[test]
fn a_change_that_cannot_be_read_leaves_the_others() {
    let body = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"changes":[{{"field":1e999,"value":{{}}}},{{"value":{{"metadata":{{"phone_number_id":{NUMBER}}},"statuses":[{{"id":"w","status":"sent"}}]}}}}]}}]}}"#
    );
    assert_eq!(told(parse(&body)), ["bad UNREADABLE", "200000000000002 w sent"]);
}

#[rstest]
#[case("", "NOT_JSON")]
#[case("hello", "NOT_JSON")]
#[case(r#"{"object":"page""#, "NOT_JSON")]
#[case(r#"{"object":"page"} trailing"#, "NOT_JSON")]
#[case("[]", "NOT_A_WEBHOOK")]
#[case("null", "NOT_A_WEBHOOK")]
fn what_is_no_webhook_is_malformed(#[case] body: &str, #[case] code: &str) {
    assert_eq!(parse(body).unwrap_err().code(), code);
}

#[test]
fn a_thousand_updates_are_a_thousand_items() {
    let messages: Vec<String> = (0..1000)
        .map(|n| format!(r#"{{"from":"351912000333","id":"wamid.{n}","type":"text","text":{{"body":"x"}}}}"#))
        .collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let told = told(parse(webhook_of(&messages)));
    assert_eq!(told.len(), 1000);
    assert_eq!(told[999], format!("{NUMBER} wamid.999"));
}

#[test]
fn more_items_than_any_provider_sends_are_refused() {
    let body = webhook_of(&vec!["{}"; 20_001]);
    assert_eq!(parse(&body).unwrap_err(), Malformed::TooManyItems { limit: 20_000 });
}
