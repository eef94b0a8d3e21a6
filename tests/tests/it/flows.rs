//! The life of a message, on every combination of database and queue.

use crate::ROOST;
use roost_tests::{Stack, System, SystemOptions, wait};
use rstest::rstest;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::sqlite_rabbitmq(Stack::SqliteRabbitMq)]
#[case::postgres_embedded(Stack::PostgresEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn a_customer_writes_somebody_answers_and_the_answer_is_read(#[case] stack: Stack) {
    let system = System::start(ROOST, SystemOptions::new(stack)).await.unwrap();
    it_lives(&system).await;
}

#[tokio::test]
async fn the_same_with_a_process_for_each_role_on_postgres_rabbitmq() {
    let roles = [("ingress", "ingress"), ("ingest", "ingest"), ("inbox", "inbox"), ("sender", "sender")];
    let system = System::start(ROOST, SystemOptions::new(Stack::PostgresRabbitMq).with_roles(&roles)).await.unwrap();
    it_lives(&system).await;
}

async fn it_lives(system: &System) {
    let api = system.api();
    let posted = system.simulator.customer_writes("351912000333", "Rita Lopes", "Is the shop open?").done().await;
    assert!(posted.acknowledged, "{posted:?}\n{}", system.last_lines());

    let conversation =
        wait::until("the message in the inbox", SOON, async || api.conversation_with("+351912000333").await);
    let conversation = conversation.await.unwrap();
    assert_eq!(conversation.contact.full_name.as_deref(), Some("Rita Lopes"));
    assert_eq!(conversation.unread_count, 1);
    let messages = api.messages(conversation.id).await.unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].direction.as_str(), messages[0].status.as_str()), ("INBOUND", "RECEIVED"));
    assert_eq!(messages[0].body.as_deref(), Some("Is the shop open?"));

    let (status, answer) = api.send_text(conversation.id, "We close at 18:00", "intent-1").await.unwrap();
    assert_eq!(status, 202, "{answer}");
    let read = wait::until("the ticks to read", SOON, async || {
        let messages = api.messages(conversation.id).await?;
        Ok(messages.into_iter().find(|message| message.direction == "OUTBOUND" && message.status == "READ"))
    });
    let read = read.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    assert!(read.provider_message_id.is_some_and(|id| id.starts_with("wamid.")));
    assert_eq!(system.simulator.order("351912000333"), ["We close at 18:00"]);
    assert!(system.simulator.accepted_twice().is_empty());
}
