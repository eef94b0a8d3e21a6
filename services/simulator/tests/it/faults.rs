//! Each fault does on the wire what its name says.

use crate::socket::{End, begin_send, read_to_end, send};
use crate::{NUMBER, RITA, SOON, simulator, text};
use rstest::rstest;
use simulator::{ConnectionFault, Fault, FaultMix, Script, Simulator, When};
use std::time::{Duration, Instant};

const CORRELATION: &str = "r1.abcdefghi0.7.0.1";

async fn with(fault: Fault) -> Simulator {
    let simulator = simulator().await;
    simulator.script(Script::once(When::any(), fault));
    simulator
}

/// accepted, ambiguous, ambiguous and accepted
fn sums(simulator: &Simulator) -> (u64, u64, u64) {
    let calls = simulator.stats().calls;
    (calls.accepted, calls.ambiguous, calls.ambiguous_accepted)
}

#[rstest]
#[case::throttled_by_status(Fault::http(429), 429, "", None)]
#[case::throttled_with_a_wish(Fault::throttled("7"), 429, "", Some("7"))]
#[case::throttled_until(
    Fault::throttled("Sun, 22 Nov 2026 09:30:00 GMT"),
    429,
    "",
    Some("Sun, 22 Nov 2026 09:30:00 GMT")
)]
#[case::internal(Fault::http(500), 500, "", None)]
#[case::unavailable(Fault::http(503), 503, "", None)]
#[case::unavailable_page(Fault::gateway(503), 503, "<!DOCTYPE html>", None)]
#[case::app_limit(Fault::error(4), 400, r#""code":4,"#, None)]
#[case::waba_limit(Fault::error(80007), 429, r#""code":80007,"#, None)]
#[case::throughput(Fault::error(130_429), 429, r#""code":130429,"#, None)]
#[case::pair(Fault::error(131_056), 400, r#""code":131056,"#, None)]
#[case::undeliverable(Fault::error(131_026), 400, "(#131026) Message undeliverable", None)]
#[case::window(Fault::error(131_047), 400, "(#131047) Re-engagement message", None)]
#[case::token(Fault::error(190), 401, r#""code":190,"#, None)]
#[case::policy(Fault::error(368), 403, r#""code":368,"#, None)]
#[case::as_403(Fault::Error { code: 130_429, status: Some(403), subcode: Some(7), is_transient: Some(true), retry_after: Some("2".into()) },
    403, r#""is_transient":true"#, Some("2"))]
#[tokio::test]
async fn a_refusal_says_so_and_takes_nothing(
    #[case] fault: Fault,
    #[case] status: u16,
    #[case] contains: &str,
    #[case] retry_after: Option<&str>,
) {
    let simulator = with(fault.clone()).await;
    let raw = send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert_eq!(raw.status(), status);
    assert!(raw.body().contains(contains), "{}", raw.text());
    assert_eq!(raw.header("retry-after").as_deref(), retry_after);
    assert_eq!(sums(&simulator), (0, 0, 0));
    assert_eq!(simulator.calls()[0].verdict, fault.name());
    assert_eq!(send(simulator.address(), &text(RITA, "x", CORRELATION)).await.status(), 200, "once means once");
}

#[rstest]
#[tokio::test]
async fn a_senseless_200_may_hide_an_acceptance(
    #[values(Fault::Garbage { accepted: true }, Fault::Empty { accepted: true }, Fault::NoId { accepted: true })] fault: Fault,
) {
    let simulator = with(fault).await;
    let raw = send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert_eq!(raw.status(), 200);
    let id = serde_json::from_str::<serde_json::Value>(&raw.body()).ok();
    assert!(id.is_none_or(|json| json["messages"][0]["id"].is_null()), "{}", raw.text());
    assert_eq!(sums(&simulator), (1, 1, 1));
}

#[rstest]
#[case::bad_gateway(502, false)]
#[case::bad_gateway_behind_which_it_was_taken(502, true)]
#[case::gateway_timeout(504, false)]
#[case::gateway_timeout_behind_which_it_was_taken(504, true)]
#[tokio::test]
async fn a_gateways_page_may_hide_an_acceptance(#[case] status: u16, #[case] accepted: bool) {
    let simulator = with(Fault::Html { status, accepted }).await;
    let raw = send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert_eq!(raw.status(), status);
    assert!(raw.body().starts_with("<!DOCTYPE html>"), "{}", raw.text());
    assert_eq!(sums(&simulator), (u64::from(accepted), 1, u64::from(accepted)));
}

