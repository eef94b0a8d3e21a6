//! The change feed read back: in order, without gaps, without doubles, whatever order transactions commit in.

use domain::ConversationId;
use rstest::rstest;
use store::feed::{self, Change};
use store::feed_read::{self, Cursor};
use store::{At, Store, Tx};
use testkit::rows::NOON;
use testkit::{Database, fresh_store};

async fn say(tx: &mut Tx, conversation: i64) {
    let change = Change::Conversation { conversation: ConversationId::new(conversation), contact: None };
    feed::write(tx, &[change], NOON).await.unwrap();
}

async fn say_and_commit(store: &Store, conversation: i64) {
    let mut tx = store.begin().await.unwrap();
    say(&mut tx, conversation).await;
    tx.commit().await.unwrap();
}

/// Reads on from `cursor` until nothing waits any more, moves it, and returns which conversations were named. On a shared
/// server other databases' transactions hold the feed back too.
async fn read(store: &Store, cursor: &mut Cursor, limit: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    let all = async {
        loop {
            let page = feed_read::after(&mut store.read().await.unwrap(), *cursor, limit).await.unwrap();
            assert!(page.upto >= *cursor, "a cursor never goes back");
            assert!(page.rows.len() <= usize::try_from(limit).unwrap());
            *cursor = page.upto;
            seen.extend(page.rows.iter().map(|row| row.conversation_id.unwrap().get()));
            if !page.more && !page.held_back {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("the feed settles");
    seen
}

async fn head(store: &Store) -> Cursor {
    feed_read::head(&mut store.read().await.unwrap()).await.unwrap()
}

async fn can_resume(store: &Store, cursor: Cursor) -> bool {
    feed_read::can_resume(&mut store.read().await.unwrap(), cursor).await.unwrap()
}

#[rstest]
#[tokio::test]
async fn every_change_is_read_once_in_order_whatever_the_page_size(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[values(1, 3, 100)] limit: i64,
) {
    let db = fresh_store(database).await.unwrap();
    let mut cursor = head(&db.store).await;
    for conversation in 1..=7 {
        say_and_commit(&db.store, conversation).await;
    }
    assert_eq!(read(&db.store, &mut cursor, limit).await, [1, 2, 3, 4, 5, 6, 7]);
    say_and_commit(&db.store, 8).await;
    assert_eq!(read(&db.store, &mut cursor, limit).await, [8]);
    assert!(can_resume(&db.store, cursor).await);
}

#[tokio::test]
async fn a_transaction_that_commits_later_with_a_lower_place_is_waited_for() {
    let db = fresh_store(Database::Postgres).await.unwrap();
    let mut cursor = head(&db.store).await;
    let mut slow = db.store.begin().await.unwrap();
    say(&mut slow, 1).await;
    say_and_commit(&db.store, 2).await;

    // The later place is committed, the earlier one is not: a reader that took it now would never see the other.
    let page = feed_read::after(&mut db.store.read().await.unwrap(), cursor, 10).await.unwrap();
    assert_eq!((page.rows.len(), page.held_back), (0, true));
    cursor = page.upto;

    slow.commit().await.unwrap();
    assert_eq!(read(&db.store, &mut cursor, 10).await, [1, 2]);
}

#[rstest]
#[tokio::test]
async fn a_page_read_beside_its_cursor_misses_nothing(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    let mut settled = head(&db.store).await;
    say_and_commit(&db.store, 1).await;
    read(&db.store, &mut settled, 10).await;
    let mut reading = db.store.read().await.unwrap();
    let mut cursor = feed_read::head(&mut reading).await.unwrap();
    say_and_commit(&db.store, 2).await;
    drop(reading);
    assert_eq!(read(&db.store, &mut cursor, 10).await, [2], "after the page, and nothing of before");
}

#[rstest]
#[tokio::test]
async fn cursors_of_another_database_and_ones_older_than_the_feed_begin_anew(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let db = fresh_store(database).await.unwrap();
    assert!(can_resume(&db.store, Cursor::START).await, "an empty feed hides nothing");
    let before_all = head(&db.store).await; // never further than what is settled
    for conversation in 1..=3 {
        say_and_commit(&db.store, conversation).await;
    }
    let mut now = before_all;
    assert_eq!(read(&db.store, &mut now, 10).await, [1, 2, 3]);
    assert!(can_resume(&db.store, before_all).await && can_resume(&db.store, now).await);
    assert!(!can_resume(&db.store, Cursor { tx: i64::MAX, id: 1 }).await, "from a future that was taken back");
    if database == Database::Sqlite {
        assert!(!can_resume(&db.store, Cursor { tx: 0, id: 4 }).await);
    }

    // Retention takes the first two rows.
    let mut tx = db.store.begin().await.unwrap();
    const FORGET: &str = "DELETE FROM change_feed WHERE conversation_id < 3 AND created_at <= $1";
    match &mut tx {
        Tx::Postgres(tx) => sqlx::query(FORGET).bind(At(NOON)).execute(tx.conn()).await.unwrap().rows_affected(),
        Tx::Sqlite(tx) => sqlx::query(FORGET).bind(At(NOON)).execute(&mut **tx).await.unwrap().rows_affected(),
    };
    tx.commit().await.unwrap();
    assert!(!can_resume(&db.store, before_all).await, "two changes are missing for it");
    assert!(can_resume(&db.store, now).await);
}
