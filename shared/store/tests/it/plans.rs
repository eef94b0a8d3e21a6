//! The hot paths find their rows by index, whatever the tables have grown to.

use crate::sending::PACE;
use crate::sql;
use domain::wire::SendEvent;
use domain::{AccountId, Channel, ContactId, ConversationId, IdentityKind, LeadId, MessageId, MessageType, Status};
use std::time::Duration;
use store::Tx;
use store::contact::{self, IdentityKey, Sender};
use store::conversation::{self, ConversationKey};
use store::lead;
use store::message::{NewInbound, insert_inbound, known_keys, plan_once};
use store::receipt::{NewReceipt, apply, look_for, second_look, second_look_at_all};
use store::result::{self, Times, unsettled};
use testkit::rows::{self, NOON};
use testkit::{Database, fresh_store};

const SCANS: &str = "SELECT relname || ' ' || seq_scan FROM pg_stat_user_tables
    WHERE relname IN ('messages', 'conversations', 'leads', 'contacts', 'send_attempts', 'sends', 'message_status_events')
    ORDER BY relname";

async fn scans(store: &store::Store) -> Vec<String> {
    let mut tx = store.begin().await.unwrap();
    sql::texts(&mut tx, SCANS).await
}

fn expired(message: MessageId) -> SendEvent {
    let (account, lease_token) = (AccountId::new(1), "t".to_owned());
    SendEvent::LeaseExpired { message, account, generation: 0, attempt: 1, lease_token, at: NOON }
}

