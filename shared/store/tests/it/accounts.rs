//! Accounts: the mirror of the configuration, pausing, breaking, reviving.

use crate::sending::{World, configured, seconds};
use domain::{AccountKey, Channel, SendState, UserId};
use rstest::rstest;
use std::time::Duration;
use store::account::{self, Directory};
use testkit::Database;
use testkit::rows::NOON;

async fn mirror(world: &World, accounts: &[domain::Account]) -> Directory {
    let mut tx = world.store().begin().await.unwrap();
    let directory = account::mirror(&mut tx, accounts, NOON).await.unwrap();
    tx.commit().await.unwrap();
    directory
}

async fn statuses(world: &World) -> Vec<(String, String)> {
    let mut tx = world.store().read().await.unwrap();
    account::all(&mut tx).await.unwrap().into_iter().map(|row| (row.name, row.status)).collect()
}

fn pairs(want: &[(&str, &str)]) -> Vec<(String, String)> {
    want.iter().map(|(name, status)| ((*name).to_owned(), (*status).to_owned())).collect()
}

#[rstest]
#[tokio::test]
async fn a_rename_keeps_the_row_and_its_unfinished_sends_follow_to_the_new_queue(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 1).await;
    let message = world.accept(0, "hello").await;
    world.dispatch().await;
    let directory = mirror(&world, &[configured("dubai", "1001")]).await;
    assert_eq!(directory.id_named(&"dubai".parse().unwrap()), Some(world.account));
    let key = AccountKey { channel: Channel::WhatsApp, external_id: "1001".into() };
    assert_eq!(directory.id_of(&key), Some(world.account));
    assert_eq!(directory.account(world.account).unwrap().name.as_str(), "dubai");
    assert_eq!(world.state_of(message).await, Some(SendState::Waiting));
    assert_eq!(world.dispatch().await, [message]);
}

#[rstest]
#[tokio::test]
async fn an_account_that_leaves_the_configuration_is_disabled_its_sends_wait_and_it_may_come_back(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 2).await;
    let queued = world.accept(1, "in the queue").await;
    assert_eq!(world.dispatch().await, [queued]);
    let message = world.accept(0, "hello").await;
    let directory = mirror(&world, &[configured("support", "1002")]).await;
    assert_eq!(directory.iter().count(), 1);
    assert_eq!(world.state_of(queued).await, Some(SendState::Waiting), "nobody reads that queue any more");
    assert_eq!(statuses(&world).await, pairs(&[("sales", "DISABLED"), ("support", "ACTIVE")]));
    assert!(world.dispatch().await.is_empty());
    mirror(&world, &[configured("sales", "1001"), configured("support", "1002")]).await;
    assert_eq!(statuses(&world).await, pairs(&[("sales", "ACTIVE"), ("support", "ACTIVE")]));
    assert_eq!(world.dispatch().await, [queued, message]);
}

