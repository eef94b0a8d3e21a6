//! What WhatsApp's answers mean: the code first, the HTTP status only without one.

use crate::support::fixture;
use domain::outbound::ThrottleScope::{self, App, Pair, Parent};
use domain::{Accepted, Channel, Reply, SendError};
use providers::channel_kind;
use rstest::rstest;
use std::time::Duration;

fn outcome(reply: &Reply) -> Result<Accepted, SendError> {
    channel_kind(Channel::WhatsApp).unwrap().outcome(reply)
}

#[rstest]
#[case(fixture!("answer_accepted"), "wamid.A1")]
#[case(fixture!("answer_accepted_template"), "wamid.A2")]
#[case(fixture!("answer_held_for_quality"), "wamid.A3")]
#[case::nothing_but_the_id(r#"{"messages":[{"id":"wamid.A5"}]}"#, "wamid.A5")]
#[case::with_a_broken_surrogate(r#"{"contacts":[{"input":"\ud83d"}],"messages":[{"id":"wamid.A6"}]}"#, "wamid.A6")]
fn taken_with_an_id(#[case] body: &str, #[case] id: &str) {
    assert_eq!(outcome(&Reply::http(200, body)), Ok(Accepted { provider_message_id: id.into() }));
}

#[rstest]
#[case(200, "")]
#[case(200, "<html>OK</html>")]
#[case(200, "{}")]
#[case(200, "null")]
#[case(200, fixture!("answer_without_id"))]
#[case(200, r#"{"messages":[{"id":""}]}"#)]
#[case(200, r#"{"messages":[{"id":null}]}"#)]
#[case(200, r#"{"messages":"wamid.A1"}"#)]
#[case(200, r#"{"messages":[{"id":"wamid.A1""#)]
#[case(204, "")]
#[case(202, r#"{"success":true}"#)]
#[case(200, r#"{"error":{"code":987655,"message":"who knows"}}"#)]
fn taken_perhaps(#[case] status: u16, #[case] body: &str) {
    assert!(matches!(outcome(&Reply::http(status, body)), Err(SendError::OutcomeUnknown(_))));
}

#[test]
fn a_paused_template_is_not_taken_though_it_has_an_id() {
    let error = outcome(&Reply::http(200, fixture!("answer_paused"))).unwrap_err();
    assert!(matches!(error, SendError::Rejected { ref code, .. } if code == "paused"), "{error}");
}

#[test]
fn the_persons_words_are_the_providers() {
    assert_eq!(
        outcome(&Reply::http(401, fixture!("answer_bad_token"))),
        Err(SendError::AccountBroken {
            code: "190".into(),
            reason: "Error validating access token: Session has expired on Sunday, 22-Nov-26 01:00:00 PST.".into()
        })
    );
    assert_eq!(
        outcome(&Reply::http(400, fixture!("answer_window_closed"))),
        Err(SendError::Rejected {
            code: "131047".into(),
            reason: "Re-engagement message: Message failed to send because more than 24 hours have passed since the \
                     customer last replied to this number."
                .into()
        })
    );
}

#[rstest]
#[case(429, "", Some(7))]
#[case(429, "<html>slow down</html>", None)]
#[case(429, r#"{"error":{"message":"no code"}}"#, None)]
#[case(429, fixture!("answer_unknown"), None)]
fn too_many_requests_without_a_known_code(#[case] status: u16, #[case] body: &str, #[case] retry_after: Option<u64>) {
    let retry_after = retry_after.map(Duration::from_secs);
    let reply = Reply { status, retry_after, body: body.into() };
    match outcome(&reply) {
        Err(SendError::Throttled { scope: ThrottleScope::Account, retry_after: wished, .. }) => {
            assert_eq!(wished, retry_after);
        }
        other => panic!("{other:?}"),
    }
}

/// What follows, in one word.
fn class(answer: &Result<Accepted, SendError>) -> &'static str {
    match answer {
        Ok(_) => "accepted",
        Err(SendError::Transient { give_up_after: Some(3), .. }) => "few",
        Err(SendError::Transient { give_up_after: None, .. }) => "later",
        Err(SendError::Rejected { .. }) => "never",
        Err(SendError::AccountBroken { .. }) => "broken",
        Err(SendError::Throttled { scope: ThrottleScope::Account, .. }) => "slower account",
        Err(SendError::Throttled { scope: Pair, .. }) => "slower pair",
        Err(SendError::Throttled { scope: App, .. }) => "slower app",
        Err(SendError::Throttled { scope: Parent, .. }) => "slower parent",
        Err(SendError::OutcomeUnknown(_)) => "unknown",
        Err(_) => "another",
    }
}

