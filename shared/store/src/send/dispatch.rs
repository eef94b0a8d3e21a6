//! WAITING → DISPATCHED: which heads of lanes go to the senders now. The state is committed before the reference is
//! published, so a sender never sees a reference that it may not claim.

use crate::batch::json;
use crate::column::rows;
use crate::set::{Both, numbers, with_ids};
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::wire::SendRef;
use domain::{AccountId, ConversationId, MessageId, Timestamp};

/// How many references of an account may be on their way although that is more than two seconds' worth: enough to be handed
/// over in whole messages.
pub const LEAST_WINDOW: f64 = 64.0;

/// For how long of an account's rate [`LEAST_WINDOW`] may last, in seconds: half of the time after which what was not claimed
/// counts as lost and is published again. More would fill a slow account's queue with references to what already is in it.
const LEAST_WINDOW_LASTS: f64 = 30.0;

/// How many references of an account with this rate may be on their way: two seconds' worth, or [`LEAST_WINDOW`] if those go
/// within half a minute. The broker never holds a backlog that a pause, the order or the priority of conversations over bulk
/// cannot reach.
pub fn window(rate_per_second: f64) -> i64 {
    let rate = rate_per_second.max(0.0);
    #[expect(clippy::cast_possible_truncation, reason = "rates stay far below 2^53, and `as` saturates")]
    let window = (2.0 * rate).max(LEAST_WINDOW.min(LEAST_WINDOW_LASTS * rate)).ceil() as i64;
    window.max(1)
}

rows! {
    /// An account that has something due.
    pub struct Room {
        /// Which account.
        pub account: AccountId,
        /// The name its queue has.
        pub name: String,
        /// What it may send at present.
        pub rate: f64,
        /// How many of its rows are DISPATCHED.
        pub dispatched: i64,
    }
}

macro_rules! rooms {
    ($which:literal) => {
        concat!(
            "SELECT a.id AS account, a.name AS name, coalesce(r.rate_per_sec, a.rate_per_sec) AS rate,
    (SELECT count(*) FROM sends d WHERE d.channel_account_id = a.id AND d.state = 'DISPATCHED') AS dispatched
  FROM channel_accounts a LEFT JOIN rate_limits r ON r.scope = 'account:' || a.id
 WHERE a.status = 'ACTIVE'
   AND EXISTS (SELECT 1 FROM sends s WHERE s.channel_account_id = a.id AND s.state = 'WAITING' AND s.due_at <= $1)
   AND NOT EXISTS (SELECT 1 FROM rate_limits b WHERE b.blocked_until > $1
        AND b.scope IN ('account:' || a.id, 'app:' || a.source, 'waba:' || coalesce(a.parent_external_id, '')))",
            $which,
            " ORDER BY a.id"
        )
    };
}
const ROOMS_ALL: &str = rooms!("");
const ROOMS_SOME: Both =
    Both { postgres: rooms!(" AND a.id = ANY($2)"), sqlite: rooms!(" AND a.id IN (SELECT value FROM json_each($2))") };

/// The accounts with something due that are neither paused nor blocked: all of them, or those of `only`.
/// # Errors
/// Only when the database cannot be reached.
pub async fn rooms(tx: &mut Tx, only: Option<&[AccountId]>, now: Timestamp) -> Result<Vec<Room>> {
    let Some(only) = only else {
        return Ok(on_backend!(tx, conn => sqlx::query_as(ROOMS_ALL).bind(At(now)).fetch_all(conn).await?));
    };
    let ids: Vec<i64> = only.iter().map(|id| id.get()).collect();
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_as(ROOMS_SOME.postgres).bind(At(now)).bind(ids).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => {
            sqlx::query_as(ROOMS_SOME.sqlite).bind(At(now)).bind(json(&ids)?).fetch_all(&mut **tx).await?
        }
    })
}

/// Of the rows `s` that are `$which`, those that are due heads of their lanes and may go, in the words of both databases.
/// The lane is asked row by row, by its index: joined against itself, the whole table would be read when PostgreSQL thinks
/// that many rows are due.
macro_rules! due_heads {
    ($which:literal, $now:literal) => {
        concat!(
            $which,
            " AND s.due_at <= ",
            $now,
            " AND s.seq = (SELECT min(e.seq) FROM sends e WHERE e.conversation_id = s.conversation_id) AND ",
            nothing_heard!("s")
        )
    };
}

