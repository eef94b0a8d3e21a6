//! No bytes whatsoever stop the parser, and none of them reach the database in a form it refuses.

use crate::support::{Parsed, fixture, message, parse, webhook, webhook_of};
use domain::{Inbound, MessageType};
use proptest::prelude::*;
use providers::Malformed;
use rstest::rstest;

fn text(body: &str) -> String {
    format!(r#"{{"from":"351912000333","id":"wamid.1","type":"text","text":{{"body":"{body}"}}}}"#)
}

#[rstest]
#[case::nul(r"a\u0000b", "a\u{FFFD}b")]
#[case::lone_high_surrogate(r"a\ud83d", "a\u{FFFD}")]
#[case::lone_low_surrogate(r"\ude00b", "\u{FFFD}b")]
#[case::two_highs(r"\ud83d\ud83d\ude00", "\u{FFFD}😀")]
fn what_no_database_takes_is_replaced_and_noted(#[case] sent: &str, #[case] kept: &str) {
    let body = webhook_of(&[&text(sent)]);
    let message = message(&body);
    assert_eq!((message.kind, message.body.as_deref()), (MessageType::Text, Some(kept)));
    assert_eq!(message.payload.unwrap()["notes"], serde_json::json!(["characters were replaced"]));
    assert_eq!(parse(&body).unwrap()[0].as_ref().unwrap().raw.as_deref(), Some(text(sent).as_str()), "as it arrived");
}

#[test]
fn only_the_item_that_was_repaired_says_so() {
    let items = parse(webhook_of(&[&text("good"), &text(r"\u0000"), &text("good")])).unwrap();
    let noted: Vec<bool> = items
        .iter()
        .map(|item| matches!(&item.as_ref().unwrap().kind, Inbound::Message(message) if message.payload.is_some()))
        .collect();
    assert_eq!(noted, [false, true, false]);
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let mut body = webhook_of(&[&text("a?b")]).into_bytes();
    let at = body.iter().position(|byte| *byte == b'?').unwrap();
    body[at] = 0xFF;
    assert_eq!(message(&body).body.as_deref(), Some("a\u{FFFD}b"));
    body[at] = 0;
    let raw = parse(&body).unwrap().remove(0).unwrap().raw.unwrap();
    assert!(!raw.contains('\0'), "a text column refuses it");
    assert_eq!(message(&body).body.as_deref(), Some("a b"));
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let body = format!("\u{FEFF}{}", fixture!("inbound_text"));
    assert_eq!(message(&body).kind, MessageType::Text);
}

fn nested(levels: usize) -> String {
    format!(
        r#"{{"from":"351912000333","id":"wamid.deep","type":"x","x":{}1{}}}"#,
        "[".repeat(levels),
        "]".repeat(levels)
    )
}

#[rstest]
#[case(56, true)]
#[case(57, false)]
#[case(5_000, false)]
#[case(500_000, false)]
fn a_depth_bomb_stands_alone(#[case] levels: usize, #[case] fits: bool) {
    let items = parse(webhook_of(&[&text("before"), &nested(levels), &text("after")])).unwrap();
    let good: Vec<bool> = items.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, fits, true]);
    if let Err(bad) = &items[1] {
        assert_eq!((bad.code, bad.raw.len()), ("TOO_DEEP", nested(levels).len()));
    }
}

#[rstest]
#[case::nothing_but(format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000)), "NOT_A_WEBHOOK")]
#[case::never_closed("{\"object\":".repeat(1_000_000), "NOT_JSON")]
#[case::beside_the_entries(format!(r#"{{"object":"page","entry":[],"x":{}{}}}"#, "[".repeat(100), "]".repeat(100)), "TOO_DEEP")]
fn a_depth_bomb_of_a_body_is_malformed(#[case] body: String, #[case] code: &str) {
    assert_eq!(parse(body).unwrap_err().code(), code);
}

#[test]
fn a_deep_change_of_another_field_stands_alone() {
    let deep = format!("{}{}", "[".repeat(90), "]".repeat(90));
    let body = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"changes":[{{"field":"history","value":{deep}}},{{"field":"flows","value":{{}}}}]}}]}}"#
    );
    let items = parse(body).unwrap();
    assert_eq!(items[0].as_ref().unwrap_err().code, "TOO_DEEP");
    assert_eq!(items[1].as_ref().unwrap().kind, Inbound::AccountEvent { field: "flows".into(), effect: None });
}

#[test]
fn three_megabytes_are_one_message() {
    let words = "0123456789".repeat(300_000);
    assert_eq!(message(webhook_of(&[&text(&words)])).body.map(|body| body.len()), Some(3_000_000));
}

