//! Limits of providers, kept where every replica sees them: slots of a scope (`account:<id>`, `app:<source>`,
//! `waba:<id>`), what was learnt of its rate, and the pace of one recipient on one account.

use crate::batch::json;
use crate::column::rows;
use crate::set::{Both, numbers};
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::limits::{self, PROBE_RATE, SLOT_HORIZON, USABLE_SHARE, pair_slot, slot_spacing};
use domain::{AccountId, ConversationId, MessageId, Timestamp};
use std::collections::HashMap;
use std::time::Duration;

/// How long a scope is blocked by a throttling reply without `Retry-After`. One reply in that time slows it once: the
/// calls that were already under way will hear the same.
pub const LEAST_BLOCK: Duration = Duration::from_secs(1);

/// The scope of one account.
pub fn account_scope(account: AccountId) -> String {
    format!("account:{account}")
}

/// The scope that all accounts of a source share.
pub fn app_scope(source: &str) -> String {
    format!("app:{source}")
}

/// The scope that all accounts of one parent (WABA) share.
pub fn parent_scope(parent: &str) -> String {
    format!("waba:{parent}")
}

/// A wish for slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Of which scope.
    pub scope: String,
    /// How many at most.
    pub wanted: u32,
    /// For a scope shared by accounts: the sum of their configured rates. While the scope may do as much it limits
    /// nothing, and its slots are not counted.
    pub shared_rate: Option<f64>,
}

/// What a scope granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// Which scope.
    pub scope: String,
    /// The present rate.
    pub rate: f64,
    /// Until when nothing goes, if that is in the future.
    pub blocked_until: Option<Timestamp>,
    /// When each granted slot starts, by the database's clock; `None`: this scope does not limit anything now.
    pub starts: Option<Vec<Timestamp>>,
    /// When the slot after them starts.
    pub next: Timestamp,
}

rows! {
    /// A scope's row as a statement returns it.
    pub struct ScopeRow {
        /// Which scope.
        pub scope: String,
        /// The database's clock.
        pub now: Timestamp,
        /// When the next slot may start.
        pub tat: Timestamp,
        /// The present rate.
        pub rate_per_sec: f64,
        /// Until when nothing goes.
        pub blocked_until: Option<Timestamp>,
        /// How many slots were taken.
        pub taken: i64,
    }
}

/// One statement for all scopes, locked in the order of their names. The clock is read once the locks are held, so that
/// waiting for them costs no slots. The arithmetic is that of [`domain::limits::slots`].
const SLOTS_TAKE_PG: &str = "WITH wish AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::float8[]) AS w(scope, wanted, shared)),
  held AS (SELECT r.scope, r.tat, r.rate_per_sec, r.blocked_until FROM rate_limits r WHERE r.scope = ANY($1)
            ORDER BY r.scope FOR UPDATE),
  clock AS MATERIALIZED (SELECT clock_timestamp() AS now FROM (SELECT count(*) FROM held) AS after_locking),
  grid AS (SELECT h.scope, c.now, h.tat, h.rate_per_sec, h.blocked_until, w.wanted, w.shared,
             greatest(h.tat, c.now + $4 * interval '1 microsecond') AS first,
             1000000.0 / ($6 * least(greatest(h.rate_per_sec, 0.001), 100000)) AS spacing
             FROM held h CROSS JOIN clock c JOIN wish w ON w.scope = h.scope),
  slots AS (SELECT *, CASE
             WHEN blocked_until > now OR (shared IS NOT NULL AND rate_per_sec >= shared) THEN 0
             WHEN first >= now + $5 * interval '1 microsecond' THEN 0
             ELSE least(wanted, ceil(extract(epoch FROM now + $5 * interval '1 microsecond' - first) * 1000000 / spacing))
             END::bigint AS taken FROM grid),
  moved AS (UPDATE rate_limits r SET tat = s.first + (s.taken * s.spacing) * interval '1 microsecond'
              FROM slots s WHERE r.scope = s.scope AND s.taken > 0)
SELECT scope, now, tat, rate_per_sec, blocked_until, taken FROM slots";

const SLOTS_READ_SQLITE: &str = "SELECT scope, $2 AS now, tat, rate_per_sec, blocked_until, 0 AS taken FROM rate_limits
    WHERE scope IN (SELECT value FROM json_each($1)) ORDER BY scope";
const SLOTS_MOVE_SQLITE: &str = "UPDATE rate_limits SET tat = i.tat
    FROM (SELECT value ->> 0 AS scope, value ->> 1 AS tat FROM json_each($1)) AS i WHERE rate_limits.scope = i.scope";

