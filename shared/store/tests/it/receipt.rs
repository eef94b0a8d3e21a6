//! Receipts: in any order, early, late, twice, and of messages that are not ours.

use crate::sql;
use domain::{MessageId, Status, Timestamp};
use rstest::rstest;
use std::time::Duration;
use store::message::{self, Advance};
use store::promises::{PROMISES, SETTLED, audit};
use store::receipt::{NewReceipt, Receipts, apply, look_for, parked_count, second_look, second_look_at_all};
use store::result::{self, Times};
use store::send;
use store::{Store, Tx};
use testkit::rows::{self, NOON, Seeded};
use testkit::{Database, fresh_store};

const WAMID: &str = "wamid.HBgM";

fn at(second: u64) -> Timestamp {
    NOON + Duration::from_secs(second)
}

fn receipt(to: &Seeded, id: &str, status: Status, occurred_at: Timestamp) -> NewReceipt {
    NewReceipt {
        account: to.account,
        provider_message_id: id.into(),
        status: Some(status),
        provider_status: status.as_str().to_lowercase(),
        occurred_at,
        received_at: occurred_at,
        correlation: None,
        error_code: (status == Status::Failed).then(|| "131026".into()),
        error_message: (status == Status::Failed).then(|| "Message undeliverable".into()),
        pricing: Some(serde_json::json!({ "billable": true })),
        raw: Some("{}".into()),
        webhook: None,
    }
}

async fn seed(tx: &mut Tx) -> Seeded {
    let account = rows::account(tx, "sales").await.unwrap();
    rows::conversation(tx, account, "Rita", "351912000333", NOON).await.unwrap()
}

/// A message of ours that the provider took under `id`.
async fn sent(tx: &mut Tx, to: &Seeded, id: &str) -> MessageId {
    let message = rows::outbound(tx, to, "Hello", Status::Sending, true, NOON).await.unwrap();
    learn(tx, message, id).await;
    message
}

/// What a sender's report does: the id, SENT, the send finished.
async fn learn(tx: &mut Tx, message: MessageId, id: &str) {
    let advance = Advance {
        message,
        status: Some(Status::Sent),
        provider_message_id: Some(id.into()),
        sent_at: Some(at(1)),
        delivered_at: None,
        read_at: None,
        failure: None,
        failed_at: None,
    };
    let evidence = send::Evidence { message, generation: 0, status: Status::Sent };
    message::advance(tx, &[advance]).await.unwrap();
    send::settle_by_evidence(tx, &[evidence]).await.unwrap();
}

async fn told(tx: &mut Tx, receipts: &[NewReceipt]) -> Receipts {
    apply(tx, receipts, NOON).await.unwrap()
}

const STATUS: &str = "SELECT status FROM messages WHERE direction = 'OUTBOUND' ORDER BY id";
const EVENTS: &str = "SELECT coalesce(status, provider_status) || CASE WHEN applied THEN '+' ELSE '' END FROM message_status_events ORDER BY id";

async fn holds(tx: &mut Tx) {
    assert_eq!(audit(tx, PROMISES).await.unwrap(), []);
    assert_eq!(audit(tx, SETTLED).await.unwrap(), []);
}

fn orders() -> Vec<[Status; 4]> {
    let all = [Status::Sent, Status::Delivered, Status::Read, Status::Failed];
    let mut orders = Vec::new();
    for a in 0..4 {
        for b in (0..4).filter(|b| *b != a) {
            for c in (0..4).filter(|c| ![a, b].contains(c)) {
                let d = 6 - a - b - c;
                orders.push([all[a], all[b], all[c], all[d]]);
            }
        }
    }
    orders
}

