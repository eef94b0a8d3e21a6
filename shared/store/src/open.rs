//! Opening the database the URL names.

use crate::changes::Changes;
use crate::line::Line;
use crate::tx::PgTx;
use crate::{Result, StoreError, Tx};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `postgres://…`
    Postgres(String),
    /// `sqlite://path`: one process, no server.
    Sqlite(PathBuf),
}

impl FromStr for StoreUrl {
    type Err = StoreError;
    fn from_str(url: &str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(StoreUrl::Postgres(url.to_owned()))
        } else if let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
            Ok(StoreUrl::Sqlite(PathBuf::from(path)))
        } else {
            Err(StoreError::BadUrl("store.url must begin with postgres:// or sqlite://".to_owned()))
        }
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Which database.
    pub url: StoreUrl,
    /// What operators see in `pg_stat_activity`.
    pub application_name: String,
    /// Most connections of this process (PostgreSQL); times the replicas it must stay below `max_connections`.
    pub max_connections: u32,
    /// Longest wait for a free connection.
    pub acquire_timeout: Duration,
    /// Longest time one statement may run (PostgreSQL `statement_timeout`).
    pub statement_timeout: Duration,
    /// Schema that holds Roost's tables (PostgreSQL).
    pub schema: String,
}

impl StoreOptions {
    /// The settings used in production, for `url`.
    pub fn new(url: StoreUrl) -> Self {
        Self {
            url,
            application_name: "roost".to_owned(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            schema: "roost".to_owned(),
        }
    }

    /// Longest wait for the end of a statement (PostgreSQL): well past the server's own limit, which a server that is
    /// suspended or cut off does not keep. The connection is given up then.
    pub fn answer_within(&self) -> Duration {
        self.statement_timeout * 2
    }
}

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) pools: Pools,
    pub(crate) changes: Arc<Changes>,
    pub(crate) schema: Arc<str>,
    pub(crate) patience: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Pools {
    Postgres(PgPool),
    /// One writer: SQLite knows no second. Readers never wait for it (WAL).
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
}

impl Store {
    /// Opens the database. PostgreSQL may be away: connections are made when they are needed, so a role starts in any
    /// order and says "not ready" until it answers.
    /// # Errors
    /// On a URL that cannot be read, and on an SQLite file that cannot be opened or made.
    pub async fn open(options: &StoreOptions) -> Result<Store> {
        let pools = match &options.url {
            StoreUrl::Postgres(url) => Pools::Postgres(open_postgres(url, options)?),
            StoreUrl::Sqlite(path) => open_sqlite(path, options).await?,
        };
        let patience = options.answer_within();
        let changes = Arc::new(Changes::new(&pools, patience));
        Ok(Store { pools, changes, schema: options.schema.as_str().into(), patience })
    }

    /// Begins a transaction that may write. On SQLite it takes the writer at once (`BEGIN IMMEDIATE`), so that it cannot
    /// fail half way for another's sake.
    /// # Errors
    /// When no connection could be had within `acquire_timeout`, or the server does not answer.
    pub async fn begin(&self) -> Result<Tx> {
        self.writing(Some("BEGIN")).await
    }

    /// For a single writing statement: on PostgreSQL it commits by itself, without two more round trips.
    /// # Errors
    /// As [`Store::begin`].
    pub async fn autocommit(&self) -> Result<Tx> {
        self.writing(None).await
    }

    async fn writing(&self, begin: Option<&'static str>) -> Result<Tx> {
        Ok(match &self.pools {
            Pools::Postgres(pool) => Tx::Postgres(self.line(pool, begin).await?),
            Pools::Sqlite { writer, .. } => Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
        })
    }

    async fn line(&self, pool: &PgPool, begin: Option<&'static str>) -> Result<PgTx> {
        let mut line = Line::take(pool, self.patience).await?;
        if let Some(begin) = begin {
            line.begin(begin).await?;
        }
        Ok(PgTx::on(line))
    }

    /// Begins a transaction that only reads, from one snapshot; on SQLite it never waits for the writer.
    /// # Errors
    /// As [`Store::begin`].
    pub async fn read(&self) -> Result<Tx> {
        const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(match &self.pools {
            Pools::Postgres(pool) => Tx::Postgres(self.line(pool, Some(READ)).await?),
            Pools::Sqlite { readers, .. } => Tx::Sqlite(readers.begin().await?),
        })
    }

    /// For reading where each statement may see its own moment: as [`Store::read`] without two more round trips on PostgreSQL.
    /// # Errors
    /// As [`Store::begin`].
    pub async fn look(&self) -> Result<Tx> {
        Ok(match &self.pools {
            Pools::Postgres(pool) => Tx::Postgres(self.line(pool, None).await?),
            Pools::Sqlite { readers, .. } => Tx::Sqlite(readers.begin().await?),
        })
    }

    /// Whether the database answers, for readiness.
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<()> {
        self.look().await?.ping().await
    }

    /// Whether this is the one-process store.
    pub fn is_sqlite(&self) -> bool {
        matches!(self.pools, Pools::Sqlite { .. })
    }

    /// Open and idle connections, for metrics.
    pub fn pool_size(&self) -> (u32, usize) {
        match &self.pools {
            Pools::Postgres(pool) => (pool.size(), pool.num_idle()),
            Pools::Sqlite { writer, readers } => {
                (writer.size() + readers.size(), writer.num_idle() + readers.num_idle())
            }
        }
    }

    /// Closes every connection; statements under way finish first.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Postgres(pool) => pool.close().await,
            Pools::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }
}

fn open_postgres(url: &str, options: &StoreOptions) -> Result<PgPool> {
    let millis = |time: Duration| time.as_millis().to_string();
    let connect = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::BadUrl(format!("store.url cannot be read: {error}")))?
        .application_name(&options.application_name)
        .options([
            ("search_path", format!("{},public", options.schema)),
            // What is written and read all the time is in memory. With the default, made for discs that turn, a batch of some
            // hundred rows reads a whole table rather than look each of them up.
            ("random_page_cost", "1.1".to_owned()),
            // No statement of ours runs long enough to earn back the tenths of a second that compiling it takes.
            ("jit", "off".to_owned()),
            ("statement_timeout", millis(options.statement_timeout)),
            ("lock_timeout", millis(options.statement_timeout / 2)),
            ("idle_in_transaction_session_timeout", millis(options.statement_timeout * 3)),
            ("tcp_user_timeout", millis(options.statement_timeout * 2)),
        ]);
    Ok(PgPoolOptions::new()
        .max_connections(options.max_connections)
        .acquire_timeout(options.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .test_before_acquire(false)
        .connect_lazy_with(connect))
}

async fn open_sqlite(path: &std::path::Path, options: &StoreOptions) -> Result<Pools> {
    // FULL because a 2xx stands on the last commit: with NORMAL a power cut may take it back.
    let connect = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-65536")
        .pragma("temp_store", "memory");
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.acquire_timeout * 6)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(connect.clone().create_if_missing(true))
        .await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(options.acquire_timeout)
        .test_before_acquire(false)
        .connect_lazy_with(connect.read_only(true));
    Ok(Pools::Sqlite { writer, readers })
}
