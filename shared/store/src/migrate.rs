//! Migrations: embedded, forward only, expand then contract, the same numbers and names on both databases.

use crate::open::Pools;
use crate::tx::on_backend;
use crate::{Result, Store};
use sqlx::AssertSqlSafe;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use std::fmt;

/// `(number, name, PostgreSQL text, SQLite text)`
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[(
    1,
    "essential tables",
    include_str!("../../../migrations/postgres/0001_essential_tables.sql"),
    include_str!("../../../migrations/sqlite/0001_essential_tables.sql"),
)];

/// How the database's schema stands to this binary. One version to either side works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// What this binary was built for, or newer (an older binary keeps running through an upgrade).
    Fits,
    /// `roost migrate` has to run first.
    TooOld {
        /// Number of the newest migration applied; 0 for an empty database.
        have: i64,
        /// Number of the newest migration this binary knows.
        need: i64,
    },
}

/// In words for an operator.
impl fmt::Display for SchemaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaState::Fits => f.write_str("the schema fits"),
            SchemaState::TooOld { have, need } => {
                write!(f, "the schema is at {have}, this version needs {need}: run `roost migrate`")
            }
        }
    }
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|(number, ..)| *number).max().unwrap_or(0)
}

fn migrator(postgres: bool) -> Migrator {
    let migrations = MIGRATIONS.iter().map(|(number, name, on_postgres, on_sqlite)| {
        let text: &'static str = if postgres { on_postgres } else { on_sqlite };
        Migration::new(*number, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_ignore_missing(true);
    migrator
}

impl Store {
    /// Brings the schema up to this binary's. Several processes may call it at once: PostgreSQL's advisory lock lets one
    /// do it and the others find it done. The lock is the session's, so not through a transaction-mode pooler.
    /// # Errors
    /// When the database cannot be reached or a migration fails; a failed one leaves nothing behind.
    pub async fn migrate(&self) -> Result<()> {
        match &self.pools {
            Pools::Postgres(pool) => {
                let mut conn = pool.acquire().await?;
                // A migration may wait for locks and build indexes longer than an ordinary statement may run.
                sqlx::query("SET statement_timeout = 0").execute(&mut *conn).await?;
                // The name comes from our own settings, not from a request; identifiers cannot be bound.
                let create = format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.schema.replace('"', "\"\""));
                if let Err(error) = sqlx::query(AssertSqlSafe(create)).execute(&mut *conn).await {
                    // Two processes creating it at once: the loser is told 23505, and the schema is there.
                    if crate::StoreError::from(error).code().as_deref() != Some("23505") {
                        sqlx::query("SELECT 1 / count(*) FROM pg_namespace WHERE nspname = $1")
                            .bind(&*self.schema)
                            .execute(&mut *conn)
                            .await?;
                    }
                }
                let outcome = migrator(true).run(&mut *conn).await;
                // The changed timeout must not go back to the pool.
                conn.close().await?;
                outcome?;
            }
            Pools::Sqlite { writer, .. } => migrator(false).run(writer).await?,
        }
        Ok(())
    }

    /// How the schema stands to this binary.
    /// # Errors
    /// When the database cannot be reached.
    pub async fn schema_state(&self) -> Result<SchemaState> {
        const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
        const EXISTS_PG: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
        const EXISTS_SQLITE: &str = "SELECT count(*) > 0 FROM sqlite_master WHERE name = '_sqlx_migrations'";
        let mut tx = self.look().await?;
        let exists = if tx.is_postgres() { EXISTS_PG } else { EXISTS_SQLITE };
        let exists: bool = on_backend!(&mut tx, conn => sqlx::query_scalar(exists).fetch_one(conn).await?);
        let have: i64 = match exists {
            true => on_backend!(&mut tx, conn => sqlx::query_scalar(NEWEST).fetch_one(conn).await?),
            false => 0,
        };
        let need = newest();
        Ok(if have >= need { SchemaState::Fits } else { SchemaState::TooOld { have, need } })
    }
}
