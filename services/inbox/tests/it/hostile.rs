//! What nobody should send, sent: every answer is a clear refusal in the API's own words, never a fault of ours.

use crate::support::{CRM, World, json};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use testkit::Database;

#[rstest]
#[case::not_json("{", 400, "malformed")]
#[case::no_object("[1]", 400, "malformed")]
#[case::lone_surrogate(r#"{"text":"\ud800"}"#, 400, "malformed")]
#[case::not_utf8("\u{0}", 400, "malformed")]
#[case::nul(r#"{"text":"a\u0000b"}"#, 422, "invalid")]
#[case::deep(&"[".repeat(20_000), 400, "malformed")]
#[case::deep_inside(&format!(r#"{{"text":{}1{}}}"#, "[".repeat(5_000), "]".repeat(5_000)), 400, "malformed")]
#[case::large(&format!(r#"{{"text":"{}"}}"#, "x".repeat(300_000)), 413, "too_large")]
#[tokio::test]
async fn an_unreadable_body_is_a_problem_with_the_requests_id(
    #[case] body: &str,
    #[case] status: u16,
    #[case] code: &str,
) {
    let world = World::on(Database::Sqlite).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let request =
        world.anybody(Method::POST, &path).bearer_auth(CRM).header("x-request-id", "r-7").body(body.to_owned());
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem = json(answer, status).await;
    assert_eq!((problem["code"].as_str(), problem["instance"].as_str()), (Some(code), Some("r-7")));
    assert_eq!((&problem["ok"], &problem["status"]), (&json!(false), &json!(status)));
    for key in ["type", "title", "detail", "errors", "error"] {
        assert!(problem.get(key).is_some(), "{key} in {problem}");
    }
}

#[tokio::test]
async fn addresses_and_methods_that_are_not_there_are_problems_too() {
    let world = World::on(Database::Sqlite).await;
    for path in [
        "/api/nothing",
        "/api/inbox/conversations/99999",
        "/api/inbox/conversations/x",
        "/api/inbox/conversations/9223372036854775808",
    ] {
        assert_eq!(json(world.get(path).send().await.unwrap(), 404).await["code"], "not_found", "{path}");
    }
    let answer = world.anybody(Method::DELETE, "/api/inbox/conversations").bearer_auth(CRM).send().await.unwrap();
    assert!(answer.headers().contains_key("allow"));
    assert_eq!(json(answer, 405).await["code"], "method_not_allowed");
    for query in [
        "limit=0",
        "limit=101",
        "limit=x",
        "after=rubbish",
        "channel=pigeon",
        "status=odd",
        "assigned=x",
        "assigned=me",
    ] {
        let problem = json(world.get(&format!("/api/inbox/conversations?{query}")).send().await.unwrap(), 422).await;
        assert_eq!(problem["errors"][0]["path"], query.split('=').next().unwrap(), "{query}");
    }
    // Odd request ids are not repeated; every answer has one.
    for odd in ["", "a b", "<script>", &"x".repeat(100)] {
        let answer = world.get("/api/nothing").header("x-request-id", odd).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert!(id != odd && id.len() == 36, "{id}");
    }
    assert_eq!(world.anybody(Method::GET, "/metrics").bearer_auth(CRM).send().await.unwrap().status(), 404);
}

/// JSON of every shape, with the API's own field names among the keys.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        prop::sample::select(vec![
            "text",
            "body",
            "templateName",
            "templateLanguage",
            "templateParams",
            "clientMessageId",
            "mediaUrl",
            "sendAt",
            "replyToMessageId",
            "channel",
            "direction",
            "type",
            "assignedUserId",
            "assignedToAI"
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,30}".prop_map(Value::from),
        Just(json!("a\u{0}b")),
        Just(json!("2027-01-01T00:00:00Z")),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|pairs| pairs.into_iter().collect()),
        ]
    })
}

/// Runs `check` on a few hundred inputs; proptest itself knows no async.
fn on_many<S: Strategy>(cases: u32, strategy: S, mut check: impl FnMut(S::Value)) {
    let mut runner = TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    for _ in 0..cases {
        check(strategy.new_tree(&mut runner).unwrap().current());
    }
}

#[rstest]
#[tokio::test]
async fn ac_49_fuzzed_requests_never_break_anything(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let mut bodies: Vec<String> = Vec::new();
    on_many(250, any_json(), |body| bodies.push(body.to_string()));
    on_many(50, prop::collection::vec(any::<u8>(), 0..200), |bytes| {
        bodies.push(String::from_utf8_lossy(&bytes).into_owned());
    });
    let mut paths: Vec<String> = Vec::new();
    let query = "[a-z]{0,4}(=|%|&|\\+|-|'|\"|:|[a-zA-Z0-9]){0,20}";
    on_many(100, query, |query: String| paths.push(format!("/api/inbox/conversations?search={query}&{query}")));
    let answered = |answer: reqwest::Response, what: String| async move {
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert!(status < 500, "{status} for {what}: {text}");
        if status >= 400 {
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert!(problem["code"].is_string() && problem["instance"].is_string(), "{text}");
        }
    };
    for (index, body) in bodies.into_iter().enumerate() {
        // A token has a quota, and this is faster.
        world.clock.advance(std::time::Duration::from_millis(100));
        let route = ["messages", "assign", "internal-note", "reply", "read"][index % 5];
        let path = format!("/api/inbox/conversations/{}/{route}", one.conversation);
        let request = world.anybody(Method::POST, &path).bearer_auth(CRM).body(body.clone());
        answered(request.send().await.unwrap(), format!("{route} {body}")).await;
    }
    for path in paths {
        world.clock.advance(std::time::Duration::from_millis(100));
        answered(world.get(&path).send().await.unwrap(), path).await;
    }
}

#[rstest]
#[tokio::test]
async fn text_that_looks_like_sql_is_text(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let one = world.open_conversation("Robert'); DROP TABLE messages;--", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}", one.conversation);
    for text in ["'; DELETE FROM messages; --", "$1 %s ? {0}", "\\'; \\\" \\", "%_%", "x' OR '1'='1"] {
        let body =
            json(world.post(&format!("{path}/messages"), &json!({ "text": text })).send().await.unwrap(), 202).await;
        assert_eq!(body["message"]["body"], text);
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let found =
            json(world.get(&format!("/api/inbox/conversations?search={encoded}")).send().await.unwrap(), 200).await;
        assert_eq!(found["conversations"].as_array().unwrap().len(), 1, "{text}");
    }
}
