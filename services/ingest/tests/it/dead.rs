//! What died in a queue ends as a row, and only the guilty stays dead.

use crate::said::{RITA, one_text};
use crate::support::{DEAD_LETTERS, MESSAGES, Stack, World};
use bytes::Bytes;
use domain::wire::{Beat, Frame, SendRef, SendRefs, SendResults, WebhookBatch, Wire};
use domain::{AccountName, MessageId};
use queue::Settle;
use queue::topics::{DEAD, OUTBOUND, RESULTS, WEBHOOKS};
use rstest::rstest;
use std::time::Duration;
use testkit::wait;

/// Takes what waits and sets it aside, as a consumer would that cannot go on with it.
async fn let_die<T: Wire>(world: &World, topic: &queue::Topic<T>, account: Option<&AccountName>) {
    let mut consumer = world.queue.consume(topic, account, 1).await;
    let delivery = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.expect("a delivery").unwrap();
    let verdict = Settle::DeadLetter { reason_code: "given_up".into(), reason: "it failed 20 times".into() };
    delivery.settle(verdict).await;
    // Carried out in the background.
    let died = async || world.queue.depth(&DEAD, None).await.unwrap().ready > 0;
    wait::until_so("it reaches the dead letters", Duration::from_secs(30), died).await;
    consumer.close(Vec::new()).await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_batch_is_taken_apart_and_its_webhooks_go_through_again(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let bodies: Vec<String> = (0..5).map(|n| one_text(RITA, &n.to_string(), "hello", n)).collect();
    world.post(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let_die(&world, &WEBHOOKS, None).await;
    let ingest = world.start("a");
    world.until(MESSAGES, &["5"]).await;
    world.until_empty().await;
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_died_alone_is_a_row_with_its_bytes_and_its_reason(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let frame = world.frame(b"\x00\xffguilty");
    for _ in 0..2 {
        world.publish(vec![frame.clone()]).await;
        let_die(&world, &WEBHOOKS, None).await;
        let ingest = world.start("a");
        world.until(DEAD_LETTERS, &["1"]).await;
        let gone = async || world.queue.depth(&DEAD, None).await.unwrap().ready == 0;
        wait::until_so("it is taken from the dead letters", Duration::from_secs(30), gone).await;
        ingest.stopped().await;
    }
    let mut tx = world.store.read().await.unwrap();
    let letter = store::dead_letter::open(&mut tx, 2).await.unwrap().remove(0);
    assert_eq!((letter.body.as_slice(), letter.attempts), (b"\x00\xffguilty".as_slice(), 2));
    assert_eq!(
        (letter.error_code.as_deref(), letter.error_message.as_deref()),
        (Some("given_up"), Some("it failed 20 times"))
    );
    let kept = store::webhook_event::find(&mut tx, letter.request_id.unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((kept.body.as_deref(), kept.outcome.as_str()), (Some(b"\x00\xffguilty".as_slice()), "DEAD"));
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_is_kept_and_what_only_refers_to_a_row_is_dropped(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let sales: AccountName = "sales".parse().unwrap();
    let refs = SendRefs { items: vec![SendRef { message: MessageId::new(1), generation: 0 }] };
    if stack == Stack::SqliteEmbedded {
        // The broker drops such references by itself.
        world.publish_for(&OUTBOUND, Some(&sales), &refs).await;
        let mut consumer = world.queue.consume(&OUTBOUND, Some(&sales), 1).await;
        let delivery = consumer.next().await.unwrap();
        delivery.settle(Settle::DeadLetter { reason_code: "given_up".into(), reason: "-".into() }).await;
        consumer.close(Vec::new()).await;
    }
    let beat =
        Beat { instance: "i".into(), version: "0".into(), started_at: world.now(), at: world.now(), refused: vec![] };
    world.publish(vec![Frame::Beat(beat)]).await;
    let_die(&world, &WEBHOOKS, None).await;
    world.publish_to(&RESULTS, &SendResults { items: Vec::new() }).await;
    let_die(&world, &RESULTS, None).await;
    let rubbish = Bytes::from_static(b"\x09 from another version");
    world.publish_bytes(&WEBHOOKS, rubbish.clone()).await;
    assert!(WebhookBatch::from_bytes(&rubbish).is_err());

    let ingest = world.start("a");
    let rows = "SELECT stage || ' ' || queue || ' ' || error_class FROM dead_letters ORDER BY stage";
    world.until(rows, &["INGEST roost.webhooks UNDECODABLE", "RESULT roost.results DIED"]).await;
    world.until_empty().await;
    let mut tx = world.store.read().await.unwrap();
    let letters = store::dead_letter::open(&mut tx, 10).await.unwrap();
    assert!(letters.iter().any(|letter| letter.body == rubbish));
    drop(tx);
    ingest.stopped().await;
}