/// All accounts in one statement and one commit. `due`: for each as many heads as it has room for, in order. Half of the room
/// is kept for sends that were never tried: where `due` is full and holds fewer of them, `fresh` has more, which go first.
const SEND_DISPATCH_PG: &str = concat!(
    "WITH due AS MATERIALIZED (
  SELECT r.account, r.room, h.* FROM unnest($1::bigint[], $2::bigint[]) AS r(account, room)
    JOIN channel_accounts a ON a.id = r.account AND a.status = 'ACTIVE'
    CROSS JOIN LATERAL (SELECT s.message_id, s.attempt, s.bulk, s.due_at FROM sends s WHERE ",
    due_heads!("s.channel_account_id = r.account AND s.state = 'WAITING'", "$3"),
    " ORDER BY s.bulk, s.due_at LIMIT r.room FOR UPDATE OF s SKIP LOCKED) AS h),
  crowded AS (SELECT account, room FROM due GROUP BY account, room
    HAVING count(*) >= room AND count(*) FILTER (WHERE attempt = 0) < greatest(room / 2, 1)),
  fresh AS MATERIALIZED (
  SELECT r.account, r.room, h.* FROM crowded r
    CROSS JOIN LATERAL (SELECT s.message_id, s.attempt, s.bulk, s.due_at FROM sends s WHERE s.attempt = 0 AND ",
    due_heads!("s.channel_account_id = r.account AND s.state = 'WAITING'", "$3"),
    " ORDER BY s.bulk, s.due_at LIMIT greatest(r.room / 2, 1) FOR UPDATE OF s SKIP LOCKED) AS h),
  ranked AS (SELECT message_id, room, row_number() OVER (PARTITION BY account ORDER BY turn, bulk, due_at) AS place FROM (
    SELECT account, room, message_id, bulk, due_at, 0 AS turn FROM fresh
    UNION ALL
    SELECT account, room, message_id, bulk, due_at, 1 FROM due
     WHERE NOT EXISTS (SELECT 1 FROM fresh WHERE fresh.message_id = due.message_id)) AS both_kinds)
UPDATE sends s SET state = 'DISPATCHED', dispatched_at = $3 FROM ranked
 WHERE s.message_id = ranked.message_id AND ranked.place <= ranked.room AND s.state || '' = 'WAITING'
RETURNING s.channel_account_id, s.message_id, s.generation"
);

/// SQLite knows no LATERAL, and has no locks to skip. Rows tried at most `$4` times.
const SEND_DISPATCH_SQLITE: &str = concat!(
    "UPDATE sends SET state = 'DISPATCHED', dispatched_at = $2 WHERE state = 'WAITING' AND message_id IN (
  SELECT s.message_id FROM sends s JOIN channel_accounts a ON a.id = s.channel_account_id AND a.status = 'ACTIVE' WHERE ",
    due_heads!("s.channel_account_id = $1 AND s.state = 'WAITING'", "$2"),
    " AND s.attempt <= $4 ORDER BY s.bulk, s.due_at LIMIT $3) RETURNING channel_account_id, message_id, generation"
);

/// Marks due heads of lanes DISPATCHED, of each account at most as many as it has room for, and returns their references, to
/// be published after the commit. Half of the room is kept for sends that were never tried, so that an outage's retries do
/// not hold back what people write now.
/// # Errors
/// Only when the database cannot be reached.
pub async fn dispatch_all(
    tx: &mut Tx,
    rooms: &[(AccountId, i64)],
    now: Timestamp,
) -> Result<Vec<(AccountId, SendRef)>> {
    let mut rows: Vec<(i64, i64, i16)> = Vec::new();
    match tx {
        Tx::Postgres(tx) => {
            let (accounts, rooms): (Vec<i64>, Vec<i64>) = rooms.iter().map(|(id, room)| (id.get(), *room)).unzip();
            let query = sqlx::query_as(SEND_DISPATCH_PG).bind(accounts).bind(rooms).bind(At(now));
            rows = query.fetch_all(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            for (account, room) in rooms {
                let mut left = *room;
                for (most, most_tried) in [(room.div_euclid(2).max(1), 0), (*room, i16::MAX)] {
                    let query = sqlx::query_as(SEND_DISPATCH_SQLITE).bind(account.get()).bind(At(now));
                    let query = query.bind(most.min(left)).bind(most_tried);
                    let heads: Vec<(i64, i64, i16)> = query.fetch_all(&mut **tx).await?;
                    left -= i64::try_from(heads.len()).unwrap_or(left);
                    rows.extend(heads);
                }
            }
        }
    }
    Ok(rows.into_iter().map(reference).collect())
}

/// As [`dispatch_all`], for one account.
/// # Errors
/// Only when the database cannot be reached.
pub async fn dispatch(tx: &mut Tx, account: AccountId, room: i64, now: Timestamp) -> Result<Vec<SendRef>> {
    Ok(dispatch_all(tx, &[(account, room)], now).await?.into_iter().map(|(_, reference)| reference).collect())
}

/// By the lanes' own index: the index of what is WAITING could not tell heads from what stands behind them.
const LANES_DISPATCH: Both = Both {
    postgres: concat!(
        "UPDATE sends SET state = 'DISPATCHED', dispatched_at = $1
  FROM (SELECT h.message_id FROM unnest($2::bigint[]) AS c(conversation)
    CROSS JOIN LATERAL (SELECT s.message_id FROM sends s
       WHERE s.channel_account_id IN (SELECT a.id FROM channel_accounts a WHERE a.status = 'ACTIVE') AND ",
        due_heads!("s.conversation_id = c.conversation AND s.state || '' = 'WAITING'", "$1"),
        " LIMIT 1 FOR UPDATE OF s SKIP LOCKED) AS h) AS heads
 WHERE sends.message_id = heads.message_id AND sends.state || '' = 'WAITING'
RETURNING channel_account_id, sends.message_id, generation"
    ),
    sqlite: concat!(
        "UPDATE sends SET state = 'DISPATCHED', dispatched_at = $1 WHERE state = 'WAITING' AND message_id IN (
  SELECT s.message_id FROM sends s JOIN channel_accounts a ON a.id = s.channel_account_id AND a.status = 'ACTIVE' WHERE ",
        due_heads!("s.conversation_id IN (SELECT value FROM json_each($2)) AND s.state = 'WAITING'", "$1"),
        ") RETURNING channel_account_id, message_id, generation"
    ),
};

/// As [`dispatch_all`], for the heads of these lanes alone and whatever room there is: for who knows which lanes moved, and
/// that their accounts have room for more than is due.
/// # Errors
/// Only when the database cannot be reached.
pub async fn dispatch_lanes(
    tx: &mut Tx,
    conversations: &[ConversationId],
    now: Timestamp,
) -> Result<Vec<(AccountId, SendRef)>> {
    let ids: Vec<i64> = conversations.iter().map(|id| id.get()).collect();
    let rows: Vec<(i64, i64, i16)> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(LANES_DISPATCH.postgres).bind(At(now)).bind(ids).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            sqlx::query_as(LANES_DISPATCH.sqlite).bind(At(now)).bind(json(&ids)?).fetch_all(&mut **tx).await?
        }
    };
    Ok(rows.into_iter().map(reference).collect())
}

fn reference((account, message, generation): (i64, i64, i16)) -> (AccountId, SendRef) {
    (AccountId::new(account), SendRef { message: MessageId::new(message), generation })
}

fn references(rows: Vec<(i64, i16)>) -> Vec<SendRef> {
    rows.into_iter().map(|(message, generation)| SendRef { message: MessageId::new(message), generation }).collect()
}

const SEND_SET_BACK: Both = with_ids!(
    "UPDATE sends SET state = 'WAITING', dispatched_at = NULL, due_at = CASE WHEN $1 > due_at THEN $1 ELSE due_at END
      WHERE state = 'DISPATCHED' AND message_id IN ",
    "$2",
    ""
);

/// DISPATCHED → WAITING, not before `due_at`: the reference could not be published, or a sender may not send it now. The
/// attempt does not count. Rows that somebody has claimed meanwhile are left alone.
/// # Errors
/// Only when the database cannot be reached.
pub async fn set_back(tx: &mut Tx, messages: &[MessageId], due_at: Timestamp) -> Result<u64> {
    Ok(match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(SEND_SET_BACK.postgres).bind(At(due_at)).bind(numbers(messages));
            query.execute(tx.conn()).await?.rows_affected()
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query(SEND_SET_BACK.sqlite).bind(At(due_at)).bind(json(messages)?);
            query.execute(&mut **tx).await?.rows_affected()
        }
    })
}

rows! {
    /// An account with references that nobody has taken for a while.
    pub struct Stale {
        /// Which account.
        pub account: AccountId,
        /// The name its queue has.
        pub name: String,
    }
}

const SEND_STALE: &str = "SELECT a.id AS account, a.name AS name FROM channel_accounts a
    WHERE a.status = 'ACTIVE' AND EXISTS (SELECT 1 FROM sends s
      WHERE s.channel_account_id = a.id AND s.state = 'DISPATCHED' AND s.dispatched_at <= $1) ORDER BY a.id";

/// The accounts with rows DISPATCHED before `before` and not claimed since.
/// # Errors
/// Only when the database cannot be reached.
pub async fn stale_accounts(tx: &mut Tx, before: Timestamp) -> Result<Vec<Stale>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(SEND_STALE).bind(At(before)).fetch_all(conn).await?))
}