#[rstest]
#[tokio::test]
async fn ac_6_all_24_orders_of_sent_delivered_read_and_failed_end_read_with_every_event_kept(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(false, true)] in_one_batch: bool,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let orders = orders();
    assert_eq!(orders.len(), 24);
    let when = |status| at(10 + u64::try_from(status_rank(status)).unwrap());
    for (i, order) in orders.iter().enumerate() {
        let id = format!("wamid.{i}");
        let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, true, NOON).await.unwrap();
        let accepted = Advance {
            message,
            status: None,
            provider_message_id: Some(id.clone()),
            sent_at: None,
            delivered_at: None,
            read_at: None,
            failure: None,
            failed_at: None,
        };
        message::advance(&mut tx, &[accepted]).await.unwrap();
        let receipts: Vec<NewReceipt> = order.iter().map(|status| receipt(&to, &id, *status, when(*status))).collect();
        if in_one_batch {
            told(&mut tx, &receipts).await;
        } else {
            for one in &receipts {
                told(&mut tx, std::slice::from_ref(one)).await;
            }
        }
    }
    assert!(sql::texts(&mut tx, STATUS).await.iter().all(|status| status == "READ"));
    assert_eq!(
        sql::number(&mut tx, "SELECT count(*) FROM message_status_events WHERE message_id IS NOT NULL").await,
        24 * 4
    );
    // Every time is the provider's own, whatever the order: sent, then delivered, then read.
    let times = "SELECT count(*) FROM messages m WHERE direction = 'OUTBOUND'
        AND sent_at = (SELECT occurred_at FROM message_status_events e WHERE e.message_id = m.id AND e.status = 'SENT')
        AND delivered_at = (SELECT occurred_at FROM message_status_events e WHERE e.message_id = m.id AND e.status = 'DELIVERED')
        AND read_at = (SELECT occurred_at FROM message_status_events e WHERE e.message_id = m.id AND e.status = 'READ')
        AND sent_at < delivered_at AND delivered_at < read_at AND error_class IS NULL AND failed_at IS NULL";
    assert_eq!(sql::number(&mut tx, times).await, 24);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM sends").await, 0, "each receipt was evidence");
    holds(&mut tx).await;
}

fn status_rank(status: Status) -> i16 {
    status.rank()
}

#[rstest]
#[case::failure_after_sent(&[Status::Sent, Status::Failed], Status::Failed, &["SENT+", "FAILED+"])]
#[case::a_late_sent_revives_nothing(&[Status::Failed, Status::Sent], Status::Failed, &["FAILED+", "SENT"])]
#[case::delivery_beats_a_failure(&[Status::Failed, Status::Delivered], Status::Delivered, &["FAILED+", "DELIVERED+"])]
#[case::a_late_sent_never_lowers_read(&[Status::Read, Status::Sent, Status::Delivered], Status::Read, &["READ+", "SENT", "DELIVERED"])]
#[tokio::test]
async fn a_status_moves_by_rank(
    #[case] order: &[Status],
    #[case] want: Status,
    #[case] events: &[&str],
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, true, NOON).await.unwrap();
    let correlation = our_correlation(&mut tx, message, 0, 1).await;
    for (second, status) in (10..).zip(order) {
        let one = NewReceipt { correlation: Some(correlation.clone()), ..receipt(&to, WAMID, *status, at(second)) };
        told(&mut tx, &[one]).await;
    }
    assert_eq!(sql::texts(&mut tx, STATUS).await, [want.as_str()]);
    assert_eq!(sql::texts(&mut tx, EVENTS).await, events);
    let failed =
        sql::number(&mut tx, "SELECT count(*) FROM messages WHERE error_code = '131026' AND failed_at IS NOT NULL")
            .await;
    assert_eq!(failed == 1, want == Status::Failed);
    holds(&mut tx).await;
}

async fn our_correlation(tx: &mut Tx, message: MessageId, generation: i16, attempt: i16) -> String {
    format!("r1.{}.{message}.{generation}.{attempt}", send::deployment(tx).await.unwrap())
}

