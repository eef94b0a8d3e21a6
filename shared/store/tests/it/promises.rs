//! The audit runs on both databases and finds what was planted.

use crate::sending::{World, execute, finished};
use domain::AttemptOutcome;
use rstest::rstest;
use store::promises::{PROMISES, SETTLED, audit};
use testkit::{Database, fresh_store};

#[rstest]
#[tokio::test]
async fn an_empty_database_keeps_every_promise(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.read().await.unwrap();
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
    assert_eq!(audit(&mut tx, SETTLED).await.unwrap(), []);
}

async fn broken(world: &World) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut tx = world.store().read().await.unwrap();
    let names = |found: Vec<store::promises::Violation>| found.into_iter().map(|one| one.promise).collect();
    (names(audit(&mut tx, PROMISES).await.unwrap()), names(audit(&mut tx, SETTLED).await.unwrap()))
}

const WAITS: &str =
    "INSERT INTO message_status_events (waits_for_message_id, channel_account_id, provider_message_id, status,
    provider_status, source, occurred_at, received_at)
    SELECT id, channel_account_id, 'wamid.A', 'SENT', 'sent', 'PROVIDER', created_at, created_at FROM messages
     WHERE direction = 'OUTBOUND'";
const TAKEN: &str =
    "INSERT INTO send_attempts (message_id, generation, attempt, provider_message_id, outcome, finished_at)
    SELECT id, 0, 1, 'wamid.A', 'ACCEPTED', created_at FROM messages WHERE direction = 'OUTBOUND'";

#[rstest]
#[tokio::test]
async fn a_receipt_that_waits_for_nothing_is_found(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::with(database, 1).await;
    world.accept(0, "hello").await;
    let claim = world.take("t").await.pop().unwrap();
    execute(world.store(), WAITS).await;
    assert_eq!(broken(&world).await, (vec![], vec!["nothing_waits_for_a_call"]), "the call is open");
    execute(world.store(), "UPDATE sends SET state = 'WAITING', lease_token = NULL, lease_until = NULL").await;
    assert_eq!(broken(&world).await.0, Vec::<&str>::new(), "it was given back; the keeper comes");
    execute(world.store(), "UPDATE sends SET state = 'DISPATCHED'").await;
    assert_eq!(broken(&world).await.0, Vec::<&str>::new(), "by a dispatch that began before; no claim takes it");
    execute(world.store(), "UPDATE sends SET state = 'UNKNOWN', unknown_since = due_at").await;
    assert_eq!(broken(&world).await.0, ["waiting_receipts_have_a_send"]);
    // Settled behind its back.
    execute(world.store(), "UPDATE message_status_events SET waits_for_message_id = -1").await;
    world.report(&[finished(&claim, AttemptOutcome::Accepted)]).await;
    execute(world.store(), "UPDATE message_status_events SET waits_for_message_id = (SELECT max(id) FROM messages) WHERE message_id IS NULL").await;
    assert_eq!(broken(&world).await.0, ["waiting_receipts_have_a_send"]);
}

#[rstest]
#[tokio::test]
async fn a_send_that_goes_on_although_it_was_taken_is_found(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    world.accept(0, "hello").await;
    world.take("t").await;
    execute(world.store(), TAKEN).await;
    execute(world.store(), "UPDATE sends SET attempt = 2").await;
    assert_eq!(broken(&world).await, (vec![], vec!["nothing_waits_for_a_call"]), "a later call is open");
    execute(world.store(), "UPDATE sends SET state = 'WAITING', lease_token = NULL, lease_until = NULL").await;
    assert_eq!(broken(&world).await.0, Vec::<&str>::new(), "it was given back; the keeper comes");
    execute(world.store(), "UPDATE sends SET state = 'DISPATCHED'").await;
    assert_eq!(broken(&world).await.0, Vec::<&str>::new(), "by a dispatch that began before; no claim takes it");
    execute(world.store(), "UPDATE sends SET state = 'UNKNOWN', unknown_since = due_at").await;
    assert_eq!(broken(&world).await.0, ["accepted_is_over"]);
}
