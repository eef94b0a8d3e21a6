//! Signs of life of the processes, and what ingress refused.

use crate::batch::{json, micros, plain};
use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::wire::Beat;
use domain::{AccountId, Timestamp};
use sqlx::types::Json;
use std::time::Duration;

/// A process that has not beaten for so long no longer counts as living.
pub const LIVES_FOR: Duration = Duration::from_secs(60);

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
    /// Now.
    pub beat_at: Timestamp,
    /// Ingest: every frame it took that was received before this is committed. May go back when an older frame comes.
    pub settled_until: Option<Timestamp>,
    /// Figures for operators.
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
    on_backend!(tx, conn => sqlx::query(HEARTBEAT_UPSERT)
        .bind(beat.role)
        .bind(beat.instance)
        .bind(beat.version)
        .bind(At(beat.started_at))
        .bind(At(beat.beat_at))
        .bind(beat.settled_until.map(At))
        .bind(Json(&beat.stats))
        .execute(conn)
        .await
        .map(drop)?);
    Ok(())
}

const HEARTBEAT_END: &str = "DELETE FROM process_heartbeats WHERE role = $1 AND instance = $2";

/// Says that a process has ended in good order: nobody waits for what it took, because it gave everything back.
/// # Errors
/// Only when the database cannot be reached.
pub async fn end(tx: &mut Tx, role: &str, instance: &str) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(HEARTBEAT_END).bind(role).bind(instance).execute(conn).await.map(drop)?);
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
    /// How far the living ingest processes have come.
    pub struct Settled {
        /// How many there are.
        pub processes: i64,
        /// How many of them have said how far they are.
        pub told: i64,
        /// The least of what they said.
        pub until: Option<Timestamp>,
    }
}

const SETTLED_UNTIL: &str = "SELECT count(*) AS processes, count(settled_until) AS told, min(settled_until) AS until
      FROM process_heartbeats WHERE role = 'ingest' AND beat_at > $1";

/// Every webhook that ingest took and that had arrived before this is committed. `None`: nobody can say, because no ingest
/// process lives or one of them has not said yet.
/// # Errors
/// Only when the database cannot be reached.
pub async fn settled_until(tx: &mut Tx, now: Timestamp) -> Result<Option<Timestamp>> {
    let since = At(now - LIVES_FOR);
    let settled: Settled = on_backend!(tx, conn => sqlx::query_as(SETTLED_UNTIL).bind(since).fetch_one(conn).await?);
    Ok(if settled.processes == settled.told { settled.until } else { None })
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
