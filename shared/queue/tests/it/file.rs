//! What only the embedded queue has: a file.

use crate::support::{NOTES, Note, SOON, note, take, text};
use queue::{OpenError, PublishError, Queue, QueueOptions, QueueUrl, Settle};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const CHILDS_FOLDER: &str = "ROOST_TEST_QUEUE_FOLDER";

fn options(folder: &Path) -> QueueOptions {
    let url = QueueUrl::parse("embedded", folder).unwrap();
    QueueOptions {
        url,
        prefix: String::new(),
        role: "test".into(),
        instance: "it".into(),
        timing: queue::Timing::default(),
    }
}

/// Not a test: the process that the next one kills. Publishes for ever and says what was confirmed.
#[tokio::test]
#[ignore = "run by nothing_confirmed_is_lost_when_the_process_is_killed"]
async fn child() {
    let Some(folder) = std::env::var_os(CHILDS_FOLDER) else { return };
    let queue = Queue::open(options(Path::new(&folder))).await.unwrap();
    let mut consumer = queue.consume(&NOTES, None, 8).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let publisher = queue.publisher();
        tasks.spawn(async move {
            for number in 0.. {
                let id = format!("{task}.{number}");
                publisher.publish(&NOTES, None, &note(&id)).await.unwrap();
                println!("published {id}");
            }
        });
    }
    loop {
        let delivery = take(&mut consumer).await;
        let id = text(&delivery).to_owned();
        if id.ends_with('7') {
            // Said before it is done: whether it is gone afterwards is open.
            println!("settling {id}");
            delivery.settle(Settle::Done).await;
        } else {
            delivery.settle(Settle::RetryIn(std::time::Duration::ZERO)).await;
        }
    }
}

#[tokio::test]
async fn nothing_confirmed_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "file::child", "--ignored", "--nocapture"])
            .env(CHILDS_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut published, mut settling) = (HashSet::new(), HashSet::new());
        let mut read = |line: String| {
            if let Some(id) = line.split("published ").nth(1) {
                published.insert(id.to_owned());
            } else if let Some(id) = line.split("settling ").nth(1) {
                settling.insert(id.to_owned());
            }
        };
        lines.by_ref().take(500 * round).for_each(|line| read(line.unwrap()));
        child.kill().unwrap();
        // What it said before it died counts too, up to a line cut in the middle.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        rest.iter().take(rest.len().saturating_sub(1)).for_each(|line| read(line.clone()));
        child.wait().unwrap();

        let queue = Queue::open(options(folder.path())).await.unwrap();
        let mut consumer = queue.consume(&NOTES, None, 1_000).await;
        let mut missing: HashSet<_> = published.difference(&settling).cloned().collect();
        assert!(missing.len() > 100, "the child published too little: {}", missing.len());
        let ready = queue.depth(&NOTES, None).await.unwrap().ready;
        let mut seen = HashSet::new();
        while !missing.is_empty() {
            assert!(seen.len() as u64 <= ready + 1_000, "{} are lost", missing.len());
            let delivery = tokio::time::timeout(SOON, consumer.next()).await;
            let delivery =
                delivery.unwrap_or_else(|_| panic!("{} are lost, such as {:?}", missing.len(), missing.iter().next()));
            let delivery = delivery.unwrap();
            assert!(delivery.redelivered);
            missing.remove(text(&delivery));
            assert!(seen.insert(text(&delivery).to_owned()), "{} is there twice", text(&delivery));
            delivery.settle(Settle::Done).await;
        }
        while let Ok(Some(delivery)) =
            tokio::time::timeout(std::time::Duration::from_millis(100), consumer.next()).await
        {
            delivery.settle(Settle::Done).await;
        }
        queue.close(SOON).await;
    }
}

#[tokio::test]
async fn a_second_process_is_told_that_the_file_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = Queue::open(options(folder.path())).await.unwrap();
    let second = Queue::open(options(folder.path())).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    assert!(second.to_string().contains("in use by another process"), "{second}");
    first.close(SOON).await;
    drop(first);
    Queue::open(options(folder.path())).await.unwrap();
}

#[tokio::test]
async fn a_file_of_the_future_or_of_another_kind_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    std::fs::write(&path, "this is no database, it only happens to have the name of one").unwrap();
    let error = Queue::open(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, OpenError::File { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();

    drop(Queue::open(options(folder.path())).await.unwrap());
    let future = format!("PRAGMA user_version = 99; -- {}", path.display());
    let sqlite = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut connection = sqlx::ConnectOptions::connect(&sqlite).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(future)).execute(&mut connection).await.unwrap();
    drop(connection);
    // The file's old owner ends with the runtime's next turn.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let error = Queue::open(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, OpenError::TooNew { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_a_sentence() {
    let error = Queue::open(options(Path::new("/nonexistent/roost"))).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/roost/queue.db"), "{error}");
}

#[tokio::test]
async fn many_publishers_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(options(folder.path())).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..200 {
        let publisher = queue.publisher();
        tasks.spawn(async move {
            for number in 0..10 {
                publisher.publish(&NOTES, None, &note(format!("{task}.{number}"))).await?;
            }
            Ok::<(), PublishError>(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap().unwrap();
    }
    let mut consumer = queue.consume(&NOTES, None, 5_000).await;
    let mut last = vec![-1i64; 200];
    for _ in 0..2_000 {
        let delivery = take(&mut consumer).await;
        let Note(id) = delivery.item.as_ref().unwrap();
        let (task, number) = id.split_once('.').unwrap();
        let (task, number): (usize, i64) = (task.parse().unwrap(), number.parse().unwrap());
        assert_eq!(last[task] + 1, number, "each publisher's own order is kept");
        last[task] = number;
        delivery.settle(Settle::Done).await;
    }
}
