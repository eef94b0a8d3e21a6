//! Webhooks: signed as Meta signs, repeated until 200, in every order on demand.

use crate::receiver::{Receiver, wired};
use crate::socket::{begin_send, read_to_end, send};
use crate::{NUMBER, RITA, SOON, text};
use rstest::rstest;
use simulator::{
    BatchItem, CustomerMessage, Fault, Forgery, Says, Script, Simulator, SimulatorOptions, StatusPlan, Tick,
    WebhookOptions, When, signature,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const CORRELATION: &str = "r1.abcdefghi0.7.0.1";

#[tokio::test]
async fn a_customers_text_arrives_signed_in_metas_spelling() {
    let (simulator, receiver) = wired(&[]).await;
    let delivery = simulator.customer_writes(RITA, "Rita Löpes", "هل المحل مفتوح؟ 24/7");
    let wamid = delivery.wamid().to_owned();
    let posted = delivery.done().await;
    assert_eq!((posted.acknowledged, posted.status, posted.tries), (true, Some(200), 1));

    let got = &receiver.got()[0];
    assert_eq!(
        got.signature.as_deref(),
        Some(signature(&domain::Secret::new("simulated-app-secret"), &got.body).as_str())
    );
    let raw = std::str::from_utf8(&got.body).unwrap();
    assert!(raw.is_ascii());
    assert!(raw.contains(r"24\/7") && raw.contains(r"L\u00f6pes"), "{raw}");

    let json = got.json();
    assert_eq!(json["object"], "whatsapp_business_account");
    let value = &json["entry"][0]["changes"][0]["value"];
    assert_eq!(json["entry"][0]["changes"][0]["field"], "messages");
    assert_eq!(value["metadata"]["phone_number_id"], NUMBER);
    assert_eq!(value["contacts"][0]["wa_id"], RITA);
    assert_eq!(value["contacts"][0]["profile"]["name"], "Rita Löpes");
    let message = &value["messages"][0];
    assert_eq!((message["id"].as_str(), message["from"].as_str()), (Some(wamid.as_str()), Some(RITA)));
    assert_eq!(message["text"]["body"], "هل المحل مفتوح؟ 24/7");
    assert!(message["timestamp"].is_string());
}

#[tokio::test]
async fn a_webhook_is_repeated_byte_for_byte_until_200() {
    let (simulator, receiver) = wired(&[503, 500, 202, 404]).await;
    let delivery = simulator.customer_writes(RITA, "Rita", "hello");
    let wamid = delivery.wamid().to_owned();
    assert_eq!(delivery.done().await.tries, 5, "anything but 200 is a failure, 202 too");
    let bodies: BTreeSet<_> = receiver.got().into_iter().map(|got| got.body).collect();
    assert_eq!(bodies.len(), 1);
    let gaps: Vec<Duration> = receiver.got().windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(gaps[2] > gaps[0], "the waits grow: {gaps:?}");

    let acknowledged = simulator.acknowledged();
    assert_eq!(acknowledged.len(), 1);
    assert_eq!((acknowledged[0].item.id.as_str(), acknowledged[0].item.what.as_str()), (wamid.as_str(), "message"));
    let stats = simulator.stats().webhooks;
    assert_eq!((stats.posted, stats.tries, stats.failed_tries, stats.acknowledged), (1, 5, 4, 1));
}

#[tokio::test]
async fn a_receiver_that_is_away_gets_it_when_it_is_back_and_one_that_stays_away_is_given_up() {
    let receiver = Receiver::start(&[]).await;
    let nobody = {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/webhooks/meta", free.local_addr().unwrap())
    };
    let webhooks = WebhookOptions { give_up_after: Duration::from_millis(1500), ..WebhookOptions::default() };
    let simulator = Simulator::start(SimulatorOptions {
        webhook_urls: vec![nobody.clone()],
        webhooks,
        ..SimulatorOptions::default()
    })
    .await
    .unwrap();
    let delivery = simulator.customer_writes(RITA, "Rita", "hello");
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.failed_tries >= 2).await);
    simulator.set_webhook_urls(std::slice::from_ref(&receiver.url)).unwrap();
    assert!(delivery.done().await.acknowledged);

    simulator.set_webhook_urls(&[nobody]).unwrap();
    let lost = simulator.customer_writes(RITA, "Rita", "lost");
    let wamid = lost.wamid().to_owned();
    assert!(!lost.done().await.acknowledged);
    assert_eq!(simulator.abandoned().iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), [wamid.as_str()]);
    assert!(simulator.set_webhook_urls(&["ftp://example.org".into()]).is_err());
}