/// Takes slots of several scopes for the next [`SLOT_HORIZON`], none that starts before `lead` has passed (the caller
/// knows how long it takes until it can use them). Answers with the database's clock and what each scope granted, wishes
/// for scopes without a row left out. Slots not used are lost.
/// # Errors
/// Only when the database cannot be reached. Slots may then have been taken.
pub async fn take_slots(tx: &mut Tx, wishes: &[Wish], lead: Duration) -> Result<(Timestamp, Vec<Grant>)> {
    let lead = lead.min(SLOT_HORIZON.mul_f64(0.8));
    let wanted: HashMap<&str, &Wish> = wishes.iter().map(|wish| (wish.scope.as_str(), wish)).collect();
    let rows: Vec<ScopeRow> = match tx {
        Tx::Postgres(tx) => {
            let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
            let query = sqlx::query_as(SLOTS_TAKE_PG)
                .bind(wishes.iter().map(|wish| wish.scope.clone()).collect::<Vec<_>>())
                .bind(wishes.iter().map(|wish| i64::from(wish.wanted)).collect::<Vec<_>>())
                .bind(wishes.iter().map(|wish| wish.shared_rate).collect::<Vec<_>>())
                .bind(micros(lead))
                .bind(micros(SLOT_HORIZON))
                .bind(USABLE_SHARE);
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(_) => take_slots_sqlite(tx, &wanted, lead).await?,
    };
    let now = match rows.first() {
        Some(row) => row.now,
        None => tx.database_now().await?,
    };
    let grants = rows.into_iter().map(|row| {
        let shared = wanted.get(row.scope.as_str()).and_then(|wish| wish.shared_rate);
        let blocked_until = row.blocked_until.filter(|until| *until > now);
        let limits = blocked_until.is_some() || shared.is_none_or(|shared| row.rate_per_sec < shared);
        let first = row.tat.max(row.now + lead);
        let count = u32::try_from(row.taken).unwrap_or(0);
        let spacing = slot_spacing(row.rate_per_sec);
        let starts = limits.then(|| (0..count).map(|n| first + spacing * n).collect());
        Grant { scope: row.scope, rate: row.rate_per_sec, blocked_until, starts, next: first + spacing * count }
    });
    Ok((now, grants.collect()))
}

/// SQLite cannot return what a row was before its update; with its one writer reading first is as good.
async fn take_slots_sqlite(tx: &mut Tx, wanted: &HashMap<&str, &Wish>, lead: Duration) -> Result<Vec<ScopeRow>> {
    let now = tx.database_now().await?;
    let Tx::Sqlite(tx) = tx else { return Ok(Vec::new()) };
    let scopes: Vec<&str> = wanted.keys().copied().collect();
    let mut rows: Vec<ScopeRow> =
        sqlx::query_as(SLOTS_READ_SQLITE).bind(json(&scopes)?).bind(At(now)).fetch_all(&mut **tx).await?;
    let mut moved: Vec<(&str, i64)> = Vec::new();
    for row in &mut rows {
        let Some((scope, wish)) = wanted.get_key_value(row.scope.as_str()) else { continue };
        let blocked = row.blocked_until.is_some_and(|until| until > now);
        if blocked || wish.shared_rate.is_some_and(|shared| row.rate_per_sec >= shared) {
            continue;
        }
        let taken = limits::slots(row.tat, row.rate_per_sec, wish.wanted, now + lead, now + SLOT_HORIZON);
        row.taken = i64::from(taken.count);
        if taken.count > 0 {
            moved.push((scope, taken.tat.micros()));
        }
    }
    if !moved.is_empty() {
        sqlx::query(SLOTS_MOVE_SQLITE).bind(json(&moved)?).execute(&mut **tx).await?;
    }
    Ok(rows)
}

const LIMIT_LOCK: Both = Both {
    postgres:
        "SELECT scope, clock_timestamp() AS now, tat, rate_per_sec, blocked_until, 0::bigint AS taken FROM rate_limits
        WHERE scope = $1 FOR UPDATE",
    sqlite: "SELECT scope, 0 AS now, tat, rate_per_sec, blocked_until, 0 AS taken FROM rate_limits WHERE scope = $1",
};
const LIMIT_SET: &str = "UPDATE rate_limits SET rate_per_sec = $2, blocked_until = $3 WHERE scope = $1";

/// Locks a scope's row, lets `change` say its new rate and block, and writes them. `false`: no such scope.
async fn change(
    tx: &mut Tx,
    scope: &str,
    change: impl FnOnce(&ScopeRow, Timestamp) -> (f64, Option<Timestamp>),
) -> Result<bool> {
    let sql = if tx.is_postgres() { LIMIT_LOCK.postgres } else { LIMIT_LOCK.sqlite };
    let row: Option<ScopeRow> =
        on_backend!(&mut *tx, conn => sqlx::query_as(sql).bind(scope).fetch_optional(conn).await?);
    let Some(row) = row else { return Ok(false) };
    let now = tx.database_now().await?;
    let (rate, blocked_until) = change(&row, now);
    on_backend!(tx, conn => { sqlx::query(LIMIT_SET)
        .bind(scope).bind(rate).bind(blocked_until.map(At)).execute(conn).await?; });
    Ok(true)
}

/// A provider said "too fast": the scope is blocked for `retry_after`, at least [`LEAST_BLOCK`], and its rate falls by a
/// third, once for all the replies that come while it is blocked.
/// # Errors
/// Only when the database cannot be reached.
pub async fn slow(tx: &mut Tx, scope: &str, retry_after: Option<Duration>) -> Result<bool> {
    let block = retry_after.unwrap_or(LEAST_BLOCK).clamp(LEAST_BLOCK, domain::retry::RETRY_AFTER_CAP);
    change(tx, scope, |row, now| {
        let blocked = row.blocked_until.is_some_and(|until| until > now);
        let rate = if blocked { row.rate_per_sec } else { limits::slowed(row.rate_per_sec) };
        (rate, Some(row.blocked_until.unwrap_or(now).max(now + block)))
    })
    .await
}

/// The circuit breaker: nothing has succeeded for a while, so one call a second finds out when it does again.
/// # Errors
/// Only when the database cannot be reached.
pub async fn probe(tx: &mut Tx, scope: &str) -> Result<bool> {
    change(tx, scope, |row, _| (row.rate_per_sec.min(PROBE_RATE), row.blocked_until)).await
}

/// Calls were accepted: the learnt rate rises again, at most to the configured one.
/// # Errors
/// Only when the database cannot be reached.
pub async fn raise(tx: &mut Tx, scope: &str, configured: f64, accepted: u32) -> Result<bool> {
    change(tx, scope, |row, _| (limits::raised(row.rate_per_sec, configured, accepted), row.blocked_until)).await
}

/// The pace an account keeps towards one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairLimit {
    /// Time between two messages in the long run.
    pub interval: Duration,
    /// How many may go at once.
    pub burst: u32,
}

