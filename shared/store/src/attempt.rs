//! `send_attempts`: how each attempt went, written from what senders report.

use crate::batch::{json, micros, plain_opt};
use crate::column::rows;
use crate::set::{Both, numbers};
use crate::{At, Result, Tx};
use domain::{AttemptOutcome, MessageId, Timestamp};

rows! {
    /// One attempt.
    pub struct AttemptRow {
        /// Of which message.
        pub message_id: MessageId,
        /// In which generation.
        pub generation: i16,
        /// Which one, from 1.
        pub attempt: i16,
        /// Which process made it.
        pub worker: Option<String>,
        /// The provider's id, when it took the message.
        pub provider_message_id: Option<String>,
        /// The verdict.
        pub outcome: AttemptOutcome,
        /// HTTP status, when there was a reply.
        pub http_status: Option<i16>,
        /// Provider's code, or ours.
        pub provider_code: Option<String>,
        /// Provider's words.
        pub error_message: Option<String>,
        /// The provider's wish for the next attempt, in milliseconds.
        pub retry_after_ms: Option<i32>,
        /// When the call began.
        pub started_at: Option<Timestamp>,
        /// When its answer was there, or it was given up.
        pub finished_at: Timestamp,
    }
}

macro_rules! attempts_of {
    ($ids:literal) => {
        concat!(
            "SELECT message_id, generation, attempt, worker, provider_message_id, outcome, http_status, provider_code,
    error_message, retry_after_ms, started_at, finished_at FROM send_attempts WHERE message_id IN ",
            $ids,
            " ORDER BY message_id, generation, attempt"
        )
    };
}
const ATTEMPTS_OF: Both = Both {
    postgres: attempts_of!("(SELECT unnest($1::bigint[]))"),
    sqlite: attempts_of!("(SELECT value FROM json_each($1))"),
};

/// Every attempt of these messages, in order.
/// # Errors
/// Only when the database cannot be reached.
pub async fn of(tx: &mut Tx, messages: &[MessageId]) -> Result<Vec<AttemptRow>> {
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_as(ATTEMPTS_OF.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(ATTEMPTS_OF.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    })
}

macro_rules! record {
    ($set:literal) => {
        concat!(
            "INSERT INTO send_attempts (message_id, generation, attempt, worker, provider_message_id, outcome, http_status,
    provider_code, error_message, retry_after_ms, started_at, finished_at) SELECT * FROM ",
            $set,
            " WHERE true ON CONFLICT (message_id, generation, attempt) DO UPDATE SET worker = excluded.worker,
    provider_message_id = excluded.provider_message_id, outcome = excluded.outcome, http_status = excluded.http_status,
    provider_code = excluded.provider_code, error_message = excluded.error_message,
    retry_after_ms = excluded.retry_after_ms, started_at = excluded.started_at, finished_at = excluded.finished_at
  WHERE send_attempts.outcome = 'UNKNOWN' AND excluded.outcome <> 'UNKNOWN'
  RETURNING message_id, generation, attempt"
        )
    };
}
const ATTEMPT_RECORD: Both = Both {
    postgres: record!(
        "unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::smallint[],
    $8::text[], $9::text[], $10::integer[], $11::timestamptz[], $12::timestamptz[]) AS i"
    ),
    sqlite: record!(
        "(SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
    value ->> 8, value ->> 9, value ->> 10, value ->> 11 FROM json_each($1)) AS i"
    ),
};

/// Records attempts, each at most once in `attempts`. A report told again changes nothing; a real report replaces an
/// expired lease. Returns (message, generation, attempt) of those that were news.
/// # Errors
/// When the database cannot be reached, or a message is gone.
pub async fn record(tx: &mut Tx, attempts: &[AttemptRow]) -> Result<Vec<(MessageId, i16, i16)>> {
    if attempts.is_empty() {
        return Ok(Vec::new());
    }
    let text = |text: &Option<String>| plain_opt(text.as_deref()).map(std::borrow::Cow::into_owned);
    let news: Vec<(i64, i16, i16)> = match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query_as(ATTEMPT_RECORD.postgres)
                .bind(attempts.iter().map(|row| row.message_id.get()).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.generation).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.attempt).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.worker.clone()).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| text(&row.provider_message_id)).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.outcome.as_str()).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.http_status).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| text(&row.provider_code)).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| text(&row.error_message)).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.retry_after_ms).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| row.started_at.map(At)).collect::<Vec<_>>())
                .bind(attempts.iter().map(|row| At(row.finished_at)).collect::<Vec<_>>());
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = attempts
                .iter()
                .map(|row| {
                    let who = (row.message_id.get(), row.generation, row.attempt);
                    let what = (&row.worker, text(&row.provider_message_id), row.outcome.as_str(), row.http_status);
                    let why = (text(&row.provider_code), text(&row.error_message), row.retry_after_ms);
                    let when = (micros(row.started_at), row.finished_at.micros());
                    (who.0, who.1, who.2, what.0, what.1, what.2, what.3, why.0, why.1, why.2, when.0, when.1)
                })
                .collect();
            sqlx::query_as(ATTEMPT_RECORD.sqlite).bind(json(&rows)?).fetch_all(&mut **tx).await?
        }
    };
    Ok(news.into_iter().map(|(message, generation, attempt)| (MessageId::new(message), generation, attempt)).collect())
}
