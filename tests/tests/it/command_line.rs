//! What the command line says to whoever got something wrong: what to change, with exit code 64, and nothing started.

use crate::ROOST;
use roost_tests::{Process, wait};
use rstest::rstest;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// From its start to the ready lines, by its own clock. A test fails at ten times the promise only: machines are busy.
const READY_WITHIN_MS: u64 = 2_000 * 10;
/// Resident memory of the process when it says that it is ready.
const MOST_MEMORY_KB: u64 = 100 * 1024;

/// What a program was told, and how it ended.
#[derive(Debug)]
struct Told {
    code: i32,
    words: String,
}

/// Runs `roost` in `folder` and without any setting of the person who runs the tests, until it ends by itself. Standard
/// input is `typed`.
fn roost(folder: &Path, args: &[&str], env: &[(&str, &str)], typed: &str) -> Told {
    let mut command = Command::new(ROOST);
    command.args(args).env_clear().envs(env.iter().copied()).current_dir(folder);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // One that has ended already reads nothing.
    let _ = child.stdin.take().expect("piped").write_all(typed.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let words = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Told { code: status.code().expect("not by a signal"), words }
}

#[track_caller]
fn assert_says(told: &Told, code: i32, sentences: &[&str]) {
    assert_eq!(told.code, code, "{}", told.words);
    for sentence in sentences {
        assert!(told.words.contains(sentence), "no {sentence:?} in: {}", told.words);
    }
    assert!(!told.words.contains("panicked") && !told.words.contains("os error 2)"), "{}", told.words);
}

/// Nothing was made in `folder` besides what the test put there.
#[track_caller]
fn assert_nothing_started(folder: &Path) {
    assert!(!folder.join("roost-data").exists(), "nothing may be started");
}

#[rstest]
#[case::key("[http]\nlissten = \"127.0.0.1:0\"", "line 2: `lissten` is not a key of [http]; did you mean `listen`?")]
#[case::table("[htpp]\nlisten = \"127.0.0.1:0\"", "there is no table [htpp]; did you mean [http]?")]
#[case::address("[http]\nlisten = \"localhost\"", "must be an address and a port such as \"0.0.0.0:8080\"")]
#[case::number("[tuning]\nlease_ms = \"soon\"", "`lease_ms` in [tuning] must be a whole number from 100")]
#[case::together("[tuning]\nlease_ms = 10000", "at least one and a half times `call_timeout_ms`")]
#[case::database("[store]\nurl = \"mysql://x\"", "must begin with postgres:// or sqlite:")]
#[case::broker("[queue]\nurl = \"kafka://x\"", "must be \"embedded\", or begin with amqp:// or amqps://")]
#[case::missing("[[sources]]\nname = \"meta\"\nkind = \"meta\"", "app_secret")]
#[case::secret_not_set(
    "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"env:NOT_SET_ANYWHERE\"]",
    "the environment variable NOT_SET_ANYWHERE is not set: set it."
)]
#[case::secret_file(
    "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"file:/nowhere/secret\"]",
    "/nowhere/secret cannot be read: there is no such file."
)]
#[case::secret_itself(
    "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"a-secret-of-many-letters\"]",
    "it must be a reference, env:NAME or file:/path, not the secret itself"
)]
#[case::word(
    "[[users]]\nemail = \"ops@example.com\"\npassword_hash = \"env:X\"\nrole = \"boss\"",
    "must be \"viewer\" or \"agent\" or \"operator\" or \"admin\", not \"boss\"."
)]
#[case::not_toml("data_dir = ", "line 1: this is not TOML")]
fn a_mistake_in_the_configuration_is_a_sentence_and_exit_64(#[case] text: &str, #[case] sentence: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("my.toml"), text).unwrap();
    for verb in [&["up"][..], &["ingest"], &["migrate"], &["config", "check"], &["config", "check", "--print"]] {
        let args = [verb, &["--config", "my.toml"]].concat();
        let told = roost(folder.path(), &args, &[], "");
        assert_says(&told, 64, &["my.toml line", sentence]);
        assert!(!told.words.contains("a-secret-of-many-letters"), "{}", told.words);
    }
    assert_nothing_started(folder.path());
}

