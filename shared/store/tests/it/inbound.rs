//! Storing what people wrote: what is new counts, once.

use crate::sql;
use domain::{AccountId, Channel, ContactId, ConversationId, IdentityId, MessageType, Timestamp};
use rstest::rstest;
use std::time::Duration;
use store::conversation::{self, ConversationKey};
use store::lead::{self, Wanted};
use store::message::{NewInbound, insert_inbound, known_keys};
use store::{Tx, webhook_event};
use testkit::rows::{self, NOON, Seeded, WINDOW};
use testkit::{Database, fresh_store};

const DAY: Duration = Duration::from_secs(86_400);

fn text(to: &Seeded, key: &str, at: Timestamp) -> NewInbound {
    NewInbound {
        conversation: to.conversation,
        account: to.account,
        contact: to.contact,
        channel: Channel::WhatsApp,
        lead: Some(to.lead),
        key: key.into(),
        kind: MessageType::Text,
        body: Some(format!("Is {key} ready?")),
        media_mime_type: None,
        reply_to: None,
        payload: None,
        raw: Some(format!("{{\"id\":\"{key}\"}}")),
        webhook: None,
        occurred_at: at,
        counts: true,
        window_until: Some(at + WINDOW),
    }
}

async fn seed(tx: &mut Tx) -> Seeded {
    let account = rows::account(tx, "sales").await.unwrap();
    rows::conversation(tx, account, "Rita", "351912000333", NOON).await.unwrap()
}

async fn store_all(tx: &mut Tx, messages: &[NewInbound]) -> Vec<usize> {
    let inserted = insert_inbound(tx, messages, NOON).await.unwrap();
    assert_eq!(inserted.stale, 0);
    inserted.stored.iter().map(|stored| stored.at).collect()
}

fn second(n: u64) -> Timestamp {
    NOON + Duration::from_secs(n)
}

const SUMMARY: &str =
    "SELECT unread_count || ' ' || coalesce(last_message_preview, '-') || ' ' || status FROM conversations";

#[rstest]
#[tokio::test]
async fn a_batch_counts_what_was_new_and_shows_the_latest_by_the_providers_time(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let batch = [text(&to, "a", second(10)), text(&to, "c", second(30)), text(&to, "b", second(20))];
    assert_eq!(store_all(&mut tx, &batch).await, [0, 1, 2]);
    assert_eq!(sql::texts(&mut tx, SUMMARY).await, ["3 Is c ready? OPEN"]);
    // Two of them again with a new one that is older than all.
    let again = [text(&to, "c", second(30)), text(&to, "early", second(5)), text(&to, "a", second(10))];
    assert_eq!(store_all(&mut tx, &again).await, [1]);
    assert_eq!(sql::texts(&mut tx, SUMMARY).await, ["4 Is c ready? OPEN"]);
    assert_eq!(store_all(&mut tx, &again).await, [0usize; 0]);

    let thread = "SELECT provider_message_id FROM messages ORDER BY occurred_at, id";
    assert_eq!(sql::texts(&mut tx, thread).await, ["early", "a", "b", "c"]);
    let times = store::inbox_list::list(&mut tx, &store::inbox_list::ListFilter::default(), None, 1).await.unwrap();
    assert_eq!(times[0].last_message_at, second(30));
    assert_eq!(times[0].last_inbound_at, Some(second(30)));
    let window = "SELECT CAST(count(*) AS TEXT) FROM conversations c JOIN messages m ON m.id = c.last_message_id
        WHERE m.provider_message_id = 'c' AND c.window_expires_at > m.occurred_at AND c.needs_reply_since IS NOT NULL";
    assert_eq!(sql::texts(&mut tx, window).await, ["1"]);
    let lead = "SELECT last_contact_channel FROM leads WHERE last_inbound_at = last_contact_at";
    assert_eq!(sql::texts(&mut tx, lead).await, ["WHATSAPP"]);
    assert!(store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap().is_empty());
}

#[rstest]
#[tokio::test]
async fn a_message_is_stored_as_it_was_said(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let odd = NewInbound {
        body: Some("أَهْلًا \0 \u{FFFD} 👋 'quoted' \"twice\" \\u0000".into()),
        payload: Some(serde_json::json!({ "deep": ["\0", "\\u0000"], "n": 1.5 })),
        raw: Some("{\"text\":\"\\u0000 \\ud83d\"}".into()),
        media_mime_type: Some("image/jpeg".into()),
        reply_to: Some("wamid.before".into()),
        ..text(&to, "odd", NOON)
    };
    let silent = NewInbound { body: None, kind: MessageType::Image, ..text(&to, "silent", second(1)) };
    store_all(&mut tx, &[odd, silent]).await;
    let body = sql::texts(&mut tx, "SELECT body FROM messages WHERE body IS NOT NULL").await;
    assert_eq!(body, ["أَهْلًا \u{FFFD} \u{FFFD} 👋 'quoted' \"twice\" \\u0000"]);
    let payload = sql::texts(&mut tx, "SELECT CAST(payload AS TEXT) FROM messages WHERE payload IS NOT NULL").await;
    let payload: serde_json::Value = serde_json::from_str(&payload[0]).unwrap();
    assert_eq!(payload, serde_json::json!({ "deep": ["\u{FFFD}", "\\u0000"], "n": 1.5 }));
    let raw = sql::texts(&mut tx, "SELECT raw_payload FROM messages ORDER BY id").await;
    assert_eq!(raw[0], "{\"text\":\"\\u0000 \\ud83d\"}");
    assert_eq!(sql::texts(&mut tx, "SELECT search_text FROM messages WHERE id = 1").await[0].chars().next(), Some('ا'));
    assert_eq!(sql::texts(&mut tx, SUMMARY).await, ["2 [image] OPEN"]);
}

