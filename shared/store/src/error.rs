//! What can go wrong with a statement, sorted by what the caller should do.

use crate::line::is_silence;
use sqlx::error::DatabaseError;

/// The result of a statement.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A statement that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or its driver said no.
    #[error("database: {0}")]
    Database(sqlx::Error),
    /// The migrations could not run.
    #[error("migration: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A store URL that no backend serves.
    #[error("{0}")]
    BadUrl(String),
    /// The database gave no answer in time. What was asked may have happened.
    #[error("the database does not answer")]
    Unanswered,
    /// What the caller remembered about rows turned out to be stale, again and again.
    #[error("what is remembered does not fit the rows")]
    Stale,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_silence(&error) { StoreError::Unanswered } else { StoreError::Database(error) }
    }
}

impl StoreError {
    /// The statement was fine, the database was not there (or not writable, or too slow): try the very same again later.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Database(error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_) => true,
                sqlx::Error::Database(db) => code_of(db.as_ref()).is_some_and(|code| {
                    // 08 connection, 53 resources (disk full, too many connections), 57P operator intervention (shutdown,
                    // recovery), 57014 statement timeout, 55P03 lock timeout, 25006 read-only primary, 58 system (I/O);
                    // SQLite: 5 busy, 6 locked, 10 I/O, 13 full.
                    code.starts_with("08")
                        || code.starts_with("53")
                        || code.starts_with("57P")
                        || code.starts_with("58")
                        || matches!(
                            code.as_str(),
                            "57014" | "55P03" | "25006" | "25P03" | "5" | "6" | "10" | "13" | "261" | "517"
                        )
                }),
                _ => false,
            },
            StoreError::Unanswered => true,
            StoreError::Migrate(_) | StoreError::BadUrl(_) | StoreError::Stale => false,
        }
    }

    /// What was written is at fault: it breaks a rule of its table, or is of a form the database cannot keep. Nothing else
    /// that a database says (the password was changed, a permission is missing, a table is being restored, a disk fails) is
    /// about an item: what was taken is then held, never set aside.
    pub fn is_items_fault(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(db)) => code_of(db.as_ref()).is_some_and(|code| {
                match code.parse::<u32>() {
                    // SQLite's code is the low byte: 18 too big, 19 constraint, 20 mismatch.
                    Ok(number) if code.len() < 5 => matches!(number & 0xff, 18..=20),
                    // Classes of PostgreSQL: 21 cardinality, 22 data, 23 constraint, 54 limits, P0 raised by a trigger.
                    _ => ["21", "22", "23", "54", "P0"].iter().any(|class| code.starts_with(class)),
                }
            }),
            other => !other.is_transient(),
        }
    }

    /// Two transactions met (deadlock 40P01, serialization 40001): the whole transaction can be run again at once.
    pub fn is_serialization(&self) -> bool {
        self.code().is_some_and(|code| code == "40P01" || code == "40001")
    }

    /// A row referred to is gone (23503; SQLite 787): what was cached about it is stale.
    pub fn is_missing_reference(&self) -> bool {
        self.code().is_some_and(|code| code == "23503" || code == "787")
    }

    /// The rule that a row broke, by the name it has in the migrations. Unlike the database's own words it quotes nothing of
    /// the row.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            StoreError::Database(sqlx::Error::Database(db)) => {
                // SQLite says it only in its message, which holds nothing else.
                db.constraint().or_else(|| db.message().split_once("constraint failed: ").map(|(_, name)| name))
            }
            _ => None,
        }
    }

    /// The database's code for it, if the database answered at all.
    pub fn code(&self) -> Option<String> {
        match self {
            StoreError::Database(sqlx::Error::Database(db)) => code_of(db.as_ref()),
            _ => None,
        }
    }
}

fn code_of(error: &dyn DatabaseError) -> Option<String> {
    error.code().map(std::borrow::Cow::into_owned)
}
