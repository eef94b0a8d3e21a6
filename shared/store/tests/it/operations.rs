//! Dead letters, signs of life, files, the feed: what people look at when something is wrong.

use crate::sql;
use domain::inbound::InboundMedia;
use domain::wire::{Beat, Refusals};
use domain::{AccountId, ConversationId, MessageId, MessageType, Status, Timestamp};
use rstest::rstest;
use std::time::Duration;
use store::Tx;
use store::dead_letter::{self, NewDeadLetter, Stage};
use store::feed::{self, Change};
use store::heartbeat::{self, Heartbeat, LIVES_FOR};
use store::media::{self, NewMedia};
use testkit::rows::{self, NOON};
use testkit::{Database, fresh_store};
use uuid::Uuid;

fn dead(origin_key: &str, request_id: Uuid) -> NewDeadLetter {
    NewDeadLetter {
        origin_key: origin_key.into(),
        stage: Stage::Ingest,
        queue: "roost.webhooks".into(),
        headers: serde_json::json!({ "content-type": "application/json", "odd": "\0" }),
        body: b"\x00\xff{}".to_vec(),
        content_type: Some("application/json"),
        error_class: "UNKNOWN_ACCOUNT".into(),
        error_code: None,
        error_message: Some("no account WHATSAPP 200000000000002 at source `meta`".into()),
        replayable: true,
        source: Some("meta".into()),
        request_id: Some(request_id),
        message: None,
        conversation: None,
        account: Some(AccountId::new(1)),
    }
}

#[rstest]
#[tokio::test]
async fn a_dead_letter_is_kept_once_counts_its_deaths_and_closes_when_a_replay_succeeds(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let request = Uuid::now_v7();
    let batch = [dead("webhook:1:0", request), dead("webhook:1:1", request), dead("webhook:1:0", request)];
    dead_letter::insert(&mut tx, &batch, NOON).await.unwrap();
    let later = NOON + Duration::from_secs(60);
    dead_letter::insert(&mut tx, &batch[..1], later).await.unwrap();
    let open = dead_letter::open(&mut tx, 10).await.unwrap();
    assert_eq!(
        open.iter().map(|row| (row.origin_key.as_str(), row.attempts)).collect::<Vec<_>>(),
        [("webhook:1:0", 2), ("webhook:1:1", 1)]
    );
    assert_eq!((open[0].first_failed_at, open[0].died_at), (NOON, later));
    assert_eq!(open[0].body, b"\x00\xff{}");
    assert_eq!(open[0].fingerprint, open[1].fingerprint);

    let closed = dead_letter::resolve(&mut tx, &[request], &["webhook:1:1".into()], later).await.unwrap();
    assert_eq!(closed, 1);
    let open = dead_letter::open(&mut tx, 10).await.unwrap();
    assert_eq!(open.iter().map(|row| row.origin_key.as_str()).collect::<Vec<_>>(), ["webhook:1:1"]);
    dead_letter::insert(&mut tx, &batch[..1], later).await.unwrap();
    assert_eq!(dead_letter::open(&mut tx, 10).await.unwrap().len(), 2, "one that dies again is open again");
}

#[rstest]
#[tokio::test]
async fn a_beat_told_twice_or_late_counts_once(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let beat = |second: u64, count| Beat {
        instance: "ingress-1".into(),
        version: "0.1.0".into(),
        started_at: NOON,
        at: NOON + Duration::from_secs(second),
        refused: vec![Refusals { source: "meta".into(), reason: "bad_signature".into(), count }],
    };
    heartbeat::ingress_beats(&mut tx, &[beat(15, 3), beat(15, 3), beat(30, 4)]).await.unwrap();
    heartbeat::ingress_beats(&mut tx, &[beat(15, 3)]).await.unwrap();
    heartbeat::ingress_beats(&mut tx, &[beat(0, 2)]).await.unwrap();
    let refused = heartbeat::refusals(&mut tx, NOON).await.unwrap();
    assert_eq!((refused.len(), refused[0].refused), (1, 9));
    let processes = heartbeat::processes(&mut tx).await.unwrap();
    assert_eq!((processes.len(), processes[0].beat_at), (1, NOON + Duration::from_secs(30)));
}

