//! Signals and endings, on real processes: this test binary starts itself.

use runtime::shutdown::{Ended, Roles, stop_on_signals};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Set in a child: which part to play.
const PART: &str = "ROOST_TEST_SHUTDOWN_PART";

/// Not a promise by itself: what the children of the tests below run.
#[tokio::test]
async fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let stop = stop_on_signals().unwrap();
    let mut roles = Roles::new(stop.clone(), Duration::from_secs(5));
    roles.spawn("worker", async move {
        println!("\nready");
        stop.cancelled().await;
        println!("\nstopping");
        if part == "slow" {
            std::future::pending::<()>().await;
        }
        Ok::<(), std::io::Error>(())
    });
    let ended = roles.until_stopped().await;
    std::process::exit(if ended == Ended::Clean { 0 } else { 1 });
}

struct Played {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Played {
    fn start(part: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shutdown::child", "--nocapture"])
            .env(PART, part)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut played = Self { child, lines };
        played.until("ready");
        played
    }

    fn until(&mut self, word: &str) {
        assert!(self.lines.by_ref().any(|line| line.unwrap() == word), "the child ended before it said {word}");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn the_first_signal_stops_and_the_process_ends_well() {
    for signal in ["TERM", "INT"] {
        let mut played = Played::start("quick");
        played.signal(signal);
        played.until("stopping");
        assert_eq!(played.code(), Some(0), "{signal}");
    }
}

#[test]
fn the_second_signal_ends_at_once() {
    let mut played = Played::start("slow");
    let begun = Instant::now();
    played.signal("TERM");
    played.until("stopping");
    played.signal("TERM");
    assert_eq!(played.code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_role_that_ends_by_itself_stops_the_others_and_is_a_failure() {
    for outcome in [Ok(()), Err(std::io::Error::other("broken"))] {
        let stop = CancellationToken::new();
        let mut roles = Roles::new(stop.clone(), Duration::from_secs(5));
        roles.spawn("short", async move { outcome });
        let other = stop.clone();
        roles.spawn("other", async move {
            other.cancelled().await;
            Ok::<(), std::io::Error>(())
        });
        assert_eq!(roles.until_stopped().await, Ended::Failed);
        assert!(stop.is_cancelled());
    }
}

#[tokio::test]
async fn a_role_that_panics_is_a_failure() {
    let mut roles = Roles::new(CancellationToken::new(), Duration::from_secs(5));
    roles.spawn("panics", async {
        assert!(std::hint::black_box(false), "a panic in a test");
        Ok::<(), std::io::Error>(())
    });
    assert_eq!(roles.until_stopped().await, Ended::Failed);
}

#[tokio::test]
async fn a_role_that_does_not_stop_is_cut_when_the_budget_is_used_up() {
    let stop = CancellationToken::new();
    let mut roles = Roles::new(stop.clone(), Duration::from_millis(200));
    roles.spawn("stubborn", std::future::pending::<Result<(), std::io::Error>>());
    stop.cancel();
    let begun = Instant::now();
    assert_eq!(roles.until_stopped().await, Ended::Failed);
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn roles_that_finish_in_time_are_a_clean_end() {
    let stop = CancellationToken::new();
    let mut roles = Roles::new(stop.clone(), Duration::from_secs(5));
    for name in ["ingress", "ingest"] {
        let stop = stop.clone();
        roles.spawn(name, async move {
            stop.cancelled().await;
            Ok::<(), std::io::Error>(())
        });
    }
    stop.cancel();
    assert_eq!(roles.until_stopped().await, Ended::Clean);
}
