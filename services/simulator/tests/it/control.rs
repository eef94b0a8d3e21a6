//! The control over HTTP does what the handle does.

use crate::receiver::wired;
use crate::socket::{control, read_to_end, request, send};
use crate::{NUMBER, RITA, SOON, simulator, text};

#[tokio::test]
async fn a_script_given_over_http_befalls_the_next_call() {
    let simulator = simulator().await;
    let at = simulator.address();
    let script = format!(r#"{{"when":{{"recipient":"{RITA}"}},"fault":{{"kind":"error","code":131026}}}}"#);
    assert_eq!(control(at, "POST", "script", &script).await.status(), 200);
    assert_eq!(control(at, "GET", "stats", "").await.json()["scripts_left"], 1);
    assert_eq!(send(at, &text(RITA, "x", "r1.abcdefghi0.7.0.1")).await.json()["error"]["code"], 131_026);
    assert_eq!(send(at, &text(RITA, "y", "r1.abcdefghi0.7.0.2")).await.status(), 200);

    let stats = control(at, "GET", "stats", "").await.json();
    assert_eq!((stats["calls"]["calls"].as_u64(), stats["calls"]["accepted"].as_u64()), (Some(2), Some(1)));
    assert_eq!(stats["calls"]["by_verdict"]["error_131026"], 1);
    let calls = control(at, "GET", &format!("calls?after=1&recipient={RITA}"), "").await.json();
    assert_eq!(calls.as_array().unwrap().len(), 1);
    assert_eq!((calls[0]["seq"].as_u64(), calls[0]["verdict"].as_str()), (Some(2), Some("accept")));
    let read: Vec<simulator::Call> = serde_json::from_value(calls).unwrap();
    assert_eq!(read[0].text, "y");
    assert_eq!(control(at, "GET", &format!("order?recipient={RITA}"), "").await.json(), serde_json::json!(["y"]));
    assert_eq!(control(at, "GET", "accepted-twice", "").await.json(), serde_json::json!([]));
    assert_eq!(control(at, "GET", "overlaps", "").await.json(), serde_json::json!([]));
}

#[tokio::test]
async fn faults_statuses_latency_and_rates_are_set_over_http_and_reset() {
    let simulator = simulator().await;
    let at = simulator.address();
    for (path, body) in [
        ("faults", r#"[{"chance":1.0,"fault":{"kind":"http","status":503}}]"#),
        ("statuses", r#"{"silent":1.0}"#),
        ("latency", r#"{"ms":1}"#),
        ("connections", r#"{"fault":"close","times":0}"#),
    ] {
        assert_eq!(control(at, "POST", path, body).await.status(), 200, "{path}");
    }
    let rate = format!(r#"{{"account":"{NUMBER}","per_second":3}}"#);
    assert_eq!(control(at, "POST", "rate", &rate).await.status(), 200);
    assert_eq!(send(at, &text(RITA, "x", "c")).await.status(), 503);
    assert_eq!(control(at, "POST", "faults/clear", "").await.status(), 200);
    assert_eq!(send(at, &text(RITA, "x", "c")).await.status(), 200);
    assert_eq!(control(at, "GET", "stats", "").await.json()["rates"][0]["allowed"], 3.0);
    assert_eq!(control(at, "POST", "reset", "").await.status(), 200);
    assert_eq!(control(at, "GET", "stats", "").await.json()["calls"]["calls"], 0);
}

#[tokio::test]
async fn a_customer_writes_over_http_and_the_answer_says_how_it_fared() {
    let (simulator, receiver) = wired(&[503]).await;
    let at = simulator.address();
    let body = format!(r#"{{"from":"{RITA}","name":"Rita","text":"hello","wait":true}}"#);
    let answer = control(at, "POST", "customer-writes", &body).await.json();
    assert_eq!((answer["posted"]["acknowledged"].as_bool(), answer["posted"]["tries"].as_u64()), (Some(true), Some(2)));
    let wamid = answer["wamid"].as_str().unwrap();
    assert_eq!(receiver.got()[1].messages()[0]["id"], wamid);
    let acknowledged = control(at, "GET", "acknowledged", "").await.json();
    assert_eq!((acknowledged[0]["id"].as_str(), acknowledged[0]["what"].as_str()), (Some(wamid), Some("message")));

    let repeat = format!(r#"{{"wamid":"{wamid}","times":4}}"#);
    assert_eq!(control(at, "POST", "repeat", &repeat).await.status(), 200);
    assert_eq!(control(at, "POST", "settled", r#"{"within_ms":10000}"#).await.json()["settled"], true);
    assert_eq!(receiver.got().len(), 6);

    let batch = format!(
        r#"[[[{{"item":"message","from":"{RITA}","says":{{"type":"text","body":"a"}}}},
             {{"item":"status","wamid":"wamid.X","status":"read","recipient":"{RITA}"}}]]]"#
    );
    assert_eq!(control(at, "POST", "batch", &batch).await.json()["items"].as_array().unwrap().len(), 2);
    let sends = format!(r#"{{"from":"{RITA}","says":{{"type":"unheard"}}}}"#);
    assert_eq!(control(at, "POST", "customer-sends", &sends).await.status(), 200);
    assert_eq!(control(at, "POST", "forge", r#"{"how":"wrong_secret"}"#).await.json()["status"], 401);
    assert_eq!(control(at, "POST", "handshake", r#"{"verify_token":"t"}"#).await.json()["echoed"], true);
}

#[tokio::test]
async fn a_load_is_started_and_ended_over_http() {
    let (simulator, _receiver) = wired(&[]).await;
    let at = simulator.address();
    assert_eq!(control(at, "GET", "load", "").await.status(), 404);
    assert_eq!(control(at, "POST", "load", r#"{"per_second":200,"label":"over http"}"#).await.status(), 200);
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged >= 5).await);
    let report = control(at, "DELETE", "load", "").await.json();
    assert!(report["sent"].as_array().unwrap().len() >= 5);
    assert_eq!(control(at, "DELETE", "load", "").await.status(), 404);
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason_and_other_pages_are_kept_out() {
    let simulator = simulator().await;
    let at = simulator.address();
    for (method, path, body, status) in [
        ("POST", "script", r#"{"fault":{"kind":"explode"}}"#, 400),
        ("POST", "statuses", r#"{"sillent":1.0}"#, 400),
        ("POST", "faults/sunny", "", 404),
        ("POST", "webhook-urls", r#"["nowhere"]"#, 400),
        ("POST", "rate", r#"{"account":"another","per_second":3}"#, 404),
        ("GET", "order", "", 400),
        ("GET", "nothing", "", 404),
        ("PUT", "stats", "", 404),
    ] {
        let raw = control(at, method, path, body).await;
        assert_eq!(raw.status(), status, "{method} {path}");
        assert!(raw.json()["error"].is_string());
    }
    let mut stream = request(at, "POST", "/_sim/reset", "origin: http://evil.example\r\n", "").await;
    assert_eq!(read_to_end(&mut stream, SOON).await.status(), 403);
    let mut stream = request(at, "GET", "/", "", "").await;
    assert_eq!(read_to_end(&mut stream, SOON).await.status(), 404, "no phone unless asked for");
}
