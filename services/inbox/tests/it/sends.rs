//! Sending as the API accepts it: the window, the client's key, what is refused and in which words.

use crate::support::{CRM, World, json};
use domain::Clock;
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;
use store::promises::{PROMISES, audit};
use testkit::Database;

async fn count(world: &World, conversation: domain::ConversationId) -> usize {
    let mut tx = world.store.read().await.unwrap();
    let messages = store::thread::page(&mut tx, conversation, None, 1_000).await.unwrap();
    messages.iter().filter(|message| message.direction == domain::Direction::Outbound).count()
}

#[rstest]
#[tokio::test]
async fn ac_20_the_same_client_id_ten_times_at_once_is_one_message_and_another_body_is_refused(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let send = json!({ "text": "once only", "clientMessageId": "k-1" });
    let answers = futures_util::future::join_all((0..10).map(|_| world.post(&path, &send).send())).await;
    let mut ids = Vec::new();
    let mut firsts = 0;
    for answer in answers {
        let body = json(answer.unwrap(), 202).await;
        ids.push(body["message"]["id"].as_i64().unwrap());
        firsts += usize::from(body["wasDuplicate"] == json!(false));
    }
    ids.dedup();
    assert_eq!((ids.len(), firsts), (1, 1));
    assert_eq!(count(&world, one.conversation).await, 1);

    // The header is another name for the key; the order of fields and unknown ones change nothing.
    let by_header = world.post(&path, &json!({ "colour": 1, "text": "once only" })).header("idempotency-key", "k-1");
    let body = json(by_header.send().await.unwrap(), 202).await;
    assert_eq!((&body["wasDuplicate"], &body["message"]["id"]), (&json!(true), &json!(ids[0])));
    assert_eq!(body["warnings"][0]["path"], "colour");

    for other in [
        json!({ "text": "something else", "clientMessageId": "k-1" }),
        json!({ "templateName": "hello", "templateLanguage": "en", "clientMessageId": "k-1" }),
    ] {
        let body = json(world.post(&path, &other).send().await.unwrap(), 422).await;
        assert_eq!((&body["code"], &body["ok"]), (&json!("client_id_reused"), &json!(false)));
    }
    // What was accepted stays accepted, also once the window is shut.
    world.clock.advance(Duration::from_secs(25 * 3600));
    let body = json(world.post(&path, &send).send().await.unwrap(), 202).await;
    assert_eq!((&body["wasDuplicate"], count(&world, one.conversation).await), (&json!(true), 1));

    // The key is the conversation's: another conversation may use it for itself.
    world.open_conversation("Bob", "971501234568").await;
    let mut tx = world.store.read().await.unwrap();
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
}

#[rstest]
#[tokio::test]
async fn ac_17_outside_the_window_free_text_is_refused_and_a_template_is_not(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let never = world.silent_conversation("Never", "971500000001").await;
    let amal = world.open_conversation("Amal", "971501234567").await;
    let path = |id| format!("/api/inbox/conversations/{id}/messages");
    let text = json!({ "text": "hello" });

    let body = json(world.post(&path(never.conversation), &text).send().await.unwrap(), 422).await;
    assert_eq!((&body["code"], &body["requiresTemplate"]), (&json!("window_closed"), &json!(true)));
    assert!(body.get("hoursSinceLastInbound").is_none() && body["hint"].is_string() && body["error"].is_string());

    world.clock.advance(Duration::from_secs(24 * 3600 - 1));
    json(world.post(&path(amal.conversation), &text).send().await.unwrap(), 202).await;
    world.clock.advance(Duration::from_secs(1));
    let answer = world.post(&path(amal.conversation), &text).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body = json(answer, 422).await;
    assert_eq!((&body["requiresTemplate"], &body["hoursSinceLastInbound"]), (&json!(true), &json!(24.0)));

    for one in [never, amal] {
        let template =
            json!({ "templateName": "renewal_reminder", "templateLanguage": "en", "templateParams": ["Amal", 7] });
        let body = json(world.post(&path(one.conversation), &template).send().await.unwrap(), 202).await;
        assert_eq!(
            (&body["message"]["type"], &body["message"]["templateName"]),
            (&json!("template"), &json!("renewal_reminder"))
        );
    }
    world.inbound(&amal, "I am back", world.clock.now()).await;
    json(world.post(&path(amal.conversation), &text).send().await.unwrap(), 202).await;
}

