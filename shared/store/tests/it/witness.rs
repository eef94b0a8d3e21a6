//! When silence means something: witnesses by the provider's clock and the database's, and dead letters that may hold the
//! word we wait for.

use crate::sending::{World, finished, number, seconds};
use domain::wire::SendEvent;
use domain::{AttemptOutcome, MessageId, Timestamp};
use rstest::rstest;
use store::dead_letter::{self, NewDeadLetter, Stage};
use store::send::{self, Silence};
use store::{At, Tx};
use testkit::Database;
use testkit::rows::NOON;

async fn silence(world: &World) -> Silence {
    let mut tx = world.store().begin().await.unwrap();
    send::note_witnesses(&mut tx).await.unwrap();
    let mut found = send::silences(&mut tx, 10).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// One message of unknown outcome, whose sender says that its call ended at `finished_at`, and another that was taken.
async fn lost_and_other(world: &World, finished_at: Timestamp) -> (MessageId, MessageId) {
    let (lost, other) = (world.accept(0, "lost").await, world.accept(1, "other").await);
    let claimed = world.take("t").await;
    let mut unknown = finished(&claimed[0], AttemptOutcome::Unknown);
    if let SendEvent::Finished(report) = &mut unknown {
        (report.started_at, report.finished_at) = (finished_at, finished_at);
    }
    world.report(&[unknown, finished(&claimed[1], AttemptOutcome::Accepted)]).await;
    // Recorded a while ago, so that there is a past to speak of.
    const AGO_PG: &str = "UPDATE sends SET unknown_since = unknown_since - interval '100 seconds'";
    const AGO_SQLITE: &str = "UPDATE sends SET unknown_since = unknown_since - 100000000";
    let sql = if world.store().is_sqlite() { AGO_SQLITE } else { AGO_PG };
    crate::sending::execute(world.store(), sql).await;
    (lost, other)
}

/// A word of the provider's on a message, dated and arrived at these times.
async fn word(world: &World, message: MessageId, said: Timestamp, arrived: Timestamp) {
    const EVENT: &str = "INSERT INTO message_status_events (message_id, conversation_id, channel_account_id,
        provider_message_id, status, provider_status, source, occurred_at, received_at)
        SELECT m.id, m.conversation_id, m.channel_account_id, 'p' || $1, 'DELIVERED', 'x', 'PROVIDER', $2, $3
          FROM messages m WHERE m.id = $1";
    let mut tx = world.store().begin().await.unwrap();
    match &mut tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(EVENT).bind(message.get()).bind(At(said)).bind(At(arrived));
            query.execute(tx.conn()).await.unwrap();
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query(EVENT).bind(message.get()).bind(At(said)).bind(At(arrived));
            query.execute(&mut **tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
}

#[rstest]
#[case::the_senders_clock_is_right(0)]
#[case::an_hour_behind(-3600)]
#[case::an_hour_ahead(3600)]
#[tokio::test]
async fn a_witness_is_a_word_on_another_message_that_the_provider_dates_after_the_attempt(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] sender_is_off_by: i64,
) {
    let world = World::with(database, 2).await;
    let now = world.now().await;
    let off = Timestamp::from_micros(now.micros() + sender_is_off_by * 1_000_000);
    let (lost, other) = lost_and_other(&world, off).await;
    let first = silence(&world).await;
    assert_eq!((first.message_id, first.witness_at), (lost, None));
    let since = first.unknown_since;

    word(&world, other, since - seconds(1), since + seconds(2)).await;
    assert_eq!(
        silence(&world).await.witness_at,
        None,
        "said before the attempt ended, whatever the sender's clock says"
    );
    word(&world, other, since + seconds(1), since + seconds(2)).await;
    assert_eq!(silence(&world).await.witness_at, None, "so little later that it may be the clocks");
    word(&world, lost, since + seconds(5), since + seconds(6)).await;
    assert_eq!(silence(&world).await.witness_at, None, "its own words are evidence, not a witness");
    word(&world, other, now + seconds(3600), now + seconds(1)).await;
    assert_eq!(silence(&world).await.witness_at, None, "dated at a time that has not come");
    word(&world, other, since + seconds(5), since + seconds(9)).await;
    assert_eq!(silence(&world).await.witness_at, Some(since + seconds(9)));
    word(&world, other, since + seconds(6), since + seconds(7)).await;
    assert_eq!(silence(&world).await.witness_at, Some(since + seconds(9)), "the first one found stays");
}

#[rstest]
#[tokio::test]
async fn a_window_does_not_begin_before_its_witness_spoke_however_far_behind_ingress_is(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let (_, other) = lost_and_other(&world, NOON).await;
    let since = silence(&world).await.unknown_since;
    word(&world, other, since + seconds(30), since - seconds(3600)).await;
    assert_eq!(silence(&world).await.witness_at, Some(since + seconds(30)));
}

fn dead(key: &str, stage: Stage, source: Option<&str>) -> NewDeadLetter {
    NewDeadLetter {
        origin_key: key.into(),
        stage,
        queue: "roost.webhooks".into(),
        headers: serde_json::json!({}),
        body: Vec::new(),
        content_type: None,
        error_class: "UNDECODABLE".into(),
        error_code: None,
        error_message: None,
        replayable: true,
        source: source.map(str::to_owned),
        request_id: None,
        message: None,
        conversation: None,
        account: None,
    }
}

#[rstest]
#[case::of_the_source(Stage::Ingest, Some("meta"), 1)]
#[case::of_another_source(Stage::Ingest, Some("other-app"), 0)]
#[case::that_could_not_be_read(Stage::Ingest, None, 1)]
#[case::a_report_that_could_not_be_written(Stage::Result, None, 1)]
#[case::a_send(Stage::Send, None, 0)]
#[tokio::test]
async fn a_dead_letter_that_may_hold_the_word_we_wait_for_counts_from_the_attempts_beginning(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] stage: Stage,
    #[case] source: Option<&str>,
    #[case] want: i64,
    #[values(true, false)] reported: bool,
) {
    let world = World::with(database, 1).await;
    world.accept(0, "lost").await;
    let claimed = world.take("t").await;
    let began = world.send_of(claimed[0].message_id).await.unwrap().dispatched_at.unwrap();
    let event = match finished(&claimed[0], AttemptOutcome::Unknown) {
        // By a clock that is an hour ahead.
        SendEvent::Finished(mut report) if reported => {
            (report.started_at, report.finished_at) = (began + seconds(3600), began + seconds(3610));
            SendEvent::Finished(report)
        }
        _ => crate::sending::lease_expired(&claimed[0], "t"),
    };
    world.report(&[event]).await;
    let mut tx = world.store().begin().await.unwrap();
    dead_letter::insert(&mut tx, &[dead("long ago", stage, source)], began - seconds(61)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(silence(&world).await.open_dead_letters, 0, "before it was dispatched");
    let mut tx = world.store().begin().await.unwrap();
    dead_letter::insert(&mut tx, &[dead("by a clock behind", stage, source)], began - seconds(59)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(silence(&world).await.open_dead_letters, want);
    crate::sending::execute(world.store(), "UPDATE dead_letters SET state = 'DISCARDED'").await;
    assert_eq!(silence(&world).await.open_dead_letters, 0);
    assert_eq!(number(world.store(), "SELECT count(*) FROM dead_letters").await, 2);
}