#[rstest]
#[case::nothing(&[], &[], "Usage: ")]
#[case::verb(&["upp"], &[], "unrecognized subcommand 'upp'")]
#[case::option(&["up", "--dmeo"], &[], "'--demo'")]
#[case::role(&["ingress", "postman"], &[], "[possible values: ingress, ingest, inbox, sender]")]
#[case::file(&["up", "--config", "gone.toml"], &[], "There is no configuration file gone.toml: correct --config or ROOST_CONFIG")]
#[case::file_of_the_environment(&["up"], &[("ROOST_CONFIG", "gone.toml")], "There is no configuration file gone.toml")]
#[case::variable(&["up"], &[("ROOST_HTTP_LISTN", "x")], "did you mean ROOST_HTTP_LISTEN?")]
#[case::value(&["up"], &[("ROOST_HTTP_LISTEN", "x")], "ROOST_HTTP_LISTEN must be an address and a port")]
#[case::clock(&["up"], &[("ROOST_NOW", "2026-01-01T00:00:00Z")], "unset it, or start with --demo")]
#[case::role_on_sqlite(&["ingest"], &[], "set [store] url to a postgres:// address, or run `roost up`")]
#[case::role_on_embedded(
    &["ingress"],
    &[("ROOST_STORE_URL", "postgres://127.0.0.1/x")],
    "set [queue] url to an amqp:// address, or run `roost up`"
)]
#[case::foreign_address(
    &["up"],
    &[("ROOST_HTTP_LISTEN", "192.0.2.1:8080")],
    "choose another address with listen in [http] (or ROOST_HTTP_LISTEN)"
)]
#[case::folder(
    &["up"],
    &[("ROOST_DATA_DIR", "/dev/null/data"), ("ROOST_HTTP_LISTEN", "127.0.0.1:0"), ("ROOST_HTTP_ADMIN_LISTEN", "127.0.0.1:0")],
    "set data_dir to one that this user may write to"
)]
fn a_mistake_at_the_start_is_a_sentence_and_exit_64(
    #[case] args: &[&str],
    #[case] env: &[(&str, &str)],
    #[case] sentence: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&roost(folder.path(), args, env, ""), 64, &[sentence]);
    assert_nothing_started(folder.path());
}

#[rstest]
#[case::front(("ROOST_HTTP_LISTEN", "ROOST_HTTP_ADMIN_LISTEN"), &["up"])]
#[case::admin(("ROOST_HTTP_ADMIN_LISTEN", "ROOST_HTTP_LISTEN"), &["up", "--demo"])]
fn a_taken_port_is_named_with_the_setting_that_moves_it(#[case] (taken, free): (&str, &str), #[case] args: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let told = roost(folder.path(), args, &[(taken, &address), (free, "127.0.0.1:0")], "");
    assert_says(&told, 64, &[&format!("{address} is already in use: choose another address"), taken]);
    assert_nothing_started(folder.path());

    let told = roost(folder.path(), &["simulator", "--listen", &address], &[], "");
    assert_says(&told, 64, &[&address, "choose another address with --listen"]);
}

#[test]
fn a_database_that_is_away_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let env = [("ROOST_STORE_URL", "postgres://127.0.0.1:1/roost"), ("ROOST_TUNING_ACQUIRE_TIMEOUT_MS", "300")];
    let told = roost(folder.path(), &["migrate"], &env, "");
    assert_says(&told, 1, &["the database cannot be reached: start it, or correct [store] url"]);
    assert!(told.words.matches("timed out").count() <= 1, "{}", told.words);
}

