//! What becomes of a send of which nobody knows: settled by the provider's word, and by silence only when we would have heard
//! it.

use crate::said::{NOON_SECONDS, one_status};
use crate::sends::{Office, publish, report};
use crate::support::{Stack, World};
use domain::wire::SendEvent;
use domain::{AccountId, AttemptOutcome, MessageId, OnUnknown, Status};
use queue::topics::{DEAD, RESULTS};
use rstest::rstest;
use std::time::Duration;
use store::Tx;
use store::receipt::{self, NewReceipt};
use store::result::{self, Pace, Times};
use store::send::{self, Claimed, Verdict};
use testkit::wait;

const LEASE: Duration = Duration::from_secs(600);
const STATES: &str = "SELECT state FROM sends ORDER BY message_id";
const STATUSES: &str = "SELECT status FROM messages WHERE direction = 'OUTBOUND' ORDER BY id";
const WITNESSES: &str = "SELECT CAST(count(witness_at) AS TEXT) FROM sends";

/// Its clock is an hour behind the database's, so that it can be moved on.
async fn quick(stack: Stack) -> World {
    let mut world = World::fresh(stack).await;
    world.lives_in_the_past();
    world.tuning.keeper_interval = Duration::from_millis(50);
    world.tuning.keeper_lease = Duration::from_millis(800);
    world.tuning.receipts_interval = Duration::from_secs(600);
    world.tuning.witness_timeout = Duration::from_secs(24 * 3600);
    world
}

/// Makes attempts end when this world says, not when the database does.
async fn unknown_by_its_own_clock(world: &World) {
    world.run("UPDATE sends SET unknown_since = (SELECT created_at FROM messages m WHERE m.id = message_id)").await;
}

fn seconds_after_noon(world: &World) -> i64 {
    world.now().millis() / 1000 - NOON_SECONDS
}

/// Writes a report, as ingest would.
async fn write(world: &World, claim: &Claimed, outcome: AttemptOutcome) {
    let event = SendEvent::Finished(Box::new(report(world, claim, outcome)));
    let mut tx = world.store.begin().await.unwrap();
    let times = Times { now: world.now(), database_now: tx.database_now().await.unwrap() };
    result::apply(&mut tx, &[event], times, Pace { scale: 1.0, random: || 0.5 }).await.unwrap();
    tx.commit().await.unwrap();
}

async fn resend(world: &World) {
    let mut tx = world.store.begin().await.unwrap();
    let silent = send::silences(&mut tx, 10).await.unwrap();
    send::conclude(&mut tx, &silent.iter().collect::<Vec<_>>(), Verdict::Resend, world.now()).await.unwrap();
    tx.commit().await.unwrap();
}

fn said(world: &World, account: AccountId, id: &str, correlation: Option<String>) -> NewReceipt {
    NewReceipt {
        account,
        provider_message_id: id.into(),
        status: Some(Status::Sent),
        provider_status: "sent".into(),
        occurred_at: world.now(),
        received_at: world.now(),
        correlation,
        error_code: None,
        error_message: None,
        pricing: None,
        raw: None,
        webhook: None,
    }
}

#[rstest]
#[tokio::test]
async fn a_word_on_the_first_attempt_settles_the_send_when_the_second_call_is_given_back_and_frees_the_lane(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
    #[values(true, false)] its_own_report: bool,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 1).await;
    let message = office.accept(&world, 0).await;
    office.accept(&world, 0).await;
    let first = office.claim(&world, "t1", LEASE).await.remove(0);
    write(&world, &first, AttemptOutcome::Unknown).await;
    resend(&world).await;
    let second = office.claim(&world, "t2", LEASE).await.remove(0);
    assert_eq!((second.message_id, second.attempt), (message, 2));
    if its_own_report {
        write(&world, &first, AttemptOutcome::Accepted).await;
    } else {
        let correlation = format!("r1.{}.{message}.0.1", first.deployment);
        let mut tx = world.store.begin().await.unwrap();
        let receipt = said(&world, office.account, "wamid.A", Some(correlation));
        assert_eq!(receipt::apply(&mut tx, &[receipt], world.now()).await.unwrap().parked, 1);
        tx.commit().await.unwrap();
    }
    let mut tx = world.store.begin().await.unwrap();
    assert_eq!(send::give_back(&mut tx, "t2", &[message]).await.unwrap(), 1);
    tx.commit().await.unwrap();

    let ingest = world.start("a");
    world.until(STATUSES, &["SENT", "QUEUED"]).await;
    world.until(STATES, &["DISPATCHED"]).await;
    ingest.stopped().await;
    world.holds().await;
}

