//! Who comes in and who does not, and what they are told.

use crate::harness::{OLD_SECRET, SECRET, VERIFY_TOKEN, start};
use domain::wire::Body;
use providers::meta::sign;
use rstest::rstest;
use runtime::config::Tuning;

const BODY: &[u8] = br#"{"object":"page","entry":[]}"#;

#[tokio::test]
async fn a_signed_webhook_is_on_the_queue_byte_for_byte_once_it_is_answered_200() {
    let harness = start(Tuning::default()).await;
    // Escapes and spacing as they came: nothing may be parsed and written anew.
    let body = br#"{"object" : "page",  "entry":[ ],"x":1.10,"y":"\u00e4\/"}"#;
    let answer = harness.signed(body).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let (webhooks, _) = harness.kept(1).await;
    assert_eq!(webhooks[0].body, Body::Inline(body.to_vec().into()));
    assert_eq!(webhooks[0].head.source.as_str(), "meta");
    assert_eq!(webhooks[0].head.request_id.get_version_num(), 7);
}

#[tokio::test]
async fn every_secret_of_a_rotation_is_good_and_no_other() {
    let harness = start(Tuning::default()).await;
    for (secret, status) in [(SECRET, 200), (OLD_SECRET, 200), ("a-secret-of-somebody-else", 401)] {
        let answer = harness.post("/webhooks/meta", Some(&sign(secret, BODY)), BODY).await;
        assert_eq!(answer.status, status, "{secret}");
    }
}

#[rstest]
#[case::missing(None)]
#[case::empty(Some(String::new()))]
#[case::no_scheme(Some(sign(SECRET, BODY).replace("sha256=", "")))]
#[case::other_scheme(Some(sign(SECRET, BODY).replace("sha256", "sha1")))]
#[case::short(Some(sign(SECRET, BODY)[..70].to_owned()))]
#[case::long(Some(format!("{}0", sign(SECRET, BODY))))]
#[case::not_hex(Some(format!("sha256={}", "z".repeat(64))))]
#[case::zeros(Some(format!("sha256={}", "0".repeat(64))))]
#[case::other_body(Some(sign(SECRET, b"{}")))]
#[case::twice(Some(format!("{0}, {0}", sign(SECRET, BODY))))]
#[tokio::test]
async fn the_forged_are_refused_and_told_nothing(#[case] signature: Option<String>) {
    let harness = start(Tuning::default()).await;
    let answer = harness.post("/webhooks/meta", signature.as_deref(), BODY).await;
    assert_eq!(answer.status, 401);
    let right = sign(SECRET, BODY);
    assert!(!answer.head.contains(&right) && !answer.body.contains(&right));
    assert!(!answer.body.contains("entry"));
    let alias = harness.post("/api/webhooks/whatsapp", signature.as_deref(), BODY).await;
    assert_eq!(alias.status, 403);
    // The next one that is kept is the first one on the queue.
    harness.signed(b"{\"kept\":1}").await;
    let (webhooks, _) = harness.kept(1).await;
    assert_eq!(webhooks[0].body, Body::Inline(b"{\"kept\":1}".to_vec().into()));
}

#[tokio::test]
async fn the_crms_old_address_answers_in_its_old_words() {
    let harness = start(Tuning::default()).await;
    let answer = harness.post("/api/webhooks/whatsapp", Some(&sign(SECRET, BODY)), BODY).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"success":true}"#));
    assert!(answer.head.contains("content-type: application/json"));
}

#[tokio::test]
async fn the_handshake_answers_with_the_bare_challenge() {
    let harness = start(Tuning::default()).await;
    for path in ["/webhooks/meta", "/api/webhooks/whatsapp"] {
        let right = format!("{path}?hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge=1158201444");
        let answer = harness.get(&right).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "1158201444"));
        assert!(answer.head.contains("content-type: text/plain"));
        assert_eq!(harness.get(&right.replace(VERIFY_TOKEN, "wrong")).await.status, 403);
        assert_eq!(harness.get(path).await.status, 400);
    }
}

#[tokio::test]
async fn other_paths_methods_and_sizes_are_told_what_is_wrong() {
    let harness = start(Tuning::default()).await;
    assert_eq!(harness.post("/webhooks/nobody", Some(&sign(SECRET, BODY)), BODY).await.status, 404);
    let answer =
        harness.raw(b"PUT /webhooks/meta HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, post"));
    let announced = b"POST /webhooks/meta HTTP/1.1\r\nhost: t\r\ncontent-length: 4000001\r\n\r\n";
    assert_eq!(harness.raw(announced).await.status, 413);
}

#[tokio::test]
async fn a_body_over_a_megabyte_travels_by_reference() {
    let harness = start(Tuning::default()).await;
    let body = vec![b' '; 3_000_000];
    assert_eq!(harness.signed(&body).await.status, 200);
    let (webhooks, _) = harness.kept(1).await;
    let Body::Stored(key) = &webhooks[0].body else { panic!("inline: {:?}", webhooks[0].head) };
    assert!(key.starts_with("raw/"));
    assert_eq!(harness.blobs.get(key).await.unwrap(), body);
}

#[tokio::test]
async fn a_requests_trace_travels_with_its_webhook_and_one_that_is_not_valid_does_not() {
    let harness = start(Tuning::default()).await;
    let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (traceparent, kept) in [(valid, Some(valid)), ("00-rubbish-01", None)] {
        assert_eq!(harness.traced(traceparent, BODY).await.status, 200);
        let (webhooks, _) = harness.kept(1).await;
        assert_eq!(webhooks[0].head.traceparent.as_deref(), kept);
    }
}
