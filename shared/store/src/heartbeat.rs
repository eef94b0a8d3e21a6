//! Signs of life of the processes, and what ingress refused.

use crate::batch::{json, micros, plain};
use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::wire::Beat;
use domain::{AccountId, Timestamp};
use sqlx::types::Json;
use std::time::Duration;

/// A process that has not beaten for so long is dead or cut off, and holds nothing it did not say it would
/// ([`Heartbeat::holds_for`]).
pub const LIVES_FOR: Duration = Duration::from_secs(60);
/// How long a process may hold what it took when its row does not say (an older version's). The default of
/// `database_patience_ms`.
const HOLDS_FOR: Duration = Duration::from_secs(300);
/// Nobody holds longer than the broker lets a consumer: after its 30 minutes it takes deliveries away.
const NOBODY_HOLDS_FOR: Duration = Duration::from_secs(30 * 60);
/// Where [`Heartbeat::holds_for`] is kept, among the figures.
const HOLDS_FOR_KEY: &str = "holds_for_ms";

/// A sign of life.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat<'a> {
    /// What it does: `ingest`, `sender`, …
    pub role: &'a str,
    /// The process.
    pub instance: &'a str,
    /// Its version.
    pub version: &'a str,
    /// When it started.
    pub started_at: Timestamp,
    /// Now, by the database's clock ([`Tx::database_now`]): hosts do not agree on the time, and whether a process lives is
    /// judged by others.
    pub beat_at: Timestamp,
    /// Ingest: every frame it took that was received before this is committed. May go back when an older frame comes.
    /// `None`: it listens and cannot say yet.
    pub settled_until: Option<Timestamp>,
    /// How long after its last beat it may still hold deliveries that nobody else has: a process that lost its database
    /// cannot beat, and keeps what it took until its patience ends.
    pub holds_for: Duration,
    /// Figures for operators, an object.
    pub stats: serde_json::Value,
}

const HEARTBEAT_UPSERT: &str = "INSERT INTO process_heartbeats (role, instance, version, started_at, beat_at, settled_until, stats)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (role, instance) DO UPDATE SET version = excluded.version, started_at = excluded.started_at, beat_at = excluded.beat_at,
           settled_until = excluded.settled_until, stats = excluded.stats";

/// Says that a process lives.
/// # Errors
/// Only when the database cannot be reached.
pub async fn beat(tx: &mut Tx, beat: &Heartbeat<'_>) -> Result<()> {
    let mut stats = beat.stats.clone();
    if let Some(figures) = stats.as_object_mut() {
        let holds_for = u64::try_from(beat.holds_for.as_millis()).unwrap_or(u64::MAX);
        figures.insert(HOLDS_FOR_KEY.to_owned(), holds_for.into());
    }
    on_backend!(tx, conn => sqlx::query(HEARTBEAT_UPSERT)
        .bind(beat.role)
        .bind(beat.instance)
        .bind(beat.version)
        .bind(At(beat.started_at))
        .bind(At(beat.beat_at))
        .bind(beat.settled_until.map(At))
        .bind(Json(&stats))
        .execute(conn)
        .await
        .map(drop)?);
    Ok(())
}

const HEARTBEAT_END: &str = "DELETE FROM process_heartbeats WHERE role = $1 AND instance = $2";

/// Says that a process has ended in good order and gave nothing back: nobody need wait for what it took.
/// # Errors
/// Only when the database cannot be reached.
pub async fn end(tx: &mut Tx, role: &str, instance: &str) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(HEARTBEAT_END).bind(role).bind(instance).execute(conn).await.map(drop)?);
    Ok(())
}

const HEARTBEATS_END_OTHERS: &str = "DELETE FROM process_heartbeats WHERE role = $1 AND instance <> $2";

/// Says that all others of a role have ended: for a store that one process at a time can use, when it starts.
/// # Errors
/// Only when the database cannot be reached.
pub async fn end_others(tx: &mut Tx, role: &str, instance: &str) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(HEARTBEATS_END_OTHERS).bind(role).bind(instance).execute(conn).await.map(drop)?);
    Ok(())
}

const BEATS_UPSERT_PG: &str = "INSERT INTO process_heartbeats (role, instance, version, started_at, beat_at)
    SELECT 'ingress', instance, version, started_at, beat_at
      FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS i(instance, version, started_at, beat_at) ORDER BY instance
    ON CONFLICT (role, instance) DO UPDATE SET version = excluded.version, started_at = excluded.started_at, beat_at = excluded.beat_at
     WHERE process_heartbeats.beat_at < excluded.beat_at";
