//! What people write.

use crate::support::{fixture, message, only, parse, webhook, webhook_of};
use domain::inbound::InboundMedia;
use domain::{Identity, Inbound, MessageType, Timestamp};
use rstest::rstest;
use serde_json::json;

fn ids(identities: &[Identity]) -> Vec<String> {
    identities.iter().map(|identity| format!("{}:{}", identity.kind, identity.value)).collect()
}

#[test]
fn a_text_says_who_what_and_when() {
    let text = message(fixture!("inbound_text"));
    assert_eq!(text.provider_message_id.as_deref(), Some("wamid.EXAMPLE0001"));
    assert_eq!(ids(&text.identities), ["WA_ID:351912000333", "WA_BSUID:PT.48151623420001"]);
    assert_eq!(text.display_name.as_deref(), Some("Rita Lopes"));
    assert_eq!(text.username.as_deref(), Some("rita.l"));
    assert_eq!(text.phone.as_deref(), Some("+351912000333"));
    assert_eq!(text.occurred_at, Some(Timestamp::from_seconds(1_795_339_800)));
    assert_eq!(text.kind, MessageType::Text);
    assert_eq!(text.body.as_deref(), Some("Is the shop open? مرحبا 😀 https://example.com/a"));
    assert_eq!((text.thread_key.as_str(), text.reply_to, text.payload), ("", None, None));
    assert!(text.opens_window && text.media.is_empty());
}

