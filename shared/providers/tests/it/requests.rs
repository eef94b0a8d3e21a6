//! What we say to WhatsApp, and what we do not even try.

use crate::support::{NOW, account};
use domain::outbound::HttpCall;
use domain::{
    Call, Channel, Content, Correlation, MessageId, Outgoing, Recipient, Refused, SendError, SendJob, Window,
};
use providers::{ChannelKind, channel_kind};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;

fn whatsapp() -> &'static dyn ChannelKind {
    channel_kind(Channel::WhatsApp).unwrap()
}

fn text(body: &str) -> Content {
    Content::Text { body: body.into() }
}

fn template(name: &str, language: &str, params: &[&str]) -> Content {
    Content::Template {
        name: name.into(),
        language: language.into(),
        params: params.iter().map(|&param| param.to_owned()).collect(),
    }
}

fn job(content: Content, reply_to: Option<&str>, recipient: Recipient) -> SendJob {
    SendJob {
        message: MessageId::new(42),
        correlation: Correlation {
            deployment: "abcdefghi0".parse().unwrap(),
            message: MessageId::new(42),
            generation: 0,
            attempt: 3,
        },
        recipient,
        content,
        reply_to: reply_to.map(str::to_owned),
    }
}

fn rita() -> Recipient {
    Recipient { wa_id: Some("351912000333".into()), ..Recipient::default() }
}

fn call(job: &SendJob) -> HttpCall {
    match whatsapp().request(job, &account()).unwrap() {
        Call::Http(call) => call,
        other => panic!("{other:?}"),
    }
}

