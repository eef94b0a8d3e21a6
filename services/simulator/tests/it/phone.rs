//! The customer's phone: by forms, and live.

use crate::receiver::{Receiver, wired};
use crate::socket::{End, Raw, read_to_end, request, send};
use crate::{SOON, text};
use simulator::{PhoneOptions, Simulator, SimulatorOptions, StatusPlan};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const LAYLA: &str = "971500000101";

async fn with_phone(auto_read: Option<Duration>) -> (Simulator, Receiver) {
    let receiver = Receiver::start(&[]).await;
    let simulator = Simulator::start(SimulatorOptions {
        statuses: StatusPlan::phone(),
        phone: Some(PhoneOptions {
            auto_read,
            inbox_url: Some("http://127.0.0.1:8080/inbox".into()),
            ..PhoneOptions::default()
        }),
        webhook_urls: vec![receiver.url.clone()],
        ..SimulatorOptions::default()
    })
    .await
    .unwrap();
    (simulator, receiver)
}

async fn get(address: SocketAddr, path: &str) -> Raw {
    read_to_end(&mut request(address, "GET", path, "", "").await, SOON).await
}

async fn submit(address: SocketAddr, action: &str, form: &str) -> Raw {
    let headers = "content-type: application/x-www-form-urlencoded\r\n";
    read_to_end(&mut request(address, "POST", &format!("/phone/{action}"), headers, form).await, SOON).await
}

/// Reads the stream until it holds `wanted`.
async fn until(stream: &mut TcpStream, so_far: &mut String, wanted: &str) {
    let deadline = Instant::now() + SOON;
    let mut chunk = [0; 8192];
    while !so_far.contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted} never came: {so_far}");
        let read = tokio::time::timeout(SOON, stream.read(&mut chunk)).await.unwrap().unwrap();
        assert!(read > 0, "the stream ended without {wanted}: {so_far}");
        so_far.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
}

