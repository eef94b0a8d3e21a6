//! The messages endpoint as documented.

use crate::socket::{read_to_end, request, send};
use crate::{NUMBER, RITA, SOON, TOKEN, simulator, text};
use rstest::rstest;

#[tokio::test]
async fn a_text_is_answered_with_its_id_and_logged() {
    let simulator = simulator().await;
    let raw = send(simulator.address(), &text("+351 912 000 333", "We close at 18:00", "r1.abcdefghi0.7.0.1")).await;
    assert_eq!(raw.status(), 200);
    let json = raw.json();
    let id = json["messages"][0]["id"].as_str().unwrap();
    assert!(id.starts_with("wamid."), "{id}");
    assert_eq!(json["contacts"][0], serde_json::json!({"input": "+351 912 000 333", "wa_id": RITA}));
    assert_eq!(json["messages"][0].get("message_status"), None, "only templates have one");

    let calls = simulator.calls_to(RITA);
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    assert_eq!((call.account.as_str(), call.text.as_str(), call.kind.as_str()), (NUMBER, "We close at 18:00", "text"));
    assert_eq!(call.correlation.as_deref(), Some("r1.abcdefghi0.7.0.1"));
    assert_eq!((call.wamid.as_deref(), call.http_status, call.answered), (Some(id), Some(200), true));
    assert_eq!(call.text_sha256.len(), 64);
}

#[tokio::test]
async fn ids_are_never_given_out_twice() {
    let (one, other) = (simulator().await, simulator().await);
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..20 {
        for simulator in [&one, &other] {
            let json = send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.{n}.0.1"))).await.json();
            ids.insert(json["messages"][0]["id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(ids.len(), 40);
}

#[tokio::test]
async fn a_template_says_that_it_was_accepted() {
    let simulator = simulator().await;
    let body = serde_json::json!({"messaging_product": "whatsapp", "to": RITA, "type": "template",
        "template": {"name": "order_ready", "language": {"code": "pt_PT"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "Rita"}]}]}});
    let json = send(simulator.address(), &body.to_string()).await.json();
    assert_eq!(json["messages"][0]["message_status"], "accepted");
    assert_eq!(simulator.order(RITA), ["order_ready: Rita"]);
}

#[rstest]
#[case::no_token("", 190, 401)]
#[case::wrong_token("authorization: Bearer nonsense\r\n", 190, 401)]
#[case::token_without_its_word("authorization: simulated-token\r\n", 190, 401)]
#[tokio::test]
async fn a_wrong_token_is_190(#[case] headers: &str, #[case] code: i64, #[case] status: u16) {
    let simulator = simulator().await;
    let path = format!("/v25.0/{NUMBER}/messages");
    let mut stream = request(simulator.address(), "POST", &path, headers, &text(RITA, "x", "c")).await;
    let raw = read_to_end(&mut stream, SOON).await;
    assert_eq!((raw.status(), raw.json()["error"]["code"].as_i64()), (status, Some(code)));
    assert_eq!(simulator.stats().calls.calls, 0);
    assert_eq!(simulator.stats().calls.refused, 1);
}

#[tokio::test]
async fn an_unknown_number_and_a_bad_body_are_refused_with_an_error_object() {
    let simulator = simulator().await;
    let headers = format!("authorization: Bearer {TOKEN}\r\n");
    let mut stream = request(simulator.address(), "POST", "/v25.0/999/messages", &headers, &text(RITA, "x", "c")).await;
    assert_eq!(read_to_end(&mut stream, SOON).await.json()["error"]["code"], 33);
    let error = send(simulator.address(), "{\"to\":").await.json();
    assert_eq!(error["error"]["code"], 100);
    assert_eq!(error["error"]["type"], "OAuthException");
    assert!(error["error"]["fbtrace_id"].is_string());
}

#[tokio::test]
async fn a_bsuid_in_to_gets_an_id_and_is_dropped_silently() {
    let (simulator, receiver) = crate::receiver::wired(&[]).await;
    let raw = send(simulator.address(), &text("PT.48151623420001", "lost", "r1.abcdefghi0.7.0.1")).await;
    assert!(raw.json()["messages"][0]["id"].is_string());
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.got().len(), 0, "no status ever follows");
    assert_eq!(simulator.stats().calls.misaddressed, 1);

    let right = text("x", "found", "c").replace(r#""to":"x""#, r#""recipient":"PT.48151623420001""#);
    assert_eq!(send(simulator.address(), &right).await.json()["contacts"][0]["user_id"], "PT.48151623420001");
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words().len(), 3);
    let status = &receiver.got()[0].json()["entry"][0]["changes"][0]["value"]["statuses"][0];
    assert_eq!(status["recipient_user_id"], "PT.48151623420001");
    assert_eq!(status.get("recipient_id"), None);
}

#[tokio::test]
async fn marking_as_read_is_not_a_message() {
    let simulator = simulator().await;
    let body =
        r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","typing_indicator":{"type":"text"}}"#;
    assert_eq!(send(simulator.address(), body).await.json(), serde_json::json!({"success": true}));
    let stats = simulator.stats().calls;
    assert_eq!((stats.calls, stats.marked_read), (0, 1));
}

#[tokio::test]
async fn unknown_media_is_a_404_in_json() {
    let simulator = simulator().await;
    let mut stream = request(simulator.address(), "GET", "/v25.0/5550001", "", "").await;
    let raw = read_to_end(&mut stream, SOON).await;
    assert_eq!((raw.status(), raw.json()["error"]["code"].as_i64()), (404, Some(100)));
}
