//! What becomes of our messages.

use crate::support::{NOW, NUMBER, fixture, only, parse, receipt, webhook};
use domain::{Inbound, Status, Timestamp};
use rstest::rstest;

#[rstest]
#[case(fixture!("status_sent"), Some(Status::Sent), "sent")]
#[case(fixture!("status_delivered"), Some(Status::Delivered), "delivered")]
#[case(fixture!("status_read"), Some(Status::Read), "read")]
#[case(fixture!("status_played"), Some(Status::Read), "played")]
#[case(fixture!("status_failed"), Some(Status::Failed), "failed")]
#[case(fixture!("status_deleted"), None, "deleted")]
fn a_status_in_our_words_and_in_theirs(#[case] body: &str, #[case] ours: Option<Status>, #[case] theirs: &str) {
    let receipt = receipt(body);
    assert_eq!(receipt.provider_message_id, "wamid.EXAMPLE0002");
    assert_eq!((receipt.status, receipt.provider_status.as_str()), (ours, theirs));
    assert_eq!(receipt.occurred_at, Some(NOW));
    assert!(body.contains(&only(body).raw.unwrap()));
}

fn of(member: &str) -> String {
    webhook(&format!(r#"{{"metadata":{{"phone_number_id":"{NUMBER}"}},"statuses":[{{"id":"wamid.1",{member}}}]}}"#))
}

#[rstest]
#[case(r#""status":"READ""#, Some(Status::Read), "READ")]
#[case(r#""status":"warning""#, None, "warning")]
#[case(r#""status":"teleported","surprise":[1,{}]"#, None, "teleported")]
fn any_case_and_any_word_is_kept(#[case] member: &str, #[case] ours: Option<Status>, #[case] theirs: &str) {
    let receipt = receipt(of(member));
    assert_eq!((receipt.status, receipt.provider_status.as_str()), (ours, theirs));
}

#[test]
fn what_we_gave_when_sending_comes_back() {
    assert_eq!(receipt(fixture!("status_sent")).correlation.as_deref(), Some("r1.abcdefghi0.42.0.1"));
    assert_eq!(receipt(fixture!("status_read")).correlation, None);
}

#[test]
fn a_failure_says_why() {
    let receipt = receipt(fixture!("status_failed"));
    assert_eq!(receipt.error_code.as_deref(), Some("131026"));
    assert_eq!(receipt.error_message.as_deref(), Some("Message undeliverable: Recipient is not reachable"));
}

#[rstest]
#[case(r#""errors":[{"code":"470","title":"Old","details":"older form"}]"#, Some("470"), Some("Old: older form"))]
#[case(r#""errors":[{"code":131053}]"#, Some("131053"), None)]
#[case(r#""errors":[7]"#, None, None)]
#[case(r#""errors":[]"#, None, None)]
#[case(r#""errors":null"#, None, None)]
#[case(r#""errors":"so many""#, None, None)]
fn errors_in_any_form(#[case] errors: &str, #[case] code: Option<&str>, #[case] words: Option<&str>) {
    let receipt = receipt(of(&format!(r#""status":"failed",{errors}"#)));
    assert_eq!((receipt.error_code.as_deref(), receipt.error_message.as_deref()), (code, words));
    assert_eq!(receipt.status, Some(Status::Failed));
}

#[test]
fn the_price_is_kept() {
    assert_eq!(receipt(fixture!("status_sent")).pricing.unwrap()["category"], "utility");
    assert_eq!(receipt(fixture!("status_read")).pricing, None);
}

#[rstest]
#[case(r#""status":"sent","timestamp":1795339860"#, Some(NOW))]
#[case(r#""status":"sent","timestamp":"1795339860123""#, Some(Timestamp::from_micros(1_795_339_860_123_000)))]
#[case(r#""status":"sent","timestamp":"0""#, None)]
#[case(r#""status":"sent""#, None)]
fn times_as_they_come(#[case] member: &str, #[case] want: Option<Timestamp>) {
    assert_eq!(receipt(of(member)).occurred_at, want);
}

#[rstest]
#[case::by_type(fixture!("status_call").to_owned(), "calls")]
#[case::by_id(fixture!("status_call").replace(r#""type":"call","#, ""), "calls")]
#[case::without_a_status(of(r#""surprise":1"#), "statuses")]
fn what_is_no_receipt_is_an_event(#[case] body: String, #[case] field: &str) {
    let item = only(&body);
    assert_eq!(item.kind, Inbound::AccountEvent { field: field.into(), effect: None });
    assert!(body.contains(&item.raw.unwrap()));
}

#[rstest]
#[case(&format!(r#"{{"metadata":{{"phone_number_id":"{NUMBER}"}},"statuses":[{{"status":"sent"}}]}}"#), "NO_MESSAGE_ID")]
#[case(r#"{"statuses":[{"id":"wamid.1","status":"sent"}]}"#, "NO_ACCOUNT")]
fn a_receipt_for_nothing_is_set_aside(#[case] value: &str, #[case] code: &str) {
    assert_eq!(parse(webhook(value)).unwrap().remove(0).unwrap_err().code, code);
}