#[tokio::test]
async fn storing_messages_and_applying_receipts_scan_no_table_on_postgresql() {
    let db = fresh_store(Database::Postgres).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    assert_eq!(account, AccountId::new(1));
    for fill in [
        // So many rows that an index is the cheaper way; quickly, without asking each row for what it refers to.
        "SET LOCAL statement_timeout = '120s'",
        "SET LOCAL session_replication_role = replica",
        "INSERT INTO contacts (created_at, updated_at) SELECT now(), now() FROM generate_series(1, 50000)",
        "INSERT INTO contact_identities (contact_id, kind, value, first_seen_at)
         SELECT i, 'WA_ID', (971500000000 + i)::text, now() FROM generate_series(1, 50000) AS i",
        "INSERT INTO leads (contact_id, created_at, updated_at) SELECT i, '2026-11-22', now() FROM generate_series(1, 50000) AS i",
        "INSERT INTO conversations (contact_id, contact_identity_id, lead_id, channel_account_id, channel, last_message_at, created_at, updated_at)
         SELECT i, i, i, 1, 'WHATSAPP', '2026-11-22', now(), now() FROM generate_series(1, 50000) AS i",
        "INSERT INTO messages (conversation_id, channel_account_id, direction, channel, type, status, provider_message_id, origin, occurred_at, created_at)
         SELECT i, 1, 'OUTBOUND', 'WHATSAPP', 'text', 'SENT', 'wamid.' || i, 'AGENT', '2026-11-22', now() FROM generate_series(1, 50000) AS i",
        "INSERT INTO send_attempts (message_id, generation, attempt, outcome, provider_message_id, finished_at)
         SELECT id, 0, 1, 'ACCEPTED', provider_message_id, now() FROM messages",
        "INSERT INTO message_status_events (message_id, conversation_id, channel_account_id, provider_message_id, generation, status,
           provider_status, source, occurred_at, received_at)
         SELECT id, conversation_id, 1, provider_message_id, 0, 'SENT', 'sent', 'PROVIDER', '2026-11-21', now() FROM messages",
        // A campaign that has only just begun, of which some were tried.
        "INSERT INTO messages (conversation_id, channel_account_id, direction, channel, type, status, origin, occurred_at, created_at)
         SELECT i, 1, 'OUTBOUND', 'WHATSAPP', 'text', 'QUEUED', 'AGENT', '2026-11-22', now() FROM generate_series(1, 20000) AS i",
        "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, attempt, state, due_at, deadline_at, created_at)
         SELECT id, conversation_id, 1, 1, CASE WHEN id % 500 = 0 THEN 1 ELSE 0 END, 'WAITING', now(), now(), now()
           FROM messages WHERE status = 'QUEUED'",
        "INSERT INTO message_status_events (waits_for_message_id, channel_account_id, provider_message_id, generation, correlation,
           status, provider_status, source, occurred_at, received_at)
         SELECT message_id, 1, 'wamid.waits.' || message_id, 0, 'r1.' || (SELECT id FROM deployment) || '.' || message_id || '.0.1',
           'SENDING', 'x', 'PROVIDER', now(), now() FROM sends WHERE attempt > 0",
    ] {
        sql::run(&mut tx, fill).await;
    }
    tx.commit().await.unwrap();
    let mut tx = db.store.autocommit().await.unwrap();
    sql::run(&mut tx, "ANALYZE").await;
    sql::run(&mut tx, "SELECT pg_stat_force_next_flush()").await;
    drop(tx);
    let before = scans(&db.store).await;

    // More often than PostgreSQL tries plans for the values at hand, so that the general plan is judged too.
    for round in 0..8i64 {
        let mut tx = db.store.begin().await.unwrap();
        if round > 5 {
            // As ingest does.
            plan_once(&mut tx).await.unwrap();
        }
        let senders: Vec<Sender> = (1..=200)
            .map(|n| Sender {
                addresses: vec![IdentityKey {
                    kind: IdentityKind::WaId,
                    scope: String::new(),
                    value: (971_500_000_000i64 + n * 7 % 5000 + 1).to_string(),
                }],
                display_name: Some(format!("Person {round}")),
                username: None,
                phone: None,
                channel: Channel::WhatsApp,
            })
            .collect();
        let known = contact::resolve(&mut tx, &senders, NOON).await.unwrap().known;
        let leads = lead::continuable(&mut tx, known.iter().map(|known| known.contact), NOON).await.unwrap();
        assert_eq!((known.len(), leads.len()), (200, 200));
        let wanted: Vec<conversation::Wanted> = known
            .iter()
            .map(|known| conversation::Wanted {
                key: ConversationKey { account, identity: known.identity, thread: String::new() },
                channel: Channel::WhatsApp,
                contact: known.contact,
                lead: leads.get(&known.contact).map(|lead| lead.id),
                external_id: "x".into(),
                wa_user_wa_id: None,
                first_at: NOON,
            })
            .collect();
        assert_eq!(conversation::upsert(&mut tx, &wanted, NOON).await.unwrap().len(), 200);
        let messages: Vec<NewInbound> = (1..=200)
            .map(|n| NewInbound {
                conversation: ConversationId::new(n * 7 % 5000 + 1),
                account,
                contact: ContactId::new(n * 7 % 5000 + 1),
                channel: Channel::WhatsApp,
                lead: Some(LeadId::new(n * 7 % 5000 + 1)),
                key: format!("wamid.in.{round}.{n}"),
                kind: MessageType::Text,
                body: Some("hello".into()),
                media_mime_type: None,
                reply_to: None,
                payload: None,
                raw: None,
                webhook: None,
                occurred_at: NOON,
                counts: true,
                window_until: None,
            })
            .collect();
        assert_eq!(insert_inbound(&mut tx, &messages, NOON).await.unwrap().stored.len(), 200);
        known_keys(&mut tx, &[(account, "wamid.1")]).await.unwrap();
        let status = if round % 2 == 0 { Status::Delivered } else { Status::Failed };
        let receipts: Vec<NewReceipt> = (1..=200)
            .map(|n| NewReceipt {
                account,
                provider_message_id: format!("wamid.{}", n * 11 + 10 * round),
                status: Some(status),
                provider_status: status.as_str().to_lowercase(),
                occurred_at: NOON + Duration::from_secs(round.unsigned_abs()),
                received_at: NOON,
                correlation: None,
                error_code: None,
                error_message: None,
                pricing: None,
                raw: None,
                webhook: None,
            })
            .collect();
        let heard = apply(&mut tx, &receipts, NOON).await.unwrap();
        assert_eq!(heard.parked, 0);
        second_look(&mut tx, &[(account, "wamid.nobody".into())], NOON).await.unwrap();
        second_look_at_all(&mut tx, NOON - Duration::from_secs(60), 1, NOON).await.unwrap();
        let over = unsettled(&mut tx, 100).await.unwrap();
        let database_now = tx.database_now().await.unwrap();
        let events: Vec<SendEvent> =
            (1..=200).map(MessageId::new).chain(over[..1].iter().copied()).map(expired).collect();
        result::apply(&mut tx, &events, Times { now: NOON, database_now }, PACE).await.unwrap();
        assert_eq!(look_for(&mut tx, &over[..1], NOON).await.unwrap().applied.len(), 0, "the report took it up");
        assert_eq!(look_for(&mut tx, &over[1..2], NOON).await.unwrap().applied.len(), 1);
        if let Tx::Postgres(tx) = &mut tx {
            sqlx::query("SELECT pg_stat_force_next_flush()").execute(tx.conn()).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(scans(&db.store).await, before);
}