#[rstest]
#[tokio::test]
async fn a_closed_snoozed_or_deleted_conversation_opens_again_for_what_counts(
    #[values(
        "UPDATE conversations SET status = 'CLOSED', closed_at = created_at",
        "UPDATE conversations SET status = 'SNOOZED', snoozed_until = created_at",
        "UPDATE conversations SET deleted_at = created_at"
    )]
    put_away: &'static str,
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let open = "SELECT count(*) FROM conversations
        WHERE status = 'OPEN' AND closed_at IS NULL AND snoozed_until IS NULL AND deleted_at IS NULL";
    sql::run(&mut tx, put_away).await;
    let replayed = NewInbound { counts: false, ..text(&to, "replayed", NOON) };
    store_all(&mut tx, &[replayed]).await;
    assert_eq!(sql::number(&mut tx, open).await, 0, "a replay reopens nothing");
    assert_eq!(sql::number(&mut tx, "SELECT CAST(unread_count AS BIGINT) FROM conversations").await, 0);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM conversations WHERE window_expires_at IS NULL").await, 1);
    store_all(&mut tx, &[text(&to, "new", second(1))]).await;
    assert_eq!(sql::number(&mut tx, open).await, 1);
    sql::run(&mut tx, put_away).await;
    store_all(&mut tx, &[text(&to, "new", second(1))]).await;
    assert_eq!(sql::number(&mut tx, open).await, 0, "nor does what was there already");
}

#[rstest]
#[tokio::test]
async fn what_is_stale_is_told_and_not_stored(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let gone = NewInbound { conversation: ConversationId::new(4711), ..text(&to, "gone", NOON) };
    match insert_inbound(&mut tx, &[text(&to, "fine", NOON), gone], NOON).await {
        Ok(inserted) => assert_eq!(inserted.stale, 1),
        Err(error) => assert!(error.is_missing_reference(), "{error}"),
    }
    drop(tx);

    // Whose it was, by what is remembered, is not whose it is.
    for wrong in [
        |message| NewInbound { contact: ContactId::new(4711), ..message },
        |message| NewInbound { account: AccountId::new(4711), ..message },
    ] {
        let mut tx = db.store.begin().await.unwrap();
        let to = seed(&mut tx).await;
        let batch = [text(&to, "fine", NOON), wrong(text(&to, "wrong", NOON))];
        assert!(insert_inbound(&mut tx, &batch, NOON).await.unwrap().stale > 0);
    }

    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    assert_eq!(insert_inbound(&mut tx, &[text(&to, "late", NOON)], NOON + 31 * DAY).await.unwrap().stale, 1);
    sql::run(&mut tx, "UPDATE leads SET stage = 'LOST'").await;
    assert_eq!(insert_inbound(&mut tx, &[text(&to, "lost", NOON)], NOON).await.unwrap().stale, 1);
    let without = NewInbound { lead: None, ..text(&to, "without", NOON) };
    assert_eq!(insert_inbound(&mut tx, &[without], NOON).await.unwrap().stale, 0);
}

#[rstest]
#[tokio::test]
async fn twenty_transactions_that_bring_the_same_message_store_it_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    tx.commit().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = db.store.clone();
        tasks.spawn(async move {
            let mut tx = store.begin().await.unwrap();
            let stored = insert_inbound(&mut tx, &[text(&to, "same", NOON)], NOON).await.unwrap().stored.len();
            tx.commit().await.unwrap();
            stored
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 1);
    let mut tx = db.store.begin().await.unwrap();
    assert_eq!(sql::texts(&mut tx, SUMMARY).await, ["1 Is same ready? OPEN"]);
    let same = [(to.account, "same"), (to.account, "other"), (AccountId::new(99), "same")];
    assert_eq!(known_keys(&mut tx, &same).await.unwrap(), [(to.account, "same".to_owned())]);
}

