//! What must not happen is noticed when it happens.

use crate::socket::{begin_send, read_to_end, send};
use crate::{NUMBER, RITA, SOON, simulator, text};
use simulator::{AccountOptions, Fault, PairLimit, Script, Simulator, SimulatorOptions, When};
use std::time::Duration;

#[tokio::test]
async fn a_second_acceptance_is_noticed_unless_a_person_asked_for_it() {
    let simulator = simulator().await;
    for correlation in ["r1.abcdefghi0.7.0.1", "r1.abcdefghi0.7.1.1", "r1.abcdefghi0.8.0.1"] {
        send(simulator.address(), &text(RITA, "x", correlation)).await;
    }
    assert!(simulator.accepted_twice().is_empty());
    send(simulator.address(), &text(RITA, "x", "r1.abcdefghi0.7.0.2")).await;
    let twice = simulator.accepted_twice();
    assert_eq!(twice.len(), 1);
    assert_eq!((twice[0].message.as_str(), twice[0].calls.as_slice()), ("abcdefghi0.7.0", [1, 4].as_slice()));
}

#[tokio::test]
async fn a_refused_attempt_is_not_an_acceptance() {
    let simulator = simulator().await;
    simulator.script(Script::once(When::any(), Fault::http(500)));
    simulator.script(Script::once(When::any(), Fault::CutBefore { reset: true }));
    for attempt in 1..=3 {
        send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.7.0.{attempt}"))).await;
    }
    assert_eq!((simulator.stats().calls.calls, simulator.stats().calls.accepted), (3, 1));
    assert!(simulator.accepted_twice().is_empty());
}

#[tokio::test]
async fn two_calls_to_one_recipient_at_once_are_an_overlap_and_to_two_are_not() {
    let simulator = simulator().await;
    simulator.script(Script::always(When::any(), Fault::Slow { ms: 200 }));
    let mut open = Vec::new();
    for to in [RITA, "351912000444", RITA] {
        open.push(begin_send(simulator.address(), &text(to, "x", "c")).await);
        let so_far = open.len() as u64;
        assert!(simulator.wait_until(SOON, |stats| stats.calls.calls == so_far).await);
    }
    for stream in &mut open {
        assert_eq!(read_to_end(stream, SOON).await.status(), 200);
    }
    let overlaps = simulator.overlaps();
    assert_eq!(overlaps.len(), 1);
    assert_eq!((overlaps[0].recipient.as_str(), overlaps[0].first, overlaps[0].second), (RITA, 1, 3));
    assert_eq!(simulator.stats().calls.overlaps, 1);

    for _ in 0..3 {
        send(simulator.address(), &text(RITA, "one after another", "c")).await;
    }
    assert_eq!(simulator.overlaps().len(), 1);
}

#[tokio::test]
async fn a_call_after_the_caller_hung_up_is_not_an_overlap() {
    let simulator = simulator().await;
    simulator.script(Script::once(When::any(), Fault::HangAfter));
    let stream = begin_send(simulator.address(), &text(RITA, "x", "c")).await;
    assert!(simulator.wait_until(SOON, |stats| stats.calls.accepted == 1).await);
    drop(stream);
    assert!(simulator.wait_until(SOON, |stats| stats.calls.open == 0).await);
    send(simulator.address(), &text(RITA, "y", "c")).await;
    assert!(simulator.overlaps().is_empty());
}

#[tokio::test]
async fn order_is_the_order_of_acceptance() {
    let simulator = simulator().await;
    simulator.script(Script::once(When::saying("late"), Fault::AcceptLate { ms: 150 }));
    simulator.script(Script::once(When::saying("refused"), Fault::http(500)));
    let late = begin_send(simulator.address(), &text(RITA, "late", "c")).await;
    assert!(simulator.wait_until(SOON, |stats| stats.calls.calls == 1).await);
    for words in ["one", "refused", "two"] {
        send(simulator.address(), &text(RITA, words, "c")).await;
    }
    assert!(simulator.wait_until(SOON, |stats| stats.calls.accepted == 3).await);
    assert_eq!(simulator.order(RITA), ["one", "two", "late"]);
    assert_eq!(simulator.order_on(NUMBER, RITA), ["one", "two", "late"]);
    assert!(simulator.order_on("another", RITA).is_empty());
    drop(late);
}