#[rstest]
#[case(500, "", "later")]
#[case(500, "<html>sorry</html>", "later")]
#[case(503, "", "later")]
#[case(503, "<html>sorry</html>", "later")]
#[case(503, r#"{"error":{"message":"no code","type":"x"}}"#, "later")]
#[case::gateway_page(502, "<html>bad gateway</html>", "unknown")]
#[case::gateway_without_words(502, "", "unknown")]
#[case::gateway_gave_up(504, "", "unknown")]
#[case::gateway_gave_up_with_a_page(504, "<html>gateway timeout</html>", "unknown")]
#[case::gateway_in_json(504, r#"{"status":504,"title":"Gateway Timeout"}"#, "unknown")]
#[case::gateway_with_an_empty_error(502, r#"{"error":{}}"#, "unknown")]
#[case::gateway_with_an_error_of_its_own_form(502, r#"{"error":"upstream"}"#, "unknown")]
#[case::graphs_own_502(502, r#"{"error":{"message":"no code","type":"x"}}"#, "later")]
#[case::graphs_own_504(504, r#"{"error":{"is_transient":true}}"#, "later")]
#[case::graphs_own_with_an_unknown_code(504, fixture!("answer_unknown"), "later")]
#[case(500, fixture!("answer_unknown"), "later")]
#[case(400, "", "never")]
#[case(404, "<html>not found</html>", "never")]
#[case(400, fixture!("answer_unknown"), "never")]
#[case(400, fixture!("answer_unknown_transient"), "later")]
#[case(503, fixture!("answer_try_again"), "later")]
#[case(302, "", "few")]
fn without_a_known_code_the_http_status_decides(#[case] status: u16, #[case] body: &str, #[case] want: &str) {
    assert_eq!(class(&outcome(&Reply::http(status, body))), want);
}

#[rstest]
#[case("slower app", &[4, 613])]
#[case("slower parent", &[80007])]
#[case("slower account", &[130429, 131048, 133016])]
#[case("slower pair", &[131056, 131208, 132069])]
#[case("few", &[1, 131053])]
#[case("later", &[2, 131000, 131016, 131057, 133004, 134101])]
#[case("broken", &[0, 3, 10, 33, 190, 200, 230, 299, 368, 131005, 131031, 131037, 131042, 131044, 131045])]
#[case("broken", &[133000, 133005, 133006, 133008, 133009, 133010, 133015])]
#[case("never", &[100, 130472, 130497, 131008, 131009, 131020, 131021, 131026, 131030, 131041, 131047, 131049])]
#[case("never", &[131050, 131051, 131052, 131055, 131062, 131063, 131064, 131200, 131299])]
#[case("never", &[132000, 132001, 132005, 132007, 132008, 132012, 132015, 132016, 132068, 135000, 137000])]
#[case("never", &[138000, 138999, 139000, 139999, 147000, 147999])]
fn a_known_code_decides_whatever_the_http_status(#[case] want: &str, #[case] codes: &[i64]) {
    for code in codes {
        for status in [200, 400, 401, 403, 404, 429, 500, 502, 503, 504] {
            for body in [
                format!(r#"{{"error":{{"code":{code},"message":"m"}}}}"#),
                format!(r#"{{"error":{{"code":"{code}","is_transient":true}}}}"#),
            ] {
                let answer = outcome(&Reply::http(status, body));
                assert_eq!(class(&answer), want, "{code} with HTTP {status}: {answer:?}");
            }
        }
    }
}

#[rstest]
#[case::pair(fixture!("answer_pair_rate"), None, Some(6))]
#[case::pair_asked_for_longer(fixture!("answer_pair_rate"), Some(60), Some(60))]
#[case::pair_asked_for_less(fixture!("answer_pair_rate"), Some(1), Some(6))]
#[case::number(fixture!("answer_rate"), None, None)]
#[case::number_asked(fixture!("answer_rate"), Some(30), Some(30))]
#[case::spam(r#"{"error":{"code":131048}}"#, None, Some(3600))]
fn a_throttled_message_waits_at_least_as_long_as_the_limit_lasts(
    #[case] body: &str,
    #[case] asked: Option<u64>,
    #[case] want: Option<u64>,
) {
    let reply = Reply { status: 400, retry_after: asked.map(Duration::from_secs), body: body.into() };
    match outcome(&reply) {
        Err(SendError::Throttled { retry_after, .. }) => assert_eq!(retry_after, want.map(Duration::from_secs)),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case(131_057, 60)]
#[case(134_101, 600)]
fn maintenance_is_waited_for(#[case] code: u32, #[case] seconds: u64) {
    match outcome(&Reply::http(503, format!(r#"{{"error":{{"code":{code}}}}}"#))) {
        Err(SendError::Transient { retry_after, .. }) => assert_eq!(retry_after, Some(Duration::from_secs(seconds))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_without_words_still_has_a_code_and_a_reason() {
    match outcome(&Reply::http(404, "")) {
        Err(SendError::Rejected { code, reason }) => {
            assert_eq!((code.as_str(), reason.as_str()), ("http_404", "HTTP status 404"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_quoted_token_does_not_reach_the_reason() {
    let token = "EAAGm0PX4ZCpsBAKexampleexampleexampleexampleexample";
    let body = format!(r#"{{"error":{{"code":190,"message":"Malformed access token {token}"}}}}"#);
    let error = outcome(&Reply::http(400, body)).unwrap_err();
    assert!(!format!("{error:?}").contains(token), "{error:?}");
}

#[test]
fn endless_words_are_cut() {
    let body = format!(r#"{{"error":{{"code":100,"message":"{}"}}}}"#, "word ".repeat(10_000));
    match outcome(&Reply::http(400, body)) {
        Err(SendError::Rejected { reason, .. }) => assert!(reason.chars().count() <= 501),
        other => panic!("{other:?}"),
    }
}

proptest::proptest! {
    #[test]
    fn any_answer_is_judged(status in 100..600u16, body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let answer = outcome(&Reply::http(status, body));
        let ok = (200..300).contains(&status);
        proptest::prop_assert!(ok || answer.is_err());
    }
}
