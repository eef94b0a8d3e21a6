//! Looking at the database while a run fills it, as cheaply as can be: the greatest id of a table is one look into its
//! index. What was counted that way is counted and compared row by row once the run is over.

use crate::cpu::{Usage, Watched};
use crate::process::Process;
use anyhow::{Result, bail, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, SqliteConnection};
use std::collections::HashSet;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Between two counts, which cost more, where the ids do not tell.
const COUNT: Duration = Duration::from_secs(2);

/// How far a table has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    latest: &'static str,
    count: &'static str,
}

/// Messages from customers.
pub(crate) const MESSAGES: Progress = Progress {
    latest: "SELECT coalesce(max(id), 0) FROM messages",
    count: "SELECT count(*) FROM messages WHERE direction = 'INBOUND'",
};
/// Attempts to send.
pub(crate) const ATTEMPTS: Progress = Progress {
    latest: "SELECT coalesce(max(id), 0) FROM send_attempts",
    count: "SELECT count(*) FROM messages WHERE status = 'SENT'",
};

/// A connection to look through.
#[derive(Debug)]
pub(crate) enum Rows {
    /// PostgreSQL.
    Postgres(Box<PgConnection>),
    /// A file that another process writes.
    Sqlite(Box<SqliteConnection>),
}

/// What is there before a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// The greatest id.
    pub(crate) latest: i64,
    /// How many rows.
    pub(crate) count: i64,
}

/// From the first row seen to the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    /// Rows that came in that time.
    pub(crate) rows: u64,
    /// The time.
    pub(crate) took: Duration,
    /// Processor time used in it.
    pub(crate) usage: Usage,
}

impl Rows {
    /// Looks into a PostgreSQL database.
    pub(crate) async fn postgres(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)?.options([("search_path", "roost,public")]);
        Ok(Self::Postgres(Box::new(options.connect().await?)))
    }

    /// Looks into an SQLite file.
    pub(crate) async fn sqlite(file: &Path) -> Result<Self> {
        Ok(Self::Sqlite(Box::new(SqliteConnectOptions::new().filename(file).read_only(true).connect().await?)))
    }

    /// One number.
    pub(crate) async fn number(&mut self, query: &'static str) -> Result<i64> {
        Ok(match self {
            Rows::Postgres(conn) => sqlx::query_scalar(query).fetch_one(&mut **conn).await?,
            Rows::Sqlite(conn) => sqlx::query_scalar(query).fetch_one(&mut **conn).await?,
        })
    }

    /// Texts, one a row.
    pub(crate) async fn texts(&mut self, query: &'static str) -> Result<Vec<String>> {
        Ok(match self {
            Rows::Postgres(conn) => sqlx::query_scalar(query).fetch_all(&mut **conn).await?,
            Rows::Sqlite(conn) => sqlx::query_scalar(query).fetch_all(&mut **conn).await?,
        })
    }

    /// Runs a statement, such as one that fills tables for a run.
    pub(crate) async fn execute(&mut self, statement: &'static str) -> Result<()> {
        match self {
            Rows::Postgres(conn) => {
                sqlx::raw_sql(statement).execute(&mut **conn).await?;
            }
            Rows::Sqlite(conn) => {
                sqlx::raw_sql(statement).execute(&mut **conn).await?;
            }
        }
        Ok(())
    }

    /// Sets a variable that statements read by `current_setting`.
    pub(crate) async fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Rows::Postgres(conn) = self else { bail!("SQLite has no settings") };
        sqlx::query("SELECT set_config($1, $2, false)").bind(name).bind(value).execute(&mut **conn).await?;
        Ok(())
    }

    /// Gives the planner its statistics.
    pub(crate) async fn vacuum(&mut self) -> Result<()> {
        self.execute("VACUUM (ANALYZE)").await
    }

    /// Closes the connection.
    pub(crate) async fn close(self) -> Result<()> {
        match self {
            Rows::Postgres(conn) => conn.close().await?,
            Rows::Sqlite(conn) => conn.close().await?,
        }
        Ok(())
    }

    /// Waits until there are at least `rows`, with nothing measured.
    pub(crate) async fn wait_for(&mut self, progress: Progress, rows: usize, process: &mut Process) -> Result<()> {
        let deadline = Instant::now() + patience(rows);
        while self.number(progress.count).await? < i64::try_from(rows)? {
            process.check()?;
            ensure!(Instant::now() < deadline, "{rows} rows did not come in time:\n{}", process.last_words());
            tokio::time::sleep(LOOK * 10).await;
        }
        Ok(())
    }

    /// Where a run begins.
    pub(crate) async fn start(&mut self, progress: Progress) -> Result<Start> {
        Ok(Start { latest: self.number(progress.latest).await?, count: self.number(progress.count).await? })
    }

    /// Watches `rows` rows come after `start`, from the first one seen to the last: what a process needs to start is not
    /// counted.
    pub(crate) async fn watch(
        &mut self,
        progress: Progress,
        start: Start,
        rows: usize,
        watched: &Watched,
        processes: &mut [&mut Process],
    ) -> Result<Filled> {
        let deadline = Instant::now() + patience(rows);
        let rows = i64::try_from(rows)?;
        let (first, begun, usage) = loop {
            let seen = self.number(progress.latest).await? - start.latest;
            if seen > 0 {
                break (seen, Instant::now(), watched.used()?);
            }
            check(processes, deadline, "nothing came")?;
            tokio::time::sleep(LOOK).await;
        };
        ensure!(first < rows, "everything came at once: too few rows to measure");
        let mut counted = Instant::now();
        loop {
            let reached = self.number(progress.latest).await? - start.latest >= rows;
            // Ids may have gaps, so that the greatest one says too much or too little: counting decides.
            if reached || counted.elapsed() > COUNT {
                let (took, used) = (begun.elapsed(), watched.used()?.since(usage));
                if self.number(progress.count).await? - start.count >= rows {
                    return Ok(Filled { rows: u64::try_from(rows - first)?, took, usage: used });
                }
                counted = Instant::now();
            }
            check(processes, deadline, "not everything came")?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Fails unless the messages that came after `start` are exactly the ones with these ids, each once.
    pub(crate) async fn compare<'w>(&mut self, start: Start, wanted: impl Iterator<Item = &'w str>) -> Result<()> {
        let stored =
            self.texts("SELECT provider_message_id FROM messages WHERE direction = 'INBOUND' ORDER BY id").await?;
        let stored: Vec<&str> = stored.iter().skip(usize::try_from(start.count)?).map(String::as_str).collect();
        let (rows, stored): (usize, HashSet<&str>) = (stored.len(), stored.into_iter().collect());
        let wanted: HashSet<&str> = wanted.collect();
        let (lost, strange) = (wanted.difference(&stored).count(), stored.difference(&wanted).count());
        ensure!(
            lost == 0 && strange == 0 && rows == wanted.len(),
            "{lost} messages lost, {strange} that nobody sent, {rows} rows for {} messages",
            wanted.len()
        );
        Ok(())
    }
}

/// Far slower than anything that is measured here, so that a run ends.
fn patience(rows: usize) -> Duration {
    Duration::from_secs(60) + Duration::from_millis(u64::try_from(rows).unwrap_or(u64::MAX).saturating_mul(2))
}

fn check(processes: &mut [&mut Process], deadline: Instant, what: &str) -> Result<()> {
    for process in processes.iter_mut() {
        process.check()?;
    }
    if Instant::now() > deadline {
        let words: Vec<String> = processes.iter().map(|process| process.last_words()).collect();
        bail!("{what} in time:\n{}", words.join("\n"));
    }
    Ok(())
}
