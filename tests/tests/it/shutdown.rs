//! Starting and stopping, as an operator does it.

use crate::ROOST;
use roost_tests::{Process, Stack, System, SystemOptions, wait};
use rstest::rstest;
use std::path::Path;
use std::time::Duration;

const DRAIN_LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn sigterm_ends_every_role_cleanly_within_thirty_seconds_on_postgres_rabbitmq() {
    let roles = [("ingress", "ingress"), ("ingest", "ingest"), ("inbox", "inbox"), ("sender", "sender")];
    let mut system =
        System::start(ROOST, SystemOptions::new(Stack::PostgresRabbitMq).with_roles(&roles)).await.unwrap();
    for (name, _) in roles {
        let status = system.process(name).terminate(DRAIN_LIMIT).await.unwrap();
        assert_eq!(status.code(), Some(0), "{name}:\n{}", system.process(name).last_lines(20));
    }
}

#[tokio::test]
async fn sigterm_ends_up_cleanly_and_a_second_start_finds_everything() {
    let mut system = System::start(ROOST, SystemOptions::new(Stack::SqliteEmbedded)).await.unwrap();
    system.simulator.customer_writes("351912000333", "Rita", "before").done().await;
    let status = system.process("up").terminate(DRAIN_LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", system.last_lines());
    system.process("up").run().unwrap();
    let api = system.api();
    let found = wait::until("the message after the restart", Duration::from_secs(20), async || {
        Ok(api.conversation_with("+351912000333").await.ok().flatten())
    });
    assert_eq!(found.await.unwrap().unread_count, 1);
}

#[tokio::test]
async fn a_sighup_stops_nothing_and_says_that_a_restart_applies_a_change() {
    let mut system = System::start(ROOST, SystemOptions::new(Stack::SqliteEmbedded)).await.unwrap();
    for times in 1..=2 {
        system.process("up").signal("HUP").unwrap();
        let said = wait::until("a word about the signal", Duration::from_secs(20), async || {
            let up = system.process("up");
            anyhow::ensure!(up.runs()?, "it has ended: {}", up.printed());
            Ok((up.printed().matches("restart to apply").count() == times).then_some(()))
        });
        said.await.unwrap_or_else(|error| panic!("{error}\n{}", system.last_lines()));
    }
    assert!(system.not_ready("up").await.unwrap().is_empty(), "it goes on");
    assert!(system.simulator.customer_writes("351912000333", "Rita", "after").done().await.acknowledged);
    let status = system.process("up").terminate(DRAIN_LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", system.last_lines());
}

/// Whoever collects the log may be restarted before what it collects from.
#[tokio::test]
async fn a_process_whose_log_nobody_reads_any_more_goes_on_and_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let command = format!("mkfifo log; (head -c 1 log > first; touch gone) & exec '{ROOST}' up > out.log 2> log");
    let env = [("ROOST_HTTP_LISTEN", "127.0.0.1:0"), ("ROOST_HTTP_ADMIN_LISTEN", "127.0.0.1:0")];
    let mut up = Process::start("up", Path::new("/bin/sh"), &["-c", &command], &env, folder.path()).unwrap();
    says(&folder.path().join("out.log"), "Ctrl+C stops.").await;
    up.signal("HUP").unwrap();
    let gone = async || Ok(folder.path().join("gone").exists().then_some(()));
    wait::until("the reader to go", DRAIN_LIMIT, gone).await.unwrap();
    up.signal("HUP").unwrap();
    let status = up.terminate(DRAIN_LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test]
async fn a_second_process_on_the_same_files_is_told_so() {
    let system = System::start(ROOST, SystemOptions::new(Stack::SqliteEmbedded)).await.unwrap();
    let config = std::fs::read_to_string(system.folder.join("up.toml")).unwrap();
    // The same files, other ports.
    let other = config.lines().filter(|line| !line.starts_with("listen") && !line.starts_with("admin_listen"));
    let other = other
        .collect::<Vec<_>>()
        .join("\n")
        .replace("[http]", "[http]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"");
    let file = system.folder.join("second.toml");
    std::fs::write(&file, other).unwrap();
    let args = ["up", "--config", file.to_str().unwrap()];
    let mut second = Process::start("second", Path::new(ROOST), &args, &[], &system.folder).unwrap();
    let status = second.ended(Duration::from_secs(20)).await.unwrap();
    assert_eq!(status.code(), Some(64), "{}", second.printed());
    assert!(second.printed().contains("already"), "{}", second.printed());
}

/// Waits until the file holds these words.
async fn says(log: &Path, words: &str) {
    let printed = || std::fs::read_to_string(log).unwrap_or_default();
    let said = wait::until(words, DRAIN_LIMIT, async || Ok(printed().contains(words).then_some(())));
    said.await.unwrap_or_else(|error| panic!("{error}: {}", printed()));
}

/// Whoever closes the window of a demo wants it to end, and its port and files to be free.
#[rstest]
#[case::that_is_written_to("")]
#[case::beside_a_log_file(" > roost.log 2>&1")]
#[tokio::test]
async fn a_terminal_that_goes_takes_the_process_with_it_which_drains_as_on_sigterm(#[case] output: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("roost-data");
    // `script` gives it a terminal, and takes it away by its own end.
    let command = format!("exec '{ROOST}' up{output}");
    let args = ["--quiet", "--return", "--command", &command, "/dev/null"];
    let env = [("ROOST_HTTP_LISTEN", "127.0.0.1:0"), ("ROOST_HTTP_ADMIN_LISTEN", "127.0.0.1:0"), ("SHELL", "/bin/sh")];
    let mut terminal = Process::start("terminal", Path::new("script"), &args, &env, folder.path()).unwrap();
    let log = folder.path().join(if output.is_empty() { "terminal.log" } else { "roost.log" });
    says(&log, "Ctrl+C stops.").await;
    assert!(data.join("roost.db-wal").exists(), "the database is open");
    terminal.kill().unwrap();
    if !output.is_empty() {
        says(&log, "SIGHUP: stopping").await;
        says(&log, "Stopped").await;
    }
    let lock = std::fs::File::options().write(true).open(data.join("roost.lock")).unwrap();
    let free = wait::until("its files to be free", DRAIN_LIMIT, async || Ok(lock.try_lock().ok()));
    free.await.unwrap();
    // Only whoever closes the database takes its log in and removes it.
    assert!(!data.join("roost.db-wal").exists(), "it was cut off");
}
