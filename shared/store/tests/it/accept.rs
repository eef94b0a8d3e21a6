//! Accepting a send: one row per intent, a place in the lane, and what the conversation shows of it.

use crate::sending::{World, execute, new_send, number, seconds};
use domain::{Content, MessageId, SendState, Status};
use rstest::rstest;
use std::collections::HashSet;
use store::accept::{AcceptOutcome, accept};
use testkit::Database;

fn text(body: &str) -> Content {
    Content::Text { body: body.to_owned() }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ac_20_the_same_client_id_ten_times_at_once_is_one_message_and_one_send(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let to = world.conversations[0];
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let store = world.store().clone();
            tokio::spawn(async move {
                let content = text("your visa is ready");
                let mut new = new_send(&to, &content);
                new.client_message_id = Some("intent-1");
                new.request_hash = Some(b"hash of the request");
                let mut tx = store.begin().await.unwrap();
                let outcome = accept(&mut tx, &new).await.unwrap();
                tx.commit().await.unwrap();
                outcome
            })
        })
        .collect();
    let (mut created, mut messages) = (0, HashSet::new());
    for task in tasks {
        match task.await.unwrap() {
            AcceptOutcome::Created(row) => {
                created += 1;
                messages.insert(row.id);
            }
            AcceptOutcome::Duplicate(row) => {
                messages.insert(row.id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((created, messages.len()), (1, 1));
    assert_eq!(number(world.store(), "SELECT count(*) FROM sends").await, 1);
    assert_eq!(world.dispatch().await.len(), 1);
}

#[rstest]
#[tokio::test]
async fn ac_20_another_body_under_the_same_client_id_is_refused_and_the_same_one_answers_as_it_stands(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let accept_with = async |conversation: usize, body: &str, hash: &[u8]| {
        let content = text(body);
        let mut new = new_send(&world.conversations[conversation], &content);
        new.client_message_id = Some("intent-1");
        new.request_hash = Some(hash);
        let mut tx = world.store().begin().await.unwrap();
        let outcome = accept(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        outcome
    };
    let AcceptOutcome::Created(first) = accept_with(0, "one", b"1").await else { panic!("accepted") };
    assert_eq!(accept_with(0, "two", b"2").await, AcceptOutcome::Conflict);
    execute(world.store(), "DELETE FROM sends").await;
    execute(
        world.store(),
        "UPDATE messages SET status = 'SENT', provider_message_id = 'wamid.1' WHERE client_message_id = 'intent-1'",
    )
    .await;
    let AcceptOutcome::Duplicate(again) = accept_with(0, "one", b"1").await else { panic!("known") };
    assert_eq!(
        (again.id, again.status, again.provider_message_id.as_deref()),
        (first.id, Status::Sent, Some("wamid.1"))
    );
    assert!(matches!(accept_with(1, "one", b"1").await, AcceptOutcome::Created(_)), "another conversation's key");
}

#[rstest]
#[tokio::test]
async fn a_reply_is_the_conversations_last_message_and_nobody_waits_any_more(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "On our way").await;
    let shown = "SELECT count(*) FROM conversations WHERE unread_count = 0 AND needs_reply_since IS NULL
        AND last_message_preview = 'On our way' AND last_message_direction = 'OUTBOUND' AND last_outbound_at IS NOT NULL
        AND first_response_at IS NOT NULL AND last_message_id = (SELECT max(id) FROM messages)";
    assert_eq!(number(world.store(), shown).await, 1);
    assert_eq!(number(world.store(), "SELECT count(*) FROM leads WHERE last_outbound_at IS NOT NULL").await, 1);
    let feed = "SELECT count(*) FROM change_feed WHERE kind = 'message_status' AND status = 'QUEUED'";
    assert_eq!(number(world.store(), feed).await, 1);
    assert_eq!(world.message(message).await.status, Status::Queued);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_template_keeps_its_name_language_and_parameters_and_shows_its_words_where_they_are_known(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let content = Content::Template {
        name: "order_ready".into(),
        language: "pt_PT".into(),
        params: vec!["Rita".into(), "A\"17\0".into()],
    };
    for (to, words) in world.conversations.iter().zip([Some("Hello Rita"), None]) {
        let mut new = new_send(to, &content);
        new.text = words;
        let mut tx = world.store().begin().await.unwrap();
        let AcceptOutcome::Created(row) = accept(&mut tx, &new).await.unwrap() else { panic!("accepted") };
        tx.commit().await.unwrap();
        assert_eq!(row.body.as_deref(), words);
    }
    let claimed = world.take("t").await;
    let params = serde_json::json!(["Rita", "A\"17\u{FFFD}"]);
    for claim in &claimed {
        assert_eq!(claim.template_name.as_deref(), Some("order_ready"));
        assert_eq!(claim.template_language.as_deref(), Some("pt_PT"));
        assert_eq!(claim.template_params, Some(params.clone()));
    }
    assert_eq!(claimed.len(), 2);
}

#[rstest]
#[tokio::test]
async fn a_scheduled_send_stands_outside_the_lane_and_a_held_one_in_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let scheduled = world.accept_as(0, "later", |new| domain_at(new, 3600)).await.id;
    let next = world.accept(0, "now").await;
    let undoable = world
        .accept_as(1, "with a moment to undo", |mut new| {
            new.hold = Some(seconds(5));
            new
        })
        .await
        .id;
    let behind = world.accept(1, "waits for it").await;

    let row = world.send_of(scheduled).await.unwrap();
    assert_eq!((row.state, row.seq), (SendState::Scheduled, None));
    assert!(row.due_at.since(world.now().await) > seconds(3500));
    assert_eq!(world.dispatch().await, [next], "the scheduled head blocks nothing, the undo hold blocks its lane");
    let later = world.now().await + seconds(6);
    assert_eq!(world.dispatch_at(later, 64).await, [undoable]);
    assert_eq!(world.state_of(behind).await, Some(SendState::Waiting));
    world.keeps_its_promises().await;
}

fn domain_at(mut new: store::accept::NewSend<'_>, after: u64) -> store::accept::NewSend<'_> {
    new.send_at = Some(new.now + seconds(after));
    new
}

#[rstest]
#[tokio::test]
async fn an_answer_names_the_message_it_answers_as_the_provider_does(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let question = number(world.store(), "SELECT id FROM messages WHERE provider_message_id = 'wamid.in.0'").await;
    world
        .accept_as(0, "the answer", |mut new| {
            new.reply_to = Some(MessageId::new(question));
            new
        })
        .await;
    let claimed = world.take("t").await;
    assert_eq!(claimed[0].reply_to.as_deref(), Some("wamid.in.0"));
}

#[rstest]
#[tokio::test]
async fn nothing_is_accepted_into_a_conversation_that_is_not_there(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let content = text("anybody?");
    let mut new = new_send(&world.conversations[0], &content);
    new.conversation = domain::ConversationId::new(999_999);
    let mut tx = world.store().begin().await.unwrap();
    assert_eq!(accept(&mut tx, &new).await.unwrap(), AcceptOutcome::NoConversation);
}

/// Whoever commits second stands second, whatever the ids say: the place is given out under the conversation's lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_in_the_lane_follow_commit_order_and_at_each_moment_one_head_is_dispatchable() {
    let world = World::with(Database::Postgres, 1).await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let (store, to) = (world.store().clone(), world.conversations[0]);
            tokio::spawn(async move {
                let content = text(&format!("message {n}"));
                let mut tx = store.begin().await.unwrap();
                accept(&mut tx, &new_send(&to, &content)).await.unwrap();
                tx.commit().await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(number(world.store(), "SELECT count(DISTINCT seq) FROM sends").await, 20);
    let mut last = 0;
    for _ in 0..20 {
        let claimed = world.take("t").await;
        assert_eq!(claimed.len(), 1);
        let seq = world.send_of(claimed[0].message_id).await.unwrap().seq.unwrap();
        assert!(seq > last);
        last = seq;
        assert!(world.dispatch().await.is_empty(), "one at a time");
        world.report(&[crate::sending::finished(&claimed[0], domain::AttemptOutcome::Accepted)]).await;
    }
    world.keeps_its_promises().await;
}
