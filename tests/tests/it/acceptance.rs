//! Acceptance from outside, by number.

use crate::ROOST;
use domain::Timestamp;
use roost_tests::{Api, Message, PHONE_NUMBER_ID, Stack, System, SystemOptions, VERIFY_TOKEN, wait};
use rstest::rstest;
use simulator::{BatchItem, CustomerMessage, Fault, Forgery, Script, StatusPlan, Tick, When};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

async fn started(stack: Stack) -> System {
    let mut options = SystemOptions::new(stack);
    options.simulator.statuses = StatusPlan::silent();
    System::start(ROOST, options).await.unwrap()
}

fn message(from: &str, wamid: &str, text: &str) -> BatchItem {
    BatchItem::Message(CustomerMessage::text(from, "Rita", text).with_wamid(wamid))
}

fn status(wamid: &str, tick: Tick, at: Timestamp) -> BatchItem {
    BatchItem::Status {
        account: None,
        wamid: wamid.into(),
        status: tick,
        recipient: "351912000333".into(),
        correlation: None,
        at: Some(at),
        code: (tick == Tick::Failed).then_some(131_026),
    }
}

async fn messages_with(api: &Api, phone: &str, count: usize) -> Vec<Message> {
    let what = format!("{count} messages of {phone}");
    let found = wait::until(&what, SOON, async || {
        let Some(conversation) = api.conversation_with(phone).await? else { return Ok(None) };
        let messages = api.messages(conversation.id).await?;
        Ok((messages.len() >= count).then_some(messages))
    });
    found.await.unwrap()
}