rows! {
    /// How far a conversation's messages have run ahead of its pace.
    pub struct PairRow {
        /// The message that asks.
        pub message_id: MessageId,
        /// Its conversation: one recipient on one account.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Theoretical arrival time.
        pub pair_tat: Option<Timestamp>,
    }
}

macro_rules! pairs {
    ($ids:literal, $lock:literal) => {
        concat!(
            "SELECT s.message_id, v.id AS conversation_id, s.channel_account_id, v.pair_tat
               FROM sends s JOIN conversations v ON v.id = s.conversation_id
              WHERE s.state = 'DISPATCHED' AND s.message_id IN ",
            $ids,
            " ORDER BY v.id",
            $lock
        )
    };
}
const PAIRS_LOCK: Both = Both {
    postgres: pairs!("(SELECT unnest($1::bigint[]))", " FOR NO KEY UPDATE OF v"),
    sqlite: pairs!("(SELECT value FROM json_each($1))", ""),
};
const PAIRS_MOVE: Both = Both {
    postgres: "UPDATE conversations SET pair_tat = i.tat FROM unnest($1::bigint[], $2::timestamptz[]) AS i(id, tat)
        WHERE conversations.id = i.id",
    sqlite: "UPDATE conversations SET pair_tat = i.tat
        FROM (SELECT value ->> 0 AS id, value ->> 1 AS tat FROM json_each($1)) AS i WHERE conversations.id = i.id",
};

/// Takes the pair slots of these messages, of accounts with such a limit. Returns those that must wait, and until when;
/// the others have theirs. `now` is the database's.
/// # Errors
/// Only when the database cannot be reached.
pub async fn take_pairs(
    tx: &mut Tx,
    messages: &[MessageId],
    limits: &HashMap<AccountId, PairLimit>,
    now: Timestamp,
) -> Result<Vec<(MessageId, Timestamp)>> {
    let rows: Vec<PairRow> = match tx {
        Tx::Postgres(tx) => sqlx::query_as(PAIRS_LOCK.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(PAIRS_LOCK.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    };
    let (mut waiting, mut moved) = (Vec::new(), Vec::new());
    for row in rows {
        let Some(limit) = limits.get(&row.channel_account_id) else { continue };
        let (earliest, tat) = pair_slot(row.pair_tat, now, limit.interval, limit.burst);
        if earliest > now {
            waiting.push((row.message_id, earliest));
        } else {
            moved.push((row.conversation_id.get(), tat));
        }
    }
    match tx {
        _ if moved.is_empty() => {}
        Tx::Postgres(tx) => {
            let (ids, tats): (Vec<i64>, Vec<At>) = moved.into_iter().map(|(id, tat)| (id, At(tat))).unzip();
            sqlx::query(PAIRS_MOVE.postgres).bind(ids).bind(tats).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<(i64, i64)> = moved.into_iter().map(|(id, tat)| (id, tat.micros())).collect();
            sqlx::query(PAIRS_MOVE.sqlite).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(waiting)
}

const PAIR_EXHAUST: &str = "UPDATE conversations SET pair_tat = $2
    WHERE id = $1 AND (pair_tat IS NULL OR pair_tat < $2)";

/// The provider said "too fast" of one recipient: its burst counts as used up until `tat` has come nearer again.
/// # Errors
/// Only when the database cannot be reached.
pub async fn exhaust_pair(tx: &mut Tx, conversation: ConversationId, tat: Timestamp) -> Result<()> {
    on_backend!(tx, conn => { sqlx::query(PAIR_EXHAUST).bind(conversation.get()).bind(At(tat)).execute(conn).await?; });
    Ok(())
}
