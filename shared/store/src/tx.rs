//! A transaction on either database, and the macro that runs one text on both.

use crate::Result;
use crate::line::Line;
use domain::Timestamp;
use sqlx::Transaction;
use sqlx::sqlite::Sqlite;

/// A transaction. Dropped without [`Tx::commit`], it rolls back.
#[derive(Debug)]
pub enum Tx {
    /// On PostgreSQL.
    Postgres(PgTx),
    /// On SQLite.
    Sqlite(Transaction<'static, Sqlite>),
}

/// A PostgreSQL transaction, or a connection on which every statement commits by itself: that saves two round trips where
/// there is only one statement.
#[derive(Debug)]
pub struct PgTx(Line);

impl PgTx {
    pub(crate) fn on(line: Line) -> Self {
        Self(line)
    }

    /// The line to run statements on. Each has a deadline ([`crate::StoreOptions::answer_within`]).
    pub fn conn(&mut self) -> &mut Line {
        &mut self.0
    }
}

/// Runs `$query` on the connection behind a `&mut Tx`; the body is compiled once per database, so it must be the same
/// text for both. `$conn` names the connection in it.
macro_rules! on_backend {
    ($tx:expr, $conn:ident => $query:expr) => {
        match $tx {
            $crate::Tx::Postgres(tx) => {
                let $conn = tx.conn();
                $query
            }
            $crate::Tx::Sqlite(tx) => {
                let $conn = &mut **tx;
                $query
            }
        }
    };
}
pub(crate) use on_backend;

impl Tx {
    /// Commits.
    /// # Errors
    /// When the database did not confirm it. Whether it happened is then unknown: what the transaction did must be such
    /// that doing it again is harmless.
    pub async fn commit(self) -> Result<()> {
        match self {
            Tx::Postgres(mut tx) => tx.conn().end("COMMIT").await?,
            Tx::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Rolls back, and waits for it; dropping does the same a little later.
    /// # Errors
    /// When the connection is gone (the database then rolls back by itself).
    pub async fn rollback(self) -> Result<()> {
        match self {
            Tx::Postgres(mut tx) => tx.conn().end("ROLLBACK").await?,
            Tx::Sqlite(tx) => tx.rollback().await?,
        }
        Ok(())
    }

    /// Whether this is PostgreSQL; for choosing between two constants of one statement.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Tx::Postgres(_))
    }

    /// The database's clock: what leases, due times and rate slots are measured by, so that a sender's wrong clock moves
    /// nothing. SQLite lives in one process, whose clock is the database's.
    /// # Errors
    /// When the database cannot be reached.
    pub async fn database_now(&mut self) -> Result<Timestamp> {
        match self {
            Tx::Postgres(tx) => {
                let now: crate::At = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(tx.conn()).await?;
                Ok(now.0)
            }
            Tx::Sqlite(_) => Ok(domain::Clock::now(&domain::SystemClock::default())),
        }
    }

    /// Asks the server for a sign of life.
    /// # Errors
    /// When it gives none.
    pub async fn ping(&mut self) -> Result<()> {
        on_backend!(self, conn => { sqlx::query("SELECT 1").execute(conn).await?; });
        Ok(())
    }
}