#[rstest]
#[case::before_in_order(Fault::CutBefore { reset: false }, End::Fin, 0)]
#[case::before_by_reset(Fault::CutBefore { reset: true }, End::Reset, 0)]
#[case::after_in_order(Fault::CutAfter { reset: false }, End::Fin, 1)]
#[case::after_by_reset(Fault::CutAfter { reset: true }, End::Reset, 1)]
#[tokio::test]
async fn a_cut_leaves_not_a_byte(#[case] fault: Fault, #[case] end: End, #[case] accepted: u64) {
    let simulator = with(fault).await;
    let raw = send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert_eq!((raw.bytes.len(), raw.end), (0, end));
    assert_eq!(sums(&simulator), (accepted, 1, accepted));
    assert!(!simulator.calls()[0].answered);
}

#[rstest]
#[tokio::test]
async fn half_an_answer_promises_more_than_it_sends(#[values(true, false)] accepted: bool) {
    let simulator = with(Fault::HalfAnswer { accepted }).await;
    let raw = send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert_eq!((raw.status(), raw.end), (200, End::Fin));
    let promised: usize = raw.header("content-length").unwrap().parse().unwrap();
    assert_eq!(raw.body().len(), promised / 2);
    assert_eq!(sums(&simulator), (u64::from(accepted), 1, u64::from(accepted)));
}

#[rstest]
#[case(Fault::HangBefore, 0)]
#[case(Fault::HangAfter, 1)]
#[tokio::test]
async fn a_hang_lasts_as_long_as_the_caller(#[case] fault: Fault, #[case] accepted: u64) {
    let simulator = with(fault).await;
    let mut stream = begin_send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.wait_until(SOON, |stats| stats.calls.open == 1 && stats.calls.accepted == accepted).await);
    let raw = read_to_end(&mut stream, Duration::from_millis(300)).await;
    assert_eq!((raw.bytes.len(), raw.end), (0, End::Open));
    drop(stream);
    assert!(simulator.wait_until(SOON, |stats| stats.calls.open == 0).await, "the call ends with its caller");
    assert_eq!(sums(&simulator), (accepted, 1, accepted));
    assert_eq!(simulator.stats().calls.caller_gone, 1);
}

#[tokio::test]
async fn a_late_acceptance_happens_although_the_caller_has_gone() {
    let (simulator, receiver) = crate::receiver::wired(&[]).await;
    simulator.script(Script::once(When::to(RITA), Fault::AcceptLate { ms: 300 }));
    let stream = begin_send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.wait_until(SOON, |stats| stats.calls.open == 1).await);
    drop(stream);
    assert!(simulator.wait_until(SOON, |stats| stats.calls.caller_gone == 1).await);
    assert_eq!(simulator.stats().calls.accepted, 0);
    assert!(simulator.wait_until(SOON, |stats| stats.calls.accepted == 1).await);
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged == 3).await);
    let status = &receiver.got()[0].json()["entry"][0]["changes"][0]["value"]["statuses"][0];
    assert_eq!(status["biz_opaque_callback_data"], CORRELATION, "the only evidence there is");
}

#[tokio::test]
async fn a_slow_answer_is_taken_at_once_and_told_later() {
    let simulator = with(Fault::Slow { ms: 400 }).await;
    let start = Instant::now();
    let mut stream = begin_send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    assert!(simulator.wait_until(SOON, |stats| stats.calls.accepted == 1).await);
    assert!(start.elapsed() < Duration::from_millis(400));
    assert_eq!(read_to_end(&mut stream, SOON).await.status(), 200);
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(sums(&simulator), (1, 0, 0));
}

#[rstest]
#[case(Fault::Held, "held_for_quality_assessment")]
#[case(Fault::Paused, "paused")]
#[tokio::test]
async fn a_template_may_be_held_or_paused(#[case] fault: Fault, #[case] word: &str) {
    let (simulator, receiver) = crate::receiver::wired(&[]).await;
    simulator.script(Script::once(When::any(), fault));
    let json = send(simulator.address(), &text(RITA, "x", CORRELATION)).await.json();
    assert_eq!(json["messages"][0]["message_status"], word);
    assert!(simulator.settled(SOON).await);
    assert_eq!(receiver.got().len(), 0);
}