/// SQLite has one writer: nobody holds anything there.
#[tokio::test]
async fn noting_a_witness_waits_for_nobodys_message() {
    let world = quick(Stack::PostgresRabbitMq).await;
    let office = Office::of(&world, 2).await;
    let lost = office.accept(&world, 0).await;
    office.accept(&world, 1).await;
    let claimed = office.claim(&world, "t", LEASE).await;
    write(&world, &claimed[0], AttemptOutcome::Unknown).await;
    write(&world, &claimed[1], AttemptOutcome::Accepted).await;
    unknown_by_its_own_clock(&world).await;
    world.clock.advance(Duration::from_secs(60));
    // Something about it that nothing has matched yet; whoever looks at it will want the message.
    let mut tx = world.store.begin().await.unwrap();
    let parked = said(&world, office.account, "wamid.A", None);
    receipt::apply(&mut tx, &[parked], world.now()).await.unwrap();
    tx.commit().await.unwrap();
    world
        .run(
            "UPDATE message_status_events SET correlation = (SELECT 'r1.' || d.id || '.' || s.message_id || '.0.1'
               FROM deployment d, sends s) WHERE provider_message_id = 'wamid.A'",
        )
        .await;

    // Somebody holds the message, as every report does before it asks for its send.
    let mut somebody = world.store.begin().await.unwrap();
    hold(&mut somebody, "SELECT id FROM messages WHERE id = $1 FOR NO KEY UPDATE", lost).await;
    let ingest = world.start("a");
    let wamid = format!("wamid.{}", claimed[1].message_id);
    world.post(&[&one_status(&wamid, "delivered", seconds_after_noon(&world))]).await;
    world.until(WITNESSES, &["1"]).await;
    hold(&mut somebody, "SELECT message_id FROM sends WHERE message_id = $1 FOR UPDATE", lost).await;
    somebody.commit().await.unwrap();
    ingest.stopped().await;
    world.holds().await;
}

async fn hold(tx: &mut Tx, lock: &'static str, message: MessageId) {
    let Tx::Postgres(tx) = tx else { panic!("PostgreSQL") };
    sqlx::query(lock).bind(message.get()).fetch_one(tx.conn()).await.expect("nobody holds it who waits for us");
}

/// Dead letters that nobody can write are left in their queue, where they may hold what we wait for.
#[tokio::test]
async fn a_window_is_not_over_while_dead_letters_lie_unread() {
    let mut world = quick(Stack::PostgresRabbitMq).await;
    world.accounts[0].on_unknown = OnUnknown::Hold;
    let office = Office::of(&world, 2).await;
    office.accept(&world, 0).await;
    office.accept(&world, 1).await;
    let claimed = office.claim(&world, "t", LEASE).await;
    let ingest = world.start("a");
    let wamid = format!("wamid.{}", claimed[1].message_id);
    let unknown = report(&world, &claimed[0], AttemptOutcome::Unknown);
    publish(&world, vec![unknown, report(&world, &claimed[1], AttemptOutcome::Accepted)]).await;
    world.until(STATUSES, &["SENDING", "SENT"]).await;
    unknown_by_its_own_clock(&world).await;
    world.clock.advance(Duration::from_secs(60));

    // Whoever writes a dead letter waits for us; more of them than ingest takes at once.
    let mut somebody = world.store.begin().await.unwrap();
    if let Tx::Postgres(tx) = &mut somebody {
        sqlx::query("LOCK TABLE dead_letters IN EXCLUSIVE MODE").execute(tx.conn()).await.unwrap();
        sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(tx.conn()).await.unwrap();
    }
    for n in 0..40 {
        world.publish_bytes(&RESULTS, bytes::Bytes::from(format!("rubbish {n}"))).await;
    }
    until_dead(&world, 1).await;
    world.post(&[&one_status(&wamid, "delivered", seconds_after_noon(&world))]).await;
    world.until(WITNESSES, &["1"]).await;
    world.clock.advance(Duration::from_secs(600));
    // Two turns in a row must find them read.
    world.until_turn("evidence").await;
    world.until_turn("evidence").await;
    assert_eq!(world.texts(STATES).await, ["UNKNOWN"]);
    // They still lie there.
    until_dead(&world, 1).await;

    // Now they are rows, and each of them may hold it.
    somebody.rollback().await.unwrap();
    world.until("SELECT CAST(count(*) AS TEXT) FROM dead_letters WHERE state = 'OPEN'", &["40"]).await;
    world.until_turn("evidence").await;
    assert_eq!(world.texts(STATES).await, ["UNKNOWN"]);
    world.run("UPDATE dead_letters SET state = 'DISCARDED'").await;
    world.until(STATES, &["HELD"]).await;
    ingest.stopped().await;
    world.holds().await;
}

async fn until_dead(world: &World, least: u64) {
    // A queue that nobody has declared yet cannot be asked.
    wait::until_so("they die", crate::support::DEADLINE, async || {
        world.queue.depth(&DEAD, None).await.is_ok_and(|depth| depth.ready >= least)
    })
    .await;
}

#[rstest]
#[tokio::test]
async fn a_receipt_of_nobodys_is_forgotten_after_a_week(
    #[values(Stack::SqliteEmbedded, Stack::PostgresRabbitMq)] stack: Stack,
) {
    let world = quick(stack).await;
    let office = Office::of(&world, 1).await;
    let park = async |id: &str| {
        let mut tx = world.store.begin().await.unwrap();
        receipt::apply(&mut tx, &[said(&world, office.account, id, None)], world.now()).await.unwrap();
        tx.commit().await.unwrap();
    };
    park("wamid.old").await;
    world.clock.advance(Duration::from_secs(2 * 24 * 3600));
    park("wamid.young").await;
    world.clock.advance(Duration::from_secs(6 * 24 * 3600));
    let ingest = world.start("a");
    world.until("SELECT provider_message_id FROM message_status_events", &["wamid.young"]).await;
    ingest.stopped().await;
}
