//! Slots, learnt rates and the pace of one recipient.

use crate::sending::{World, configured, execute, number, seconds};
use domain::limits::{SLOT_HORIZON, slot_spacing};
use domain::{AccountId, Timestamp};
use rstest::rstest;
use std::collections::HashMap;
use std::time::Duration;
use store::rate_limit::{self, Grant, PairLimit, Wish, account_scope};
use store::{Store, account};
use testkit::Database;
use testkit::rows::NOON;

fn wish(scope: &str, wanted: u32) -> Wish {
    Wish { scope: scope.to_owned(), wanted, shared_rate: None }
}

async fn take(store: &Store, wishes: &[Wish], lead: Duration) -> (Timestamp, Vec<Grant>) {
    let mut tx = store.autocommit().await.unwrap();
    let taken = rate_limit::take_slots(&mut tx, wishes, lead).await.unwrap();
    tx.commit().await.unwrap();
    taken
}

async fn rate_of(store: &Store, scope: &str) -> (f64, Option<Timestamp>) {
    let (_, grants) = take(store, &[wish(scope, 0)], Duration::ZERO).await;
    (grants[0].rate, grants[0].blocked_until)
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_share_one_grid_of_slots_and_no_second_holds_more_than_the_rate(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let scope = account_scope(world.account);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (store, scope) = (world.store().clone(), scope.clone());
            tokio::spawn(async move {
                let mut starts = Vec::new();
                for _ in 0..30 {
                    let (now, grants) = take(&store, &[wish(&scope, 3)], Duration::from_millis(5)).await;
                    let granted = grants[0].starts.clone().unwrap();
                    assert!(granted.iter().all(|at| *at >= now + Duration::from_millis(5) && *at < now + SLOT_HORIZON));
                    starts.extend(granted);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                starts
            })
        })
        .collect();
    let mut starts = Vec::new();
    for task in tasks {
        starts.extend(task.await.unwrap());
    }
    starts.sort();
    assert!(starts.len() > 20, "{}", starts.len());
    let spacing = slot_spacing(80.0) - Duration::from_micros(5);
    assert!(starts.windows(2).all(|pair| pair[1].since(pair[0]) >= spacing), "{starts:?}");
}

/// The highest rate a configuration may ask for: slots 104 µs apart, taken by many, on a clock that counts microseconds.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slots_of_the_highest_rate_stand_apart_too_and_nearly_all_of_them_can_be_had(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    const RATE: f64 = 10_000.0;
    /// 96 % of ten milliseconds' worth.
    const IN_TEN_MS: usize = 96;
    let world = World::with(database, 0).await;
    execute(world.store(), "UPDATE rate_limits SET rate_per_sec = 10000").await;
    let scope = account_scope(world.account);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (store, scope) = (world.store().clone(), scope.clone());
            tokio::spawn(async move {
                let mut starts = Vec::new();
                for _ in 0..10 {
                    let (now, grants) = take(&store, &[wish(&scope, 256)], Duration::from_millis(5)).await;
                    let granted = grants[0].starts.clone().unwrap();
                    assert!(
                        granted.iter().all(|at| *at >= now + Duration::from_millis(5) && *at <= now + SLOT_HORIZON)
                    );
                    starts.extend(granted);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                starts
            })
        })
        .collect();
    let mut starts = Vec::new();
    for task in tasks {
        starts.extend(task.await.unwrap());
    }
    starts.sort();
    // The sum matters, not each distance: ten milliseconds of slots hold what they may, wherever they begin.
    let ten_ms = Duration::from_millis(10) - Duration::from_micros(10);
    let crowded = starts.windows(IN_TEN_MS + 1).find(|run| run[IN_TEN_MS].since(run[0]) < ten_ms);
    assert_eq!(crowded, None);
    let span = starts.last().unwrap().since(starts[0]).as_secs_f64();
    assert!(starts.len() > 256, "{}", starts.len());
    assert!(starts.len() as f64 <= span * RATE + 1.0, "{} in {span} s", starts.len());
}

#[rstest]
#[tokio::test]
async fn a_shared_scope_limits_only_once_it_was_slowed(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let shared = Wish { scope: "app:meta".into(), wanted: 5, shared_rate: Some(80.0) };
    let (_, grants) = take(world.store(), std::slice::from_ref(&shared), Duration::ZERO).await;
    assert_eq!(grants[0].starts, None, "as fast as all its accounts together: it does not limit");
    execute(world.store(), "UPDATE rate_limits SET rate_per_sec = 40 WHERE scope = 'app:meta'").await;
    let (_, grants) = take(world.store(), std::slice::from_ref(&shared), Duration::ZERO).await;
    assert!(!grants[0].starts.as_ref().unwrap().is_empty());
    let (_, none) = take(world.store(), &[wish("account:999", 1)], Duration::ZERO).await;
    assert_eq!(none, [], "an unknown scope grants nothing");
}

