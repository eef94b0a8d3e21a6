//! What each answer of a provider leads to.

use crate::world::{Setup, Stack, World};
use domain::{AttemptOutcome, Content, SendState, Status};
use rstest::rstest;
use simulator::{Fault, Script, When};
use std::time::{Duration, Instant};
use store::account;

fn outcomes(attempts: &[store::attempt::AttemptRow]) -> Vec<AttemptOutcome> {
    attempts.iter().map(|attempt| attempt.outcome).collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_and_template_reach_the_provider_once_and_become_sent(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 2, ..Setup::on(stack) }).await;
    let text = world.accept("sales", 0, "your visa is ready").await;
    let params = vec!["Rita".to_owned(), "Porto".to_owned()];
    let template = Content::Template { name: "order_ready".into(), language: "pt_PT".into(), params };
    let template = world.accept_content("sales", 1, &template).await;
    let sender = world.sender("sender-1");
    world.until_all(&[text, template], Status::Sent).await;

    let calls = world.provider.calls();
    assert_eq!(calls.len(), 2);
    let call = world.provider.calls_to(&world.recipient("sales", 0)).remove(0);
    assert_eq!((call.kind.as_str(), call.text.as_str()), ("text", "your visa is ready"));
    let correlation = call.correlation.unwrap();
    assert!(correlation.starts_with("r1.") && correlation.ends_with(&format!(".{text}.0.1")), "{correlation}");
    assert_eq!(world.message(text).await.provider_message_id, call.wamid);
    let call = world.provider.calls_to(&world.recipient("sales", 1)).remove(0);
    assert_eq!(call.kind, "template");
    let attempt = &world.attempts(text).await[0];
    assert_eq!((attempt.outcome, attempt.worker.as_deref()), (AttemptOutcome::Accepted, Some("sender-1")));
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[case::server_error(Fault::http(500))]
#[case::gateway_page(Fault::gateway(503))]
#[case::unavailable(Fault::error(131_016))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_41_a_provider_that_fails_for_now_is_asked_again(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
    #[case] fault: Fault,
) {
    let world = World::new(Setup::on(stack)).await;
    world.provider.script(Script::once(When::any(), fault).times(2));
    let message = world.accept("sales", 0, "hello").await;
    let sender = world.sender("sender-1");
    world.until_all(&[message], Status::Sent).await;
    let want = [AttemptOutcome::Retry, AttemptOutcome::Retry, AttemptOutcome::Accepted];
    assert_eq!(outcomes(&world.attempts(message).await), want);
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[case::with_retry_after(Fault::throttled("2"), Duration::from_secs(2))]
#[case::without(Fault::http(429), Duration::from_secs(1))]
#[case::by_its_code(Fault::error(130_429), Duration::from_secs(1))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_41_a_throttled_account_waits_slows_down_and_loses_no_attempt(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
    #[case] fault: Fault,
    #[case] least: Duration,
) {
    let world = World::new(Setup { conversations: 2, ..Setup::on(stack) }).await;
    world.provider.script(Script::once(When::any(), fault));
    let throttled = world.accept("sales", 0, "hello").await;
    let sender = world.sender("sender-1");
    world.until("the throttling is written", async || world.attempts(throttled).await.len() == 1).await;
    let began = Instant::now();
    let other = world.accept("sales", 1, "waits with it").await;
    world.until_all(&[throttled, other], Status::Sent).await;
    let waited = began.elapsed();
    assert!(waited + Duration::from_millis(300) >= least, "nothing goes before {least:?}: {waited:?}");
    let attempts = world.attempts(throttled).await;
    assert_eq!(outcomes(&attempts), [AttemptOutcome::Throttled, AttemptOutcome::Accepted]);
    assert_eq!(world.provider.calls_to(&world.recipient("sales", 1)).len(), 1);
    let scope = store::rate_limit::account_scope(world.ids["sales"]);
    let mut tx = world.store().begin().await.unwrap();
    let wish = store::rate_limit::Wish { scope, wanted: 0, shared_rate: None };
    let (_, grants) = store::rate_limit::take_slots(&mut tx, &[wish], Duration::ZERO).await.unwrap();
    assert!(grants[0].rate < 1000.0, "slower than configured: {}", grants[0].rate);
    drop(tx);
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_41_a_refusal_fails_at_once_with_its_reason_and_frees_the_lane(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup::on(stack)).await;
    world.provider.script(Script::once(When::saying("refused"), Fault::error(131_026)));
    let refused = world.accept("sales", 0, "refused").await;
    let next = world.accept("sales", 0, "next").await;
    let sender = world.sender("sender-1");
    world.until_all(&[next], Status::Sent).await;
    let message = world.message(refused).await;
    assert_eq!(message.status, Status::Failed);
    assert_eq!(message.error_code.as_deref(), Some("131026"));
    assert!(message.error_message.is_some_and(|words| !words.is_empty()));
    assert_eq!(world.provider.stats().calls.calls, 2, "one call each");
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_41_an_expired_token_breaks_its_account_fails_nothing_and_leaves_the_others_alone(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let accounts = vec![("sales", 1000.0), ("support", 1000.0)];
    let world = World::new(Setup { accounts, conversations: 3, ..Setup::on(stack) }).await;
    let number = world.accounts[0].external_id.clone();
    world.provider.script(Script::always(When::from(number), Fault::error(190)));
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(world.accept("sales", n, "hello").await);
    }
    let sender = world.sender("sender-1");
    world.until("sales is broken", async || world.account_status("sales").await == "BROKEN").await;
    let fine = world.accept("support", 0, "hello").await;
    world.until_all(&[fine], Status::Sent).await;
    for message in &waiting {
        world.until("it waits", async || world.state_of(*message).await == Some(SendState::Waiting)).await;
        assert_eq!(world.status(*message).await, Status::Queued, "nothing failed");
    }
    let calls = world.provider.stats().calls.calls;
    let later = world.accept("support", 1, "hello").await;
    world.until_all(&[later], Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, calls + 1, "a broken account is left alone");

    world.provider.clear_scripts();
    let mut tx = world.store().begin().await.unwrap();
    assert!(account::resume(&mut tx, world.ids["sales"], crate::world::now()).await.unwrap());
    tx.commit().await.unwrap();
    world.until_all(&waiting, Status::Sent).await;
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_text_whose_window_has_shut_is_refused_without_a_call_and_a_template_goes(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = World::new(Setup { conversations: 2, window_open: false, ..Setup::on(stack) }).await;
    let text = world.accept("sales", 0, "too late").await;
    let template = Content::Template { name: "hello".into(), language: "en".into(), params: Vec::new() };
    let template = world.accept_content("sales", 1, &template).await;
    let sender = world.sender("sender-1");
    world.until_all(&[text], Status::Failed).await;
    world.until_all(&[template], Status::Sent).await;
    let message = world.message(text).await;
    assert_eq!(message.error_code.as_deref(), Some("window_closed"));
    assert_eq!(world.provider.stats().calls.calls, 1, "only the template was called");
    sender.stop().await;
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_44_a_paused_account_makes_no_call_and_goes_on_in_order(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let accounts = vec![("sales", 1000.0), ("support", 1000.0)];
    let world = World::new(Setup { accounts, ..Setup::on(stack) }).await;
    let mut tx = world.store().begin().await.unwrap();
    let reason = Some("a bad campaign");
    assert!(account::pause(&mut tx, world.ids["sales"], reason, None, None, crate::world::now()).await.unwrap());
    tx.commit().await.unwrap();
    let mut messages = Vec::new();
    for n in 0..4 {
        messages.push(world.accept("sales", 0, &format!("message {n}")).await);
    }
    let sender = world.sender("sender-1");
    let other = world.accept("support", 0, "another account's").await;
    world.until_all(&[other], Status::Sent).await;
    assert_eq!(world.provider.stats().calls.calls, 1, "what came later has gone, on the other account");
    let mut tx = world.store().begin().await.unwrap();
    assert!(account::resume(&mut tx, world.ids["sales"], crate::world::now()).await.unwrap());
    tx.commit().await.unwrap();
    world.until_all(&messages, Status::Sent).await;
    let order: Vec<String> = world.provider.calls().into_iter().skip(1).map(|call| call.text).collect();
    assert_eq!(order, ["message 0", "message 1", "message 2", "message 3"]);
    sender.stop().await;
    world.keeps_its_promises().await;
}