#[rstest]
#[tokio::test]
async fn ac_7_a_receipt_that_comes_before_its_id_waits_and_is_applied_when_the_id_is_learnt(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    // In the wrong order, one of them twice, one of a word we do not know.
    let unmapped =
        NewReceipt { status: None, provider_status: "warning".into(), ..receipt(&to, WAMID, Status::Sent, at(9)) };
    let early = [
        receipt(&to, WAMID, Status::Read, at(30)),
        receipt(&to, WAMID, Status::Delivered, at(20)),
        receipt(&to, WAMID, Status::Read, at(30)),
        unmapped,
    ];
    let parked = told(&mut tx, &early).await;
    assert_eq!((parked.parked, parked.duplicates, parked.applied.len()), (3, 1, 0));
    assert_eq!(parked.look_again, [(to.account, WAMID.to_owned())]);
    assert_eq!(told(&mut tx, &early[..1]).await.duplicates, 1);
    let nothing = second_look(&mut tx, &parked.look_again, NOON).await.unwrap();
    assert_eq!(nothing, Receipts::default(), "nobody has the id yet");

    let message = sent(&mut tx, &to, WAMID).await;
    let found = second_look(&mut tx, &parked.look_again, NOON).await.unwrap();
    assert_eq!(found.applied.len(), 1);
    assert_eq!(
        (found.applied[0].message, found.applied[0].status, found.applied[0].raised),
        (message, Status::Read, true)
    );
    assert_eq!(sql::texts(&mut tx, EVENTS).await, ["warning", "DELIVERED+", "READ+"]);
    assert_eq!(parked_count(&mut tx).await.unwrap(), 0);
    assert_eq!(second_look(&mut tx, &parked.look_again, NOON).await.unwrap(), Receipts::default());
    holds(&mut tx).await;
}

#[rstest]
#[tokio::test]
async fn the_keeper_finds_what_a_process_left_parked(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let foreign = receipt(&to, "wamid.of.another.tool", Status::Read, at(30));
    told(&mut tx, &[receipt(&to, WAMID, Status::Delivered, at(20)), foreign]).await;
    sent(&mut tx, &to, WAMID).await;
    assert_eq!(audit(&mut tx, SETTLED).await.unwrap().len(), 1);
    assert_eq!(second_look_at_all(&mut tx, at(25), 100, NOON).await.unwrap().applied, [], "too old for this look");
    let found = second_look_at_all(&mut tx, NOON, 100, NOON).await.unwrap();
    assert_eq!(found.applied.len(), 1);
    assert_eq!(sql::texts(&mut tx, STATUS).await, ["DELIVERED"]);
    assert_eq!(parked_count(&mut tx).await.unwrap(), 1, "what is not ours stays parked");
    holds(&mut tx).await;
}

/// Learns an id and parks a receipt for it in two transactions that overlap, so that neither sees the other.
#[rstest]
#[case::the_receipt_commits_last(true)]
#[case::the_result_commits_last(false)]
#[tokio::test]
async fn ac_7_a_receipt_and_a_result_that_miss_each_other_are_joined_by_whichever_commits_last(
    #[case] receipt_last: bool,
) {
    let db = fresh_store(Database::Postgres).await.unwrap(); // SQLite has one writer: nothing overlaps there
    let store = db.store.clone();
    let mut tx = store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, true, NOON).await.unwrap();
    tx.commit().await.unwrap();

    let (mut result, mut receipts) = (store.begin().await.unwrap(), store.begin().await.unwrap());
    learn(&mut result, message, WAMID).await;
    let parked = told(&mut receipts, &[receipt(&to, WAMID, Status::Delivered, at(20))]).await;
    assert_eq!(parked.parked, 1);
    let ids = [(to.account, WAMID.to_owned())];
    let (first, last) = if receipt_last { (result, receipts) } else { (receipts, result) };
    first.commit().await.unwrap();
    let looked = look(&store, &ids).await;
    assert_eq!(looked.applied, [], "the first cannot see the other yet");
    last.commit().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert_eq!(audit(&mut tx, SETTLED).await.unwrap().len(), 1, "both committed, and the receipt is parked");
    drop(tx);
    assert_eq!(look(&store, &ids).await.applied.len(), 1);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(sql::texts(&mut tx, STATUS).await, ["DELIVERED"]);
    holds(&mut tx).await;
}