const BEATS_UPSERT_SQLITE: &str = "INSERT INTO process_heartbeats (role, instance, version, started_at, beat_at)
    SELECT 'ingress', value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each($1) WHERE true
    ON CONFLICT (role, instance) DO UPDATE SET version = excluded.version, started_at = excluded.started_at, beat_at = excluded.beat_at
     WHERE process_heartbeats.beat_at < excluded.beat_at";
/// The key holds the beat's own time, so that a beat told twice counts once.
const REFUSALS_UPSERT_PG: &str = "INSERT INTO webhook_refusals (source, reason, minute, instance, refused)
    SELECT source, reason, minute, instance, sum(refused)
      FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::integer[]) AS i(source, reason, minute, instance, refused)
     GROUP BY source, reason, minute, instance ORDER BY source, reason, minute, instance
    ON CONFLICT (source, reason, minute, instance) DO NOTHING";
const REFUSALS_UPSERT_SQLITE: &str = "INSERT INTO webhook_refusals (source, reason, minute, instance, refused)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, sum(value ->> 4) FROM json_each($1) WHERE true GROUP BY 1, 2, 3, 4
    ON CONFLICT (source, reason, minute, instance) DO NOTHING";

/// Keeps what ingress processes said of themselves. A beat that comes twice or late changes nothing it should not.
/// # Errors
/// Only when the database cannot be reached.
pub async fn ingress_beats(tx: &mut Tx, beats: &[Beat]) -> Result<()> {
    // Of one process the last beat counts; one row must not be updated twice by one statement.
    let mut newest: Vec<&Beat> = beats.iter().collect();
    newest.sort_by(|a, b| a.instance.cmp(&b.instance).then(b.at.cmp(&a.at)));
    newest.dedup_by(|a, b| a.instance == b.instance);
    if newest.is_empty() {
        return Ok(());
    }
    let mut refused: Vec<(String, String, Timestamp, &str, i32)> = Vec::new();
    for beat in beats {
        for refusals in &beat.refused {
            let count = i32::try_from(refusals.count).unwrap_or(i32::MAX);
            let (source, reason) = (plain(&refusals.source).into_owned(), plain(&refusals.reason).into_owned());
            refused.push((source, reason, beat.at, beat.instance.as_str(), count));
        }
    }
    // The same beat twice in one batch is one beat.
    refused.sort();
    refused.dedup();
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(BEATS_UPSERT_PG)
                .bind(newest.iter().map(|b| b.instance.as_str()).collect::<Vec<_>>())
                .bind(newest.iter().map(|b| b.version.as_str()).collect::<Vec<_>>())
                .bind(newest.iter().map(|b| At(b.started_at)).collect::<Vec<_>>())
                .bind(newest.iter().map(|b| At(b.at)).collect::<Vec<_>>())
                .execute(tx.conn())
                .await?;
            if !refused.is_empty() {
                sqlx::query(REFUSALS_UPSERT_PG)
                    .bind(refused.iter().map(|r| r.0.as_str()).collect::<Vec<_>>())
                    .bind(refused.iter().map(|r| r.1.as_str()).collect::<Vec<_>>())
                    .bind(refused.iter().map(|r| At(r.2)).collect::<Vec<_>>())
                    .bind(refused.iter().map(|r| r.3).collect::<Vec<_>>())
                    .bind(refused.iter().map(|r| r.4).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = newest
                .iter()
                .map(|b| (b.instance.as_str(), b.version.as_str(), micros(Some(b.started_at)), micros(Some(b.at))))
                .collect();
            sqlx::query(BEATS_UPSERT_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
            if !refused.is_empty() {
                let rows: Vec<_> = refused.iter().map(|r| (&r.0, &r.1, r.2.micros(), r.3, r.4)).collect();
                sqlx::query(REFUSALS_UPSERT_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
            }
        }
    }
    Ok(())
}

rows! {
    /// How far an ingest process has come.
    pub struct Listener {
        /// When it last said that it lives.
        pub beat_at: Timestamp,
        /// How far it was.
        pub settled_until: Option<Timestamp>,
        /// Its figures.
        pub stats: serde_json::Value,
    }
}

impl Listener {
    /// Until when it may hold what nobody else has.
    fn counts_until(&self) -> Timestamp {
        let said = self.stats.get(HOLDS_FOR_KEY).and_then(serde_json::Value::as_u64).map(Duration::from_millis);
        self.beat_at + said.unwrap_or(HOLDS_FOR).min(NOBODY_HOLDS_FOR) + LIVES_FOR
    }
}

const LISTENERS: &str =
    "SELECT beat_at, settled_until, stats FROM process_heartbeats WHERE role = 'ingest' AND beat_at > $1";

/// Every webhook that ingest took and that had arrived before this is committed. `None`: nobody can say, because no ingest
/// process lives or one of them has not said yet.
///
/// A process counts for as long as it may hold deliveries after its last beat, so that evidence in the hands of one that
/// lost its database is not taken for silence. Never later than the database's clock, by which beats are told and judged,
/// nor than `now`, the asker's own: what was heard at a time that has not come yet is some host's wrong clock.
/// # Errors
/// Only when the database cannot be reached.
pub async fn settled_until(tx: &mut Tx, now: Timestamp) -> Result<Option<Timestamp>> {
    let database_now = tx.database_now().await?;
    let since = At(database_now - NOBODY_HOLDS_FOR - LIVES_FOR);
    let listeners: Vec<Listener> =
        on_backend!(tx, conn => sqlx::query_as(LISTENERS).bind(since).fetch_all(conn).await?);
    let living = listeners.iter().filter(|listener| listener.counts_until() > database_now);
    let said: Option<Vec<Timestamp>> = living.map(|listener| listener.settled_until).collect();
    let least = said.and_then(|said| said.into_iter().min());
    Ok(least.map(|until| until.min(database_now).min(now)))
}

rows! {
    /// A process, for operators.
    pub struct Process {
        /// What it does.
        pub role: String,
        /// Which it is.
        pub instance: String,
        /// Its version.
        pub version: String,
        /// When it started.
        pub started_at: Timestamp,
        /// When it last said it lives.
        pub beat_at: Timestamp,
        /// How far it has come (ingest).
        pub settled_until: Option<Timestamp>,
        /// Its figures.
        pub stats: serde_json::Value,
    }
    /// What was refused, summed.
    pub struct Refused {
        /// Which source.
        pub source: String,
        /// Why.
        pub reason: String,
        /// How often.
        pub refused: i64,
    }
}

const PROCESSES: &str = "SELECT role, instance, version, started_at, beat_at, settled_until, stats FROM process_heartbeats ORDER BY role, instance";
const REFUSALS_SINCE_PG: &str = "SELECT source, reason, sum(refused)::bigint AS refused FROM webhook_refusals WHERE minute >= $1 GROUP BY source, reason ORDER BY source, reason";
const REFUSALS_SINCE_SQLITE: &str = "SELECT source, reason, sum(refused) AS refused FROM webhook_refusals WHERE minute >= $1 GROUP BY source, reason ORDER BY source, reason";

/// Every process that was ever seen and has not ended in good order.
/// # Errors
/// Only when the database cannot be reached.
pub async fn processes(tx: &mut Tx) -> Result<Vec<Process>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(PROCESSES).fetch_all(conn).await?))
}

