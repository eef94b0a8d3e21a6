//! One bad item never loses its neighbours.

use crate::said::{RITA, body, one_status, one_text, status, text, value};
use crate::support::{DEAD_LETTERS, DEADLINE, Stack, World};
use bytes::Bytes;
use queue::topics::{DEAD, WEBHOOKS};
use rstest::rstest;
use serde_json::Value;
use testkit::wait;

/// A rule that the database gets for the test: no text says so. Stands for whatever a later migration, a limit or a bug
/// makes the database refuse.
async fn refuse_poison(world: &World, stack: Stack) {
    match stack {
        Stack::PostgresRabbitMq => {
            world.run("ALTER TABLE messages ADD CONSTRAINT no_poison_ck CHECK (body NOT LIKE 'poison%')").await;
        }
        Stack::SqliteEmbedded => {
            world
                .run(
                    "CREATE TRIGGER no_poison BEFORE INSERT ON messages WHEN NEW.body LIKE 'poison%'
                      BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: no_poison_ck'); END",
                )
                .await;
        }
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn items_the_database_refuses_stand_alone_as_dead_letters_and_every_neighbour_is_stored(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    refuse_poison(&world, stack).await;
    // 200 messages of 20 people in 40 webhooks; three of them are poison, one of those beside good ones in its body.
    let words = |n: i64| if [17, 18, 133].contains(&n) { format!("poison {n}") } else { format!("fine {n}") };
    let bodies: Vec<String> = (0..40)
        .map(|hook| {
            let message = |n: i64| text(&format!("3519120000{:02}", n % 20), &format!("wamid.{n:03}"), &words(n), n);
            let messages: Vec<Value> = (hook * 5..hook * 5 + 5).map(message).collect();
            body(&[value(&messages, &[status(&format!("wamid.ours.{hook}"), "sent", 0)])])
        })
        .collect();
    let all: Vec<&str> = bodies.iter().map(String::as_str).collect();
    world.post(&all).await;
    let ingest = world.start("a");
    world.until("SELECT CAST(count(*) AS TEXT) FROM messages WHERE body LIKE 'fine%'", &["197"]).await;
    world.until_empty().await;
    let dead = "SELECT error_class || ' ' || error_message FROM dead_letters";
    assert_eq!(world.texts(dead).await, ["REFUSED the database refuses it by no_poison_ck"; 3]);
    let groups = "SELECT CAST(count(*) AS TEXT) FROM dead_letters GROUP BY fingerprint";
    assert_eq!(world.texts(groups).await, ["3"], "one cause, one group");
    assert_eq!(world.texts("SELECT CAST(sum(unread_count) AS TEXT) FROM conversations").await, ["197"]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM message_status_events").await, ["40"]);
    let outcomes =
        "SELECT outcome || ' ' || CAST(count(*) AS TEXT) FROM webhook_events GROUP BY outcome ORDER BY outcome";
    assert_eq!(world.texts(outcomes).await, ["PARTIAL 2", "PROCESSED 38"]);
    let mut tx = world.store.read().await.unwrap();
    for letter in store::dead_letter::open(&mut tx, 10).await.unwrap() {
        let item: Value = serde_json::from_slice(&letter.body).unwrap();
        assert!(item["text"]["body"].as_str().unwrap().starts_with("poison"), "the item as it arrived");
        assert!(!format!("{:?}", letter.error_message).contains("poison 1"), "the reason quotes nothing of it");
        assert_eq!((letter.attempts, letter.replayable), (1, true));
    }
    drop(tx);
    world.holds().await;
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_webhook_the_database_refuses_is_a_dead_letter_as_a_whole(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    match stack {
        Stack::PostgresRabbitMq => {
            world.run("ALTER TABLE webhook_events ADD CONSTRAINT small_ck CHECK (octet_length(body) < 1000)").await;
        }
        Stack::SqliteEmbedded => {
            world
                .run(
                    "CREATE TRIGGER small BEFORE INSERT ON webhook_events WHEN length(NEW.body) >= 1000
                      BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: small_ck'); END",
                )
                .await;
        }
    }
    let large = one_text(RITA, "large", &"x".repeat(2_000), 0);
    world
        .post(&[&one_text(RITA, "a", "one", 0), &large, &one_text(RITA, "b", "two", 1), &one_status("x", "read", 0)])
        .await;
    let ingest = world.start("a");
    world.until("SELECT body FROM messages ORDER BY id", &["one", "two"]).await;
    world.until(DEAD_LETTERS, &["1"]).await;
    world.until_empty().await;
    let mut tx = world.store.read().await.unwrap();
    let letter = store::dead_letter::open(&mut tx, 1).await.unwrap().remove(0);
    assert_eq!(letter.body, large.as_bytes());
    assert_eq!(letter.error_message.as_deref(), Some("the database refuses it by small_ck"));
    ingest.stopped().await;
}

/// A further rule: no dead letter of this class, or none with bytes.
async fn refuse_dead_letters(world: &World, stack: Stack, class: &'static str) {
    match (stack, class) {
        (Stack::PostgresRabbitMq, "REFUSED") => {
            world.run("ALTER TABLE dead_letters ADD CONSTRAINT bare_ck CHECK (error_class <> 'REFUSED' OR octet_length(body) = 0)").await;
        }
        (Stack::PostgresRabbitMq, _) => {
            world.run("ALTER TABLE dead_letters ADD CONSTRAINT none_ck CHECK (error_class <> 'UNDECODABLE')").await;
        }
        (Stack::SqliteEmbedded, "REFUSED") => {
            world
                .run(
                    "CREATE TRIGGER bare BEFORE INSERT ON dead_letters WHEN NEW.error_class = 'REFUSED' AND length(NEW.body) > 0
                      BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: bare_ck'); END",
                )
                .await;
        }
        (Stack::SqliteEmbedded, _) => {
            world
                .run(
                    "CREATE TRIGGER none BEFORE INSERT ON dead_letters WHEN NEW.error_class = 'UNDECODABLE'
                      BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: none_ck'); END",
                )
                .await;
        }
    }
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_the_database_refuses_is_kept_without_what_came_from_outside(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    refuse_poison(&world, stack).await;
    refuse_dead_letters(&world, stack, "REFUSED").await;
    let poison = one_text(RITA, "bad", "poison", 0);
    world.post(&[&one_text(RITA, "a", "one", 0), &poison, &one_text(RITA, "b", "two", 1)]).await;
    let ingest = world.start("a");
    world.until("SELECT body FROM messages ORDER BY id", &["one", "two"]).await;
    world.until(DEAD_LETTERS, &["1"]).await;
    world.until_empty().await;
    let mut tx = world.store.read().await.unwrap();
    let letter = store::dead_letter::open(&mut tx, 1).await.unwrap().remove(0);
    assert_eq!((letter.error_class.as_str(), letter.body.as_slice()), ("REFUSED", b"".as_slice()));
    assert_eq!(letter.error_message.as_deref(), Some("the database refuses it by bare_ck"));
    // Its bytes are where they can be read again.
    let kept = store::webhook_event::find(&mut tx, letter.request_id.unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((kept.body.as_deref(), kept.outcome.as_str()), (Some(poison.as_bytes()), "DEAD"));
    drop(tx);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_only_a_dead_letter_holds_wait_with_the_broker_until_the_database_takes_them(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    refuse_dead_letters(&world, stack, "UNDECODABLE").await;
    let rubbish = Bytes::from_static(b"\x09 from another version");
    world.publish_bytes(&WEBHOOKS, rubbish.clone()).await;
    world.post(&[&one_text(RITA, "a", "one", 0)]).await;
    let ingest = world.start("a");
    world.until("SELECT body FROM messages", &["one"]).await;
    world.until_empty().await;
    wait::until_so("it lies among the broker's dead letters and is tried again", DEADLINE, async || {
        world.queue.stats().topics.get(DEAD.name()).is_some_and(|dead| dead.unacked == 1 && dead.retried == 1)
    })
    .await;
    ingest.stopped().await;
    assert_eq!(world.depth(&DEAD).await.ready, 1);
    match stack {
        Stack::PostgresRabbitMq => world.run("ALTER TABLE dead_letters DROP CONSTRAINT none_ck").await,
        Stack::SqliteEmbedded => world.run("DROP TRIGGER none").await,
    }
    let ingest = world.start("b");
    world.until(DEAD_LETTERS, &["1"]).await;
    let mut tx = world.store.read().await.unwrap();
    assert_eq!(store::dead_letter::open(&mut tx, 1).await.unwrap().remove(0).body, rubbish);
    drop(tx);
    ingest.stopped().await;
}
