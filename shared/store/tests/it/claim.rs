//! Claims: at most one sender has a row, and what it has it can call with.

use crate::sending::{World, execute, finished, number, seconds};
use domain::{AttemptOutcome, MessageId, SendState};
use rstest::rstest;
use std::collections::HashSet;
use store::send::{self, Claims};
use testkit::Database;
use testkit::rows::NOON;

#[rstest]
#[tokio::test]
async fn a_claim_carries_all_the_call_needs_and_is_made_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    assert!(world.claim("early", &[message]).await.is_empty(), "not dispatched yet");
    world.dispatch().await;
    let claimed = world.claim("mine", &[message]).await;
    let claim = &claimed[0];
    assert_eq!((claim.message_id, claim.attempt, claim.generation), (message, 1, 0));
    assert_eq!((claim.body.as_deref(), claim.wa_id.as_deref()), (Some("hello"), Some("971500000000")));
    assert_eq!((claim.wa_bsuid.as_deref(), claim.other.as_deref()), (None, None));
    assert_eq!(claim.window_expires_at, Some(NOON + seconds(24 * 3600)));
    assert_eq!(claim.deployment.len(), 10);
    assert!(world.claim("late", &[message]).await.is_empty(), "a claimed row is somebody else's");

    let mut tx = world.store().read().await.unwrap();
    assert_eq!(send::claimed_under(&mut tx, "mine", &[message]).await.unwrap(), claimed, "found by its token");
    assert!(send::claimed_under(&mut tx, "late", &[message]).await.unwrap().is_empty());
}

#[rstest]
#[tokio::test]
async fn an_address_is_known_by_all_its_names(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::with(database, 1).await;
    execute(
        world.store(),
        "INSERT INTO contact_identities (contact_id, kind, scope_key, value, alias_of_id, first_seen_at)
         SELECT contact_id, 'WA_BSUID', 'p', 'AE.123', id, first_seen_at FROM contact_identities WHERE kind = 'WA_ID'",
    )
    .await;
    world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    assert_eq!((claimed[0].wa_id.as_deref(), claimed[0].wa_bsuid.as_deref()), (Some("971500000000"), Some("AE.123")));
}

#[rstest]
#[case::paused("UPDATE channel_accounts SET status = 'PAUSED'")]
#[case::broken_token("UPDATE channel_accounts SET broken_token_sha256 = 'hash'")]
#[case::deadline("UPDATE sends SET deadline_at = created_at")]
#[tokio::test]
async fn what_may_not_be_sent_is_not_claimed_and_can_be_set_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] obstacle: &'static str,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    world.dispatch().await;
    execute(world.store(), obstacle).await;
    assert!(world.claim("t", &[message]).await.is_empty());
    let now = world.now().await;
    let mut tx = world.store().begin().await.unwrap();
    send::set_back(&mut tx, &[message], now).await.unwrap();
    tx.commit().await.unwrap();
    let row = world.send_of(message).await.unwrap();
    assert_eq!((row.state, row.attempt), (SendState::Waiting, 0));
}

#[rstest]
#[tokio::test]
async fn a_claim_given_back_costs_no_attempt_and_only_its_own_token_gives_it_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    world.take("mine").await;
    let give_back = async |token: &str| {
        let mut tx = world.store().begin().await.unwrap();
        let rows = send::give_back(&mut tx, token, &[message]).await.unwrap();
        tx.commit().await.unwrap();
        rows
    };
    assert_eq!(give_back("other").await, 0);
    assert_eq!(give_back("mine").await, 1);
    assert_eq!(give_back("mine").await, 0);
    let row = world.send_of(message).await.unwrap();
    assert_eq!((row.state, row.attempt, row.lease_token), (SendState::Waiting, 0, None));
    assert_eq!(world.take("again").await[0].attempt, 1);
}

#[rstest]
#[tokio::test]
async fn an_expired_lease_is_found_and_a_living_one_is_not(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    world.take("mine").await;
    let mut tx = world.store().read().await.unwrap();
    let now = tx.database_now().await.unwrap();
    assert!(send::expired_leases(&mut tx, now, 10).await.unwrap().is_empty());
    let expired = send::expired_leases(&mut tx, now + seconds(21), 10).await.unwrap();
    assert_eq!((expired[0].message_id, expired[0].attempt, expired[0].lease_token.as_str()), (message, 1, "mine"));
}

/// Several senders with the same references, as after a redelivery.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn senders_that_race_for_the_same_rows_get_each_of_them_once() {
    let world = World::with(Database::Postgres, 30).await;
    for n in 0..30 {
        world.accept(n, "hello").await;
    }
    let messages = world.dispatch().await;
    assert_eq!(messages.len(), 30);
    let tasks: Vec<_> = (0..6)
        .map(|sender| {
            let (store, messages) = (world.store().clone(), messages.clone());
            tokio::spawn(async move {
                let mut claimed: Vec<MessageId> = Vec::new();
                for (n, chunk) in messages.chunks(7).enumerate() {
                    let token = format!("sender-{sender}-{n}");
                    let mut tx = store.autocommit().await.unwrap();
                    let now = tx.database_now().await.unwrap();
                    let claims = Claims {
                        lease_token: &token,
                        lease_until: now + seconds(20),
                        now,
                        messages: chunk,
                        tokens: &[],
                    };
                    claimed.extend(send::claim(&mut tx, &claims).await.unwrap().into_iter().map(|row| row.message_id));
                    tx.commit().await.unwrap();
                }
                claimed
            })
        })
        .collect();
    let mut claimed = Vec::new();
    for task in tasks {
        claimed.extend(task.await.unwrap());
    }
    let distinct: HashSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (30, 30));
    assert_eq!(number(world.store(), "SELECT count(*) FROM sends WHERE state = 'IN_FLIGHT' AND attempt = 1").await, 30);
}

#[rstest]
#[tokio::test]
async fn a_reference_to_a_finished_send_claims_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    world.accept(0, "hello").await;
    let claimed = world.take("t").await;
    world.report(&[finished(&claimed[0], AttemptOutcome::Accepted)]).await;
    assert!(world.claim("t2", &[claimed[0].message_id]).await.is_empty());
}