#[test]
fn what_is_in_force_can_be_looked_at_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let env = [("ROOST_STORE_URL", "postgres://roost:canary-1@db/roost"), ("ROOST_QUEUE_URL", "amqp://r:canary-2@mq")];
    let told = roost(folder.path(), &["config", "check", "--print"], &env, "");
    assert_says(&told, 0, &["postgres://roost:********@db/roost", "lease_ms = 20000", "and for single roles"]);
    assert!(!told.words.contains("canary"), "{}", told.words);
    let told = roost(folder.path(), &["config", "check"], &[], "");
    assert_says(&told, 0, &["The defaults: good for `roost up` (one process); 0 source(s), 0 account(s)."]);
    assert_nothing_started(folder.path());
}

#[rstest]
#[case::good("a long enough password\n", 0, "$argon2id$")]
#[case::without_a_line_end("a long enough password", 0, "$argon2id$")]
#[case::short("short\n", 64, "The password needs at least 8 characters.")]
#[case::none("", 64, "The password needs at least 8 characters.")]
fn a_password_becomes_a_hash_or_a_sentence(#[case] typed: &str, #[case] code: i32, #[case] sentence: &str) {
    let folder = tempfile::tempdir().unwrap();
    let told = roost(folder.path(), &["user", "hash"], &[], typed);
    assert_says(&told, code, &[sentence]);
    assert!(!told.words.contains("long enough"), "{}", told.words);
}

#[rstest]
#[case(&["--help"], &["roost up --demo", "Exit codes:", "64 something has to be changed"])]
#[case(&["up", "--help"], &["--config <FILE>", "./roost.toml", "--demo"])]
#[case(&["help", "ingest"], &["every timer"])]
fn help_is_no_mistake(#[case] args: &[&str], #[case] sentences: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&roost(folder.path(), args, &[], ""), 0, sentences);
}

/// `Roost 0.1.0 is ready (112 ms).`
fn ready_ms(printed: &str) -> Option<u64> {
    printed.split_once(" is ready (")?.1.split_once(" ms)")?.0.parse().ok()
}

/// What the system counts as resident, of the process with this id.
fn resident_kb(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KB")
}

/// Everything that a start without trouble prints is for a newcomer; what the machinery has to say of itself is for whoever
/// asks with `log.level`.
#[rstest]
#[case::demo(&["up", "--demo"], &["Inbox ", "Log in, once ", "Customer's phone ", "API token ", "Ctrl+C stops."])]
#[case::plain(&["up"], &["Inbox ", "Log in, once ", "Point your providers at http://", "`roost up --demo`"])]
#[tokio::test]
async fn ac_54_the_first_start_says_what_a_newcomer_needs_and_nothing_else(
    #[case] args: &[&str],
    #[case] sentences: &[&str],
) {
    let folder = tempfile::tempdir().unwrap();
    let env = [("ROOST_HTTP_LISTEN", "127.0.0.1:0"), ("ROOST_HTTP_ADMIN_LISTEN", "127.0.0.1:0")];
    let mut process = Process::start("up", Path::new(ROOST), args, &env, folder.path()).unwrap();
    let ready = wait::until("the ready lines", SOON, async || {
        let printed = process.printed();
        Ok(printed.contains("Ctrl+C stops").then_some(printed))
    });
    let printed = ready.await.unwrap_or_else(|error| panic!("{error}: {}", process.printed()));
    assert!(printed.starts_with("\nRoost ") && printed.contains(" is ready ("), "{printed}");
    for sentence in sentences {
        assert!(printed.contains(sentence), "no {sentence:?} in: {printed}");
    }
    assert!(!printed.contains("\"level\""), "a log line: {printed}");
    let (ready_ms, memory_kb) = (ready_ms(&printed).expect(&printed), resident_kb(process.id().expect("it runs")));
    assert!(ready_ms < READY_WITHIN_MS, "ready after {ready_ms} ms");
    assert!(memory_kb > 0 && memory_kb < MOST_MEMORY_KB, "{memory_kb} KB of memory");

    process.signal("INT").unwrap();
    assert_eq!(process.ended(SOON).await.unwrap().code(), Some(0));
    let end = process.printed().split_off(printed.len());
    let lines: Vec<&str> = end.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 2, "stopping, and stopped: {end}");
    assert!(!end.contains("WARN"), "{end}");
}
