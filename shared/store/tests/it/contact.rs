//! Who wrote: addresses, people, and what is not merged.

use crate::sql;
use domain::{Channel, IdentityKind};
use rstest::rstest;
use store::Tx;
use store::contact::{IdentityKey, Known, Resolution, Sender, resolve};
use testkit::rows::NOON;
use testkit::{Database, fresh_store};

const NUMBER: &str = "971501234567";
const BSUID: &str = "AE.48151623420001";

fn number(value: &str) -> IdentityKey {
    IdentityKey { kind: IdentityKind::WaId, scope: String::new(), value: value.into() }
}

fn bsuid(value: &str) -> IdentityKey {
    IdentityKey { kind: IdentityKind::WaBsuid, scope: "portfolio".into(), value: value.into() }
}

fn sender(addresses: &[IdentityKey], name: Option<&str>) -> Sender {
    let phone = addresses.iter().find(|key| key.kind == IdentityKind::WaId).map(|key| format!("+{}", key.value));
    Sender {
        addresses: addresses.to_vec(),
        display_name: name.map(str::to_owned),
        username: None,
        phone,
        channel: Channel::WhatsApp,
    }
}

async fn one(tx: &mut Tx, addresses: &[IdentityKey]) -> Known {
    let resolution = resolve(tx, &[sender(addresses, Some("Rita"))], NOON).await.unwrap();
    assert_eq!(resolution.met, []);
    resolution.known[0]
}

#[rstest]
#[tokio::test]
async fn whichever_of_a_persons_addresses_comes_they_are_one_contact_and_one_conversation_key(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let both = one(&mut tx, &[number(NUMBER), bsuid(BSUID)]).await;
    assert_eq!(one(&mut tx, &[bsuid(BSUID)]).await, both);
    assert_eq!(one(&mut tx, &[number(NUMBER)]).await, both);
    assert_eq!(one(&mut tx, &[bsuid(BSUID), number(NUMBER)]).await, both);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contacts").await, 1);
    assert_eq!(sql::texts(&mut tx, "SELECT phone_e164 FROM contacts").await, [format!("+{NUMBER}")]);
    assert_eq!(sql::texts(&mut tx, "SELECT full_name || source FROM contacts").await, ["Ritawhatsapp"]);
}

#[rstest]
#[tokio::test]
async fn an_address_first_seen_beside_a_known_one_points_to_it(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    // Only the user id at first, as for people who hide their number; the number comes later and is named first.
    let first = one(&mut tx, &[bsuid(BSUID)]).await;
    assert_eq!(one(&mut tx, &[number(NUMBER), bsuid(BSUID)]).await, first);
    assert_eq!(one(&mut tx, &[number(NUMBER)]).await, first);
    assert_eq!(
        sql::texts(&mut tx, "SELECT kind FROM contact_identities WHERE alias_of_id IS NULL").await,
        ["WA_BSUID"]
    );
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contacts WHERE phone_e164 IS NOT NULL").await, 1);
}

#[rstest]
#[tokio::test]
async fn payloads_of_one_batch_that_share_an_address_are_one_new_person(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let batch = [
        sender(&[number(NUMBER)], None),
        sender(&[bsuid(BSUID)], None),
        sender(&[number("351912000333")], None),
        sender(&[number(NUMBER), bsuid(BSUID)], Some("Rita")),
    ];
    let resolution = resolve(&mut tx, &batch, NOON).await.unwrap();
    assert_eq!(resolution.known[0], resolution.known[1]);
    assert_eq!(resolution.known[0], resolution.known[3]);
    assert_ne!(resolution.known[0].contact, resolution.known[2].contact);
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contacts").await, 2);
    assert_eq!(resolve(&mut tx, &batch, NOON).await.unwrap(), resolution, "known ones are found as they were made");
}

#[rstest]
#[tokio::test]
async fn two_contacts_that_meet_in_one_payload_are_reported_and_not_merged(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let (by_number, by_user) = (one(&mut tx, &[number(NUMBER)]).await, one(&mut tx, &[bsuid(BSUID)]).await);
    assert_ne!(by_number.contact, by_user.contact);
    for _ in 0..2 {
        let met = resolve(&mut tx, &[sender(&[number(NUMBER), bsuid(BSUID)], None)], NOON).await.unwrap();
        assert_eq!(met, Resolution { known: vec![by_number], met: vec![(by_number.contact, by_user.contact)] });
    }
    assert_eq!(one(&mut tx, &[bsuid(BSUID)]).await, by_user);
    let notes = sql::texts(&mut tx, "SELECT CAST(attributes AS TEXT) FROM contacts ORDER BY id").await;
    let notes: Vec<serde_json::Value> = notes.iter().map(|note| serde_json::from_str(note).unwrap()).collect();
    let want = |other: Known| serde_json::json!({ "mayBeSameAs": [other.contact.get()] });
    assert_eq!(notes, [want(by_user), want(by_number)], "noted on both, once");
}

#[rstest]
#[tokio::test]
async fn a_name_that_comes_later_is_taken_over_and_what_the_team_wrote_is_kept(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let name = |name| vec![sender(&[number(NUMBER)], name)];
    resolve(&mut tx, &name(None), NOON).await.unwrap();
    resolve(&mut tx, &name(Some("Rita\0")), NOON).await.unwrap();
    let full_names = "SELECT full_name FROM contacts";
    assert_eq!(sql::texts(&mut tx, full_names).await, ["Rita\u{FFFD}"]);
    sql::run(&mut tx, "UPDATE contacts SET full_name = 'Rita Lopes, VIP'").await;
    resolve(&mut tx, &name(Some("rita ✨")), NOON).await.unwrap();
    assert_eq!(sql::texts(&mut tx, full_names).await, ["Rita Lopes, VIP"]);
    assert_eq!(sql::texts(&mut tx, "SELECT display_name FROM contact_identities").await, ["rita ✨"]);
}

#[rstest]
#[case::leading_zero("+0501234567")]
#[case::letters("+97150ABC4567")]
#[case::too_long("+9715012345678901")]
#[tokio::test]
async fn a_number_that_cannot_be_one_is_left_out_and_the_person_is_kept(
    #[case] phone: &str,
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let odd = Sender { phone: Some(phone.into()), ..sender(&[bsuid(BSUID)], None) };
    resolve(&mut tx, &[odd], NOON).await.unwrap();
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contacts WHERE phone IS NULL").await, 1);
}

#[rstest]
#[tokio::test]
async fn many_transactions_that_meet_a_new_person_at_once_end_with_one_contact(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..24 {
        let store = db.store.clone();
        tasks.spawn(async move {
            // Some know both addresses, some one.
            let addresses = match i % 3 {
                0 => vec![number(NUMBER), bsuid(BSUID)],
                1 => vec![number(NUMBER)],
                _ => vec![bsuid(BSUID), number(NUMBER)],
            };
            loop {
                let mut tx = store.begin().await.unwrap();
                match resolve(&mut tx, &[sender(&addresses, Some("Rita"))], NOON).await {
                    Ok(resolution) => {
                        tx.commit().await.unwrap();
                        return resolution.known[0];
                    }
                    Err(error) if error.is_serialization() => drop(tx),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let known = tasks.join_all().await;
    assert!(known.iter().all(|one| *one == known[0]), "{known:?}");
    let mut tx = db.store.begin().await.unwrap();
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contacts").await, 1, "no contact is left over");
    assert_eq!(sql::number(&mut tx, "SELECT count(*) FROM contact_identities WHERE alias_of_id IS NULL").await, 1);
}
