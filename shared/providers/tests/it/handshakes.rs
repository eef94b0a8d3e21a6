//! The subscription check.

use crate::support::source;
use providers::{Handshake, source_kind};
use rstest::rstest;

fn answer(query: &str) -> Handshake {
    source_kind("meta").unwrap().handshake(query, &source(&["a-secret-of-16-bytes"], Some("let me+in")))
}

fn challenge(text: &str) -> Handshake {
    Handshake::Challenge(text.into())
}

#[rstest]
#[case("hub.mode=subscribe&hub.verify_token=let%20me%2Bin&hub.challenge=1158201444", challenge("1158201444"))]
#[case::any_order("hub.challenge=C&x=y&hub.verify_token=let+me%2Bin&hub.mode=subscribe", challenge("C"))]
#[case::the_first_of_two(
    "hub.mode=subscribe&hub.verify_token=let+me%2Bin&hub.challenge=1&hub.challenge=2",
    challenge("1")
)]
#[case::wrong_token("hub.mode=subscribe&hub.verify_token=let+me+in&hub.challenge=1", Handshake::WrongToken)]
#[case::part_of_the_token("hub.mode=subscribe&hub.verify_token=let&hub.challenge=1", Handshake::WrongToken)]
#[case::empty_token("hub.mode=subscribe&hub.verify_token=&hub.challenge=1", Handshake::WrongToken)]
#[case::wrong_mode("hub.mode=unsubscribe&hub.verify_token=let+me%2Bin&hub.challenge=1", Handshake::WrongToken)]
#[case::nothing("", Handshake::Missing("hub.mode"))]
#[case::no_mode("hub.verify_token=let+me%2Bin&hub.challenge=1", Handshake::Missing("hub.mode"))]
#[case::no_token("hub.mode=subscribe&hub.challenge=1", Handshake::Missing("hub.verify_token"))]
#[case::no_challenge("hub.mode=subscribe&hub.verify_token=let+me%2Bin", Handshake::Missing("hub.challenge"))]
#[case::dots_are_literal(
    "hub_mode=subscribe&hub_verify_token=let+me%2Bin&hub_challenge=1",
    Handshake::Missing("hub.mode")
)]
#[case::markup(
    "hub.mode=subscribe&hub.verify_token=let+me%2Bin&hub.challenge=a%0D%0Ab",
    Handshake::Missing("hub.challenge")
)]
#[case::empty_challenge(
    "hub.mode=subscribe&hub.verify_token=let+me%2Bin&hub.challenge=",
    Handshake::Missing("hub.challenge")
)]
fn the_challenge_is_echoed_to_whoever_knows_the_token(#[case] query: &str, #[case] want: Handshake) {
    assert_eq!(answer(query), want);
}

#[test]
fn a_long_challenge_is_not_echoed() {
    let query = format!("hub.mode=subscribe&hub.verify_token=let+me%2Bin&hub.challenge={}", "1".repeat(257));
    assert_eq!(answer(&query), Handshake::Missing("hub.challenge"));
}

#[rstest]
#[case(None)]
#[case(Some(""))]
fn without_a_token_nobody_is_right(#[case] token: Option<&str>) {
    let source = source(&["a-secret-of-16-bytes"], token);
    let query = "hub.mode=subscribe&hub.verify_token=&hub.challenge=1";
    assert_eq!(source_kind("meta").unwrap().handshake(query, &source), Handshake::NotConfigured);
}
