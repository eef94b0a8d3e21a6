//! What arrives is stored: every item, byte for byte, whatever it is.

use crate::said::{RITA, body, one_text, status, text, value};
use crate::support::{DEAD_LETTERS, MESSAGES, Stack, UNREAD, World};
use bytes::Bytes;
use domain::wire::{Body, Frame, WebhookFrame};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::wait;

const KINDS: &str = "SELECT type || ':' || coalesce(body, '-') FROM messages ORDER BY provider_message_id";

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_1_two_entries_of_two_changes_of_three_messages_and_two_statuses_yield_12_messages_and_2_events(
    #[case] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let mut entries: Vec<Value> = Vec::new();
    for entry in 0..2 {
        let change = |change: i64| {
            let message = |n: i64| text(RITA, &format!("wamid.{entry}{change}{n}"), &format!("{entry}{change}{n}"), n);
            let messages: Vec<Value> = (0..3).map(message).collect();
            let statuses =
                if change == 0 { vec![status(&format!("wamid.ours.{entry}"), "delivered", 9)] } else { vec![] };
            json!({ "field": "messages", "value": value(&messages, &statuses) })
        };
        entries.push(json!({ "id": "900000000000001", "changes": [change(0), change(1)] }));
    }
    let body = json!({ "object": "whatsapp_business_account", "entry": entries }).to_string();
    world.post(&[&body]).await;
    let ingest = world.start("a");
    world.until(MESSAGES, &["12"]).await;
    world.post(&[&body]).await;
    world.until_empty().await;
    let items = "SELECT CAST(count(DISTINCT body) AS TEXT) || ' ' || CAST(count(*) AS TEXT) FROM messages";
    assert_eq!(world.texts(items).await, ["12 12"]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM message_status_events").await, ["2"]);
    assert_eq!(world.texts(UNREAD).await, ["12"]);
    let kept = "SELECT outcome || ' ' || CAST(items AS TEXT) FROM webhook_events";
    assert_eq!(world.texts(kept).await, ["PROCESSED 14", "PROCESSED 14"]);
    world.holds().await;
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_9_unknown_types_and_empty_words_become_visible_and_never_a_dead_letter(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let message = |id: &str, kind: &str, with: Value| {
        let mut message = text(RITA, id, "-", 0);
        message["type"] = json!(kind);
        message.as_object_mut().unwrap().remove("text");
        message.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        message
    };
    let messages = [
        message("a", "hologram", json!({ "hologram": { "depth": 3 } })),
        message("b", "text", json!({ "text": { "body": "" } })),
        message("c", "text", json!({ "text": { "body": "fine" }, "something_new": { "a": [1, null] } })),
        message(
            "d",
            "image",
            json!({ "image": { "id": "1166846181421424", "mime_type": "image/jpeg", "caption": "my passport" } }),
        ),
        message("e", "text", json!({ "text": "not an object" })),
        message("f", "reaction", json!({ "reaction": { "message_id": "a", "emoji": "👍" } })),
    ];
    world.post(&[&body(&[value(&messages, &[])])]).await;
    let ingest = world.start("a");
    let want = ["unsupported:-", "unsupported:-", "text:fine", "image:my passport", "unsupported:-", "unsupported:-"];
    world.until(KINDS, &want).await;
    world.until_empty().await;
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    let raw = "SELECT raw_payload FROM messages WHERE provider_message_id = 'a'";
    assert_eq!(serde_json::from_str::<Value>(&world.texts(raw).await[0]).unwrap(), messages[0]);
    let pending = "SELECT provider_media_id || ' ' || mime_type || ' ' || state FROM message_media";
    assert_eq!(world.texts(pending).await, ["1166846181421424 image/jpeg PENDING"]);
    assert_eq!(world.texts("SELECT media_mime_type FROM messages WHERE type = 'image'").await, ["image/jpeg"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_are_stored_or_set_aside_and_their_neighbours_do_not_notice(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let nul = one_text(RITA, "a", "WORDS", 0).replace("WORDS", "before\\u0000after");
    let surrogate = one_text(RITA, "b", "WORDS", 0).replace("WORDS", "half \\ud83d of it");
    let deep =
        format!("{{\"object\":\"whatsapp_business_account\",\"entry\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let deep_item =
        one_text(RITA, "c", "WORDS", 0).replace("\"WORDS\"", &format!("{}1{}", "[".repeat(200), "]".repeat(200)));
    let wrong_types = body(&[json!({ "metadata": { "phone_number_id": 106_540_352_242_922_u64 }, "messages": [
        { "from": 351_912_000_333_u64, "id": "d", "timestamp": 1_795_339_800_i64, "type": "text", "text": { "body": 17 } },
    ] })]);
    let absurd_time = one_text(RITA, "e", "time", 0).replace("1795339800", "99999999999999");
    let large = one_text(RITA, "f", &"مرحبا ".repeat(250_000), 0);
    assert!(large.len() > 2_700_000);
    let not_json = "\x00\u{FFFD}{";
    let bodies = [&nul, &surrogate, &deep, &deep_item, &wrong_types, &absurd_time, &large, not_json, "{}", "[]"];
    let mut frames: Vec<Frame> = bodies.iter().map(|body| world.frame(body.as_bytes())).collect();
    frames.push(world.frame(b"\xff\xfe\x00\x80"));
    frames.push(world.frame(b""));
    frames.push(world.frame(one_text(RITA, "z", "the last", 9).as_bytes()));
    let raw: Vec<Bytes> = frames.iter().map(inline).collect();
    world.publish(frames).await;
    let ingest = world.start("a");
    world.until("SELECT body FROM messages WHERE provider_message_id = 'z'", &["the last"]).await;
    world.until_empty().await;

    let words = "SELECT provider_message_id || ' ' || coalesce(substr(body, 1, 20), '-') FROM messages ORDER BY provider_message_id";
    let stored = world.texts(words).await;
    let want =
        ["a before\u{FFFD}after", "b half \u{FFFD} of it", "d 17", "e time", "f مرحبا مرحبا مرحبا مر", "z the last"];
    assert_eq!(stored, want);
    let times = "SELECT CAST(count(*) AS TEXT) FROM messages m JOIN webhook_events w ON w.id = m.webhook_event_id
        WHERE m.provider_message_id = 'e' AND m.occurred_at = w.received_at";
    assert_eq!(world.texts(times).await, ["1"], "an absurd time is the arrival's");

    // Each raw body byte for byte, whatever became of it.
    let mut tx = world.store.read().await.unwrap();
    let requests = world.texts("SELECT request_id FROM webhook_events").await;
    assert_eq!(requests.len(), raw.len());
    let mut kept: Vec<Bytes> = Vec::new();
    for request in requests {
        let webhook = store::webhook_event::find(&mut tx, request.parse().unwrap()).await.unwrap().unwrap();
        kept.push(webhook.body.unwrap().into());
    }
    let sorted = |mut bodies: Vec<Bytes>| {
        bodies.sort();
        bodies
    };
    assert!(sorted(kept) == sorted(raw), "raw bodies differ");
    drop(tx);

    let dead = world.texts("SELECT error_class || ' ' || error_code FROM dead_letters ORDER BY 1").await;
    let of = |code: &str| dead.iter().filter(|dead| dead.ends_with(code)).count();
    assert_eq!((of("BAD_ITEM TOO_DEEP"), of("MALFORMED TOO_DEEP")), (1, 1), "{dead:?}");
    assert_eq!(of("MALFORMED NOT_JSON"), 3, "{dead:?}");
    assert_eq!(dead.len(), of("TOO_DEEP") + of("NOT_JSON") + of("NOT_A_WEBHOOK"), "{dead:?}");
    let outcomes = "SELECT outcome FROM webhook_events GROUP BY outcome ORDER BY outcome";
    assert!(world.texts(outcomes).await.contains(&"DEAD".to_owned()));
    world.holds().await;
    ingest.stopped().await;
}

fn inline(frame: &Frame) -> Bytes {
    match frame {
        Frame::Webhook(WebhookFrame { body: Body::Inline(bytes), .. }) => bytes.clone(),
        _ => unreachable!(),
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_the_object_store_is_read_from_there_and_one_that_is_missing_is_a_dead_letter(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let large = one_text(RITA, "large", &"x".repeat(3_000_000), 0);
    world.blobs.put("raw/large", Bytes::from(large)).await.unwrap();
    let stored = |key: &str| Frame::Webhook(WebhookFrame { head: world.head("meta"), body: Body::Stored(key.into()) });
    world
        .publish(vec![
            stored("raw/large"),
            stored("raw/missing"),
            world.frame(one_text(RITA, "next", "next", 1).as_bytes()),
        ])
        .await;
    let ingest = world.start("a");
    let lengths = "SELECT provider_message_id || ' ' || CAST(length(body) AS TEXT) FROM messages ORDER BY 1";
    world.until(lengths, &["large 3000000", "next 4"]).await;
    world.until(DEAD_LETTERS, &["1"]).await;
    assert_eq!(world.texts("SELECT error_class FROM dead_letters").await, ["BODY_MISSING"]);
    let refs = "SELECT coalesce(body_ref, '-') || ' ' || outcome FROM webhook_events ORDER BY 1";
    assert_eq!(world.texts(refs).await, ["- PROCESSED", "raw/large PROCESSED", "raw/missing DEAD"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn one_body_with_more_items_than_a_transaction_holds_is_stored_whole(#[case] stack: Stack) {
    let mut world = World::fresh(stack).await;
    world.tuning.ingest_batch = 20;
    let messages: Vec<Value> = (0..150).map(|n| text(RITA, &format!("wamid.{n:03}"), "hello", n)).collect();
    world.post(&[&body(&[value(&messages, &[])])]).await;
    let ingest = world.start("a");
    world.until(MESSAGES, &["150"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(UNREAD).await, ["150"]);
    let order = "SELECT CAST(count(*) AS TEXT) FROM messages a JOIN messages b ON b.id = a.id + 1 WHERE b.occurred_at < a.occurred_at";
    assert_eq!(world.texts(order).await, ["0"], "in the order of arrival");
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM webhook_events").await, ["1"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ingest_says_it_lives_and_how_far_it_has_come_and_keeps_what_ingress_says(#[case] stack: Stack) {
    use domain::wire::{Beat, Refusals};
    let mut world = World::fresh(stack).await;
    world.lives_in_the_past();
    let begun = world.now();
    let ingest = world.start("ingest-1");
    let refused = vec![Refusals { source: "meta".into(), reason: "bad_signature".into(), count: 3 }];
    let beat = Beat {
        instance: "ingress-1".into(),
        version: "0.1.0".into(),
        started_at: world.now(),
        at: world.now(),
        refused,
    };
    world.publish(vec![Frame::Beat(beat.clone()), Frame::Beat(beat)]).await;
    world.until("SELECT CAST(refused AS TEXT) FROM webhook_refusals", &["3"]).await;
    world.post(&[&one_text(RITA, "a", "hello", 0)]).await;
    world.until(MESSAGES, &["1"]).await;
    world
        .until(
            "SELECT role || ' ' || instance FROM process_heartbeats ORDER BY role",
            &["ingest ingest-1", "ingress ingress-1"],
        )
        .await;
    world.until("SELECT CAST(count(*) AS TEXT) FROM channel_accounts WHERE last_webhook_at IS NOT NULL", &["1"]).await;

    // An empty queue counts as now, give or take how long a publish may be under way.
    world.clock.advance(Duration::from_secs(700));
    let moved = async || world.settled_until().await.is_some_and(|until| until > begun + Duration::from_secs(600));
    wait::until_so("it moves on without webhooks", crate::support::DEADLINE, moved).await;
    ingest.stopped().await;
    let left = "SELECT CAST(count(*) AS TEXT) FROM process_heartbeats WHERE role = 'ingest'";
    assert_eq!(world.texts(left).await, ["0"], "it went in good order");
    assert!(world.metrics.render().contains("roost_ingest_items_total{kind=\"message\"} 1"));
}
