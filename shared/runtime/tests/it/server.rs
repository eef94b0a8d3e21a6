//! What clients can do to a server, and what becomes of them.

use crate::wire::{PATIENCE, Serving};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body_util::Full;
use runtime::health::{Admin, Health};
use runtime::http_server::{Limits, MAX_HEAD, RequestBody, Server, read_body};
use runtime::metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const MAX_BODY: usize = 1_000;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Deadlines short enough for a test, long enough for a busy machine.
fn limits() -> Limits {
    Limits {
        head_timeout: ms(400),
        body_timeout: ms(800),
        body_idle_timeout: ms(400),
        idle_timeout: ms(5_000),
        request_timeout: ms(5_000),
        write_timeout: ms(5_000),
        ..Limits::default()
    }
}

/// Answers with the body it was sent.
async fn echo(request: Request<RequestBody>) -> Response<Full<Bytes>> {
    match read_body(request.into_body(), MAX_BODY).await {
        Ok(body) => Response::new(Full::new(body)),
        Err(error) => {
            let mut response = Response::new(Full::new(Bytes::from(error.to_string())));
            *response.status_mut() = error.status();
            response
        }
    }
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    for n in 0..20 {
        let body = format!("body number {n}");
        client.post("/", body.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.body), (200, body.into_bytes()));
    }
    client.post("/", b"").await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    let one = "POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\n";
    client.say(format!("{one}abc{one}def{one}ghi")).await;
    for want in [b"abc", b"def", b"ghi"] {
        assert_eq!(client.answer().await.body, want);
    }
}

#[tokio::test]
async fn a_chunked_body_is_put_together() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.say("4\r\ndefg\r\n0\r\n\r\n").await;
    assert_eq!(client.answer().await.body, b"abcdefg");
}

#[tokio::test]
async fn a_head_that_comes_drop_by_drop_is_cut() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    let begun = Instant::now();
    client.say("POST / HTTP/1.1\r\n").await;
    let mut drops = 0;
    // Each drop comes well inside any idle time; the head as a whole does not come in time.
    while begun.elapsed() < PATIENCE && client.try_say(format!("x-{drops}: y\r\n")).await {
        drops += 1;
        tokio::time::sleep(ms(20)).await;
    }
    assert!(begun.elapsed() < ms(3_000), "held for {:?}", begun.elapsed());
    assert!(drops > 5, "cut at once");
    serving.until_metric(r#"roost_http_timeouts_total{what="head"} 1"#).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    assert_eq!(client.until_closed().await, b"");
    serving.until_metric("roost_http_connections 0").await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let serving = Serving::start(echo, Limits { idle_timeout: ms(600), ..limits() });
    let mut idle = serving.connect().await;
    let mut busy = serving.connect().await;
    idle.post("/", b"hello").await;
    assert_eq!(idle.answer().await.status, 200);
    let begun = Instant::now();
    while begun.elapsed() < ms(1_500) {
        busy.post("/", b"hello").await;
        assert_eq!(busy.answer().await.status, 200);
        tokio::time::sleep(ms(100)).await;
    }
    assert_eq!(idle.until_closed().await, b"");
}

#[tokio::test]
async fn a_body_that_stops_is_told_408() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nhal").await;
    assert_eq!(client.answer().await.status, 408);
    serving.until_metric(r#"roost_http_timeouts_total{what="body"} 1"#).await;
}