/// A message of ours that the provider accepted and says nothing more about.
async fn sent(system: &System, from: &str, text: &str) -> (i64, Message) {
    system.simulator.customer_writes(from, "Rita", "Hello").done().await;
    let api = system.api();
    let phone = format!("+{from}");
    messages_with(&api, &phone, 1).await;
    let conversation = api.conversation_with(&phone).await.unwrap().unwrap().id;
    let (code, answer) = api.send_text(conversation, text, text).await.unwrap();
    assert_eq!(code, 202, "{answer}");
    let sent = wait::until("SENT", SOON, async || {
        let messages = api.messages(conversation).await?;
        Ok(messages.into_iter().find(|message| message.status == "SENT"))
    });
    (conversation, sent.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines())))
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_1_every_item_of_every_entry_and_change_arrives_once(#[case] stack: Stack) {
    let system = started(stack).await;
    let now = Timestamp::from_seconds(1_795_339_800);
    let mut entries = Vec::new();
    for entry in 0..2 {
        let mut changes = Vec::new();
        for change in 0..2 {
            let mut items: Vec<BatchItem> = (0..3)
                .map(|n| {
                    message("351912000333", &format!("wamid.AC1.{entry}{change}{n}"), &format!("{entry}{change}{n}"))
                })
                .collect();
            if change == 0 {
                items.push(status(&format!("wamid.OURS.{entry}"), Tick::Delivered, now));
            }
            changes.push(items);
        }
        entries.push(changes);
    }
    assert!(system.simulator.post_batch(&entries).done().await.acknowledged);
    // Once more: nothing doubles.
    assert!(system.simulator.post_batch(&entries).done().await.acknowledged);
    system.simulator.customer_writes("351912000334", "Last", "afterwards").done().await;
    let api = system.api();
    messages_with(&api, "+351912000334", 1).await;
    let messages = messages_with(&api, "+351912000333", 12).await;
    assert_eq!(messages.len(), 12);
    assert_eq!(api.conversation_with("+351912000333").await.unwrap().unwrap().unread_count, 12);
    let mut tx = system.store.read().await.unwrap();
    let parked = store::receipt::parked_count(&mut tx).await.unwrap();
    assert_eq!(parked, 2, "both receipts wait for their messages");
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_3_the_unsigned_are_refused_and_the_handshake_answers_with_the_bare_challenge(#[case] stack: Stack) {
    let system = started(stack).await;
    let forged = CustomerMessage::text("351912000999", "Mallory", "let me in");
    for forgery in Forgery::ALL {
        assert_eq!(system.simulator.forge(forgery, &forged).await, Some(401), "{forgery:?}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let alias = format!("{}/api/webhooks/whatsapp", system.ingress_url);
    let answer = client.post(&alias).header("x-hub-signature-256", "sha256=00").body("{}").send().await.unwrap();
    assert_eq!(answer.status(), 403);
    for address in [format!("{}/webhooks/meta", system.ingress_url), alias] {
        let ask = |query: String| client.get(format!("{address}?{query}")).send();
        let answer =
            ask(format!("hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge=1158201444")).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        assert_eq!(answer.text().await.unwrap(), "1158201444");
        assert_eq!(
            ask("hub.mode=subscribe&hub.verify_token=wrong&hub.challenge=1".into()).await.unwrap().status(),
            403
        );
        assert_eq!(ask("hub.mode=subscribe".into()).await.unwrap().status(), 400);
    }
    assert_eq!(
        client.post(format!("{}/webhooks/nobody", system.ingress_url)).body("{}").send().await.unwrap().status(),
        404
    );
    assert_eq!(
        client.put(format!("{}/webhooks/meta", system.ingress_url)).body("{}").send().await.unwrap().status(),
        405
    );
    system.simulator.customer_writes("351912000334", "Rita", "afterwards").done().await;
    let api = system.api();
    messages_with(&api, "+351912000334", 1).await;
    assert!(api.conversation_with("+351912000999").await.unwrap().is_none());
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_4_the_same_delivery_twenty_times_at_once_is_one_message(#[case] stack: Stack) {
    let system = started(stack).await;
    let body = [vec![vec![message("351912000333", "wamid.AC4", "once")]]].to_vec();
    let posts: Vec<_> = (0..20).map(|_| system.simulator.post_batch(&body)).collect();
    for post in posts {
        assert!(post.done().await.acknowledged);
    }
    system.simulator.customer_writes("351912000333", "Rita", "afterwards").done().await;
    let api = system.api();
    let messages = messages_with(&api, "+351912000333", 2).await;
    assert_eq!(messages.len(), 2);
    assert_eq!(api.conversation_with("+351912000333").await.unwrap().unwrap().unread_count, 2);
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_6_every_order_of_the_receipts_ends_where_the_rank_rule_says(#[case] stack: Stack) {
    let system = started(stack).await;
    let ticks = [Tick::Sent, Tick::Delivered, Tick::Read, Tick::Failed];
    let mut orders = Vec::new();
    for a in 0..4 {
        for b in 0..4 {
            for c in 0..4 {
                let d = 6 - (a + b + c).min(6);
                let order = [a, b, c, d];
                if (0..4).all(|n| order.contains(&n)) {
                    orders.push(order);
                }
            }
        }
    }
    assert_eq!(orders.len(), 24);
    let api = system.api();
    let (conversation, first) = sent(&system, "351912000333", "message 0").await;
    let mut wamids = vec![first.provider_message_id.unwrap()];
    for n in 1..24 {
        api.send_text(conversation, &format!("message {n}"), &format!("intent-{n}")).await.unwrap();
    }
    let all = wait::until("24 sent", Duration::from_secs(60), async || {
        let sent: Vec<_> = api
            .messages(conversation)
            .await?
            .into_iter()
            .filter(|m| m.direction == "OUTBOUND" && m.status == "SENT")
            .collect();
        Ok((sent.len() == 24).then_some(sent))
    });
    wamids.extend(all.await.unwrap().into_iter().skip(1).filter_map(|message| message.provider_message_id));
    let base = domain::Clock::now(&domain::SystemClock::default());
    for (wamid, order) in wamids.iter().zip(&orders) {
        for (step, tick) in order.iter().enumerate() {
            let at = base
                + Duration::from_secs(u64::try_from(*tick).unwrap())
                + Duration::from_millis(u64::try_from(step).unwrap());
            let posted = system.simulator.post_batch(&[vec![vec![status(wamid, ticks[*tick], at)]]]).done().await;
            assert!(posted.acknowledged);
        }
    }
    let read = wait::until("all READ", SOON, async || {
        let messages = api.messages(conversation).await?;
        Ok(messages.iter().filter(|m| m.direction == "OUTBOUND").all(|m| m.status == "READ").then_some(()))
    });
    read.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    let mut tx = system.store.read().await.unwrap();
    assert_eq!(store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap(), []);
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_7_a_receipt_half_a_second_before_the_sends_answer_is_kept_and_applied(#[case] stack: Stack) {
    let mut options = SystemOptions::new(stack);
    options.simulator.statuses = StatusPlan::steps(&[(Tick::Delivered, 0)]);
    options.simulator.statuses.early = 1.0;
    options.simulator.statuses.early_by_ms = 500;
    options.simulator.latency = Duration::from_millis(700);
    let system = System::start(ROOST, options).await.unwrap();
    system.simulator.customer_writes("351912000333", "Rita", "Hello").done().await;
    let api = system.api();
    messages_with(&api, "+351912000333", 1).await;
    let conversation = api.conversation_with("+351912000333").await.unwrap().unwrap().id;
    api.send_text(conversation, "an answer", "intent").await.unwrap();
    let delivered = wait::until("DELIVERED", SOON, async || {
        let messages = api.messages(conversation).await?;
        Ok(messages.into_iter().find(|message| message.status == "DELIVERED"))
    });
    assert!(delivered.await.unwrap().provider_message_id.is_some());
    assert_eq!(system.simulator.stats().calls.accepted, 1);
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_20_the_same_intent_ten_times_at_once_is_one_row_and_one_call(#[case] stack: Stack) {
    let system = started(stack).await;
    let (conversation, _) = sent(&system, "351912000333", "first").await;
    let api = system.api();
    // Long enough for all of them to find it running: told again once it is over, the answer is 200.
    system.simulator.script(Script::once(When::saying("only once"), Fault::Slow { ms: 5_000 }));
    let tries = (0..10).map(|_| api.send_text(conversation, "only once", "the-intent"));
    let answers = futures_util::future::join_all(tries).await;
    let ids: Vec<i64> = answers
        .into_iter()
        .map(|answer| {
            let (code, body) = answer.unwrap();
            assert_eq!(code, 202, "{body}");
            body["message"]["id"].as_i64().unwrap()
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let (code, body) = api.send_text(conversation, "something else", "the-intent").await.unwrap();
    assert_eq!(code, 422, "{body}");
    let done =
        wait::until("the second call", SOON, async || Ok((system.simulator.stats().calls.accepted == 2).then_some(())));
    done.await.unwrap();
    assert_eq!(system.simulator.order_on(PHONE_NUMBER_ID, "351912000333"), ["first", "only once"]);
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test]
async fn ac_41_a_rejection_is_failed_at_once_with_its_reason_and_a_500_is_tried_again(#[case] stack: Stack) {
    let mut options = SystemOptions::new(stack);
    options.more_config = "\n[tuning]\nretry_scale = 0.02\n".into();
    let system = System::start(ROOST, options).await.unwrap();
    let (conversation, _) = {
        system.simulator.customer_writes("351912000333", "Rita", "Hello").done().await;
        messages_with(&system.api(), "+351912000333", 1).await;
        (system.api().conversation_with("+351912000333").await.unwrap().unwrap().id, ())
    };
    let api = system.api();
    system.simulator.script(Script::once(When::saying("refused"), Fault::error(131_026)));
    system.simulator.script(Script::once(When::saying("again"), Fault::http(500)));
    api.send_text(conversation, "refused", "a").await.unwrap();
    api.send_text(conversation, "again", "b").await.unwrap();
    let ended = wait::until("both ends", SOON, async || {
        let messages = api.messages(conversation).await?;
        let status = |text: &str| messages.iter().find(|m| m.body.as_deref() == Some(text)).map(|m| m.status.clone());
        Ok((status("refused").as_deref() == Some("FAILED") && status("again").as_deref() == Some("READ")).then_some(()))
    });
    ended.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    assert_eq!(system.simulator.calls_to("351912000333").iter().filter(|call| call.text == "refused").count(), 1);
    assert_eq!(system.simulator.calls_to("351912000333").iter().filter(|call| call.text == "again").count(), 2);
    let answer =
        api.call(reqwest::Method::GET, &format!("/api/inbox/conversations/{conversation}"), None).await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.contains("131026"), "the reason is told: {text}");
}
