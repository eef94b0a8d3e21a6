//! What is logged can be read by a machine and gives nothing away. In a process of its own: logging is set up once.

use runtime::config::{Log, LogFormat};
use std::process::Command;

const CHILD: &str = "ROOST_TEST_LOG_CHILD";

/// Not a promise by itself: what the test below runs.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let log = Log { format: LogFormat::Json, level: "info".into() };
    runtime::telemetry::init(&log).unwrap();
    assert!(runtime::telemetry::init(&log).is_err(), "logging cannot be set up twice");
    tracing::info!(message.id = 42, attempt = 3, "Retrying message 42");
    tracing::debug!("too quiet");
    tracing::info!(target: "lapin::channel", "a driver's own words");
    let text = String::from("canary ü");
    let _ = std::panic::catch_unwind(|| text.get(..8).map(str::len).unwrap_or_else(|| panic!("cannot cut {text}")));
    let _ = std::panic::catch_unwind(|| panic!("a rule was broken"));
}

#[test]
fn lines_are_json_drivers_are_quiet_and_a_panic_does_not_tell_what_was_worked_on() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "telemetry::child", "--nocapture"])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    let lines =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line)).collect::<Vec<_>>();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0]["message"], "Retrying message 42");
    assert_eq!((&lines[0]["message.id"], &lines[0]["attempt"]), (&42.into(), &3.into()));
    assert_eq!(lines[0]["level"], "INFO");
    assert!(!text.contains("canary"), "{text}");
    assert!(lines[1]["message"].as_str().unwrap().ends_with("(words withheld)"), "{text}");
    assert!(lines[2]["message"].as_str().unwrap().ends_with("a rule was broken"), "{text}");
    assert!(lines[2]["panic.place"].as_str().unwrap().contains("telemetry.rs:"), "{text}");
}