async fn with_account(account: AccountOptions) -> Simulator {
    Simulator::start(SimulatorOptions { accounts: vec![account], ..SimulatorOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn more_than_the_rate_and_one_in_any_second_is_a_violation() {
    let simulator = with_account(AccountOptions::new(NUMBER, crate::TOKEN).with_rate(5.0)).await;
    for n in 0..9 {
        send(simulator.address(), &text(RITA, "x", &format!("r1.abcdefghi0.{n}.0.1"))).await;
    }
    let rate = &simulator.stats().rates[0];
    assert_eq!((rate.calls, rate.allowed, rate.most_in_a_second), (9, 5.0, 9));
    assert_eq!(rate.violations, 3, "the 7th, 8th and 9th");
    assert_eq!(simulator.stats().calls.accepted, 9, "noted, not enforced");
}

#[tokio::test]
async fn calls_within_the_rate_are_no_violation() {
    let simulator = with_account(AccountOptions::new(NUMBER, crate::TOKEN).with_rate(10.0)).await;
    let mut tick = tokio::time::interval(Duration::from_millis(104));
    for _ in 0..12 {
        tick.tick().await;
        send(simulator.address(), &text(RITA, "x", "c")).await;
    }
    assert_eq!(simulator.stats().calls.rate_violations, 0);
}

#[tokio::test]
async fn an_enforced_rate_answers_130429() {
    let simulator = simulator().await;
    assert!(simulator.set_rate(NUMBER, 2.0, true));
    assert!(!simulator.set_rate("another", 2.0, true));
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(send(simulator.address(), &text(RITA, "x", "c")).await.json()["error"]["code"].as_i64());
    }
    assert_eq!(codes, [None, None, None, Some(130_429), Some(130_429)]);
}

#[tokio::test]
async fn an_enforced_pair_limit_answers_131056_for_that_pair_only() {
    let mut account = AccountOptions::new(NUMBER, crate::TOKEN);
    account.pair = Some(PairLimit { interval: Duration::from_secs(6), burst: 2, enforce: true });
    let simulator = with_account(account).await;
    let mut codes = Vec::new();
    for to in [RITA, RITA, RITA, RITA, "351912000444"] {
        codes.push(send(simulator.address(), &text(to, "x", "c")).await.json()["error"]["code"].as_i64());
    }
    assert_eq!(codes, [None, None, None, Some(131_056), None]);
    assert_eq!(simulator.stats().calls.pair_violations, 1);
}

#[tokio::test]
async fn the_log_keeps_the_newest_calls_and_all_sums() {
    let simulator = Simulator::start(SimulatorOptions { keep_calls: 3, ..SimulatorOptions::default() }).await.unwrap();
    for n in 1..=5 {
        send(simulator.address(), &text(RITA, &n.to_string(), "c")).await;
    }
    assert_eq!(simulator.order(RITA), ["3", "4", "5"]);
    assert_eq!(simulator.stats().calls.accepted, 5);
    simulator.reset();
    assert_eq!((simulator.calls().len(), simulator.stats().calls.calls), (0, 0));
}

#[tokio::test]
async fn it_can_live_on_a_thread_of_its_own() {
    let simulator =
        Simulator::start(SimulatorOptions { own_thread: true, ..SimulatorOptions::default() }).await.unwrap();
    let address = simulator.address();
    assert_eq!(send(address, &text(RITA, "x", "c")).await.status(), 200);
    let taken = SimulatorOptions { own_thread: true, listen: address, ..SimulatorOptions::default() };
    assert!(Simulator::start(taken).await.is_err(), "a taken address is an error, not a panic");
    simulator.shutdown().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