#[tokio::test]
async fn statuses_follow_an_acceptance_with_our_correlation() {
    let (simulator, receiver) = wired(&[]).await;
    let json = send(simulator.address(), &text(RITA, "x", CORRELATION)).await.json();
    let wamid = json["messages"][0]["id"].as_str().unwrap();
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
    for got in receiver.got() {
        let status = &got.json()["entry"][0]["changes"][0]["value"]["statuses"][0];
        assert_eq!(status["id"], wamid);
        assert_eq!(status["biz_opaque_callback_data"], CORRELATION);
        assert_eq!(status["recipient_id"], RITA);
    }
}

#[tokio::test]
async fn an_early_status_is_acknowledged_before_the_call_is_answered() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.set_statuses(StatusPlan::early(Duration::from_millis(400)));
    let mut stream = begin_send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 1).await);
    assert_eq!(receiver.words(), ["sent"]);
    assert_eq!(simulator.stats().calls.open, 1, "the call is still waiting");
    assert_eq!(read_to_end(&mut stream, SOON).await.status(), 200);
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
}

#[tokio::test]
async fn late_statuses_are_late() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.set_statuses(StatusPlan::late(Duration::from_millis(500)));
    let start = Instant::now();
    send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(start.elapsed() < Duration::from_millis(500), "the answer does not wait");
    assert!(simulator.settled(SOON).await);
    assert!(receiver.got()[0].at - start >= Duration::from_millis(500));
}

#[tokio::test]
async fn doubled_statuses_come_twice_and_reordered_ones_out_of_order() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.set_statuses(StatusPlan { doubled: 1.0, ..StatusPlan::default() });
    send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words(), ["sent", "sent", "delivered", "delivered", "read", "read"]);
    assert!(simulator.acknowledged().iter().all(|one| one.times == 2));

    simulator.set_statuses(StatusPlan { reordered: 1.0, ..StatusPlan::default() });
    for n in 0..12 {
        send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.{n}.0.1"))).await;
        assert!(simulator.settled(SOON).await);
    }
    let orders: BTreeSet<Vec<String>> = receiver.words()[6..].chunks(3).map(<[String]>::to_vec).collect();
    assert!(orders.len() >= 3, "{orders:?}");
    assert!(orders.iter().all(|order| order.iter().collect::<BTreeSet<_>>().len() == 3), "{orders:?}");
}

#[tokio::test]
async fn silent_plans_say_nothing_and_failing_ones_say_why() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.set_statuses(StatusPlan::silent());
    send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.got().len(), 0);

    let script = Script::once(When::any(), Fault::Accept).with_statuses(StatusPlan::failed(131_047));
    simulator.script(script);
    send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.settled(SOON).await);
    let status = &receiver.got()[0].json()["entry"][0]["changes"][0]["value"]["statuses"][0];
    assert_eq!((status["status"].as_str(), status["errors"][0]["code"].as_i64()), (Some("failed"), Some(131_047)));
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn batched_statuses_of_many_messages_share_bodies() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.set_statuses(StatusPlan { batched: 1.0, ..StatusPlan::default() });
    for n in 0..5 {
        send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.{n}.0.1"))).await;
    }
    assert!(simulator.settled(SOON).await);
    let got = receiver.got();
    assert_eq!(receiver.words().len(), 15);
    assert!(got.len() < 15, "{} bodies", got.len());
    assert!(got.iter().any(|got| got.json()["entry"][0]["changes"].as_array().unwrap().len() > 1));
    assert_eq!(simulator.acknowledged().len(), 15);
}

#[tokio::test]
async fn a_statuses_evidence_follows_an_acceptance_nobody_was_told_of() {
    let (simulator, receiver) = wired(&[]).await;
    simulator.script(Script::once(When::any(), Fault::CutAfter { reset: true }));
    send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
}