#[test]
fn an_item_keeps_its_own_bytes() {
    let body = fixture!("inbound_text");
    let raw = only(body).raw.unwrap();
    assert!(body.contains(&raw));
    assert!(raw.starts_with(r#"{"from":"351912000333""#) && raw.ends_with(r#"https:\/\/example.com\/a"}}"#), "{raw}");
}

#[test]
fn a_reply_names_what_it_answers() {
    let reply = message(fixture!("inbound_text_reply"));
    assert_eq!(reply.reply_to.as_deref(), Some("wamid.EXAMPLE0000"));
    assert_eq!(reply.payload, Some(json!({ "forwarded": true })));
}

#[test]
fn an_advertisement_stays_with_the_message_it_brought() {
    let text = message(fixture!("inbound_text_from_ad"));
    assert_eq!(text.payload.unwrap()["referral"]["ctwa_clid"], "Aff-1");
}

#[test]
fn a_person_without_a_number_is_known_by_the_user_id() {
    let text = message(fixture!("inbound_text_user_id_only"));
    assert_eq!(ids(&text.identities), ["WA_BSUID:PT.48151623420001"]);
    assert_eq!((text.phone, text.username.as_deref()), (None, Some("rita.l")));
}

#[rstest]
#[case::bsuid_in_from(r#""from":"PT.481""#, r#""wa_id":"PT.481""#, &["WA_BSUID:PT.481"])]
#[case::number_only_in_the_contact(r#""from_user_id":"PT.481""#, r#""wa_id":"351912000333","user_id":"PT.481""#, &["WA_ID:351912000333", "WA_BSUID:PT.481"])]
#[case::user_only_in_the_contact(r#""from":"351912000333""#, r#""wa_id":"351912000333","user_id":"PT.481""#, &["WA_ID:351912000333", "WA_BSUID:PT.481"])]
#[case::numbers_as_json_numbers(r#""from":351912000333"#, r#""wa_id":351912000333,"user_id":null"#, &["WA_ID:351912000333"])]
#[case::somebody_elses_contact(r#""from":"351912000333""#, r#""wa_id":"351912000777","user_id":"PT.7""#, &["WA_ID:351912000333"])]
#[case::a_form_of_tomorrow(r#""from_user_id":"pt-user-481""#, r#""user_id":"pt-user-481""#, &["EXTERNAL:pt-user-481"])]
fn identities_are_taken_for_what_they_look_like(#[case] from: &str, #[case] contact: &str, #[case] want: &[&str]) {
    let value = format!(
        r#"{{"metadata":{{"phone_number_id":"200000000000002"}},"contacts":[{{{contact}}}],"messages":[{{{from},"id":"wamid.1","type":"text","text":{{"body":"x"}}}}]}}"#
    );
    assert_eq!(ids(&message(webhook(&value)).identities), want);
}

#[test]
fn contacts_are_joined_by_address_not_by_place() {
    let items = parse(fixture!("batch")).unwrap();
    let names: Vec<_> = items
        .iter()
        .filter_map(|item| match &item.as_ref().unwrap().kind {
            Inbound::Message(message) => message.display_name.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["Rita Lopes", "Ana", "Rita Lopes", "Rita Lopes"]);
}

const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[rstest]
#[case(fixture!("inbound_image"), MessageType::Image, "5550003", "image/jpeg", None, Some("My passport"), true)]
#[case(fixture!("inbound_voice"), MessageType::Audio, "5550001", "audio/ogg; codecs=opus", None, None, true)]
#[case(fixture!("inbound_video"), MessageType::Video, "5550004", "video/mp4", None, None, false)]
#[case(fixture!("inbound_document"), MessageType::Document, "5550002", "application/pdf", Some("سيرة cv.pdf"), Some("my cv"), false)]
#[case(fixture!("inbound_sticker"), MessageType::Sticker, "5550005", "image/webp", None, None, false)]
fn a_file_is_announced_to_be_fetched_later(
    #[case] body: &str,
    #[case] kind: MessageType,
    #[case] id: &str,
    #[case] mime_type: &str,
    #[case] filename: Option<&str>,
    #[case] caption: Option<&str>,
    #[case] hash: bool,
) {
    let message = message(body);
    assert_eq!((message.kind, message.body.as_deref()), (kind, caption));
    let want = InboundMedia {
        kind,
        provider_media_id: Some(id.into()),
        mime_type: Some(mime_type.into()),
        filename: filename.map(str::to_owned),
        sha256: hash.then(|| hex::decode(SHA256_OF_NOTHING).unwrap()),
        caption: caption.map(str::to_owned),
    };
    assert_eq!(message.media, [want]);
    assert!(message.opens_window);
}

#[test]
fn flags_of_a_file_are_kept() {
    assert_eq!(message(fixture!("inbound_voice")).payload, Some(json!({ "voice": true })));
    assert_eq!(message(fixture!("inbound_sticker")).payload, Some(json!({ "animated": true })));
}

#[rstest]
#[case(fixture!("inbound_location"), "location", true)]
#[case(fixture!("inbound_contacts"), "contacts", true)]
#[case(fixture!("inbound_interactive"), "interactive", true)]
#[case(fixture!("inbound_flow_reply"), "interactive", true)]
#[case(fixture!("inbound_button"), "button", true)]
#[case(fixture!("inbound_order"), "order", true)]
#[case(fixture!("inbound_unsupported"), "unsupported", true)]
#[case(fixture!("inbound_type_of_tomorrow"), "hologram", true)]
#[case(fixture!("inbound_image_without_file"), "image", true)]
#[case(fixture!("inbound_text_empty"), "text", true)]
#[case(fixture!("inbound_reaction"), "reaction", false)]
#[case(fixture!("inbound_system"), "system", false)]
#[case(fixture!("inbound_edit"), "edit", false)]
#[case(fixture!("inbound_revoke"), "revoke", false)]
#[case(fixture!("inbound_request_welcome"), "request_welcome", false)]
fn what_is_not_read_yet_is_kept_whole(#[case] body: &str, #[case] word: &str, #[case] opens_window: bool) {
    let message = message(body);
    assert_eq!((message.kind, message.body), (MessageType::Unsupported, None));
    assert_eq!(message.payload.unwrap()["type"], word);
    assert_eq!(message.opens_window, opens_window);
    let raw = only(body).raw.unwrap();
    assert!(body.contains(&raw) && raw.contains(&format!(r#""type":"{word}""#)), "{raw}");
}

#[rstest]
#[case(r#"{"body":""}"#)]
#[case(r#"{"body":" \n "}"#)]
#[case(r#"{"body":null}"#)]
#[case("{}")]
#[case("null")]
#[case(r#""words""#)]
fn a_text_without_words_is_still_a_message(#[case] text: &str) {
    let message = message(webhook_of(&[&format!(r#"{{"from":"351912000333","id":"w","type":"text","text":{text}}}"#)]));
    assert_eq!(message.kind, MessageType::Unsupported);
    assert_eq!(message.payload, Some(json!({ "type": "text", "notes": ["the text is empty"] })));
}

#[test]
fn a_group_is_not_taken_for_a_conversation_with_its_member() {
    let message = message(fixture!("inbound_text_in_group"));
    assert_eq!(message.thread_key, "group:Y2FwaV9ncm91cDox");
    assert_eq!((message.kind, message.body.as_deref()), (MessageType::Unsupported, Some("Hello all")));
    assert_eq!(message.payload, Some(json!({ "type": "text", "group_id": "Y2FwaV9ncm91cDox" })));
    assert!(!message.opens_window);
}

#[test]
fn a_message_of_nobody_is_set_aside_with_its_bytes() {
    let body = fixture!("inbound_without_sender");
    let bad = parse(body).unwrap().remove(0).unwrap_err();
    assert_eq!(bad.code, "NO_SENDER");
    assert_eq!(bad.account.unwrap().external_id, "200000000000002");
    assert!(body.contains(&bad.raw) && bad.raw.contains("wamid.EXAMPLE0009"));
}

#[rstest]
#[case::seconds(r#""1795339800""#, Some(1_795_339_800))]
#[case::a_number("1795339800", Some(1_795_339_800))]
#[case::milliseconds(r#""1795339800000""#, Some(1_795_339_800))]
#[case::absent("null", None)]
#[case::words(r#""yesterday""#, None)]
#[case::long_ago(r#""12""#, None)]
#[case::far_ahead(r#""1895339800""#, None)]
#[case::absurd(r#""9223372036854775807""#, None)]
#[case::negative("-5", None)]
fn a_time_that_cannot_be_is_left_to_the_arrival(#[case] timestamp: &str, #[case] want: Option<i64>) {
    let item =
        format!(r#"{{"from":"351912000333","id":"w","timestamp":{timestamp},"type":"text","text":{{"body":"x"}}}}"#);
    let message = message(webhook_of(&[&item]));
    assert_eq!(message.occurred_at, want.map(Timestamp::from_seconds));
    let noted = message.payload.is_some();
    assert_eq!(noted, want.is_none() && timestamp != "null", "an absurd time is noted, an absent one is not");
}

#[rstest]
#[case::absent("")]
#[case::empty(r#""id":"","#)]
#[case::endless(&format!(r#""id":"{}","#, "x".repeat(600)))]
fn without_an_id_of_its_own_a_message_is_still_a_message(#[case] id: &str) {
    let item = format!(r#"{{{id}"from":"351912000333","type":"text","text":{{"body":"x"}}}}"#);
    assert_eq!(message(webhook_of(&[&item])).provider_message_id, None);
}

#[test]
fn a_message_for_no_number_is_set_aside() {
    let value = r#"{"messages":[{"from":"351912000333","id":"w","type":"text","text":{"body":"x"}}]}"#;
    let bad = parse(webhook(value)).unwrap().remove(0).unwrap_err();
    assert_eq!((bad.code, bad.account), ("NO_ACCOUNT", None));
}