const SEND_REPUBLISH: &str = concat!(
    "UPDATE sends SET dispatched_at = $3
    WHERE channel_account_id = $1 AND state = 'DISPATCHED' AND dispatched_at <= $2 AND ",
    nothing_heard!("sends"),
    " RETURNING message_id, generation"
);

/// The references of the account's rows DISPATCHED before `before`, to be published again: the queue was purged, or the
/// process died between commit and publish. Each is returned once a minute at most, as it counts as dispatched `now`.
/// # Errors
/// Only when the database cannot be reached.
pub async fn republish(tx: &mut Tx, account: AccountId, before: Timestamp, now: Timestamp) -> Result<Vec<SendRef>> {
    let rows: Vec<(i64, i16)> = on_backend!(tx, conn => sqlx::query_as(SEND_REPUBLISH)
        .bind(account.get()).bind(At(before)).bind(At(now)).fetch_all(conn).await?);
    Ok(references(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_two_seconds_of_the_rate_and_64_where_those_go_within_half_a_minute() {
        let cases = [
            (1000.0, 2000),
            (80.0, 160),
            (32.0, 64),
            (10.0, 64),
            (3.0, 64),
            (2.0, 60),
            (1.0, 30),
            (0.1, 3),
            (0.01, 1),
            (0.0, 1),
            (-1.0, 1),
            (f64::NAN, 1),
        ];
        for (rate, expected) in cases {
            assert_eq!(window(rate), expected, "{rate} a second");
        }
    }
}