#[rstest]
#[tokio::test]
async fn a_lead_is_continued_while_open_and_younger_than_thirty_days(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let want = |may_open| [Wanted { contact: to.contact, channel: Channel::WhatsApp, may_open }];
    lead::lock_contacts(&mut tx, &[to.contact, to.contact]).await.unwrap();
    let lead = |leads: std::collections::HashMap<_, lead::OpenLead>| leads.get(&to.contact).map(|lead| lead.id);
    let find = lead::continue_or_open(&mut tx, &want(true), NOON + 29 * DAY).await.unwrap();
    assert_eq!(lead(find), Some(to.lead));
    let none = lead::continue_or_open(&mut tx, &want(false), NOON + 31 * DAY).await.unwrap();
    assert_eq!(lead(none), None);
    let new = lead(lead::continue_or_open(&mut tx, &want(true), NOON + 31 * DAY).await.unwrap()).unwrap();
    assert_ne!(new, to.lead);
    let newest = lead::continue_or_open(&mut tx, &want(true), NOON + 32 * DAY).await.unwrap();
    assert_eq!(lead(newest), Some(new), "the newest is continued");
    sql::run(&mut tx, "UPDATE leads SET stage = 'COMPLETED_WON'").await;
    let after = lead(lead::continue_or_open(&mut tx, &want(true), NOON + 32 * DAY).await.unwrap()).unwrap();
    assert!(after != new && after != to.lead);
    assert_eq!(sql::texts(&mut tx, "SELECT stage || source FROM leads WHERE id = 3").await, ["NEWwhatsapp"]);
}

#[rstest]
#[tokio::test]
async fn a_conversation_is_found_by_account_address_and_thread(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let other_account = rows::account(&mut tx, "support").await.unwrap();
    let key = |account, thread: &str| ConversationKey { account, identity: to.identity, thread: thread.into() };
    let want = |key: ConversationKey, lead| conversation::Wanted {
        key,
        channel: Channel::WhatsApp,
        contact: to.contact,
        lead,
        external_id: "106540352242922_351912000333".into(),
        wa_user_wa_id: Some("351912000333".into()),
        first_at: NOON,
    };
    sql::run(&mut tx, "UPDATE conversations SET status = 'CLOSED'").await;
    let wanted = [
        want(key(to.account, ""), None),
        want(key(other_account, ""), None),
        want(key(to.account, "group:1"), None),
        want(key(to.account, ""), None),
    ];
    let found = conversation::upsert(&mut tx, &wanted, NOON).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[&key(to.account, "")].conversation, to.conversation);
    assert_eq!(conversation::upsert(&mut tx, &wanted, NOON).await.unwrap(), found);
    let state = "SELECT status || lead_id FROM conversations WHERE id = 1";
    assert_eq!(
        sql::texts(&mut tx, state).await,
        [format!("CLOSED{}", to.lead)],
        "neither reopened nor without its lead"
    );
    let legacy = "SELECT external_id || wa_conversation_id || wa_user_wa_id FROM conversations WHERE thread_key <> ''";
    let name = "106540352242922_351912000333";
    assert_eq!(sql::texts(&mut tx, legacy).await, [format!("{name}{name}351912000333")]);

    let stranger = ConversationKey { account: to.account, identity: IdentityId::new(4711), thread: String::new() };
    let error = conversation::upsert(&mut tx, &[want(stranger, None)], NOON).await.unwrap_err();
    assert!(error.is_missing_reference(), "{error}");
}

#[rstest]
#[tokio::test]
async fn a_raw_webhook_is_kept_byte_for_byte_and_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    use webhook_event::{NewWebhook, Outcome, RawBody};
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let bodies: [&[u8]; 4] = [b"{\"a\":1.0}", b"", b"\x00\xff\xfe'\"\n", "\u{FEFF}{}".as_bytes()];
    let ids: Vec<uuid::Uuid> = (0..5).map(|_| uuid::Uuid::now_v7()).collect();
    let headers = [("x-hub-signature-256".to_owned(), "sha256=\0ab".to_owned())];
    let webhook = |request_id, body| NewWebhook {
        request_id,
        source: "meta",
        received_at: NOON,
        headers: &headers,
        body,
        items: 2,
        outcome: Outcome::Processed,
    };
    let mut batch: Vec<NewWebhook<'_>> =
        ids.iter().zip(bodies).map(|(id, body)| webhook(*id, RawBody::Bytes(body))).collect();
    batch.push(webhook(ids[4], RawBody::Stored("raw/abc")));
    let first = webhook_event::upsert(&mut tx, &batch).await.unwrap();
    assert_eq!(first.iter().collect::<std::collections::HashSet<_>>().len(), 5);
    for (id, body) in ids.iter().zip(bodies) {
        let kept = webhook_event::find(&mut tx, *id).await.unwrap().unwrap();
        assert_eq!(kept.body.as_deref(), Some(body));
        assert_eq!(kept.headers["x-hub-signature-256"], "sha256=\u{FFFD}ab");
        assert_eq!((kept.received_at, kept.items), (NOON, Some(2)));
    }
    assert_eq!(webhook_event::find(&mut tx, ids[4]).await.unwrap().unwrap().body_ref.as_deref(), Some("raw/abc"));

    let partial = NewWebhook { outcome: Outcome::Partial, ..webhook(ids[2], RawBody::Bytes(b"other bytes")) };
    let again = webhook_event::upsert(&mut tx, &[partial, partial]).await.unwrap();
    assert_eq!(again, [first[2], first[2]], "redelivered, twice in one batch: the same row");
    let kept = webhook_event::find(&mut tx, ids[2]).await.unwrap().unwrap();
    assert_eq!((kept.body.as_deref(), kept.outcome.as_str()), (Some(bodies[2]), "PARTIAL"));
}