#[tokio::test]
async fn the_page_needs_nothing_inline_and_nothing_from_elsewhere() {
    let (simulator, _receiver) = with_phone(None).await;
    let page = get(simulator.address(), "/").await;
    assert_eq!(page.status(), 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    assert_eq!(page.header("x-content-type-options").as_deref(), Some("nosniff"));
    let html = page.body();
    for inline in ["<style", " style=", "onclick=", "javascript:", "<script>"] {
        assert!(!html.contains(inline), "{inline}");
    }
    for (path, kind) in [("/phone.css", "text/css"), ("/phone.js", "text/javascript"), ("/phone.svg", "image/svg+xml")]
    {
        let file = get(simulator.address(), path).await;
        assert!(file.header("content-type").unwrap().starts_with(kind), "{path}");
        assert!(html.contains(path), "{path}");
        let css_or_js = file.body();
        assert!(!css_or_js.contains("https://") && !css_or_js.contains("@import"), "{path} reaches out");
    }
    assert!(
        html.contains("Layla Haddad") && html.contains("عمر الفارسي") && html.contains("http://127.0.0.1:8080/inbox")
    );
}

#[tokio::test]
async fn a_person_without_javascript_writes_as_the_customer_and_reads_the_answer() {
    let (simulator, receiver) = with_phone(None).await;
    let at = simulator.address();
    let written = submit(at, "write", &format!("as={LAYLA}&text=%D9%85%D8%B1%D8%AD%D8%A8%D8%A7+%3Cb%3E")).await;
    assert_eq!(written.status(), 303);
    assert!(simulator.settled(SOON).await);
    let message = &receiver.got()[0].messages()[0];
    assert_eq!((message["from"].as_str(), message["text"]["body"].as_str()), (Some(LAYLA), Some("مرحبا <b>")));
    let page = get(at, &written.header("location").unwrap()).await.body();
    assert!(page.contains(r#"<p dir="auto">مرحبا &lt;b&gt;</p>"#), "{page}");
    assert!(page.contains(r#"data-progress="taken""#));

    assert_eq!(send(at, &text(LAYLA, "Yes, it is free", "r1.abcdefghi0.7.0.1")).await.status(), 200);
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.words(), ["sent"], "nobody has looked yet");
    let deadline = Instant::now() + SOON;
    while !get(at, &format!("/?as={LAYLA}")).await.body().contains("Yes, it is free") {
        assert!(Instant::now() < deadline, "the answer never reaches the phone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 4).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
    let status = &receiver.got()[3].json()["entry"][0]["changes"][0]["value"]["statuses"][0];
    assert_eq!(status["biz_opaque_callback_data"], "r1.abcdefghi0.7.0.1");
}

#[tokio::test]
async fn an_open_phone_shows_an_answer_live_delivers_it_and_reads_it_when_seen() {
    let (simulator, receiver) = with_phone(None).await;
    let at = simulator.address();
    let mut stream = request(at, "GET", &format!("/phone/events?as={LAYLA}"), "", "").await;
    let mut so_far = String::new();
    until(&mut stream, &mut so_far, "event: thread").await;
    send(at, &text(LAYLA, "Live!", "r1.abcdefghi0.7.0.1")).await;
    until(&mut stream, &mut so_far, "Live!").await;
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 2).await);
    assert_eq!(receiver.words(), ["sent", "delivered"]);
    assert_eq!(submit(at, "seen", &format!("as={LAYLA}")).await.status(), 303);
    until(&mut stream, &mut so_far, r#"data-progress=\"read\""#).await;
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 3).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
    simulator.shutdown().await;
    assert_ne!(read_to_end(&mut stream, SOON).await.end, End::Open, "an open phone does not outlive the simulator");
}

#[tokio::test]
async fn a_phone_nobody_looks_at_reads_by_itself_if_asked_to() {
    let (simulator, receiver) = with_phone(Some(Duration::from_millis(400))).await;
    send(simulator.address(), &text(LAYLA, "hello", "r1.abcdefghi0.7.0.1")).await;
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 3).await);
    assert_eq!(receiver.words(), ["sent", "delivered", "read"]);
}

#[tokio::test]
async fn marking_as_read_colours_the_customers_ticks() {
    let (simulator, receiver) = with_phone(None).await;
    let at = simulator.address();
    submit(at, "write", &format!("as={LAYLA}&text=hello")).await;
    assert!(simulator.settled(SOON).await);
    let wamid = receiver.got()[0].messages()[0]["id"].as_str().unwrap().to_owned();
    let body = format!(r#"{{"messaging_product":"whatsapp","status":"read","message_id":"{wamid}"}}"#);
    assert_eq!(send(at, &body).await.status(), 200);
    assert!(get(at, &format!("/?as={LAYLA}")).await.body().contains(r#"data-progress="read""#));
}

#[tokio::test]
async fn a_new_customer_is_picked_up_and_trouble_is_arranged_by_form() {
    let (simulator, _receiver) = with_phone(None).await;
    let at = simulator.address();
    let added = submit(at, "customer", "name=Ana+Silva&number=%2B351+910+000+222").await;
    let location = added.header("location").unwrap();
    assert!(location.contains("as=351910000222"), "{location}");
    assert!(get(at, &location).await.body().contains("Ana Silva"));
    assert!(submit(at, "customer", "name=&number=1").await.header("location").unwrap().contains("notice=bad-number"));

    assert_eq!(submit(at, "trouble", "as=351910000222&fault=131026").await.status(), 303);
    assert_eq!(submit(at, "trouble", "as=351910000222&fault=explode").await.status(), 404);
    assert_eq!(send(at, &text(LAYLA, "another's", "c")).await.status(), 200);
    assert_eq!(send(at, &text("351910000222", "hers", "c")).await.json()["error"]["code"], 131_026);
}

#[tokio::test]
async fn a_webhook_nobody_takes_is_shown_as_such() {
    let (simulator, receiver) = wired(&[]).await;
    drop(simulator);
    let simulator = Simulator::start(SimulatorOptions {
        phone: Some(PhoneOptions::default()),
        webhook_urls: vec![receiver.url.replace("/webhooks/meta", "").replace("127.0.0.1", "127.0.0.2")],
        ..SimulatorOptions::default()
    })
    .await
    .unwrap();
    let at = simulator.address();
    submit(at, "write", &format!("as={LAYLA}&text=anybody")).await;
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.failed_tries >= 1).await);
    let deadline = Instant::now() + SOON;
    loop {
        let page = get(at, &format!("/?as={LAYLA}")).await.body();
        if page.contains(r#"data-progress="trying""#) && page.contains("trying again") {
            break;
        }
        assert!(Instant::now() < deadline, "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