#[test]
fn a_body_beyond_every_limit_is_not_even_looked_at() {
    let body = vec![b' '; 16 * 1024 * 1024 + 1];
    assert!(matches!(parse(body), Err(Malformed::TooLarge { .. })));
}

/// Whatever comes out can be stored: no NUL anywhere, and raw bytes that came from the body.
fn storable(parsed: &Parsed) -> bool {
    let Ok(items) = parsed else { return true };
    items.iter().all(|item| match item {
        Ok(item) => {
            let raw_is_clean = !item.raw.as_deref().unwrap_or_default().contains('\0');
            raw_is_clean
                && match &item.kind {
                    Inbound::Message(message) => {
                        !format!("{message:?}").contains('\0')
                            && !message.payload.as_ref().is_some_and(|payload| payload.to_string().contains("\\u0000"))
                            && !message.identities.is_empty()
                    }
                    Inbound::Receipt(receipt) => {
                        !receipt.provider_message_id.is_empty()
                            && !receipt.pricing.as_ref().is_some_and(|pricing| pricing.to_string().contains("\\u0000"))
                    }
                    _ => true,
                }
        }
        Err(bad) => !bad.raw.contains('\0') && !bad.reason.is_empty(),
    })
}

const SAMPLES: &[&str] = &[
    fixture!("batch"),
    fixture!("inbound_text"),
    fixture!("inbound_document"),
    fixture!("inbound_text_from_ad"),
    fixture!("status_sent"),
    fixture!("status_failed"),
    fixture!("event_page"),
    fixture!("event_template_status"),
];

/// One change to a body: bytes overwritten, put in, or taken out.
#[derive(Clone, Debug)]
enum Change {
    Put(prop::sample::Index, Vec<u8>),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let piece = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..4),
            prop::sample::select(vec![
                "null",
                "{}",
                "[]",
                "\"",
                "\\u0000",
                "\\ud800",
                "1e999",
                "{\"a\":",
                "[[[[",
                "-",
                "\\",
                ",\"id\":7",
            ])
            .prop_map(|piece| piece.as_bytes().to_vec()),
        ]
    };
    prop_oneof![
        (any::<prop::sample::Index>(), piece()).prop_map(|(at, piece)| Change::Put(at, piece)),
        (any::<prop::sample::Index>(), piece()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<prop::sample::Index>(), 1..40usize).prop_map(|(at, length)| Change::Remove(at, length)),
    ]
}

fn apply(body: &mut Vec<u8>, change: &Change) {
    if body.is_empty() {
        return;
    }
    match change {
        Change::Put(at, piece) => {
            let at = at.index(body.len());
            let end = (at + piece.len()).min(body.len());
            body.splice(at..end, piece.iter().copied());
        }
        Change::Insert(at, piece) => {
            let at = at.index(body.len());
            body.splice(at..at, piece.iter().copied());
        }
        Change::Remove(at, length) => {
            let at = at.index(body.len());
            let end = (at + length).min(body.len());
            body.drain(at..end);
        }
    }
}

/// Any JSON value, as text.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no infinities", |n| n.is_finite()).prop_map(|n| n.to_string()),
        ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        prop::sample::select(vec![r#""\u0000""#, r#""\ud800""#, "\"351912000333\"", "\"text\"", "1e999"])
            .prop_map(str::to_owned),
    ];
    let name = prop::sample::select(vec![
        "from",
        "from_user_id",
        "id",
        "timestamp",
        "type",
        "text",
        "body",
        "image",
        "context",
        "errors",
        "group_id",
        "x",
    ]);
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|list| format!("[{}]", list.join(","))),
            prop::collection::vec((name.clone(), inner), 0..6).prop_map(|members| {
                let members: Vec<String> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let parsed = parse(&body);
        prop_assert!(storable(&parsed));
    }

    #[test]
    fn a_damaged_webhook_is_answered_and_always_the_same_way(
        sample in prop::sample::select(SAMPLES.to_vec()),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let mut body = sample.as_bytes().to_vec();
        for change in &changes {
            apply(&mut body, change);
        }
        let parsed = parse(&body);
        prop_assert!(storable(&parsed), "{parsed:?}");
        prop_assert_eq!(parsed, parse(&body));
    }

    #[test]
    fn any_item_at_all_leaves_its_neighbours_alone(item in json()) {
        let items = parse(webhook_of(&[&text("before"), &item, &text("after")])).unwrap();
        prop_assert_eq!(items.len(), 3);
        prop_assert!(items[0].is_ok() && items[2].is_ok());
        prop_assert_eq!(items[1].as_ref().map_or_else(|bad| Some(bad.raw.as_str()), |item| item.raw.as_deref()), Some(item.trim()));
    }

    #[test]
    fn any_value_at_all_is_answered(value in json()) {
        prop_assert!(storable(&parse(webhook(&value))));
    }
}
