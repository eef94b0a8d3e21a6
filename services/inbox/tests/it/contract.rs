//! AC-53: the CRM's calls, answered with the keys its client reads.

use crate::support::{SOON, World, assert_has, json, keys};
use domain::{Clock, Status};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::Database;
use testkit::rows;
use testkit::wait;

#[rstest]
#[tokio::test]
async fn ac_53_the_list_has_the_keys_the_crm_reads(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal Haddad", "971501234567").await;
    world.clock.advance(Duration::from_secs(3700));
    let body = json(world.get("/api/inbox/conversations?channel=all&search=").send().await.unwrap(), 200).await;
    assert_eq!(keys(&body), ["conversations", "data", "next", "ok", "prev"]);
    assert_eq!((&body["ok"], &body["next"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(body["conversations"], body["data"]);
    let row = &body["conversations"][0];
    let names = [
        "id",
        "contact",
        "channel",
        "status",
        "lastMessageAt",
        "lastInboundAt",
        "unreadCount",
        "priorityScore",
        "flags",
        "lastMessage",
        "assignedUser",
    ];
    assert_has(row, &names);
    assert_eq!(row["id"], one.conversation.get(), "ids are numbers");
    assert_has(&row["contact"], &["id", "fullName", "phone", "email"]);
    assert_eq!(
        (&row["contact"]["fullName"], &row["contact"]["phone"]),
        (&json!("Amal Haddad"), &json!("+971501234567"))
    );
    assert_eq!(keys(&row["flags"]), ["EXPIRY_SOON", "HOT", "NEEDS_REPLY", "OVERDUE_FOLLOWUP", "SLA_BREACH", "UNREAD"]);
    assert_eq!(
        (&row["flags"]["UNREAD"], &row["flags"]["NEEDS_REPLY"], &row["flags"]["SLA_BREACH"]),
        (&json!(true), &json!(true), &json!(true))
    );
    assert_has(&row["lastMessage"], &["id", "direction", "body", "createdAt"]);
    assert_eq!(row["lastMessage"]["body"], "Hello, is anybody there?");
    assert_eq!((&row["unreadCount"], &row["channel"], &row["status"]), (&json!(1), &json!("WHATSAPP"), &json!("OPEN")));
    assert_eq!(row["lastInboundAt"], "2026-11-22T09:30:00Z");
}

#[rstest]
#[tokio::test]
async fn ac_53_a_conversation_comes_with_person_lead_and_its_last_50_messages(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.silent_conversation("Amal", "971501234567").await;
    let mut tx = world.store.begin().await.unwrap();
    for n in 0..120u64 {
        let at = rows::NOON + Duration::from_secs(n);
        rows::inbound(&mut tx, &one, &format!("m{n}"), &n.to_string(), at).await.unwrap();
    }
    tx.commit().await.unwrap();
    let path = format!("/api/inbox/conversations/{}", one.conversation);
    let body = json(world.get(&path).send().await.unwrap(), 200).await;
    assert_has(&body, &["ok", "conversation", "contact", "lead", "messages", "next"]);
    assert_has(&body["conversation"], &["id", "contact", "lead", "messages", "assignedUserId", "window"]);
    assert_eq!(body["conversation"]["window"]["state"], "open");
    assert_eq!(body["lead"]["id"], one.lead.get());
    let message = &body["messages"][0];
    let names = [
        "id",
        "conversationId",
        "direction",
        "channel",
        "type",
        "body",
        "status",
        "providerMessageId",
        "mediaUrl",
        "mediaMimeType",
        "payload",
        "rawPayload",
        "createdAt",
        "sentAt",
        "deliveredAt",
        "readAt",
    ];
    assert_has(message, &names);
    // Back page by page, each message once, in order.
    let mut seen: Vec<String> = Vec::new();
    let mut before = String::new();
    loop {
        let page = json(world.get(&format!("{path}{before}")).send().await.unwrap(), 200).await;
        let bodies: Vec<String> =
            page["messages"].as_array().unwrap().iter().map(|m| m["body"].as_str().unwrap().into()).collect();
        assert!(bodies.len() <= 50);
        seen.splice(0..0, bodies);
        match page["next"].as_str() {
            Some(next) => before = format!("?before={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..120).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[rstest]
#[tokio::test]
async fn ac_53_reading_assigning_noting_and_replying_answer_ok_and_the_object(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let path = format!("/api/inbox/conversations/{}", one.conversation);

    let read = world.anybody(reqwest::Method::POST, &format!("{path}/read")).bearer_auth(crate::support::CRM);
    let body = json(read.send().await.unwrap(), 200).await;
    assert_eq!((&body["ok"], &body["conversation"]["unreadCount"]), (&json!(true), &json!(0)));

    let users: Vec<(i64, String)> = {
        let mut tx = world.store.read().await.unwrap();
        store::user::list(&mut tx).await.unwrap().into_iter().map(|user| (user.id.get(), user.name)).collect()
    };
    let sara = users.iter().find(|(_, name)| name == "Sara").unwrap().0;
    let assign = |body: Value| world.post(&format!("{path}/assign"), &body).send();
    let body = json(assign(json!({ "assignedUserId": sara })).await.unwrap(), 200).await;
    assert_eq!(body["conversation"]["assignedUser"]["name"], "Sara");
    let body = json(assign(json!({ "assignedToAI": true })).await.unwrap(), 200).await;
    assert_eq!(
        (&body["conversation"]["assignedUser"], &body["conversation"]["assignedToAI"]),
        (&Value::Null, &json!(true))
    );
    for nobody in [json!({ "assignedUserId": null }), Value::Null] {
        let body = json(assign(nobody).await.unwrap(), 200).await;
        assert_eq!(
            (&body["conversation"]["assignedUser"], &body["conversation"]["assignedToAI"]),
            (&Value::Null, &json!(false))
        );
    }
    let stranger = json(assign(json!({ "assignedUserId": 9_999 })).await.unwrap(), 422).await;
    assert_eq!(stranger["errors"][0]["path"], "assignedUserId");
    assert_eq!(json(assign(json!({})).await.unwrap(), 422).await["code"], "invalid");

    let note =
        json(world.post(&format!("{path}/internal-note"), &json!({ "text": "be kind" })).send().await.unwrap(), 200)
            .await;
    assert_eq!(
        (&note["ok"], &note["message"]["body"], &note["message"]["type"]),
        (&json!(true), &json!("be kind"), &json!("note"))
    );

    let reply = json!({ "text": "Good morning!", "clientMessageId": "r-1" });
    let body = json(world.post(&format!("{path}/reply"), &reply).send().await.unwrap(), 202).await;
    assert_has(&body["message"], &["id", "direction", "body", "status", "providerMessageId", "createdAt"]);
    assert_eq!((&body["message"]["direction"], &body["message"]["status"]), (&json!("OUTBOUND"), &json!("QUEUED")));
}

#[rstest]
#[tokio::test]
async fn ac_5_older_words_are_understood_and_answers_speak_the_new_ones(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    for channel in ["whatsapp", "WhatsApp", "WHATSAPP", "all", "ALL", ""] {
        let query = format!("/api/inbox/conversations?channel={channel}&status=open&assigned=none");
        let body = json(world.get(&query).send().await.unwrap(), 200).await;
        assert_eq!(body["conversations"][0]["channel"], "WHATSAPP", "{channel}");
        assert_eq!(body["conversations"][0]["lastMessage"]["direction"], "INBOUND");
    }
    let empty = json(world.get("/api/inbox/conversations?channel=messenger").send().await.unwrap(), 200).await;
    assert_eq!(empty["conversations"], json!([]), "messenger is FACEBOOK");
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    for (index, direction) in ["OUT", "out", "outbound", "OUTBOUND"].into_iter().enumerate() {
        let send = json!({ "text": format!("hi {index}"), "direction": direction, "channel": "whatsapp" });
        let body = json(world.post(&path, &send).send().await.unwrap(), 202).await;
        assert_eq!(
            (&body["message"]["direction"], &body["message"]["channel"]),
            (&json!("OUTBOUND"), &json!("WHATSAPP"))
        );
        assert_eq!(body["warnings"], json!([]));
    }
    for (field, value) in [("direction", "IN"), ("channel", "email"), ("channel", "pigeon")] {
        let body = json(world.post(&path, &json!({ "text": "hi", field: value })).send().await.unwrap(), 422).await;
        assert_eq!(body["errors"][0]["path"], field);
    }
}

#[rstest]
#[tokio::test]
async fn one_message_tells_its_whole_story(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let other = world.open_conversation("Bob", "971501234568").await;
    let mut tx = world.store.begin().await.unwrap();
    let failed = rows::outbound(&mut tx, &one, "no luck", Status::Failed, false, world.clock.now()).await.unwrap();
    let flying = rows::outbound(&mut tx, &one, "on its way", Status::Sending, false, world.clock.now()).await.unwrap();
    let held = rows::outbound(&mut tx, &one, "who knows", Status::Sending, true, world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    let path = |id: domain::MessageId| format!("/api/inbox/conversations/{}/messages/{id}", one.conversation);
    let body = json(world.get(&path(failed)).send().await.unwrap(), 200).await;
    assert_eq!(
        body["message"]["error"],
        json!({ "class": "REJECTED", "code": "131026", "message": "Message undeliverable" })
    );
    assert_has(&body["message"], &["statusEvents", "attempts"]);
    let body = json(world.get(&path(flying)).send().await.unwrap(), 200).await;
    assert_eq!(
        (&body["message"]["status"], &body["message"]["deliveryState"]),
        (&json!("SENDING"), &json!("IN_FLIGHT"))
    );
    let body = json(world.get(&path(held)).send().await.unwrap(), 200).await;
    assert_eq!((&body["message"]["deliveryState"], &body["message"]["outcomeUnknown"]), (&json!("HELD"), &json!(true)));
    let foreign = format!("/api/inbox/conversations/{}/messages/{failed}", other.conversation);
    assert_eq!(json(world.get(&foreign).send().await.unwrap(), 404).await["code"], "not_found");
}

#[rstest]
#[tokio::test]
async fn ac_50_pages_read_while_people_write_return_each_older_row_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let mut older = Vec::new();
    for n in 0..23 {
        older.push(world.open_conversation("P", &format!("97150000{n:04}")).await.conversation.get());
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    for round in 0.. {
        let path = format!("/api/inbox/conversations?limit=4{after}");
        let page = json(world.get(&path).send().await.unwrap(), 200).await;
        seen.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()));
        world.clock.advance(Duration::from_secs(1));
        world.open_conversation("N", &format!("97155000{round:04}")).await;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, older);
}

#[tokio::test]
async fn a_database_that_is_not_there_yet_is_said_so_and_then_served() {
    let (url, _folder) = testkit::database::fresh_url(Database::Sqlite).await.unwrap();
    let options = testkit::database::test_options(url);
    let store = store::Store::open(&options).await.unwrap();
    let world = World::over(store.clone()).await;
    let body = json(world.get("/api/inbox/conversations").send().await.unwrap(), 503).await;
    assert_eq!(body["code"], "starting");
    wait::until_so("it says what it waits for", SOON, async || {
        world.health.reasons().values().any(|reason| reason.contains("roost migrate"))
    })
    .await;
    store.migrate().await.unwrap();
    wait::until_so("ready by itself", SOON, async || world.health.is_ready()).await;
    json(world.get("/api/inbox/conversations").send().await.unwrap(), 200).await;
}