async fn look(store: &Store, ids: &[(domain::AccountId, String)]) -> Receipts {
    let mut tx = store.begin().await.unwrap();
    let looked = second_look(&mut tx, ids, NOON).await.unwrap();
    tx.commit().await.unwrap();
    looked
}

#[rstest]
#[tokio::test]
async fn our_correlation_finds_a_message_whose_answer_never_came(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, true, NOON).await.unwrap();
    let other = rows::account(&mut tx, "support").await.unwrap();
    let ours = our_correlation(&mut tx, message, 0, 1).await;
    let inbound = rows::inbound(&mut tx, &to, "wamid.in", "Hi", NOON).await.unwrap();
    let not_ours = [
        ("wamid.1", Some(format!("r1.zzzzzzzzzz.{message}.0.1"))),
        ("wamid.2", Some(our_correlation(&mut tx, inbound, 0, 1).await)),
        ("wamid.3", Some(our_correlation(&mut tx, MessageId::new(4711), 0, 1).await)),
        ("wamid.4", Some("crm-job-17".into())),
        ("wamid.5", None),
    ];
    for (id, correlation) in not_ours {
        let stranger = NewReceipt { correlation, ..receipt(&to, id, Status::Delivered, at(20)) };
        assert_eq!(told(&mut tx, &[stranger]).await.parked, 1, "{id}");
    }
    let of_another_account =
        NewReceipt { account: other, correlation: Some(ours.clone()), ..receipt(&to, "wamid.6", Status::Read, at(20)) };
    assert_eq!(told(&mut tx, &[of_another_account]).await.parked, 1);
    assert_eq!(sql::texts(&mut tx, STATUS).await, ["SENDING"]);

    // What came without the correlation before is found through the id that this one teaches.
    told(&mut tx, &[receipt(&to, WAMID, Status::Read, at(30))]).await;
    let heard =
        told(&mut tx, &[NewReceipt { correlation: Some(ours), ..receipt(&to, WAMID, Status::Sent, at(20)) }]).await;
    assert_eq!((heard.applied[0].message, heard.applied[0].settled), (message, true));
    assert_eq!(heard.look_again, [(to.account, WAMID.to_owned())]);
    let found = second_look(&mut tx, &heard.look_again, NOON).await.unwrap();
    assert_eq!((found.applied[0].status, found.applied[0].raised), (Status::Read, true));
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM sends").await, 0);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM messages WHERE outcome_unknown").await, 0);
    holds(&mut tx).await;
}

/// Generation 0 ended as the attempt says; a person asked for generation 1, which waits.
async fn asked_again(tx: &mut Tx, to: &Seeded, ended: &'static str) -> MessageId {
    let message = rows::outbound(tx, to, "Hello", Status::Queued, false, NOON).await.unwrap();
    sql::run(tx, "UPDATE messages SET send_generation = 1 WHERE direction = 'OUTBOUND'").await;
    sql::run(tx, "UPDATE sends SET generation = 1, attempt = 0").await;
    let attempt = store::attempt::AttemptRow {
        message_id: message,
        generation: 0,
        attempt: 1,
        worker: Some("sender-1".into()),
        provider_message_id: (ended == "ACCEPTED").then(|| WAMID.into()),
        outcome: domain::AttemptOutcome::parse(ended).unwrap(),
        http_status: None,
        provider_code: None,
        error_message: None,
        retry_after_ms: None,
        started_at: None,
        finished_at: NOON,
    };
    store::attempt::record(tx, &[attempt]).await.unwrap();
    let _ = to;
    message
}