#[rstest]
#[tokio::test]
async fn a_pause_survives_a_start_and_ends_by_a_person_or_by_itself(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let mut tx = world.store().begin().await.unwrap();
    let until = Some(NOON + seconds(60));
    assert!(account::pause(&mut tx, world.account, Some("a bad campaign"), None, until, NOON).await.unwrap());
    tx.commit().await.unwrap();
    mirror(&world, &[configured("sales", "1001")]).await;
    assert_eq!(statuses(&world).await, pairs(&[("sales", "PAUSED")]));
    let mut tx = world.store().begin().await.unwrap();
    assert_eq!(account::end_pauses(&mut tx, NOON + seconds(59)).await.unwrap(), 0);
    assert_eq!(account::end_pauses(&mut tx, NOON + seconds(60)).await.unwrap(), 1);
    assert!(account::pause(&mut tx, world.account, None, None, None, NOON).await.unwrap());
    assert!(account::resume(&mut tx, world.account, NOON).await.unwrap());
    assert!(!account::resume(&mut tx, world.account, NOON).await.unwrap(), "it goes already");
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_broken_account_is_revived_once_by_another_token_and_by_a_person_always(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let mut tx = world.store().begin().await.unwrap();
    let id = world.account;
    assert!(account::mark_broken(&mut tx, id, "old", "190", "Session has expired", NOON).await.unwrap());
    assert!(!account::mark_broken(&mut tx, id, "old", "190", "Session has expired", NOON).await.unwrap(), "known");
    assert!(!account::revive(&mut tx, id, "old", NOON).await.unwrap(), "the same token");
    assert!(account::revive(&mut tx, id, "new", NOON).await.unwrap());
    assert!(!account::mark_broken(&mut tx, id, "old", "190", "again", NOON).await.unwrap(), "said of the old token");
    assert!(account::mark_broken(&mut tx, id, "new", "190", "again", NOON).await.unwrap());
    assert!(!account::revive(&mut tx, id, "new", NOON).await.unwrap(), "once");
    assert!(!account::revive(&mut tx, id, "old", NOON).await.unwrap(), "it was refused before");
    assert!(account::revive(&mut tx, id, "third", NOON).await.unwrap());
    assert!(!account::mark_broken(&mut tx, id, "old", "190", "again", NOON).await.unwrap(), "said of an old token");
    assert!(account::mark_broken(&mut tx, id, "third", "190", "again", NOON).await.unwrap());
    let row = account::all(&mut tx).await.unwrap().remove(0);
    assert_eq!((row.status.as_str(), row.status_reason.as_deref()), ("BROKEN", Some("again")));
    assert!(account::resume(&mut tx, id, NOON).await.unwrap());
    tx.commit().await.unwrap();
}

#[rstest]
#[case::paused_by_a_person(Some(UserId::new(7)), None, None, "PAUSED", Some("a bad campaign"))]
#[case::paused_for_a_while(None, Some(seconds(3600)), None, "PAUSED", Some("a bad campaign"))]
#[case::broken(None, None, Some("old"), "BROKEN", Some("Session has expired"))]
#[case::broken_while_paused(Some(UserId::new(7)), None, Some("old"), "PAUSED", Some("Session has expired"))]
#[case::active(None, None, None, "ACTIVE", None)]
#[tokio::test]
async fn an_account_that_leaves_the_configuration_comes_back_as_it_was(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] by: Option<UserId>,
    #[case] pause: Option<Duration>,
    #[case] token: Option<&str>,
    #[case] status: &str,
    #[case] reason: Option<&str>,
) {
    let world = World::with(database, 0).await;
    let mut tx = world.store().begin().await.unwrap();
    let (id, until) = (world.account, pause.map(|time| NOON + time));
    if by.is_some() || until.is_some() {
        assert!(account::pause(&mut tx, id, Some("a bad campaign"), by, until, NOON).await.unwrap());
    }
    if let Some(token) = token {
        assert!(account::mark_broken(&mut tx, id, token, "190", "Session has expired", NOON).await.unwrap());
    }
    tx.commit().await.unwrap();
    for _ in 0..2 {
        mirror(&world, &[]).await;
        assert_eq!(statuses(&world).await, pairs(&[("sales", "DISABLED")]));
    }
    mirror(&world, &[configured("sales", "1001")]).await;
    let mut tx = world.store().begin().await.unwrap();
    let row = account::all(&mut tx).await.unwrap().remove(0);
    assert_eq!((row.status.as_str(), row.status_reason.as_deref(), row.paused_until), (status, reason, until));
    assert_eq!(account::resume(&mut tx, id, NOON).await.unwrap(), status != "ACTIVE");
    assert!(!account::revive(&mut tx, id, "new", NOON).await.unwrap(), "nothing is broken any more");
}

#[rstest]
#[tokio::test]
async fn an_account_that_broke_while_it_was_paused_is_paused_when_another_token_revives_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::with(database, 0).await;
    let mut tx = world.store().begin().await.unwrap();
    let (id, by) = (world.account, Some(UserId::new(7)));
    assert!(account::pause(&mut tx, id, None, by, None, NOON).await.unwrap());
    assert!(account::mark_broken(&mut tx, id, "old", "190", "Session has expired", NOON).await.unwrap());
    assert!(account::revive(&mut tx, id, "new", NOON).await.unwrap());
    assert_eq!(account::all(&mut tx).await.unwrap()[0].status, "PAUSED");
}
