//! Answers that never came: held for evidence, never sent again blindly.

use crate::world::{Setup, Stack, World, now};
use domain::{MessageId, SendState, Status};
use rstest::rstest;
use simulator::{Fault, Script, When};
use store::receipt::{self, NewReceipt};

#[rstest]
#[case::no_answer(Fault::HangAfter)]
#[case::cut_off(Fault::CutAfter { reset: true })]
#[case::half_an_answer(Fault::HalfAnswer { accepted: true })]
#[case::rubbish(Fault::Garbage { accepted: true })]
#[case::no_id(Fault::NoId { accepted: true })]
#[case::gateway_timeout(Fault::Html { status: 504, accepted: true })]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_may_have_been_taken_waits_blocks_its_lane_and_is_settled_by_evidence(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
    #[case] fault: Fault,
) {
    let world = World::new(Setup { conversations: 2, ..Setup::on(stack) }).await;
    world.provider.script(Script::once(When::any(), fault));
    let message = world.accept("sales", 0, "perhaps").await;
    let next = world.accept("sales", 0, "behind it").await;
    let sender = world.sender("sender-1");
    world.until("the outcome is unknown", async || world.state_of(message).await == Some(SendState::Unknown)).await;
    let shown = world.message(message).await;
    assert_eq!((shown.status, shown.outcome_unknown), (Status::Sending, true));
    let elsewhere = world.accept("sales", 1, "to somebody else").await;
    world.until_all(&[elsewhere], Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 2, "nothing is sent again, and nothing overtakes it in its lane");

    let call = world.provider.calls().remove(0);
    receive(&world, call.wamid.unwrap(), call.correlation).await;
    world.until_all(&[message], Status::Delivered).await;
    world.until_all(&[next], Status::Sent).await;
    assert!(!world.message(message).await.outcome_unknown);
    sender.stop().await;
    world.keeps_its_promises().await;
}

/// The provider's own word, as ingest would write it down.
async fn receive(world: &World, wamid: String, correlation: Option<String>) {
    let receipt = NewReceipt {
        account: world.ids["sales"],
        provider_message_id: wamid,
        status: Some(Status::Delivered),
        provider_status: "delivered".into(),
        occurred_at: now(),
        received_at: now(),
        correlation,
        error_code: None,
        error_message: None,
        pricing: None,
        raw: None,
        webhook: None,
    };
    let mut tx = world.store().begin().await.unwrap();
    receipt::apply(&mut tx, &[receipt], now()).await.unwrap();
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_cut_before_it_was_taken_is_unknown_too_and_nobody_sends_it_again(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 3, ..Setup::on(stack) }).await;
    world.provider.script(Script::once(When::any(), Fault::CutBefore { reset: false }).times(3));
    let mut messages: Vec<MessageId> = Vec::new();
    for n in 0..3 {
        messages.push(world.accept("sales", n, "hello").await);
    }
    let sender = world.sender("sender-1");
    for message in &messages {
        world.until("unknown", async || world.state_of(*message).await == Some(SendState::Unknown)).await;
    }
    assert_eq!(world.provider.stats().calls.calls, 3);
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_cannot_be_reached_was_certainly_not_called(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let mut world = World::new(Setup::on(stack)).await;
    let real = world.accounts[0].api_base.clone();
    let port = testkit::servers::free_port().unwrap();
    world.accounts[0].api_base = format!("http://127.0.0.1:{port}/v25.0");
    let message = world.accept("sales", 0, "hello").await;
    let sender = world.sender("sender-1");
    world.until("it was tried", async || !world.attempts(message).await.is_empty()).await;
    let attempt = world.attempts(message).await.remove(0);
    assert_eq!(attempt.outcome, domain::AttemptOutcome::Retry);
    assert_eq!(attempt.provider_code.as_deref(), Some("unreachable"));
    sender.stop().await;
    world.accounts[0].api_base = real;
    let sender = world.sender("sender-2");
    world.until_all(&[message], Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 1);
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_dies_in_a_call_leaves_an_unknown_outcome_not_a_second_call(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 2, ..Setup::on(stack) }).await;
    world.provider.script(Script::once(When::any(), Fault::HangAfter));
    let message = world.accept("sales", 0, "hello").await;
    let sender = world.sender_of_its_own("sender-1").await;
    world.until("it is called", async || world.provider.stats().calls.calls == 1).await;
    sender.kill().await;
    let second = world.sender_of_its_own("sender-2").await;
    world.until("its lease ran out", async || world.state_of(message).await == Some(SendState::Unknown)).await;
    let elsewhere = world.accept("sales", 1, "to somebody else").await;
    world.until_all(&[elsewhere], Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 2, "the second one called for what came later, and for that alone");
    second.stop().await;
    world.keeps_its_promises().await;
}