#[rstest]
#[case::delivered_of_one_that_failed("ACCEPTED", Status::Delivered, "DELIVERED", 0)]
#[case::read_of_one_that_failed("ACCEPTED", Status::Read, "READ", 0)]
#[case::late_sent_of_one_that_failed("ACCEPTED", Status::Sent, "QUEUED", 1)]
#[case::late_failure_of_one_that_failed("ACCEPTED", Status::Failed, "QUEUED", 1)]
#[case::sent_of_one_that_was_held("UNKNOWN", Status::Sent, "SENT", 0)]
#[case::delivered_of_one_that_was_held("UNKNOWN", Status::Delivered, "DELIVERED", 0)]
#[case::failure_of_one_that_was_held("UNKNOWN", Status::Failed, "QUEUED", 1)]
#[tokio::test]
async fn what_an_older_generation_says_late(
    #[case] ended: &'static str,
    #[case] said: Status,
    #[case] status: &str,
    #[case] sends: i64,
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let message = asked_again(&mut tx, &to, ended).await;
    let correlation = Some(our_correlation(&mut tx, message, 0, 1).await);
    told(&mut tx, &[NewReceipt { correlation, ..receipt(&to, WAMID, said, at(20)) }]).await;
    assert_eq!(sql::texts(&mut tx, STATUS).await, [status]);
    assert_eq!(
        sql::number(&mut tx, "SELECT count(*) FROM sends").await,
        sends,
        "the newer generation goes out, or must not"
    );
    let attached = "SELECT count(*) FROM message_status_events WHERE generation = 0 AND message_id IS NOT NULL";
    assert_eq!(sql::number(&mut tx, attached).await, 1, "kept in the history either way");
    assert_eq!(
        sql::texts(&mut tx, "SELECT outcome FROM send_attempts").await,
        ["ACCEPTED"],
        "the provider spoke of it"
    );
    holds(&mut tx).await;
}

#[rstest]
#[tokio::test]
async fn an_attempts_own_id_finds_its_message(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    told(&mut tx, &[receipt(&to, WAMID, Status::Delivered, at(20))]).await;
    let message = asked_again(&mut tx, &to, "ACCEPTED").await;
    let found = second_look(&mut tx, &[(to.account, WAMID.into())], NOON).await.unwrap();
    assert_eq!((found.applied[0].message, found.applied[0].settled), (message, true));
    let late = told(&mut tx, &[receipt(&to, WAMID, Status::Read, at(30))]).await;
    assert_eq!(late.applied[0].status, Status::Read);
    holds(&mut tx).await;
}

#[rstest]
#[tokio::test]
async fn a_failure_without_a_reason_says_so_and_a_message_in_flight_is_not_overtaken(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    sent(&mut tx, &to, WAMID).await;
    let bare = NewReceipt { error_code: None, error_message: None, ..receipt(&to, WAMID, Status::Failed, at(20)) };
    told(&mut tx, &[bare]).await;
    let why = "SELECT error_class || ': ' || error_message FROM messages WHERE status = 'FAILED'";
    assert_eq!(sql::texts(&mut tx, why).await, ["REJECTED: the provider reports a failure and gives no reason"]);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM conversations WHERE last_failed_at IS NOT NULL").await, 1);
    let feed = "SELECT kind || ' ' || status FROM change_feed ORDER BY id";
    assert_eq!(sql::texts(&mut tx, feed).await, ["message_status FAILED"]);

    // Attempt 1 was given up as a failure for now and attempt 2 is in flight when evidence of attempt 1 comes.
    let second = rows::outbound(&mut tx, &to, "Again", Status::Sending, false, NOON).await.unwrap();
    sql::run(&mut tx, "UPDATE sends SET attempt = 2").await;
    let correlation = Some(our_correlation(&mut tx, second, 0, 1).await);
    let heard = told(&mut tx, &[NewReceipt { correlation, ..receipt(&to, "wamid.2", Status::Sent, at(20)) }]).await;
    assert_eq!((heard.applied.len(), heard.parked), (0, 1), "it waits for the call's end");
    let in_flight = sql::number(&mut tx, "SELECT count(*) FROM sends WHERE state = 'IN_FLIGHT'").await;
    assert_eq!(in_flight, 1, "the lane stays taken");
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
}