#[tokio::test]
async fn a_dripped_body_is_told_408_although_it_never_stops() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 900\r\n\r\n").await;
    let begun = Instant::now();
    let mut answer = None;
    while answer.is_none() && begun.elapsed() < PATIENCE {
        let _ = client.try_say("x").await;
        answer = tokio::time::timeout(ms(40), client.try_answer()).await.ok().flatten();
    }
    assert_eq!(answer.expect("no answer").status, 408);
    assert!(begun.elapsed() >= ms(500) && begun.elapsed() < ms(4_000), "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_body_announced_too_large_is_told_413_before_it_is_read() {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    let handler = move |request: Request<RequestBody>| {
        let count = count.clone();
        async move {
            assert!(request.headers().contains_key(CONTENT_LENGTH));
            let error = read_body(request.into_body(), MAX_BODY).await.unwrap_err();
            count.fetch_add(1, Ordering::SeqCst);
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = error.status();
            response
        }
    };
    let serving = Serving::start(handler, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 5000000\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 413);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_writes_on_still_reads_its_413() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 5000000\r\n\r\n").await;
    // All of it, although nobody reads it: without lingering this ends in a reset and the answer is lost.
    assert!(client.try_say(vec![b'x'; 5_000_000]).await);
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn a_body_found_too_large_on_the_way_is_told_413() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..4 {
        client.say(format!("12c\r\n{}\r\n", "x".repeat(300))).await;
    }
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn a_head_too_large_is_told_431() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    let padding = "x".repeat(MAX_HEAD);
    client.say(format!("GET / HTTP/1.1\r\nhost: t\r\nx-padding: {padding}\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 431);
}

#[tokio::test]
async fn what_is_not_http_is_told_400() {
    let serving = Serving::start(echo, limits());
    let mut client = serving.connect().await;
    client.say("this is not http at all\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 400);
}

#[tokio::test]
async fn a_connection_over_the_cap_is_told_503_and_the_next_gets_in_once_there_is_room() {
    let serving = Serving::start(echo, Limits { connections: 2, head_timeout: PATIENCE, ..limits() });
    let first = serving.connect().await;
    let mut second = serving.connect().await;
    second.post("/", b"in").await;
    assert_eq!(second.answer().await.status, 200);
    serving.until_metric("roost_http_connections 2").await;
    let mut third = serving.connect().await;
    let refused = third.answer().await;
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    serving.until_metric(r#"roost_http_refused_total{reason="connections"} 1"#).await;
    drop(first);
    serving.until_metric("roost_http_connections 1").await;
    let mut fourth = serving.connect().await;
    fourth.post("/", b"in").await;
    assert_eq!(fourth.answer().await.status, 200);
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let serving = Serving::start(echo, Limits { connections_per_ip: 1, head_timeout: PATIENCE, ..limits() });
    let _first = serving.connect().await;
    serving.until_metric("roost_http_connections 1").await;
    let mut second = serving.connect().await;
    assert_eq!(second.answer().await.status, 503);
    serving.until_metric(r#"roost_http_refused_total{reason="connections_per_ip"} 1"#).await;
}

/// A handler that holds what it read until it is told to answer.
fn holding(release: &Arc<Notify>, holding: &Arc<AtomicUsize>) -> impl runtime::http_server::Handler {
    let (release, holding) = (release.clone(), holding.clone());
    move |request: Request<RequestBody>| {
        let (release, holding) = (release.clone(), holding.clone());
        async move {
            let mut response = Response::new(Full::new(Bytes::new()));
            match read_body(request.into_body(), MAX_BODY).await {
                Ok(_) => {
                    holding.fetch_add(1, Ordering::SeqCst);
                    release.notified().await;
                }
                Err(error) => *response.status_mut() = error.status(),
            }
            response
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(ms(5)).await;
    }
}

#[tokio::test]
async fn bytes_in_flight_are_capped_and_given_back() {
    let (release, held) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let serving = Serving::start(holding(&release, &held), Limits { body_bytes_in_flight: 1_000, ..limits() });
    let mut first = serving.connect().await;
    first.post("/", &[b'x'; 800]).await;
    until("the first body is held", || held.load(Ordering::SeqCst) == 1).await;

    let mut announced = serving.connect().await;
    announced.post("/", &[b'x'; 300]).await;
    let refused = announced.answer().await;
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    serving.until_metric(r#"roost_http_refused_total{reason="body_bytes"} 1"#).await;

    let mut unannounced = serving.connect().await;
    unannounced.say("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n").await;
    unannounced.say(format!("12c\r\n{}\r\n0\r\n\r\n", "x".repeat(300))).await;
    assert_eq!(unannounced.answer().await.status, 503);

    release.notify_one();
    assert_eq!(first.answer().await.status, 200);
    first.post("/", &[b'x'; 900]).await;
    until("there is room again", || held.load(Ordering::SeqCst) == 2).await;
    release.notify_one();
    assert_eq!(first.answer().await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_bytes_back() {
    let (release, held) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let serving = Serving::start(holding(&release, &held), Limits { body_bytes_in_flight: 1_000, ..limits() });
    let mut first = serving.connect().await;
    first.post("/", &[b'x'; 800]).await;
    until("the first body is held", || held.load(Ordering::SeqCst) == 1).await;
    drop(first);
    serving.until_metric("roost_http_connections 0").await;
    let mut second = serving.connect().await;
    second.post("/", &[b'x'; 800]).await;
    until("the second body is held", || held.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_answered_for_503() {
    let never = |_: Request<RequestBody>| std::future::pending::<Response<Full<Bytes>>>();
    let serving = Serving::start(never, Limits { request_timeout: ms(500), ..limits() });
    let mut client = serving.connect().await;
    client.get("/").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    serving.until_metric(r#"roost_http_timeouts_total{what="request"} 1"#).await;
}

#[tokio::test]
async fn a_panic_is_answered_500_and_harms_nobody_else() {
    let handler = |request: Request<RequestBody>| {
        // Before the first await and after it: both are caught.
        assert_ne!(request.uri().path(), "/at-once", "a panic in a test");
        async move {
            tokio::task::yield_now().await;
            assert_ne!(request.uri().path(), "/later", "a panic in a test");
            echo(request).await
        }
    };
    let serving = Serving::start(handler, limits());
    let mut bystander = serving.connect().await;
    for path in ["/at-once", "/later"] {
        let mut client = serving.connect().await;
        client.get(path).await;
        assert_eq!(client.answer().await.status, 500, "{path}");
        bystander.post("/", b"fine").await;
        assert_eq!(bystander.answer().await.status, 200);
    }
    serving.until_metric("roost_http_panics_total 2").await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_cut() {
    let large = |_: Request<RequestBody>| async { Response::new(Full::new(Bytes::from(vec![b'x'; 50_000_000]))) };
    let serving = Serving::start(large, Limits { write_timeout: ms(500), ..limits() });
    let mut client = serving.connect().await;
    client.get("/").await;
    serving.until_metric(r#"roost_http_timeouts_total{what="write"} 1"#).await;
    serving.until_metric("roost_http_connections 0").await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_at_hand_and_takes_nothing_new() {
    let (release, held) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let serving = Serving::start(holding(&release, &held), Limits { head_timeout: PATIENCE, ..limits() });
    let (address, mut idle, mut fresh) = (serving.address, serving.connect().await, serving.connect().await);
    idle.post("/", &[b'x'; 2_000]).await;
    assert_eq!(idle.answer().await.status, 413);
    let mut busy = serving.connect().await;
    busy.post("/", b"work").await;
    until("the request is at hand", || held.load(Ordering::SeqCst) == 1).await;

    serving.stop.cancel();
    assert_eq!(fresh.until_closed().await, b"");
    until("nobody listens", || std::net::TcpStream::connect(address).is_err()).await;
    release.notify_one();
    let answer = busy.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    assert_eq!(serving.ended().await.cut, 0);
}

#[tokio::test]
async fn a_drain_ends_with_its_budget() {
    let (release, held) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let serving = Serving::with_drain(holding(&release, &held), limits(), ms(200));
    let mut busy = serving.connect().await;
    busy.post("/", b"work").await;
    until("the request is at hand", || held.load(Ordering::SeqCst) == 1).await;
    let begun = Instant::now();
    assert_eq!(serving.end().await.cut, 1);
    assert!(begun.elapsed() < ms(2_000), "{:?}", begun.elapsed());
    assert_eq!(busy.until_closed().await, b"");
}

#[tokio::test]
async fn a_taken_port_is_told_in_a_sentence() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let first = Server::bind(address, Limits::default(), Metrics::new()).unwrap();
    let error = Server::bind(first.local_addr(), Limits::default(), Metrics::new()).unwrap_err();
    let want = format!("{} is already in use", first.local_addr());
    assert_eq!(error.to_string(), want);
}

#[tokio::test]
async fn the_admin_listener_shows_metrics_and_reasons() {
    let (health, metrics) = (Health::new(), Metrics::new());
    let broker = health.part("broker");
    let serving = Serving::start(Admin::new(health.clone(), metrics.clone()), limits());
    let mut client = serving.connect().await;
    let mut ask = async |path: &str| {
        client.get(path).await;
        let answer = client.answer().await;
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    assert_eq!(ask("/healthz").await.0, 200);
    assert_eq!(ask("/readyz").await, (503, "{\"notReady\":{\"broker\":\"starting\"},\"ready\":false}\n".into()));
    broker.ready();
    assert_eq!(ask("/readyz").await.0, 200);
    broker.not_ready("connection refused");
    assert_eq!(ask("/readyz").await.0, 503);
    metrics.broker(false, false);
    let (status, text) = ask("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("roost_broker_connected 0"), "{text}");
    assert_eq!(ask("/anything").await.0, 404);
}

#[test]
fn public_health_says_whether_and_not_why() {
    use runtime::health::Detail;
    let health = Health::new();
    let _store = health.part("store");
    let response = health.respond(&http::Method::GET, "/readyz", Detail::Bare).unwrap();
    assert_eq!(response.status(), 503);
    let body = format!("{:?}", response.into_body());
    assert!(body.contains("ready") && !body.contains("store"), "{body}");
    assert!(health.respond(&http::Method::GET, "/metrics", Detail::Bare).is_none());
}
