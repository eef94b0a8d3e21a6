//! Handing a whole batch to one statement: arrays for PostgreSQL's `unnest`, one JSON text for SQLite's `json_each`.

use crate::tx::PgTx;
use crate::{Result, StoreError, Tx};
use domain::Timestamp;
use serde::Serialize;
use std::borrow::Cow;

/// Rows as one JSON text for `json_each`; each row is an array, its members are read by position (`value ->> 0`).
pub(crate) fn json<T: Serialize>(rows: &[T]) -> Result<String> {
    serde_json::to_string(rows).map_err(|error| StoreError::Database(sqlx::Error::Encode(Box::new(error))))
}

/// A time as SQLite keeps it.
pub(crate) fn micros(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::micros)
}

/// Text without NUL, which PostgreSQL's `text` cannot hold. Parsers clean what they read; this is the last line.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(text) }
}

/// As [`plain`], for text that may be absent.
pub(crate) fn plain_opt(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.map(plain)
}

/// JSON text of a value without `\u0000`, which PostgreSQL's `jsonb` cannot hold either.
pub(crate) fn plain_json(value: &serde_json::Value) -> String {
    let text = value.to_string();
    // The escape is looked for first because it is next to never there; `\\u0000` may be meant literally.
    if text.contains("\\u0000") { without_nul(value.clone()).to_string() } else { text }
}

fn without_nul(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(plain(&text).into_owned()),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nul).collect()),
        Value::Object(members) => {
            members.into_iter().map(|(key, value)| (plain(&key).into_owned(), without_nul(value))).collect()
        }
        other => other,
    }
}

/// Tables whose ids are taken before the insert, because other rows of the same batch refer to them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbered {
    Contacts,
    Identities,
}

/// `count` fresh ids of a table.
pub(crate) async fn next_ids(tx: &mut Tx, table: Numbered, count: usize) -> Result<Vec<i64>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // PostgreSQL gives numbers out without a row; SQLite, with its one writer, counts on from the highest ever used.
    const NEXT_PG: &str = "SELECT nextval(pg_get_serial_sequence($1, 'id')::regclass) FROM generate_series(1, $2)";
    const LAST_SQLITE: &str = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = $1), 0)";
    let table = match table {
        Numbered::Contacts => "contacts",
        Numbered::Identities => "contact_identities",
    };
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    match tx {
        Tx::Postgres(tx) => Ok(sqlx::query_scalar(NEXT_PG).bind(table).bind(count).fetch_all(pg(tx)).await?),
        Tx::Sqlite(tx) => {
            let last: i64 = sqlx::query_scalar(LAST_SQLITE).bind(table).fetch_one(&mut **tx).await?;
            Ok((last + 1..=last + count).collect())
        }
    }
}

fn pg(tx: &mut PgTx) -> &mut crate::Line {
    tx.conn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nul_is_replaced_wherever_it_hides_and_a_written_escape_is_left_alone() {
        assert_eq!(plain("a\0b"), "a\u{FFFD}b");
        let value = json!({"a\0": ["x\0", {"deep": "\0"}], "said": "\\u0000"});
        assert_eq!(
            plain_json(&value),
            json!({"a\u{FFFD}": ["x\u{FFFD}", {"deep": "\u{FFFD}"}], "said": "\\u0000"}).to_string()
        );
    }
}