#[rstest]
#[tokio::test]
async fn evidence_that_came_while_the_call_was_open_counts_once_it_has_ended(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values("UNKNOWN", "WAITING")] ended: &'static str,
    #[values(false, true)] by_the_keeper: bool,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    let message = rows::outbound(&mut tx, &to, "Hello", Status::Sending, false, NOON).await.unwrap();
    let correlation = Some(our_correlation(&mut tx, message, 0, 1).await);
    let heard = told(&mut tx, &[NewReceipt { correlation, ..receipt(&to, WAMID, Status::Delivered, at(20)) }]).await;
    assert_eq!((heard.applied.len(), heard.parked, heard.look_again.len()), (0, 1, 0), "the report takes it up");
    let since = NOON - Duration::from_secs(3600);
    assert_eq!(look_for(&mut tx, &[message], NOON).await.unwrap(), Receipts::default(), "still open");
    assert_eq!(second_look_at_all(&mut tx, since, 10, NOON).await.unwrap(), Receipts::default(), "not under its id");
    assert_eq!(result::unsettled(&mut tx, 10).await.unwrap(), [], "still open");
    let end = match ended {
        "UNKNOWN" => {
            "UPDATE sends SET state = 'UNKNOWN', unknown_since = created_at, lease_token = NULL, lease_until = NULL"
        }
        _ => "UPDATE sends SET state = 'WAITING', lease_token = NULL, lease_until = NULL",
    };
    sql::run(&mut tx, end).await;
    if by_the_keeper {
        let unsettled = result::unsettled(&mut tx, 10).await.unwrap();
        assert_eq!(unsettled, [message]);
        let times = Times { now: NOON, database_now: NOON };
        assert_eq!(result::settle(&mut tx, &unsettled, times).await.unwrap().changed, 1);
    } else {
        let found = look_for(&mut tx, &[message], NOON).await.unwrap();
        assert_eq!((found.applied[0].status, found.applied[0].settled), (Status::Delivered, true));
    }
    assert_eq!(sql::texts(&mut tx, STATUS).await, ["DELIVERED"]);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM sends").await, 0, "it must not go out again");
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM message_status_events").await, 1);
    holds(&mut tx).await;
}

#[rstest]
#[tokio::test]
async fn the_same_receipts_at_once_from_many_sides_are_one_history(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let to = seed(&mut tx).await;
    for i in 0..4 {
        sent(&mut tx, &to, &format!("wamid.{i}")).await;
    }
    tx.commit().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16u64 {
        let store = db.store.clone();
        tasks.spawn(async move {
            let mut receipts: Vec<NewReceipt> = (0..4)
                .flat_map(|i| [(Status::Delivered, 20), (Status::Read, 30)].map(|(status, second)| (i, status, second)))
                .map(|(i, status, second)| receipt(&to, &format!("wamid.{i}"), status, at(second)))
                .collect();
            let turn = usize::try_from(task).unwrap() % receipts.len();
            receipts.rotate_left(turn);
            loop {
                let mut tx = store.begin().await.unwrap();
                match apply(&mut tx, &receipts, NOON).await {
                    Ok(_) => return tx.commit().await.unwrap(),
                    Err(error) if error.is_serialization() => drop(tx),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let mut tx = db.store.begin().await.unwrap();
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM message_status_events").await, 8);
    assert_eq!(sql::texts(&mut tx, STATUS).await, ["READ"; 4]);
    assert_eq!(
        sql::number(&mut tx, "SELECT count(*) FROM change_feed WHERE kind = 'message_status' AND status = 'READ'")
            .await,
        4
    );
    holds(&mut tx).await;
}
