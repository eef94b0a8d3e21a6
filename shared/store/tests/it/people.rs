//! Users, sessions, API tokens and the audit trail.

use domain::{Role, Timestamp, UserId};
use rstest::rstest;
use std::time::Duration;
use store::audit::{Actor, Entry};
use store::user::Declared;
use store::{audit, session, token, user};
use testkit::rows::NOON;
use testkit::{Database, fresh_store};

fn declared(email: &str, role: Role) -> Declared {
    Declared { email: email.to_owned(), name: email.split('@').next().unwrap().to_owned(), role }
}

#[rstest]
#[tokio::test]
async fn users_follow_the_configuration_and_keep_their_ids(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let both = [declared("sara@example.com", Role::Agent), declared("omar@example.com", Role::Admin)];
    let first = user::mirror(&mut tx, &both, NOON).await.unwrap();
    assert_eq!(first.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["omar", "sara"]);
    let sara = first.iter().find(|user| user.name == "sara").unwrap().id;
    assert_eq!(user::mirror(&mut tx, &both, NOON).await.unwrap(), first, "repeating it changes nothing");

    // Sara is promoted, Omar leaves: his session ends with him.
    let omar = first.iter().find(|user| user.name == "omar").unwrap().id;
    session::create(&mut tx, &[7; 32], omar, NOON, NOON + Duration::from_secs(3600)).await.unwrap();
    assert!(session::find(&mut tx, &[7; 32], NOON).await.unwrap().is_some());
    let after = user::mirror(&mut tx, &[declared("sara@example.com", Role::Operator)], NOON).await.unwrap();
    assert_eq!(after.iter().map(|user| (user.id, user.role)).collect::<Vec<_>>(), [(sara, Role::Operator)]);
    assert_eq!(session::find(&mut tx, &[7; 32], NOON).await.unwrap(), None);
    assert_eq!(user::by_id(&mut tx, omar).await.unwrap(), None);

    // He comes back as the same person, and must sign in again.
    let back = user::mirror(&mut tx, &both, NOON).await.unwrap();
    assert!(back.iter().any(|user| user.id == omar));
    assert_eq!(session::find(&mut tx, &[7; 32], NOON).await.unwrap(), None);
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_session_opens_until_it_ends_or_is_revoked(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let people = user::mirror(&mut tx, &[declared("sara@example.com", Role::Agent)], NOON).await.unwrap();
    let hour = Duration::from_secs(3600);
    session::create(&mut tx, &[1; 32], people[0].id, NOON, NOON + hour).await.unwrap();
    session::create(&mut tx, &[2; 32], people[0].id, NOON, NOON + hour).await.unwrap();

    let found = session::find(&mut tx, &[1; 32], NOON).await.unwrap().unwrap();
    assert_eq!((found.email.as_str(), found.role), ("sara@example.com", Role::Agent));
    assert_eq!(session::find(&mut tx, &[1; 32], NOON + hour).await.unwrap(), None, "over");
    assert_eq!(session::find(&mut tx, &[3; 32], NOON).await.unwrap(), None, "never was");
    assert!(session::revoke(&mut tx, &[1; 32], NOON).await.unwrap());
    assert!(!session::revoke(&mut tx, &[1; 32], NOON).await.unwrap());
    assert_eq!(session::find(&mut tx, &[1; 32], NOON).await.unwrap(), None, "revoked");
    assert!(session::find(&mut tx, &[2; 32], NOON).await.unwrap().is_some(), "the other browser stays");
    assert_eq!(session::forget(&mut tx, NOON + hour * 2).await.unwrap(), 2);
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_session_of_nobody_is_refused(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let nobody = session::create(&mut tx, &[1; 32], UserId::new(99), NOON, NOON).await;
    assert!(nobody.unwrap_err().is_missing_reference());
}

#[rstest]
#[tokio::test]
async fn tokens_follow_the_configuration(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let first = token::mirror(&mut tx, &["crm".into(), "cli".into()], NOON).await.unwrap();
    assert_eq!(first.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["cli", "crm"]);
    token::used(&mut tx, first[1].id, NOON).await.unwrap();
    token::used(&mut tx, first[1].id, Timestamp::from_micros(5)).await.unwrap();
    let second = token::mirror(&mut tx, &["crm".into()], NOON).await.unwrap();
    assert_eq!(second.len(), 1);
    assert_eq!((second[0].id, second[0].last_used_at), (first[1].id, Some(NOON)), "an earlier sight lowers nothing");
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_trail_says_who_did_what_newest_first(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let entry = |action| Entry {
        actor: Actor { user: Some(UserId::new(4)), token: None },
        action,
        target_type: "conversation",
        target_id: "12",
        detail: serde_json::json!({ "to": 4 }),
        request_id: Some("r-1"),
        ip: Some("192.0.2.1"),
    };
    audit::record(&mut tx, &entry("conversation.assign"), NOON).await.unwrap();
    audit::record(&mut tx, &entry("conversation.close"), NOON + Duration::from_secs(1)).await.unwrap();
    let trail = audit::of(&mut tx, "conversation", "12", 10).await.unwrap();
    assert_eq!(
        trail.iter().map(|row| row.action.as_str()).collect::<Vec<_>>(),
        ["conversation.close", "conversation.assign"]
    );
    assert_eq!(trail[0].detail["to"], 4);
    assert_eq!((trail[1].actor_user_id, trail[1].request_id.as_deref()), (Some(UserId::new(4)), Some("r-1")));
    assert!(audit::of(&mut tx, "conversation", "13", 10).await.unwrap().is_empty());
    tx.commit().await.unwrap();
}
