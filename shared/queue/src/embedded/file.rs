//! The file: opening it, reading from it. Writing is [`super::writer`]'s alone.

use crate::OpenError;
use crate::message::Head;
use bytes::Bytes;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row};
use std::fs::{OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The format we write, in `user_version`.
const FORMAT: i64 = 1;

/// Ids are never given out twice (AUTOINCREMENT): a reader that has passed an id would not see it again.
const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS items (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue TEXT NOT NULL,
        head TEXT NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS items_by_queue ON items (queue, id);
    PRAGMA user_version = 1;";

const ITEMS_AFTER: &str = "SELECT id, head, body FROM items WHERE queue = ? AND id > ? ORDER BY id LIMIT ?";
const ITEMS_BY_ID: &str =
    "SELECT id, head, body FROM items WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) ORDER BY id";
const ITEMS_COUNT: &str = "SELECT count(*) FROM items WHERE queue = ?";
const NEWEST: &str = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'items'";

/// The queue's file, open for reading. The lock beside it lasts as long as any clone, and ends with the process however
/// it ends.
#[derive(Clone, Debug)]
pub(super) struct File {
    readers: SqlitePool,
    _lock: Arc<std::fs::File>,
}

/// A row.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: i64,
    pub(super) head: Head,
    pub(super) body: Bytes,
}

impl File {
    /// Opens or creates the file; the connection is the one that writes.
    pub(super) async fn open(path: &Path) -> Result<(Self, SqliteConnection), OpenError> {
        let failed = |reason: String| OpenError::File { path: path.to_owned(), reason };
        let lock = lock(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("journal_size_limit", "67108864")
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(|error| failed(error.to_string()))?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&mut connection)
            .await
            .map_err(|error| failed(error.to_string()))?;
        if found > FORMAT {
            return Err(OpenError::TooNew { path: path.to_owned(), found, known: FORMAT });
        }
        sqlx::raw_sql(CREATE).execute(&mut connection).await.map_err(|error| failed(error.to_string()))?;
        connection.ping().await.map_err(|error| failed(error.to_string()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options.create_if_missing(false).read_only(true))
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok((Self { readers, _lock: Arc::new(lock) }, connection))
    }

    /// The newest id ever given out.
    pub(super) async fn newest(&self) -> Result<i64, String> {
        sqlx::query_scalar(NEWEST).fetch_one(&self.readers).await.map_err(|error| error.to_string())
    }

    /// The oldest items of a queue after `id`.
    pub(super) async fn after(&self, queue: &str, id: i64, limit: usize) -> Result<Vec<Item>, String> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = sqlx::query(ITEMS_AFTER).bind(queue).bind(id).bind(limit).fetch_all(&self.readers).await;
        read(rows)
    }

    /// The items of a queue with these ids.
    pub(super) async fn by_id(&self, queue: &str, ids: &[i64]) -> Result<Vec<Item>, String> {
        let ids = serde_json::to_string(ids).unwrap_or_default();
        read(sqlx::query(ITEMS_BY_ID).bind(queue).bind(ids).fetch_all(&self.readers).await)
    }

    /// How many items a queue has, those delivered and unsettled included.
    pub(super) async fn count(&self, queue: &str) -> Result<u64, String> {
        let count: Result<i64, _> = sqlx::query_scalar(ITEMS_COUNT).bind(queue).fetch_one(&self.readers).await;
        count.map(|count| u64::try_from(count).unwrap_or(0)).map_err(|error| error.to_string())
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
    }
}

/// Takes the file for this process.
fn lock(path: &Path) -> Result<std::fs::File, OpenError> {
    let beside = PathBuf::from(format!("{}.lock", path.display()));
    let failed = |error: std::io::Error| OpenError::File { path: beside.clone(), reason: error.to_string() };
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&beside).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn read(rows: Result<Vec<sqlx::sqlite::SqliteRow>, sqlx::Error>) -> Result<Vec<Item>, String> {
    let item = |row: &sqlx::sqlite::SqliteRow| -> Result<Item, String> {
        let head: &str = row.try_get(1).map_err(|error| error.to_string())?;
        let body: Vec<u8> = row.try_get(2).map_err(|error| error.to_string())?;
        Ok(Item {
            id: row.try_get(0).map_err(|error| error.to_string())?,
            head: serde_json::from_str(head).map_err(|error| error.to_string())?,
            body: Bytes::from(body),
        })
    };
    rows.map_err(|error| error.to_string())?.iter().map(item).collect()
}