#[rstest]
#[tokio::test]
async fn a_throttling_reply_blocks_the_scope_and_slows_it_once_and_success_raises_it_again(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let scope = account_scope(world.account);
    let mut tx = world.store().begin().await.unwrap();
    for wait in [None, Some(seconds(30)), Some(seconds(2))] {
        assert!(rate_limit::slow(&mut tx, &scope, wait).await.unwrap());
    }
    tx.commit().await.unwrap();
    let (rate, blocked) = rate_of(world.store(), &scope).await;
    assert!((rate - 56.0).abs() < 1e-6, "80 − 30 %, once: {rate}");
    let left = blocked.unwrap().since(world.now().await);
    assert!(left > seconds(20) && left <= seconds(30), "the longest wish counts: {left:?}");
    let (_, grants) = take(world.store(), &[wish(&scope, 5)], Duration::ZERO).await;
    assert_eq!(grants[0].starts.as_deref(), Some([].as_slice()), "nothing goes while it is blocked");

    let mut tx = world.store().begin().await.unwrap();
    rate_limit::probe(&mut tx, &scope).await.unwrap();
    tx.commit().await.unwrap();
    assert!((rate_of(world.store(), &scope).await.0 - 1.0).abs() < 1e-6, "the breaker's one call a second");
    for _ in 0..500 {
        let mut tx = world.store().begin().await.unwrap();
        rate_limit::raise(&mut tx, &scope, 80.0, 20).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert!((rate_of(world.store(), &scope).await.0 - 80.0).abs() < 1e-6);
}

#[rstest]
#[tokio::test]
async fn a_learnt_rate_survives_a_start_and_a_changed_configuration_moves_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let scope = account_scope(world.account);
    let mirror = async |rate: f64| {
        let mut sales = configured("sales", "1001");
        sales.rate_per_second = rate;
        let mut tx = world.store().begin().await.unwrap();
        account::mirror(&mut tx, &[sales], NOON).await.unwrap();
        tx.commit().await.unwrap();
    };
    mirror(200.0).await;
    assert!((rate_of(world.store(), &scope).await.0 - 200.0).abs() < 1e-6, "never slowed: follows the configuration");
    assert!((rate_of(world.store(), "app:meta").await.0 - 200.0).abs() < 1e-6);
    execute(world.store(), "UPDATE rate_limits SET rate_per_sec = 50").await;
    mirror(300.0).await;
    assert!((rate_of(world.store(), &scope).await.0 - 50.0).abs() < 1e-6, "learnt: kept");
    mirror(20.0).await;
    assert!((rate_of(world.store(), &scope).await.0 - 20.0).abs() < 1e-6, "never above the configuration");
}

#[rstest]
#[tokio::test]
async fn a_recipient_gets_a_burst_and_then_one_message_per_interval(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let mut ours = Vec::new();
    for n in 0..2 {
        ours.push(world.accept(n, "hello").await);
    }
    world.dispatch().await;
    let limits: HashMap<AccountId, PairLimit> =
        HashMap::from([(world.account, PairLimit { interval: seconds(6), burst: 3 })]);
    let now = world.now().await;
    let take = async |at: Timestamp| {
        let mut tx = world.store().begin().await.unwrap();
        let waiting = rate_limit::take_pairs(&mut tx, &ours, &limits, at).await.unwrap();
        tx.commit().await.unwrap();
        waiting
    };
    for _ in 0..3 {
        assert_eq!(take(now).await, []);
    }
    let mut waiting = take(now).await;
    waiting.sort();
    assert_eq!(waiting, [(ours[0], now + seconds(6)), (ours[1], now + seconds(6))]);
    assert_eq!(take(now + seconds(6)).await, []);

    let mut tx = world.store().begin().await.unwrap();
    let conversation = world.conversations[0].conversation;
    rate_limit::exhaust_pair(&mut tx, conversation, now + seconds(100)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(take(now + seconds(12)).await, [(ours[0], now + seconds(88))]);
    assert_eq!(number(world.store(), "SELECT count(*) FROM conversations WHERE pair_tat IS NOT NULL").await, 2);
}
