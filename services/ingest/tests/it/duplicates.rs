//! The same thing told twice, twenty times, at once, by two processes, after a replay: one row, counted once.

use crate::said::{RITA, body, one_text, text, value};
use crate::support::{MESSAGES, Stack, UNREAD, World};
use domain::wire::{Frame, WebhookFrame};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded, 1)]
#[case::postgres_rabbitmq_two_processes(Stack::PostgresRabbitMq, 2)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_4_the_same_delivery_20_times_at_once_is_one_message(#[case] stack: Stack, #[case] processes: usize) {
    let world = World::fresh(stack).await;
    let running: Vec<_> = (0..processes).map(|n| world.start(&format!("ingest-{n}"))).collect();
    // Twenty requests of their own, as from a provider that repeats itself, and two frames that the queue delivers again.
    let said = one_text(RITA, "wamid.same", "Is the shop open?", 0);
    let frame = world.frame(said.as_bytes());
    let posts = (0..20).map(|n| {
        let frames = if n < 18 { vec![world.frame(said.as_bytes())] } else { vec![frame.clone(), frame.clone()] };
        world.publish(frames)
    });
    futures_util::future::join_all(posts).await;
    world.until(MESSAGES, &["1"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(UNREAD).await, ["1"]);
    for (table, count) in [
        ("SELECT CAST(count(*) AS TEXT) FROM contacts", "1"),
        ("SELECT CAST(count(*) AS TEXT) FROM contact_identities", "1"),
        ("SELECT CAST(count(*) AS TEXT) FROM leads", "1"),
        ("SELECT CAST(count(*) AS TEXT) FROM conversations", "1"),
        ("SELECT CAST(count(*) AS TEXT) FROM webhook_events", "19"),
        ("SELECT CAST(count(*) AS TEXT) FROM dead_letters", "0"),
    ] {
        assert_eq!(world.texts(table).await, [count], "{table}");
    }
    world.holds().await;
    for ingest in running {
        ingest.stopped().await;
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded, 1)]
#[case::postgres_rabbitmq_two_processes(Stack::PostgresRabbitMq, 2)]
#[tokio::test(flavor = "multi_thread")]
async fn many_people_and_many_repetitions_over_several_workers_are_each_message_once(
    #[case] stack: Stack,
    #[case] processes: usize,
) {
    let world = World::fresh(stack).await;
    let running: Vec<_> = (0..processes).map(|n| world.start(&format!("ingest-{n}"))).collect();
    let person = |n: usize| format!("35191200{n:04}");
    let said = |n: usize| one_text(&person(n % 30), &format!("wamid.{n:03}"), "hello", i64::try_from(n).unwrap());
    for round in 0..4 {
        let posts = (0..60).map(|chunk| {
            let frames = (0..10).map(|i| world.frame(said((chunk * 7 + i * 13 + round) % 300).as_bytes())).collect();
            world.publish(frames)
        });
        futures_util::future::join_all(posts).await;
    }
    let all =
        (0..30).map(|chunk| world.publish((0..10).map(|i| world.frame(said(chunk * 10 + i).as_bytes())).collect()));
    futures_util::future::join_all(all).await;
    world.until(MESSAGES, &["300"]).await;
    world.until_empty().await;
    assert_eq!(world.texts("SELECT CAST(sum(unread_count) AS TEXT) FROM conversations").await, ["300"]);
    assert_eq!(world.texts(UNREAD).await, ["10"; 30]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM contacts").await, ["30"]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM dead_letters").await, ["0"]);
    world.holds().await;
    for ingest in running {
        ingest.stopped().await;
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn an_item_without_an_id_is_known_again_by_its_bytes(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let mut nameless = text(RITA, "-", "first contact", 0);
    nameless.as_object_mut().unwrap().remove("id");
    let mut other = nameless.clone();
    other["text"]["body"] = json!("another");
    let twice = body(&[value(&[nameless.clone(), nameless.clone()], &[])]);
    world.post(&[&twice, &body(&[value(&[nameless, other], &[])])]).await;
    let ingest = world.start("a");
    world.until("SELECT body FROM messages ORDER BY id", &["first contact", "another"]).await;
    world.until_empty().await;
    let keys = "SELECT CAST(count(*) AS TEXT) FROM messages WHERE provider_message_id LIKE 'x:%' AND length(provider_message_id) = 66";
    assert_eq!(world.texts(keys).await, ["2"]);
    assert_eq!(world.texts(UNREAD).await, ["2"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_stores_what_is_missing_and_counts_only_what_is_young(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    let old = 25 * 3600;
    let replayed = |messages: &[Value]| {
        let Frame::Webhook(WebhookFrame { mut head, body }) = world.frame(body(&[value(messages, &[])]).as_bytes())
        else {
            unreachable!()
        };
        head.replay = true;
        Frame::Webhook(WebhookFrame { head, body })
    };
    world.publish(vec![replayed(&[text(RITA, "old", "yesterday", -old)])]).await;
    world.until(MESSAGES, &["1"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(UNREAD).await, ["0"]);
    assert_eq!(
        world.texts("SELECT CAST(count(*) AS TEXT) FROM conversations WHERE window_expires_at IS NULL").await,
        ["1"]
    );
    world.run("UPDATE conversations SET status = 'CLOSED'").await;
    let again = [text(RITA, "old", "yesterday", -old), text(RITA, "older", "before", -old - 60)];
    world.publish(vec![replayed(&again)]).await;
    world.until(MESSAGES, &["2"]).await;
    assert_eq!(world.texts("SELECT status FROM conversations").await, ["CLOSED"]);
    world.publish(vec![replayed(&[text(RITA, "young", "just now", 0)])]).await;
    world.until("SELECT status || ' ' || CAST(unread_count AS TEXT) FROM conversations", &["OPEN 1"]).await;
    let latest = "SELECT m.body FROM conversations c JOIN messages m ON m.id = c.last_message_id";
    assert_eq!(world.texts(latest).await, ["just now"]);
    // A webhook that was late by itself counts: nobody has seen it yet.
    world.clock.advance(Duration::from_secs(1));
    world.post(&[&one_text(RITA, "late", "late", -old)]).await;
    world.until(UNREAD, &["2"]).await;
    ingest.stopped().await;
}
