//! The inbox alone on a temporary database with a few conversations: for looking at the page while working on it.
//!
//! `cargo run -p inbox --example inbox-preview -- 127.0.0.1:8099`, then open the printed link. Every 20 s somebody writes.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for people at work on the page")]

use domain::{Account, Channel, Clock, OnUnknown, Role, Secret, Status, SystemClock, Timestamp};
use runtime::config::Tuning;
use runtime::health::Health;
use runtime::http_server::{Limits, RequestBody, Server};
use runtime::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, StoreOptions, StoreUrl, Tx};
use testkit::rows;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

fn sales() -> Account {
    Account {
        name: "sales".parse().unwrap(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: "sales".into(),
        parent_external_id: None,
        portfolio_id: None,
        display_address: Some("+971 4 000 0000".into()),
        api_base: "http://127.0.0.1:1/v25.0".into(),
        access_token: Secret::new("none"),
        rate_per_second: 80.0,
        pair_interval: Duration::ZERO,
        pair_burst: 1,
        window: Some(Duration::from_secs(24 * 3600)),
        on_unknown: OnUnknown::Hold,
    }
}

async fn fill(tx: &mut Tx, now: Timestamp) -> rows::Seeded {
    let ago = |minutes: u64| now - Duration::from_secs(minutes * 60);
    let account = rows::account(tx, "sales").await.unwrap();
    let sara = store::user::Declared { email: "sara@example.com".into(), name: "Sara".into(), role: Role::Agent };
    let owner = store::user::Declared { email: "owner@localhost".into(), name: "Owner".into(), role: Role::Admin };
    let people = store::user::mirror(tx, &[sara, owner], now).await.unwrap();
    let me = people.iter().find(|user| user.name == "Owner").unwrap().id;

    let others = [
        ("ليلى أحمد", "971501112233", "شكراً جزيلاً، متى يكون الموعد؟", 9),
        ("Bob Stone", "447700900123", "Do I need to bring the originals?", 43),
        ("Priya Nair", "971525557788", "Perfect, thank you!", 180),
        ("Tomás Ferreira", "351912000333", "I will ask my company and come back to you next week.", 1500),
        ("陈伟", "8613800138000", "你好，请问费用是多少？", 3100),
    ];
    for (index, (name, wa_id, text, minutes)) in others.into_iter().enumerate() {
        let one = rows::conversation(tx, account, name, wa_id, ago(minutes)).await.unwrap();
        rows::inbound(tx, &one, &format!("o{index}"), text, ago(minutes)).await.unwrap();
        if index >= 2 {
            store::thread::mark_read(tx, one.conversation, None, now).await.unwrap();
        }
        if index == 1 {
            store::thread::assign(tx, one.conversation, store::thread::Handler::User(people[1].id), now).await.unwrap();
        }
    }
    rows::conversation(tx, account, "Never Written", "971500000001", ago(4000)).await.unwrap();

    let amal = rows::conversation(tx, account, "Amal Haddad", "971501234567", ago(1600)).await.unwrap();
    rows::inbound(tx, &amal, "a1", "Hello! I would like to renew my residence visa, it expires in March.", ago(1590))
        .await
        .unwrap();
    rows::outbound(tx, &amal, "Good morning Amal, of course. Is it the two-year one?", Status::Read, false, ago(1580))
        .await
        .unwrap();
    rows::inbound(
        tx,
        &amal,
        "a2",
        "Yes, two years. And my husband's, too.\n\nDo you need his passport as well?",
        ago(1570),
    )
    .await
    .unwrap();
    store::note::add(
        tx,
        amal.conversation,
        "She came through Bob's recommendation: give her the 10 % he was promised.",
        Some(me),
        ago(1560),
    )
    .await
    .unwrap();
    rows::outbound(
        tx,
        &amal,
        "Yes please: a photo of the first page is enough to begin with.",
        Status::Read,
        false,
        ago(1550),
    )
    .await
    .unwrap();
    let photo =
        rows::inbound_of_type(tx, &amal, "a3", "image", Some("هذا جوازه. هل الصورة واضحة؟"), Some("{}"), ago(60))
            .await
            .unwrap();
    rows::pending_media(tx, photo, "image", "image/jpeg", Some("passport.jpg")).await.unwrap();
    rows::outbound(
        tx,
        &amal,
        "Perfectly clear, thank you. Both renewals together are AED 1,240.",
        Status::Delivered,
        false,
        ago(50),
    )
    .await
    .unwrap();
    let raw =
        r#"{"from":"971501234567","id":"wamid.X","timestamp":"1795339800","type":"order","order":{"catalog_id":"77"}}"#;
    rows::inbound_of_type(tx, &amal, "a4", "order", None, Some(raw), ago(40)).await.unwrap();
    rows::outbound(tx, &amal, "This one the provider refused.", Status::Failed, false, ago(30)).await.unwrap();
    rows::outbound(tx, &amal, "And of this one nobody knows.", Status::Sending, true, ago(20)).await.unwrap();
    rows::inbound(tx, &amal, "a5", "Great! Can I pay by card? 💳", ago(4)).await.unwrap();
    rows::outbound(tx, &amal, "By card or in cash, as you like.", Status::Queued, false, ago(2)).await.unwrap();
    amal
}

async fn live(store: Store, amal: rows::Seeded, clock: Arc<dyn Clock>) {
    for round in 0_u64.. {
        tokio::time::sleep(Duration::from_secs(20)).await;
        let now = clock.now();
        let mut tx = store.begin().await.unwrap();
        rows::inbound(&mut tx, &amal, &format!("live{round}"), &format!("And another question, number {round}."), now)
            .await
            .unwrap();
        let change = store::feed::Change::Conversation { conversation: amal.conversation, contact: None };
        store::feed::write(&mut tx, &[change], now).await.unwrap();
        tx.commit().await.unwrap();
        store.wake_readers();
    }
}

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8099".into());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreOptions::new(StoreUrl::Sqlite(folder.path().join("roost.db")))).await.unwrap();
    store.migrate().await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let mut tx = store.begin().await.unwrap();
    let amal = fill(&mut tx, clock.now()).await;
    tx.commit().await.unwrap();
    let queue = queue::Queue::open(queue::QueueOptions {
        url: queue::QueueUrl::Embedded(folder.path().join("queue.db")),
        prefix: String::new(),
        role: "inbox".into(),
        instance: "preview".into(),
        timing: queue::Timing::default(),
    });
    let (metrics, health, stop) = (Metrics::new(), Health::new(), CancellationToken::new());
    let token = runtime::config::ApiToken {
        name: "preview".into(),
        sha256: runtime::config::token_digest("preview"),
        role: Role::Admin,
    };
    let deps = inbox::Deps {
        store: store.clone(),
        dispatcher: dispatch::Dispatcher::new(queue.await.unwrap(), store.clone()),
        accounts: vec![sales()].into(),
        users: Vec::new().into(),
        api_tokens: vec![token].into(),
        login_once: Some("preview".into()),
        clock: clock.clone(),
        tuning: Tuning::default(),
        metrics: metrics.clone(),
        health,
    };
    let service = inbox::Inbox::start(deps, &stop, &TaskTracker::new());
    let server = Server::bind(address.parse().unwrap(), Limits::default(), metrics).unwrap();
    println!("http://{}/login/once/preview", server.local_addr());
    tokio::spawn(live(store, amal, clock));
    let handler = move |request: http::Request<RequestBody>| {
        let service = service.clone();
        async move { service.handle(request).await }
    };
    server.serve(handler, stop, Duration::from_secs(1)).await;
}
