//! Live events: resumed without gaps and doubles, whatever order transactions commit in.

use crate::support::{Browser, CRM, SOON, World, json};
use domain::{Clock, ConversationId, Status};
use reqwest::{Method, Response};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;
use store::Tx;
use store::feed::{self, Change};
use testkit::Database;

/// One block of an event stream.
#[derive(Clone, Debug, Default, PartialEq)]
struct Event {
    id: String,
    event: String,
    data: Value,
}

/// An open event stream.
struct Stream {
    answer: Response,
    text: String,
    last_id: String,
}

impl Stream {
    async fn open(world: &World, since: Option<&str>) -> Stream {
        let mut request = world.anybody(Method::GET, "/api/events").bearer_auth(CRM);
        if let Some(since) = since {
            request = request.header("last-event-id", since);
        }
        Self::of(request.send().await.unwrap())
    }

    fn of(answer: Response) -> Stream {
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Stream { answer, text: String::new(), last_id: String::new() }
    }

    /// The next event that a browser would dispatch; `None` when the stream ended.
    async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(SOON, self.next_block()).await.expect("an event in time")
    }

    async fn next_block(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let mut event = Event::default();
                let mut has_data = false;
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => self.last_id = id.to_owned(),
                        Some(("event", name)) => event.event = name.to_owned(),
                        Some(("data", data)) => {
                            has_data = true;
                            event.data = serde_json::from_str(data).unwrap();
                        }
                        _ => {}
                    }
                }
                event.id.clone_from(&self.last_id);
                if has_data {
                    return Some(event);
                }
            }
            let chunk = self.answer.chunk().await.ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next `n` changes, as conversation ids.
    async fn conversations(&mut self, n: usize) -> Vec<i64> {
        let mut seen = Vec::new();
        while seen.len() < n {
            let event = self.next().await.expect("the stream goes on");
            assert_eq!(event.event, "", "{event:?}");
            seen.push(event.data["conversationId"].as_i64().unwrap());
        }
        seen
    }
}

async fn say(tx: &mut Tx, conversation: i64, at: domain::Timestamp) {
    let change = Change::Conversation { conversation: ConversationId::new(conversation), contact: None };
    feed::write(tx, &[change], at).await.unwrap();
}

async fn say_and_commit(world: &World, conversation: i64) {
    let mut tx = world.store.begin().await.unwrap();
    say(&mut tx, conversation, world.clock.now()).await;
    tx.commit().await.unwrap();
    world.store.wake_readers();
}

#[rstest]
#[tokio::test]
async fn changes_arrive_as_they_happen_with_enough_to_fetch_them(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let mut stream = Stream::open(&world, None).await;
    let path = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let sent = json(world.post(&path, &json!({ "text": "hello" })).send().await.unwrap(), 202).await;
    let first = stream.next().await.unwrap();
    // The conversation of before may still be on its way when the server is shared.
    let (first, second) = match first.data["kind"].as_str() {
        Some("conversation") => (first, stream.next().await.unwrap()),
        _ => panic!("{first:?}"),
    };
    let second = if second.data["kind"] == "conversation" { stream.next().await.unwrap() } else { second };
    assert_eq!(first.data["conversationId"], one.conversation.get());
    assert_eq!(second.data["kind"], "message_status");
    assert_eq!((&second.data["messageId"], &second.data["status"]), (&sent["message"]["id"], &json!("QUEUED")));
    assert!(!second.data.to_string().contains("hello"), "ids only");
}

#[rstest]
#[tokio::test]
async fn a_stream_resumes_where_it_was_cut_without_a_gap_and_without_doubles(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let mut stream = Stream::open(&world, None).await;
    say_and_commit(&world, 1).await;
    say_and_commit(&world, 2).await;
    assert_eq!(stream.conversations(2).await, [1, 2]);
    let last = stream.last_id.clone();
    drop(stream);
    for conversation in 3..=40 {
        say_and_commit(&world, conversation).await;
    }
    let mut stream = Stream::open(&world, Some(&last)).await;
    assert_eq!(stream.conversations(38).await, (3..=40).collect::<Vec<_>>());
    say_and_commit(&world, 41).await;
    assert_eq!(stream.conversations(1).await, [41]);
    // `?since=` is the same for clients that cannot set a header.
    let path = format!("/api/events?since={last}");
    let mut again = Stream::of(world.get(&path).send().await.unwrap());
    assert_eq!(again.conversations(39).await, (3..=41).collect::<Vec<_>>());
}