/// What ingress refused since `since`, by source and reason.
/// # Errors
/// Only when the database cannot be reached.
pub async fn refusals(tx: &mut Tx, since: Timestamp) -> Result<Vec<Refused>> {
    // PostgreSQL's sum of integers is numeric on the way to bigint.
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_as(REFUSALS_SINCE_PG).bind(At(since)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(REFUSALS_SINCE_SQLITE).bind(At(since)).fetch_all(&mut **tx).await?,
    })
}

const ACCOUNTS_HEARD_PG: &str = "UPDATE channel_accounts a SET last_webhook_at = i.heard FROM unnest($1::bigint[], $2::timestamptz[]) AS i(id, heard)
    WHERE a.id = i.id AND (a.last_webhook_at IS NULL OR a.last_webhook_at < i.heard)";
const ACCOUNTS_HEARD_SQLITE: &str = "UPDATE channel_accounts SET last_webhook_at = i.heard
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS heard FROM json_each($1)) AS i
    WHERE channel_accounts.id = i.id AND (last_webhook_at IS NULL OR last_webhook_at < i.heard)";

/// Notes when accounts were last heard of. Done with the heartbeat rather than with each batch: writers would queue for
/// the account's one row.
/// # Errors
/// Only when the database cannot be reached.
pub async fn accounts_heard(tx: &mut Tx, heard: &[(AccountId, Timestamp)]) -> Result<()> {
    if heard.is_empty() {
        return Ok(());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            let (ids, times): (Vec<i64>, Vec<At>) = heard.iter().map(|(id, at)| (id.get(), At(*at))).unzip();
            sqlx::query(ACCOUNTS_HEARD_PG).bind(ids).bind(times).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<(i64, i64)> = heard.iter().map(|(id, at)| (id.get(), at.micros())).collect();
            sqlx::query(ACCOUNTS_HEARD_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