#[rstest]
#[case(ConnectionFault::Close)]
#[case(ConnectionFault::Reset)]
#[case(ConnectionFault::Silent)]
#[tokio::test]
async fn a_connection_may_be_spoilt_before_a_byte_is_read(#[case] fault: ConnectionFault) {
    let simulator = simulator().await;
    simulator.spoil_connections(fault, 1);
    let mut stream = begin_send(simulator.address(), &text(RITA, "x", CORRELATION)).await;
    let patience = if fault == ConnectionFault::Silent { Duration::from_millis(300) } else { SOON };
    let raw = read_to_end(&mut stream, patience).await;
    assert_eq!(raw.bytes.len(), 0);
    // Closing a socket with unread bytes resets it: both ways of closing may look alike from here.
    assert_eq!(raw.end == End::Open, fault == ConnectionFault::Silent);
    assert_eq!(simulator.stats().calls.calls, 0);
    assert_eq!(send(simulator.address(), &text(RITA, "x", CORRELATION)).await.status(), 200);
}

#[tokio::test]
async fn a_provider_that_is_down_refuses_connections_and_comes_back_at_the_same_address() {
    let simulator = simulator().await;
    let idle = tokio::net::TcpStream::connect(simulator.address()).await.unwrap();
    simulator.go_down_for(Duration::from_millis(400));
    let deadline = Instant::now() + SOON;
    let mut refused = false;
    while !refused && Instant::now() < deadline {
        refused = tokio::net::TcpStream::connect(simulator.address()).await.is_err();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused);
    let mut idle = idle;
    assert_eq!(read_to_end(&mut idle, SOON).await.bytes.len(), 0, "open connections are cut");
    let mut status = 0;
    while status != 200 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if tokio::net::TcpStream::connect(simulator.address()).await.is_ok() {
            status = send(simulator.address(), &text(RITA, "x", CORRELATION)).await.status();
        }
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn scripts_wait_for_the_call_they_fit() {
    let simulator = simulator().await;
    simulator.script(Script::once(When::to("351912000999"), Fault::error(131_026)));
    simulator.script(Script::once(When::saying("price"), Fault::error(131_047)));
    simulator.script(Script::once(When { attempt: Some(2), ..When::any() }, Fault::error(4)));
    simulator.script(Script::once(When::from("another number"), Fault::error(1)));
    let code = async |to: &str, words: &str, correlation: &str| {
        send(simulator.address(), &text(to, words, correlation)).await.json()["error"]["code"].as_i64()
    };
    assert_eq!(code(RITA, "hello", "r1.abcdefghi0.1.0.1").await, None);
    assert_eq!(code(RITA, "hello", "r1.abcdefghi0.1.0.2").await, Some(4));
    assert_eq!(code(RITA, "the price is", "r1.abcdefghi0.2.0.1").await, Some(131_047));
    assert_eq!(code("351912000999", "hello", "r1.abcdefghi0.3.0.1").await, Some(131_026));
    assert_eq!(code("351912000999", "hello", "r1.abcdefghi0.3.0.1").await, None);
    assert_eq!(simulator.stats().scripts_left, 1);
}

#[tokio::test]
async fn a_standing_script_breaks_an_account_until_it_is_cleared() {
    let simulator = simulator().await;
    simulator.script(Script::always(When::from(NUMBER), Fault::error(190)));
    for _ in 0..3 {
        assert_eq!(send(simulator.address(), &text(RITA, "x", CORRELATION)).await.status(), 401);
    }
    simulator.clear_scripts();
    assert_eq!(send(simulator.address(), &text(RITA, "x", CORRELATION)).await.status(), 200);
}

#[tokio::test]
async fn a_mix_befalls_its_share_of_the_calls() {
    let simulator = simulator().await;
    simulator.set_faults(FaultMix::even(0.5, vec![Fault::http(500), Fault::error(4)]));
    for n in 0..80 {
        send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.{n}.0.1"))).await;
    }
    let by_verdict = simulator.stats().calls.by_verdict;
    for verdict in ["accept", "http_500", "error_4"] {
        assert!(by_verdict.get(verdict).is_some_and(|count| *count >= 5), "{by_verdict:?}");
    }
}
