//! A fresh, migrated database for each test.

use anyhow::{Context, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use std::str::FromStr;
use std::time::Duration;
use store::{Store, StoreOptions, StoreUrl};

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// One file in a temporary folder.
    Sqlite,
    /// A database of its own on the server named by `ROOST_TEST_DATABASE_URL`.
    Postgres,
}

/// A fresh database. Dropping it removes an SQLite folder; a PostgreSQL database is left for its server's end or for the
/// sweep of [`sweep_old_databases`], since a test that failed is easier to understand with its rows still there.
#[derive(Debug)]
pub struct TestDatabase {
    /// The store, open and migrated.
    pub store: Store,
    /// How it was opened, for a second process or a second pool.
    pub options: StoreOptions,
    _folder: Option<tempfile::TempDir>,
}

/// The server for PostgreSQL tests.
/// # Errors
/// When `ROOST_TEST_DATABASE_URL` is not set.
pub fn postgres_url() -> Result<String> {
    std::env::var("ROOST_TEST_DATABASE_URL")
        .context("this test needs PostgreSQL: run it through tests/run, or set ROOST_TEST_DATABASE_URL")
}

/// A fresh, migrated store on `database`.
/// # Errors
/// When the server or the folder cannot be used.
pub async fn fresh_store(database: Database) -> Result<TestDatabase> {
    let (url, folder) = fresh_url(database).await?;
    let options = test_options(url);
    let store = Store::open(&options).await?;
    store.migrate().await?;
    Ok(TestDatabase { store, options, _folder: folder })
}

/// A fresh, migrated store on a PostgreSQL of the test's own, whose statements may run so long.
/// # Errors
/// When the server cannot be used.
pub async fn fresh_store_on(server: &str, statement_timeout: Duration) -> Result<TestDatabase> {
    let url = StoreUrl::Postgres(create_database(server).await?);
    let options = StoreOptions { statement_timeout, ..test_options(url) };
    let store = Store::open(&options).await?;
    store.migrate().await?;
    Ok(TestDatabase { store, options, _folder: None })
}

/// Options for tests: as in production, with fewer connections.
pub fn test_options(url: StoreUrl) -> StoreOptions {
    StoreOptions { max_connections: 6, acquire_timeout: Duration::from_secs(20), ..StoreOptions::new(url) }
}

/// A fresh, empty database.
/// # Errors
/// When the server or the folder cannot be used.
pub async fn fresh_url(database: Database) -> Result<(StoreUrl, Option<tempfile::TempDir>)> {
    match database {
        Database::Sqlite => {
            let folder = tempfile::Builder::new().prefix("roost-test-").tempdir()?;
            Ok((StoreUrl::Sqlite(folder.path().join("roost.db")), Some(folder)))
        }
        Database::Postgres => Ok((StoreUrl::Postgres(create_database(&postgres_url()?).await?), None)),
    }
}

/// Creates a database with a random name on `server` and returns its URL.
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn create_database(server: &str) -> Result<String> {
    let mut admin = connect(server).await?;
    let seconds = uuid::Uuid::now_v7().get_timestamp().map_or(0, |time| time.to_unix().0);
    let name = format!("roost_test_{seconds}_{}", uuid::Uuid::new_v4().simple());
    // The name is ours and plain; identifiers cannot be bound.
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await?;
    admin.close().await?;
    let mut url = url::Url::parse(server)?;
    url.set_path(&name);
    Ok(url.to_string())
}

/// Drops test databases that a run left behind more than an hour ago on a server that outlives the runs.
/// # Errors
/// When the server cannot be reached.
pub async fn sweep_old_databases(server: &str) -> Result<usize> {
    let mut admin = connect(server).await?;
    let old: Vec<String> = sqlx::query_scalar(
        "SELECT datname::text FROM pg_database WHERE datname ~ '^roost_test_[0-9]+_[0-9a-f]{32}$'
           AND split_part(datname::text, '_', 3)::bigint < extract(epoch FROM now()) - 3600",
    )
    .fetch_all(&mut admin)
    .await?;
    for name in &old {
        sqlx::query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).execute(&mut admin).await?;
    }
    admin.close().await?;
    Ok(old.len())
}

async fn connect(server: &str) -> Result<PgConnection> {
    let options = PgConnectOptions::from_str(server)?;
    options.connect().await.with_context(|| "cannot reach the PostgreSQL server of ROOST_TEST_DATABASE_URL")
}