#[rstest]
#[case::nothing(json!({}), 422, "text")]
#[case::both(json!({ "text": "a", "templateName": "b" }), 422, "templateName")]
#[case::a_number(json!({ "text": 5 }), 422, "text")]
#[case::blank(json!({ "text": "  " }), 422, "text")]
#[case::nul(json!({ "text": "a\u{0}b" }), 422, "text")]
#[case::too_long(json!({ "text": "x".repeat(5_000) }), 422, "text")]
#[case::bad_template(json!({ "templateName": "Not A Name", "templateLanguage": "en" }), 422, "templateName")]
#[case::in_the_past(json!({ "text": "a", "sendAt": "2020-01-01T00:00:00Z" }), 422, "sendAt")]
#[case::no_time(json!({ "text": "a", "sendAt": "tomorrow" }), 422, "sendAt")]
#[case::empty_key(json!({ "text": "a", "clientMessageId": "" }), 422, "clientMessageId")]
#[case::foreign_answer(json!({ "text": "a", "replyToMessageId": 99_999 }), 422, "replyToMessageId")]
#[case::a_file(json!({ "mediaUrl": "https://example.com/a.jpg", "mediaType": "image", "text": "look" }), 422, "mediaUrl")]
#[case::another_file(json!({ "mediaId": "123", "mediaType": "image", "caption": "c", "filename": "f", "mime": "m", "size": 1 }), 422, "mediaId")]
#[tokio::test]
async fn what_cannot_be_sent_is_refused_by_the_name_of_its_field_and_leaves_nothing(
    #[case] body: Value,
    #[case] status: u16,
    #[case] path: &str,
) {
    let world = World::on(Database::Sqlite).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let address = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let problem = json(world.post(&address, &body).send().await.unwrap(), status).await;
    assert_eq!(problem["errors"][0]["path"], path, "{problem}");
    if path.starts_with("media") {
        assert_eq!(problem["code"], "not_supported_yet");
    }
    assert_eq!(count(&world, one.conversation).await, 0);
}

#[rstest]
#[tokio::test]
async fn an_accepted_send_answers_202_with_its_row_and_place_and_leaves_a_trail(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let request = world.post(&path, &json!({ "text": "hello" })).header("x-request-id", "my-request.1");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-request.1");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let body = json(answer, 202).await;
    let message = json(world.get(&location).send().await.unwrap(), 200).await;
    assert_eq!(message["message"]["id"], body["message"]["id"]);
    assert_eq!(body["message"]["providerMessageId"], Value::Null, "nothing claims to be sent before it is");
    let id = body["message"]["id"].as_i64().unwrap().to_string();
    let mut tx = world.store.read().await.unwrap();
    let trail = store::audit::of(&mut tx, "message", &id, 10).await.unwrap();
    assert_eq!((trail.len(), trail[0].action.as_str()), (1, "message.send"));
    assert_eq!(trail[0].request_id.as_deref(), Some("my-request.1"));
    assert!(trail[0].actor_token_id.is_some() && trail[0].actor_user_id.is_none());
    assert!(!trail[0].detail.to_string().contains("hello"), "never the text");
}

#[rstest]
#[tokio::test]
async fn a_scheduled_send_waits_for_its_time(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let at = world.clock.now() + Duration::from_secs(3600);
    let body = json(world.post(&path, &json!({ "text": "later", "sendAt": at })).send().await.unwrap(), 202).await;
    assert_eq!(
        (&body["message"]["status"], &body["message"]["deliveryState"]),
        (&json!("QUEUED"), &json!("SCHEDULED"))
    );
}

#[rstest]
#[tokio::test]
async fn what_there_is_nothing_to_send_from_says_so(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let mut tx = world.store.begin().await.unwrap();
    let gone = testkit::rows::account(&mut tx, "closed-shop").await.unwrap();
    let one = testkit::rows::conversation(&mut tx, gone, "Amal", "971501234567", world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    world.inbound(&one, "hi", world.clock.now()).await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let body = json(world.post(&path, &json!({ "text": "hello" })).send().await.unwrap(), 422).await;
    assert_eq!(body["code"], "account_unavailable");
    for missing in ["/api/inbox/conversations/99999/messages", "/api/inbox/conversations/abc/messages"] {
        let answer = world.anybody(reqwest::Method::POST, missing).bearer_auth(CRM).body("{\"text\":\"a\"}").send();
        assert_eq!(json(answer.await.unwrap(), 404).await["code"], "not_found");
    }
}

#[rstest]
#[tokio::test]
async fn ac_23_a_note_is_accepted_where_nothing_can_be_sent_and_leaves_no_send(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let never = world.silent_conversation("Never", "971500000001").await;
    let path = format!("/api/inbox/conversations/{}/internal-note", never.conversation);
    let body = json(world.post(&path, &json!({ "text": "calls back on Monday" })).send().await.unwrap(), 200).await;
    assert_eq!(
        (&body["message"]["channel"], &body["message"]["deliveryState"]),
        (&json!("INTERNAL_NOTE"), &Value::Null)
    );
    assert_eq!(body["message"]["providerMessageId"], Value::Null);
    for bad in [json!({}), json!({ "text": " " }), json!({ "text": 1 })] {
        json(world.post(&path, &bad).send().await.unwrap(), 422).await;
    }
    let mut tx = world.store.read().await.unwrap();
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
}
