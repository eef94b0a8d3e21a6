//! Reading the change feed without gaps. Identity values commit out of order, so a cursor on `id` alone loses rows: on
//! PostgreSQL a reader goes only as far as the oldest transaction still open (`xmin`), in the order (tx, id). Once that
//! line has passed a position, nothing can appear before it. SQLite has one writer; there `tx` is 0 and `id` is the order.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{Result, Tx};
use domain::{ContactId, ConversationId, Timestamp};
use std::fmt;
use std::str::FromStr;

/// A place in the feed, written `tx-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// PostgreSQL's transaction; 0 on SQLite.
    pub tx: i64,
    /// The row.
    pub id: i64,
}

impl Cursor {
    /// Before everything.
    pub const START: Cursor = Cursor { tx: 0, id: 0 };
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.tx, self.id)
    }
}

/// A text that is no place in the feed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cursor has the form <tx>-<id>")]
pub struct BadCursor;

impl FromStr for Cursor {
    type Err = BadCursor;
    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (tx, id) = text.split_once('-').ok_or(BadCursor)?;
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true => part.parse::<i64>().map_err(|_| BadCursor),
            false => Err(BadCursor),
        };
        Ok(Cursor { tx: number(tx)?, id: number(id)? })
    }
}

rows! {
    /// One change. Ids only: who may not read a conversation learns nothing from its feed.
    pub struct FeedRow {
        /// Its transaction; 0 on SQLite.
        pub tx: i64,
        /// Its number.
        pub id: i64,
        /// What kind of change.
        pub kind: String,
        /// In which conversation.
        pub conversation_id: Option<ConversationId>,
        /// Of which contact.
        pub contact_id: Option<ContactId>,
        /// The row that changed, such as a message.
        pub entity_id: Option<i64>,
        /// The status it came to.
        pub status: Option<String>,
        /// When.
        pub created_at: Timestamp,
    }
}

impl FeedRow {
    /// Its place.
    pub fn cursor(&self) -> Cursor {
        Cursor { tx: self.tx, id: self.id }
    }
}

/// A stretch of the feed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedPage {
    /// The changes after the cursor, in order.
    pub rows: Vec<FeedRow>,
    /// Everything up to here has been seen with these rows: where to read on.
    pub upto: Cursor,
    /// There is more to read at once.
    pub more: bool,
    /// Rows are committed but must wait for an older transaction to end; its end may wake nobody, so look again soon.
    pub held_back: bool,
}

/// How far the feed reaches, and how far it may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    /// The last place that may be read now.
    settled: Cursor,
    /// The last place that can exist now.
    end: Cursor,
}

/// `xmin - 1`: below it every transaction has ended. Row (xmax, ..) and above cannot exist yet.
const REACH_PG: &str = "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint
    FROM pg_current_snapshot() AS s";
/// AUTOINCREMENT remembers the highest number ever given, also after the rows are gone.
const REACH_SQLITE: &str = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'change_feed'), 0)";

async fn reach(tx: &mut Tx) -> Result<Reach> {
    // The databases order transactions differently, see the top of this file.
    match tx {
        Tx::Postgres(tx) => {
            let (xmin, xmax): (i64, i64) = sqlx::query_as(REACH_PG).fetch_one(tx.conn()).await?;
            let settled = Cursor { tx: xmin.saturating_sub(1), id: i64::MAX };
            Ok(Reach { settled, end: Cursor { tx: xmax.saturating_sub(1), id: i64::MAX } })
        }
        Tx::Sqlite(tx) => {
            let last: i64 = sqlx::query_scalar(REACH_SQLITE).fetch_one(&mut **tx).await?;
            let end = Cursor { tx: 0, id: last };
            Ok(Reach { settled: end, end })
        }
    }
}

/// The place up to which everything is visible in this snapshot. What is read in the same transaction, such as a page,
/// contains every change up to it; a reader that goes on from here misses none.
/// # Errors
/// Only when the database cannot be reached.
pub async fn head(tx: &mut Tx) -> Result<Cursor> {
    Ok(reach(tx).await?.settled)
}

const FEED_OLDEST: &str = "SELECT tx, id FROM change_feed ORDER BY tx, id LIMIT 1";

/// Whether a reader may go on from `cursor`. `false`: it lies beyond the end (the database was restored from a copy, or is
/// another one), or before the oldest row that retention has left, so that changes may be missing. Such a reader begins
/// anew: it reads its lists again and goes on from [`head`].
/// # Errors
/// Only when the database cannot be reached.
pub async fn can_resume(tx: &mut Tx, cursor: Cursor) -> Result<bool> {
    if cursor > reach(tx).await?.end {
        return Ok(false);
    }
    let oldest: Option<(i64, i64)> = on_backend!(tx, conn => sqlx::query_as(FEED_OLDEST).fetch_optional(conn).await?);
    let before = |oldest_tx: i64, id: i64| match tx.is_postgres() {
        true => Cursor { tx: oldest_tx.saturating_sub(1), id: i64::MAX },
        false => Cursor { tx: 0, id: id.saturating_sub(1) },
    };
    // Row 1 still being there means that nothing was ever deleted.
    Ok(oldest.is_none_or(|(oldest_tx, id)| id <= 1 || cursor >= before(oldest_tx, id)))
}

const FEED_AFTER_PG: &str =
    "SELECT tx, id, kind, conversation_id, contact_id, entity_id, status, created_at FROM change_feed
    WHERE (tx, id) > ($1, $2) AND tx < pg_snapshot_xmin(pg_current_snapshot())::text::bigint ORDER BY tx, id LIMIT $3";
const FEED_AFTER_SQLITE: &str = "SELECT tx, id, kind, conversation_id, contact_id, entity_id, status, created_at
    FROM change_feed WHERE id > $2 AND $1 >= 0 ORDER BY id LIMIT $3";
const FEED_HELD_PG: &str = "SELECT EXISTS (SELECT 1 FROM change_feed
    WHERE tx >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint)";

/// The changes after `cursor`, at most `limit`. Call it in a transaction of [`crate::Store::read`], whose one snapshot
/// makes rows and [`FeedPage::upto`] fit each other.
/// # Errors
/// Only when the database cannot be reached.
pub async fn after(tx: &mut Tx, cursor: Cursor, limit: i64) -> Result<FeedPage> {
    let settled = reach(tx).await?.settled;
    // Only PostgreSQL has transactions that overlap.
    let rows: Vec<FeedRow> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(FEED_AFTER_PG).bind(cursor.tx).bind(cursor.id).bind(limit).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            sqlx::query_as(FEED_AFTER_SQLITE).bind(cursor.tx).bind(cursor.id).bind(limit).fetch_all(&mut **tx).await?
        }
    };
    let held_back = match tx {
        Tx::Postgres(tx) => sqlx::query_scalar(FEED_HELD_PG).fetch_one(tx.conn()).await?,
        Tx::Sqlite(_) => false,
    };
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= limit;
    let last = rows.last().map_or(cursor, FeedRow::cursor);
    let upto = if more { last } else { last.max(settled).max(cursor) };
    Ok(FeedPage { rows, upto, more, held_back })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_what_it_writes_and_nothing_else() {
        let cursor = Cursor { tx: 7, id: 12 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "7", "7-", "-7", "a-b", "7-+1", "7--1", "7-1-1", "99999999999999999999-1"] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad}");
        }
    }
}