const PATIENCE: Duration = Duration::from_secs(300);

fn ingest(instance: &'static str, beat_at: Timestamp, settled_until: Option<Timestamp>) -> Heartbeat<'static> {
    Heartbeat {
        role: "ingest",
        instance,
        version: "0.1.0",
        started_at: NOON,
        beat_at,
        settled_until,
        holds_for: PATIENCE,
        stats: serde_json::json!({ "items": 17 }),
    }
}

#[rstest]
#[tokio::test]
async fn how_far_webhooks_are_settled_is_the_least_that_a_living_process_says(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let now = tx.database_now().await.unwrap();
    assert_eq!(heartbeat::settled_until(&mut tx, now).await.unwrap(), None, "nobody listens");
    let ago = |seconds: u64| now - Duration::from_secs(seconds);
    heartbeat::beat(&mut tx, &ingest("a", ago(1), Some(ago(5)))).await.unwrap();
    heartbeat::beat(&mut tx, &ingest("b", ago(1), Some(ago(40)))).await.unwrap();
    assert_eq!(heartbeat::settled_until(&mut tx, now).await.unwrap(), Some(ago(40)));
    heartbeat::beat(&mut tx, &ingest("c", ago(1), None)).await.unwrap();
    assert_eq!(heartbeat::settled_until(&mut tx, now).await.unwrap(), None, "one has not said yet");
    heartbeat::end(&mut tx, "ingest", "c").await.unwrap();
    heartbeat::beat(&mut tx, &ingest("b", ago(1), Some(ago(10)))).await.unwrap();
    assert_eq!(heartbeat::settled_until(&mut tx, now).await.unwrap(), Some(ago(10)));
    heartbeat::end_others(&mut tx, "ingest", "a").await.unwrap();
    assert_eq!(heartbeat::settled_until(&mut tx, now).await.unwrap(), Some(ago(5)));
}

#[rstest]
#[tokio::test]
async fn a_process_that_fell_silent_counts_for_as_long_as_it_may_hold_what_it_took(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let now = tx.database_now().await.unwrap();
    let ago = |time: Duration| now - time;
    let second = Duration::from_secs(1);
    heartbeat::beat(&mut tx, &ingest("well", now, Some(ago(second)))).await.unwrap();
    let until = async |tx: &mut Tx| heartbeat::settled_until(tx, now).await.unwrap();
    // It lost its database and holds webhooks that nobody else has.
    let silent = PATIENCE + LIVES_FOR - 10 * second;
    heartbeat::beat(&mut tx, &ingest("cut off", ago(silent), Some(ago(silent)))).await.unwrap();
    assert_eq!(until(&mut tx).await, Some(ago(silent)));
    heartbeat::beat(&mut tx, &ingest("cut off", ago(PATIENCE + LIVES_FOR), Some(ago(silent)))).await.unwrap();
    assert_eq!(until(&mut tx).await, Some(ago(second)), "by now it has given everything back");
    // One that said it holds nothing any more, and one of a version that says nothing about it.
    let ended = Heartbeat { holds_for: Duration::ZERO, ..ingest("ended", ago(LIVES_FOR - second), Some(ago(silent))) };
    heartbeat::beat(&mut tx, &ended).await.unwrap();
    assert_eq!(until(&mut tx).await, Some(ago(silent)));
    heartbeat::beat(&mut tx, &Heartbeat { beat_at: ago(LIVES_FOR), ..ended }).await.unwrap();
    assert_eq!(until(&mut tx).await, Some(ago(second)));
    heartbeat::beat(&mut tx, &ingest("older", ago(silent), Some(ago(silent)))).await.unwrap();
    sql::run(&mut tx, "UPDATE process_heartbeats SET stats = '{}' WHERE instance = 'older'").await;
    assert_eq!(until(&mut tx).await, Some(ago(silent)));
}

#[rstest]
#[tokio::test]
async fn nothing_is_settled_that_has_not_come_yet_by_the_clock_of_the_database_or_of_the_asker(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let before = tx.database_now().await.unwrap();
    let hour = Duration::from_secs(3600);
    heartbeat::beat(&mut tx, &ingest("fast", before, Some(before + hour))).await.unwrap();
    let until = heartbeat::settled_until(&mut tx, before + hour).await.unwrap().unwrap();
    let after = tx.database_now().await.unwrap();
    assert!(before <= until && until <= after, "{before} {until} {after}");
    assert_eq!(heartbeat::settled_until(&mut tx, before - hour).await.unwrap(), Some(before - hour));
}

#[rstest]
#[tokio::test]
async fn an_account_is_heard_of_at_its_latest_webhook(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let later = NOON + Duration::from_secs(9);
    for heard in [later, NOON] {
        heartbeat::accounts_heard(&mut tx, &[(account, heard)]).await.unwrap();
    }
    let kept = match &mut tx {
        store::Tx::Postgres(tx) => {
            sqlx::query_scalar::<_, store::At>("SELECT last_webhook_at FROM channel_accounts")
                .fetch_one(tx.conn())
                .await
        }
        store::Tx::Sqlite(tx) => {
            sqlx::query_scalar::<_, store::At>("SELECT last_webhook_at FROM channel_accounts")
                .fetch_one(&mut **tx)
                .await
        }
    };
    assert_eq!(kept.unwrap().0, later);
}

#[rstest]
#[tokio::test]
async fn a_file_is_noted_once_and_due_at_once(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let to = rows::conversation(&mut tx, account, "Rita", "351912000333", NOON).await.unwrap();
    let message = rows::inbound(&mut tx, &to, "wamid.1", "a file", NOON).await.unwrap();
    let file = InboundMedia {
        kind: MessageType::Document,
        provider_media_id: Some("1166846181421424".into()),
        mime_type: Some("application/pdf".into()),
        filename: Some("quote\0.pdf".into()),
        sha256: Some((0..32).collect()),
        caption: None,
    };
    for _ in 0..2 {
        media::insert(&mut tx, &[NewMedia { message, position: 0, media: &file }], NOON).await.unwrap();
    }
    let noted =
        "SELECT kind || ' ' || filename || ' ' || state || ' ' || CAST(length(sha256) AS TEXT) FROM message_media
        WHERE next_attempt_at = created_at";
    assert_eq!(sql::texts(&mut tx, noted).await, ["document quote\u{FFFD}.pdf PENDING 32"]);
}

#[rstest]
#[tokio::test]
async fn the_feed_carries_ids_and_states_in_order(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let conversation = ConversationId::new(7);
    let changes = [
        Change::Conversation { conversation, contact: None },
        Change::MessageStatus { conversation, message: MessageId::new(9), status: Status::Read },
    ];
    feed::write(&mut tx, &changes, NOON).await.unwrap();
    tx.commit().await.unwrap();
    // The server's other databases may have older transactions open, which hold the reader back.
    let read = async {
        loop {
            let mut tx = db.store.read().await.unwrap();
            let page = store::feed_read::after(&mut tx, store::feed_read::Cursor::START, 10).await.unwrap();
            if !page.held_back {
                return page;
            }
            drop(tx);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let page = tokio::time::timeout(Duration::from_secs(30), read).await.expect("older transactions end");
    let rows: Vec<_> = page.rows.iter().map(|row| (row.kind.as_str(), row.entity_id, row.status.as_deref())).collect();
    assert_eq!(rows, [("conversation", None, None), ("message_status", Some(9), Some("READ"))]);
}