#[rstest]
#[tokio::test]
async fn listeners_that_join_while_others_write_hear_every_change_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let start = Stream::open(&world, None).await;
    let mut start = start;
    say_and_commit(&world, 1).await;
    start.conversations(1).await;
    let since = start.last_id.clone();
    let writers = (0..4i64).map(|writer| {
        let (store, at) = (world.store.clone(), world.clock.now());
        tokio::spawn(async move {
            for n in 0..25 {
                let mut tx = store.begin().await.unwrap();
                say(&mut tx, 1000 + writer * 100 + n, at).await;
                tokio::task::yield_now().await;
                tx.commit().await.unwrap();
                store.wake_readers();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut listeners = Vec::new();
    for _ in 0..5 {
        listeners.push(Stream::open(&world, Some(&since)).await);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let want: Vec<i64> = (0..4).flat_map(|writer| (0..25).map(move |n| 1000 + writer * 100 + n)).collect();
    let mut orders = Vec::new();
    for mut listener in listeners {
        let heard = listener.conversations(100).await;
        let mut sorted = heard.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, want, "each once");
        orders.push(heard);
    }
    assert!(orders.windows(2).all(|pair| pair[0] == pair[1]), "in one order for all");
}

#[tokio::test]
async fn a_lower_transaction_that_commits_later_is_waited_for() {
    let world = World::on(Database::Postgres).await;
    let mut stream = Stream::open(&world, None).await;
    say_and_commit(&world, 1).await;
    assert_eq!(stream.conversations(1).await, [1]);
    let mut slow = world.store.begin().await.unwrap();
    say(&mut slow, 2, world.clock.now()).await;
    for conversation in 3..=5 {
        say_and_commit(&world, conversation).await;
    }
    let early = tokio::time::timeout(Duration::from_millis(300), stream.next_block()).await;
    assert!(early.is_err(), "nothing overtakes the open transaction: {early:?}");
    // Its end wakes nobody: the reader looks again by itself.
    slow.commit().await.unwrap();
    assert_eq!(stream.conversations(4).await, [2, 3, 4, 5]);
}

#[rstest]
#[tokio::test]
async fn a_place_that_cannot_be_gone_on_from_gets_a_reset(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values("9223372036854775807-1", "rubbish", "-1--1")] since: &str,
) {
    let world = World::on(database).await;
    say_and_commit(&world, 1).await;
    let mut stream = Stream::open(&world, Some(since)).await;
    assert_eq!(stream.next().await.unwrap().event, "reset");
    let place = stream.last_id.clone();
    say_and_commit(&world, 2).await;
    assert_eq!(stream.conversations(1).await.last(), Some(&2));
    assert_ne!(stream.last_id, place, "and goes on from the present");
}

#[rstest]
#[tokio::test]
async fn the_long_poll_is_the_same_feed(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let poll = |since: String| {
        let request = world.get(&format!("/api/events?wait=10{since}")).header("accept", "application/json");
        async move { json(request.send().await.unwrap(), 200).await }
    };
    let quiet =
        json(world.get("/api/events?wait=0").header("accept", "application/json").send().await.unwrap(), 200).await;
    assert_eq!((&quiet["events"], &quiet["reset"]), (&json!([]), &json!(false)));
    let since = format!("&since={}", quiet["next"].as_str().unwrap());
    let waiting = tokio::spawn(poll(since.clone()));
    say_and_commit(&world, 7).await;
    let first = waiting.await.unwrap();
    assert_eq!(first["events"][0]["conversationId"], 7);
    say_and_commit(&world, 8).await;
    let next = poll(format!("&since={}", first["next"].as_str().unwrap())).await;
    assert_eq!(next["events"].as_array().unwrap().len(), 1);
    assert_eq!(next["events"][0]["conversationId"], 8);
    assert_eq!(poll("&since=999999999-1".into()).await["reset"], true);
}

#[tokio::test]
async fn a_page_hears_a_beat_and_a_stopped_server_ends_its_streams() {
    let world = World::on(Database::Sqlite).await;
    let sara: Browser = world.browser("sara@example.com").await;
    let answer = sara.get("/api/events?beat=2").send().await.unwrap();
    let mut stream = Stream::of(answer);
    assert_eq!(stream.next().await.unwrap().event, "beat");
    drop(world);
    let end = tokio::time::timeout(SOON, async { while stream.next_block().await.is_some() {} }).await;
    assert!(end.is_ok());
}

#[rstest]
#[tokio::test]
async fn a_status_that_moves_is_told_with_its_message(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let mut stream = Stream::open(&world, None).await;
    let mut tx = world.store.begin().await.unwrap();
    let change = Change::MessageStatus {
        conversation: ConversationId::new(3),
        message: domain::MessageId::new(4),
        status: Status::Delivered,
    };
    feed::write(&mut tx, &[change], world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    world.store.wake_readers();
    let event = stream.next().await.unwrap();
    assert_eq!((&event.data["messageId"], &event.data["status"]), (&json!(4), &json!("DELIVERED")));
    assert_eq!(event.data["id"], event.id.as_str());
}

#[rstest]
#[tokio::test]
async fn how_late_a_change_reached_the_page_is_measured(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Rita", "351912000333").await;
    let mut stream = Stream::open(&world, None).await;
    world.inbound(&one, "later", world.clock.now() - Duration::from_secs(3)).await;
    assert_eq!(stream.conversations(1).await, [one.conversation.get()]);
    // A listener that has just joined reads by itself and may be ahead of the process's reader, which is the one that counts.
    let counted = async {
        while !world.metrics.render().contains("roost_change_feed_lag_seconds_sum 3\n") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, counted).await.is_ok(), "{}", world.metrics.render());
}
