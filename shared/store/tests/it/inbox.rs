//! What the page and the API read: the list, threads, and what people do to a conversation.

use domain::{Channel, ConversationId, ConversationStatus, MessageId, Role, Status};
use rstest::rstest;
use std::collections::HashSet;
use std::time::Duration;
use store::inbox_list::{self, Assigned, ListCursor, ListFilter};
use store::promises::{PROMISES, audit};
use store::thread::{self, Handler, ThreadCursor};
use store::{Tx, note, user};
use testkit::rows::{self, NOON};
use testkit::{Database, fresh_store};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

async fn names(tx: &mut Tx, filter: &ListFilter) -> Vec<String> {
    let rows = inbox_list::list(tx, filter, None, 50).await.unwrap();
    rows.into_iter().map(|row| row.contact_name.unwrap()).collect()
}

async fn sara(tx: &mut Tx) -> domain::UserId {
    let declared = user::Declared { email: "sara@example.com".into(), name: "Sara".into(), role: Role::Agent };
    user::mirror(tx, &[declared], NOON).await.unwrap()[0].id
}

#[rstest]
#[tokio::test]
async fn the_list_filters_searches_and_counts(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let sara = sara(&mut tx).await;
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let people = [("Amal Haddad", "971501234567"), ("Bob Stone", "447700900123"), ("ليلى أحمد", "201001234567")];
    let mut seeded = Vec::new();
    for (i, (name, wa_id)) in people.into_iter().enumerate() {
        let at = NOON + seconds(i as u64);
        let one = rows::conversation(&mut tx, account, name, wa_id, at).await.unwrap();
        rows::inbound(&mut tx, &one, &format!("wamid.{i}"), &format!("question {i} about a visa 100%"), at)
            .await
            .unwrap();
        seeded.push(one);
    }
    assert_eq!(names(&mut tx, &ListFilter::default()).await, ["ليلى أحمد", "Bob Stone", "Amal Haddad"], "newest first");

    for (words, want) in [
        ("amal", vec!["Amal Haddad"]),
        ("HADDAD", vec!["Amal Haddad"]),
        ("050 123 4567", vec!["Amal Haddad"]),
        ("+971501234567", vec!["Amal Haddad"]),
        ("question 1", vec!["Bob Stone"]),
        ("100%", vec!["ليلى أحمد", "Bob Stone", "Amal Haddad"]),
        ("100_", vec![]),
        ("ليلى", vec!["ليلى أحمد"]),
        ("'; DROP TABLE messages; --", vec![]),
    ] {
        let filter = ListFilter { search: Some(words.to_owned()), ..ListFilter::default() };
        assert_eq!(names(&mut tx, &filter).await, want, "{words}");
    }

    assert!(thread::assign(&mut tx, seeded[0].conversation, Handler::User(sara), NOON).await.unwrap());
    assert!(thread::set_status(&mut tx, seeded[1].conversation, ConversationStatus::Closed, NOON).await.unwrap());
    assert!(!thread::set_status(&mut tx, seeded[1].conversation, ConversationStatus::Closed, NOON).await.unwrap());
    let open = vec![ConversationStatus::Open, ConversationStatus::Waiting, ConversationStatus::Snoozed];
    for (filter, want) in [
        (ListFilter { statuses: open.clone(), ..ListFilter::default() }, vec!["ليلى أحمد", "Amal Haddad"]),
        (ListFilter { statuses: vec![ConversationStatus::Closed], ..ListFilter::default() }, vec!["Bob Stone"]),
        (ListFilter { assigned: Assigned::User(sara), ..ListFilter::default() }, vec!["Amal Haddad"]),
        (ListFilter { assigned: Assigned::Nobody, statuses: open, ..ListFilter::default() }, vec!["ليلى أحمد"]),
        (ListFilter { channel: Some(Channel::Email), ..ListFilter::default() }, vec![]),
        (ListFilter { only: Some(seeded[0].conversation), ..ListFilter::default() }, vec!["Amal Haddad"]),
    ] {
        assert_eq!(names(&mut tx, &filter).await, want, "{filter:?}");
    }
    let counts = inbox_list::counts(&mut tx, Some(sara)).await.unwrap();
    assert_eq!((counts.all, counts.mine, counts.unassigned, counts.unread), (2, 1, 1, 2));
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn ac_50_pages_read_while_rows_arrive_return_each_older_row_once(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let mut older = HashSet::new();
    for i in 0..30u64 {
        // Two of three share their time with a neighbour: the id decides.
        let at = NOON + seconds(i / 3);
        let one = rows::conversation(&mut tx, account, "P", &format!("97150000{i:04}"), at).await.unwrap();
        older.insert(one.conversation);
    }
    let (mut seen, mut after): (Vec<ConversationId>, Option<ListCursor>) = (Vec::new(), None);
    for i in 0..100u64 {
        let page = inbox_list::list(&mut tx, &ListFilter::default(), after, 7).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(ListCursor { at: last.last_message_at, id: last.id });
        seen.extend(page.iter().map(|row| row.id));
        for j in 0..5 {
            let wa_id = format!("97155{i:03}{j:03}");
            rows::conversation(&mut tx, account, "N", &wa_id, NOON + seconds(1000 + i)).await.unwrap();
        }
    }
    assert_eq!(seen.len(), older.len());
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), older);
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_thread_is_read_in_the_providers_order_page_by_page(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let one = rows::conversation(&mut tx, account, "Amal", "971501234567", NOON).await.unwrap();
    let other = rows::conversation(&mut tx, account, "Bob", "971501234568", NOON).await.unwrap();
    rows::inbound(&mut tx, &other, "other", "not yours", NOON).await.unwrap();
    // Stored in another order than they happened.
    for n in [4, 1, 3, 5, 2u64] {
        rows::inbound(&mut tx, &one, &format!("m{n}"), &n.to_string(), NOON + seconds(n)).await.unwrap();
    }
    let bodies = |page: &[thread::MessageRow]| page.iter().map(|m| m.body.clone().unwrap()).collect::<Vec<_>>();
    let newest = thread::page(&mut tx, one.conversation, None, 3).await.unwrap();
    assert_eq!(bodies(&newest), ["3", "4", "5"]);
    let before = ThreadCursor { at: newest[0].occurred_at, id: newest[0].id };
    assert_eq!(bodies(&thread::page(&mut tx, one.conversation, Some(before), 3).await.unwrap()), ["1", "2"]);

    let late = thread::arrived(&mut tx, one.conversation, MessageId::new(0), 2).await.unwrap();
    assert_eq!(bodies(&late), ["2", "5"], "the two stored last, in the thread's order");
    let foreign = thread::message(&mut tx, other.conversation, newest[0].id).await.unwrap();
    assert_eq!(foreign, None, "another conversation's message is not found");
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_message_says_where_its_send_stands(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let one = rows::conversation(&mut tx, account, "Amal", "971501234567", NOON).await.unwrap();
    for (status, held, want) in [
        (Status::Queued, false, Some("WAITING")),
        (Status::Sending, false, Some("IN_FLIGHT")),
        (Status::Sending, true, Some("HELD")),
        (Status::Read, false, None),
    ] {
        let id = rows::outbound(&mut tx, &one, "hello", status, held, NOON).await.unwrap();
        let message = thread::message(&mut tx, one.conversation, id).await.unwrap().unwrap();
        assert_eq!((message.status, message.send_state.map(domain::SendState::as_str)), (status, want));
        assert_eq!(message.outcome_unknown, held);
    }
    let photo = rows::inbound_of_type(&mut tx, &one, "m1", "image", None, Some("{}"), NOON).await.unwrap();
    rows::pending_media(&mut tx, photo, "image", "image/jpeg", None).await.unwrap();
    let page = thread::page(&mut tx, one.conversation, None, 50).await.unwrap();
    let media = thread::media_of(&mut tx, one.conversation, &page).await.unwrap();
    assert_eq!(media.iter().map(|m| (m.message_id, m.state.as_str())).collect::<Vec<_>>(), [(photo, "PENDING")]);
    tx.commit().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_teams_counter_falls_when_the_right_person_looks_and_never_below_zero(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let sara = sara(&mut tx).await;
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let one = rows::conversation(&mut tx, account, "Amal", "971501234567", NOON).await.unwrap();
    rows::inbound(&mut tx, &one, "m1", "hi", NOON).await.unwrap();
    thread::assign(&mut tx, one.conversation, Handler::User(sara), NOON).await.unwrap();
    let stranger = domain::UserId::new(sara.get() + 1000);
    assert!(!thread::mark_read(&mut tx, one.conversation, Some(stranger), NOON).await.unwrap());
    assert!(thread::mark_read(&mut tx, one.conversation, Some(sara), NOON).await.unwrap());
    assert!(!thread::mark_read(&mut tx, one.conversation, Some(sara), NOON).await.unwrap());
    tx.commit().await.unwrap();

    let mut tx = db.store.begin().await.unwrap();
    rows::inbound(&mut tx, &one, "m2", "hi again", NOON).await.unwrap();
    tx.commit().await.unwrap();
    let openings = (0..50).map(|_| {
        let store = db.store.clone();
        tokio::spawn(async move {
            let mut tx = store.begin().await.unwrap();
            let moved = thread::mark_read(&mut tx, one.conversation, None, NOON).await.unwrap();
            tx.commit().await.unwrap();
            moved
        })
    });
    let mut moved = 0;
    for opening in openings.collect::<Vec<_>>() {
        moved += usize::from(opening.await.unwrap());
    }
    assert_eq!(moved, 1);
    let row = inbox_list::get(&mut db.store.read().await.unwrap(), one.conversation).await.unwrap().unwrap();
    assert_eq!(row.unread_count, 0);
}

#[rstest]
#[tokio::test]
async fn ac_23_a_note_has_no_way_out_of_the_house(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let db = fresh_store(database).await.unwrap();
    let mut tx = db.store.begin().await.unwrap();
    let sara = sara(&mut tx).await;
    let account = rows::account(&mut tx, "sales").await.unwrap();
    let one = rows::conversation(&mut tx, account, "Amal", "971501234567", NOON).await.unwrap();
    let before = inbox_list::get(&mut tx, one.conversation).await.unwrap();
    let id = note::add(&mut tx, one.conversation, "she prefers e-mail", Some(sara), NOON).await.unwrap().unwrap();
    assert_eq!(note::add(&mut tx, ConversationId::new(99_999), "nowhere", Some(sara), NOON).await.unwrap(), None);

    let written = thread::message(&mut tx, one.conversation, id).await.unwrap().unwrap();
    assert_eq!((written.channel, written.kind.as_str(), written.status), (Channel::InternalNote, "note", Status::Sent));
    assert_eq!((written.provider_message_id, written.send_state), (None, None));
    assert_eq!(written.created_by_name.as_deref(), Some("Sara"));
    assert_eq!(inbox_list::get(&mut tx, one.conversation).await.unwrap(), before, "moves no counter, window or place");
    assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
    tx.commit().await.unwrap();
}