fn body(job: &SendJob) -> Value {
    let (content_type, bytes) = call(job).body.unwrap();
    assert_eq!(content_type, "application/json");
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn a_text_is_posted_to_the_numbers_messages() {
    let job = job(text("We close at 18:00"), Some("wamid.EXAMPLE0001"), rita());
    let call = call(&job);
    assert_eq!((call.method, call.url.as_str()), ("POST", "https://graph.facebook.com/v25.0/200000000000002/messages"));
    assert_eq!(call.bearer.unwrap().expose(), "EAAexampletoken");
    assert_eq!(
        body(&job),
        json!({
            "messaging_product": "whatsapp", "recipient_type": "individual", "to": "351912000333", "type": "text",
            "context": {"message_id": "wamid.EXAMPLE0001"}, "biz_opaque_callback_data": "r1.abcdefghi0.42.0.3",
            "text": {"body": "We close at 18:00", "preview_url": false}
        })
    );
}

#[test]
fn a_template_carries_its_values_in_order() {
    assert_eq!(
        body(&job(template("order_ready", "pt_PT", &["Rita", "A17"]), None, rita())),
        json!({
            "messaging_product": "whatsapp", "recipient_type": "individual", "to": "351912000333", "type": "template",
            "biz_opaque_callback_data": "r1.abcdefghi0.42.0.3",
            "template": {"name": "order_ready", "language": {"code": "pt_PT"}, "components": [
                {"type": "body", "parameters": [{"type": "text", "text": "Rita"}, {"type": "text", "text": "A17"}]}]}
        })
    );
}

#[test]
fn a_template_without_values_has_no_components() {
    let body = body(&job(template("hello", "en", &[]), None, rita()));
    assert_eq!(body["template"], json!({"name": "hello", "language": {"code": "en"}}));
}

#[rstest]
#[case::number_alone(Some("351912000333"), None, None, json!("351912000333"), Value::Null)]
#[case::number_before_user(Some("351912000333"), Some("PT.481"), None, json!("351912000333"), Value::Null)]
#[case::user_alone(None, Some("PT.481"), None, Value::Null, json!("PT.481"))]
#[case::user_where_a_number_belongs(Some("PT.481"), None, None, Value::Null, json!("PT.481"))]
#[case::number_where_another_belongs(None, None, Some("351912000333"), json!("351912000333"), Value::Null)]
fn a_user_id_never_goes_into_to(
    #[case] wa_id: Option<&str>,
    #[case] wa_bsuid: Option<&str>,
    #[case] other: Option<&str>,
    #[case] to: Value,
    #[case] recipient: Value,
) {
    let owned = |address: Option<&str>| address.map(str::to_owned);
    let address = Recipient { wa_id: owned(wa_id), wa_bsuid: owned(wa_bsuid), other: owned(other) };
    let body = body(&job(text("x"), None, address));
    assert_eq!((&body["to"], &body["recipient"]), (&to, &recipient));
}

#[rstest]
#[case(Recipient::default())]
#[case(Recipient { other: Some("pt-user-481".into()), ..Recipient::default() })]
fn without_an_address_nothing_is_sent(#[case] recipient: Recipient) {
    let error = whatsapp().request(&job(text("x"), None, recipient), &account()).unwrap_err();
    assert!(matches!(error, SendError::Rejected { ref code, .. } if code == "no_address"), "{error}");
}

#[test]
fn the_token_is_named_as_a_secret_and_stands_in_no_url_or_body() {
    let account = account();
    assert_eq!(whatsapp().secrets(&account), ["EAAexampletoken"]);
    let call = call(&job(text("x"), None, rita()));
    assert!(!format!("{call:?}").contains("EAAexampletoken"));
}

const LONG_ID: &str = match std::str::from_utf8(&[b'w'; 513]) {
    Ok(id) => id,
    Err(_) => "",
};

fn open() -> Window {
    Window::Open(NOW + Duration::from_secs(60))
}

fn check(content: Content, reply_to: Option<&str>, window: Window) -> Result<(), Refused> {
    whatsapp().check(&Outgoing { content, reply_to: reply_to.map(str::to_owned) }, &account(), window)
}

#[rstest]
#[case(text("x"), None)]
#[case(text(&"ä".repeat(4096)), None)]
#[case(text("x"), Some("wamid.1"))]
#[case(template("order_ready", "en_US", &["Rita"]), None)]
#[case(template("a", "fil", &[]), None)]
#[case(template("a", "zh_Hans", &[]), None)]
fn what_whatsapp_takes(#[case] content: Content, #[case] reply_to: Option<&str>) {
    assert_eq!(check(content, reply_to, open()), Ok(()));
}

#[rstest]
#[case(text(""), None, "text")]
#[case(text(" \n"), None, "text")]
#[case(text("a\0b"), None, "text")]
#[case(text(&"ä".repeat(4097)), None, "text")]
#[case(text("x"), Some(""), "replyTo")]
#[case(text("x"), Some(LONG_ID), "replyTo")]
#[case(template("", "en", &[]), None, "templateName")]
#[case(template("Order Ready", "en", &[]), None, "templateName")]
#[case(template(&"a".repeat(513), "en", &[]), None, "templateName")]
#[case(template("a", "", &[]), None, "templateLanguage")]
#[case(template("a", "english", &[]), None, "templateLanguage")]
#[case(template("a", "en-US", &[]), None, "templateLanguage")]
#[case(template("a", "en_", &[]), None, "templateLanguage")]
#[case(template("a", "en", &[""]), None, "templateParams")]
#[case(template("a", "en", &["x", &"y".repeat(1025)]), None, "templateParams")]
#[case(template("a", "en", &["x"; 101]), None, "templateParams")]
fn what_whatsapp_would_refuse_names_the_field(
    #[case] content: Content,
    #[case] reply_to: Option<&str>,
    #[case] field: &str,
) {
    match check(content, reply_to, open()) {
        Err(Refused::Invalid { path, message }) => {
            assert_eq!(path, field);
            assert!(!message.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn outside_the_window_only_a_template_goes() {
    let closed = Window::Closed { last_inbound_at: Some(NOW) };
    assert_eq!(check(text("x"), None, closed), Err(Refused::WindowClosed { last_inbound_at: Some(NOW) }));
    assert_eq!(check(template("a", "en", &[]), None, closed), Ok(()));
    assert_eq!(check(text("x"), None, Window::None), Ok(()));
}

#[test]
fn a_text_that_is_wrong_at_any_hour_says_so_first() {
    let closed = Window::Closed { last_inbound_at: None };
    assert!(matches!(check(text(""), None, closed), Err(Refused::Invalid { path: "text", .. })));
}