#[tokio::test]
async fn a_body_may_hold_entries_of_changes_of_messages_and_statuses() {
    let (simulator, receiver) = wired(&[]).await;
    let change = |c: u32| -> Vec<BatchItem> {
        let message = |m: u32| BatchItem::Message(CustomerMessage::text(RITA, "Rita", format!("{c}.{m}")));
        (0..3).map(message).collect()
    };
    let status = |status| BatchItem::Status {
        account: None,
        wamid: "wamid.OURS".into(),
        status,
        recipient: RITA.into(),
        correlation: None,
        at: None,
        code: None,
    };
    let mut last = change(3);
    last.extend([status(Tick::Sent), status(Tick::Delivered)]);
    let delivery = simulator.post_batch(&[vec![change(0), change(1)], vec![change(2), last]]);
    assert_eq!(delivery.items().len(), 14);
    assert!(delivery.done().await.acknowledged);
    let got = &receiver.got()[0];
    let json = got.json();
    assert_eq!(json["entry"].as_array().unwrap().len(), 2);
    assert_eq!(json["entry"][1]["changes"].as_array().unwrap().len(), 2);
    assert_eq!((got.messages().len(), got.statuses().len()), (12, 2));
    assert_eq!(simulator.acknowledged().len(), 14);
}

#[rstest]
#[case(Says::Image { caption: Some("look".into()) }, "image", "caption")]
#[case(Says::Document { filename: "cv.pdf".into(), caption: None }, "document", "filename")]
#[case(Says::Voice, "audio", "voice")]
#[case(Says::Video { caption: None }, "video", "mime_type")]
#[case(Says::Sticker, "sticker", "animated")]
#[case(Says::Location { latitude: 41.15, longitude: -8.61, name: None }, "location", "latitude")]
#[case(Says::Reaction { to: "wamid.X".into(), emoji: String::new() }, "reaction", "message_id")]
#[case(Says::Button { text: "Yes".into(), payload: "YES".into() }, "button", "payload")]
#[case(Says::ListReply { id: "slot-2".into(), title: "Tuesday".into() }, "interactive", "list_reply")]
#[case(Says::Edit { of: "wamid.X".into(), body: "six".into() }, "edit", "original_message_id")]
#[case(Says::Revoke { of: "wamid.X".into() }, "revoke", "original_message_id")]
#[case(Says::Unheard, "hologram", "depth")]
#[tokio::test]
async fn every_kind_has_the_shape_of_its_type(#[case] says: Says, #[case] kind: &str, #[case] member: &str) {
    let (simulator, receiver) = wired(&[]).await;
    simulator.customer_sends(CustomerMessage::of(RITA, "Rita", says)).done().await;
    let message = &receiver.got()[0].messages()[0];
    assert_eq!(message["type"], kind);
    assert!(message[kind].get(member).is_some(), "{message}");
}

#[tokio::test]
async fn duplicates_are_the_same_bytes() {
    let (simulator, receiver) = wired(&[]).await;
    let delivery = simulator.customer_writes(RITA, "Rita", "hello");
    let wamid = delivery.wamid().to_owned();
    delivery.done().await;
    for _ in 0..3 {
        assert!(simulator.repeat(&wamid).unwrap().done().await.acknowledged);
    }
    assert_eq!(receiver.got().into_iter().map(|got| got.body).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(simulator.acknowledged()[0].times, 4);
    assert!(simulator.repeat("wamid.UNKNOWN").is_none());
}

#[rstest]
#[tokio::test]
async fn a_forgery_is_wrong_in_its_own_way(
    #[values(
        Forgery::Missing,
        Forgery::Empty,
        Forgery::Malformed,
        Forgery::WrongSecret,
        Forgery::OtherBody,
        Forgery::OldScheme
    )]
    how: Forgery,
) {
    let (simulator, receiver) = wired(&[]).await;
    assert_eq!(simulator.forge(how, &CustomerMessage::text(RITA, "Rita", "forged")).await, Some(401));
    let got = &receiver.got()[0];
    let right = signature(&domain::Secret::new("simulated-app-secret"), &got.body);
    assert_ne!(got.signature, Some(right));
    assert_eq!(got.signature.is_none(), how == Forgery::Missing);
    let stats = simulator.stats().webhooks;
    assert_eq!((stats.forged_refused, stats.forged_accepted), (1, 0));
    assert_eq!(simulator.acknowledged().len(), 0);
}

#[tokio::test]
async fn the_subscription_check_wants_exactly_its_challenge() {
    let (simulator, receiver) = wired(&[]).await;
    let shaken = simulator.handshake("a token & more").await.unwrap();
    assert_eq!((shaken.status, shaken.echoed), (200, true));
    let got = &receiver.got()[0];
    assert_eq!(got.method, "GET");
    assert!(got.query.starts_with("hub.mode=subscribe&hub.verify_token=a%20token%20%26%20more&hub.challenge="));
}
