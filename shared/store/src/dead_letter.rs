//! What could not be processed, as rows: shown, grouped by cause, replayed or discarded by people.

use crate::batch::{json, plain, plain_opt};
use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{AccountId, ConversationId, DeadLetterId, MessageId, Timestamp};
use uuid::Uuid;

/// Where something died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A webhook or an item of one.
    Ingest,
    /// What a sender reported.
    Result,
    /// A send.
    Send,
}

impl Stage {
    /// The stored text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Ingest => "INGEST",
            Stage::Result => "RESULT",
            Stage::Send => "SEND",
        }
    }
}

/// Something that could not be processed.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDeadLetter {
    /// Names the original: dying again under the same key counts up, so a redelivery makes no second row.
    pub origin_key: String,
    /// Where it died.
    pub stage: Stage,
    /// In which queue it had come.
    pub queue: String,
    /// What came beside its bytes.
    pub headers: serde_json::Value,
    /// Its bytes.
    pub body: Vec<u8>,
    /// What the bytes are, where that is known.
    pub content_type: Option<&'static str>,
    /// What kind of failure: `UNKNOWN_ACCOUNT`, `MALFORMED`, …
    pub error_class: String,
    /// A finer code: the parser's, the database's.
    pub error_code: Option<String>,
    /// Why, for a person; quotes nothing of the body.
    pub error_message: Option<String>,
    /// Whether processing it again could help.
    pub replayable: bool,
    /// The source it came from.
    pub source: Option<String>,
    /// The webhook request it was part of.
    pub request_id: Option<Uuid>,
    /// The message it is about.
    pub message: Option<MessageId>,
    /// The conversation it is about.
    pub conversation: Option<ConversationId>,
    /// The account it is for.
    pub account: Option<AccountId>,
}

impl NewDeadLetter {
    /// What groups it with others of the same cause: stage, class, code and the message with its numbers folded.
    pub fn fingerprint(&self) -> String {
        let folded = fold(self.error_message.as_deref().unwrap_or_default());
        let code = self.error_code.as_deref().unwrap_or_default();
        let text = format!("{}|{}|{code}|{folded}", self.stage.as_str(), self.error_class);
        format!("{:016x}", fnv(text.as_bytes()))
    }
}

/// Digits, and what stands between quotes, say which one it was, not what was wrong.
fn fold(message: &str) -> String {
    let mut folded = String::with_capacity(message.len());
    let mut quoted = None;
    for c in message.chars() {
        match quoted {
            Some(end) if c == end => quoted = None,
            Some(_) => {}
            None if c == '"' || c == '`' => {
                quoted = Some(c);
                folded.push('*');
            }
            None if c.is_ascii_digit() => {
                if !folded.ends_with('#') {
                    folded.push('#');
                }
            }
            None => folded.push(c),
        }
    }
    folded
}

/// FNV-1a: a name for a group, not a secret.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

const DEAD_LETTERS_UPSERT_PG: &str = "INSERT INTO dead_letters (origin_key, stage, queue, headers, body, content_type, error_class, error_code, error_message,
           fingerprint, replayable, source, request_id, message_id, conversation_id, channel_account_id, first_failed_at, died_at)
    SELECT origin_key, stage, queue, headers::jsonb, body, content_type, error_class, error_code, error_message,
           fingerprint, replayable, source, request_id, message_id, conversation_id, channel_account_id, $17, $17
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[], $8::text[], $9::text[],
                  $10::text[], $11::boolean[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[])
        AS i(origin_key, stage, queue, headers, body, content_type, error_class, error_code, error_message,
             fingerprint, replayable, source, request_id, message_id, conversation_id, channel_account_id)
     ORDER BY origin_key
    ON CONFLICT (origin_key) DO UPDATE SET attempts = dead_letters.attempts + 1, died_at = excluded.died_at, state = 'OPEN', closed_at = NULL,
           error_class = excluded.error_class, error_code = excluded.error_code, error_message = excluded.error_message, fingerprint = excluded.fingerprint";
const DEAD_LETTERS_UPSERT_SQLITE: &str = "INSERT INTO dead_letters (origin_key, stage, queue, headers, body, content_type, error_class, error_code, error_message,
           fingerprint, replayable, source, request_id, message_id, conversation_id, channel_account_id, first_failed_at, died_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, unhex(value ->> 4), value ->> 5, value ->> 6, value ->> 7, value ->> 8,
           value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15, $2, $2
      FROM json_each($1) WHERE true
    ON CONFLICT (origin_key) DO UPDATE SET attempts = dead_letters.attempts + 1, died_at = excluded.died_at, state = 'OPEN', closed_at = NULL,
           error_class = excluded.error_class, error_code = excluded.error_code, error_message = excluded.error_message, fingerprint = excluded.fingerprint";

/// Keeps dead letters. One that died before under the same key is open again and counts one attempt more.
/// # Errors
/// Only when the database cannot be reached.
pub async fn insert(tx: &mut Tx, dead: &[NewDeadLetter], now: Timestamp) -> Result<()> {
    // One row must not be updated twice by one statement.
    let mut distinct: Vec<&NewDeadLetter> = dead.iter().collect();
    distinct.sort_by(|a, b| a.origin_key.cmp(&b.origin_key));
    distinct.dedup_by(|a, b| a.origin_key == b.origin_key);
    if distinct.is_empty() {
        return Ok(());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(DEAD_LETTERS_UPSERT_PG)
                .bind(distinct.iter().map(|d| plain(&d.origin_key)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.stage.as_str()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| plain(&d.queue)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| crate::batch::plain_json(&d.headers)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.body.as_slice()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.content_type).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| plain(&d.error_class)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| plain_opt(d.error_code.as_deref())).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| plain_opt(d.error_message.as_deref())).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.fingerprint()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.replayable).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| plain_opt(d.source.as_deref())).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.request_id.map(|id| id.to_string())).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.message.map(MessageId::get)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.conversation.map(ConversationId::get)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|d| d.account.map(AccountId::get)).collect::<Vec<_>>())
                .bind(At(now))
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<serde_json::Value> = distinct
                .iter()
                .map(|d| {
                    serde_json::json!([
                        plain(&d.origin_key),
                        d.stage.as_str(),
                        plain(&d.queue),
                        crate::batch::plain_json(&d.headers),
                        hex::encode(&d.body),
                        d.content_type,
                        plain(&d.error_class),
                        plain_opt(d.error_code.as_deref()),
                        plain_opt(d.error_message.as_deref()),
                        d.fingerprint(),
                        d.replayable,
                        plain_opt(d.source.as_deref()),
                        d.request_id,
                        d.message,
                        d.conversation,
                        d.account,
                    ])
                })
                .collect();
            sqlx::query(DEAD_LETTERS_UPSERT_SQLITE).bind(json(&rows)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

const DEAD_LETTERS_RESOLVE_PG: &str = "UPDATE dead_letters SET state = 'RESOLVED', closed_at = $3
    WHERE stage = 'INGEST' AND state IN ('OPEN', 'REPLAYING') AND request_id = ANY($1) AND NOT origin_key = ANY($2)";
const DEAD_LETTERS_RESOLVE_SQLITE: &str = "UPDATE dead_letters SET state = 'RESOLVED', closed_at = $3
    WHERE stage = 'INGEST' AND state IN ('OPEN', 'REPLAYING') AND request_id IN (SELECT value FROM json_each($1))
      AND origin_key NOT IN (SELECT value FROM json_each($2))";

/// Closes the dead letters of webhooks that were processed again, but for those that died again.
/// # Errors
/// Only when the database cannot be reached.
pub async fn resolve(tx: &mut Tx, requests: &[Uuid], died_again: &[String], now: Timestamp) -> Result<u64> {
    if requests.is_empty() {
        return Ok(0);
    }
    let requests: Vec<String> = requests.iter().map(Uuid::to_string).collect();
    // Arrays on PostgreSQL, JSON on SQLite.
    let closed = match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query(DEAD_LETTERS_RESOLVE_PG).bind(requests).bind(died_again.to_vec()).bind(At(now));
            query.execute(tx.conn()).await?.rows_affected()
        }
        Tx::Sqlite(tx) => {
            let query =
                sqlx::query(DEAD_LETTERS_RESOLVE_SQLITE).bind(json(&requests)?).bind(json(died_again)?).bind(At(now));
            query.execute(&mut **tx).await?.rows_affected()
        }
    };
    Ok(closed)
}

rows! {
    /// A dead letter.
    pub struct DeadLetter {
        /// The row.
        pub id: DeadLetterId,
        /// Key of the original.
        pub origin_key: String,
        /// Where it died.
        pub stage: String,
        /// In which queue it had come.
        pub queue: String,
        /// What came beside its bytes.
        pub headers: serde_json::Value,
        /// Its bytes.
        pub body: Vec<u8>,
        /// What kind of failure.
        pub error_class: String,
        /// A finer code.
        pub error_code: Option<String>,
        /// Why, for a person.
        pub error_message: Option<String>,
        /// What groups it with others of the same cause.
        pub fingerprint: String,
        /// How often it died.
        pub attempts: i32,
        /// Whether processing it again could help.
        pub replayable: bool,
        /// OPEN, REPLAYING, RESOLVED, DISCARDED.
        pub state: String,
        /// The source it came from.
        pub source: Option<String>,
        /// The webhook request it was part of.
        pub request_id: Option<String>,
        /// The account it is for.
        pub channel_account_id: Option<AccountId>,
        /// When it died first.
        pub first_failed_at: Timestamp,
        /// When it died last.
        pub died_at: Timestamp,
    }
}

const DEAD_LETTERS_OPEN: &str =
    "SELECT id, origin_key, stage, queue, headers, body, error_class, error_code, error_message, fingerprint, attempts,
           replayable, state, source, request_id, channel_account_id, first_failed_at, died_at
      FROM dead_letters WHERE state = 'OPEN' ORDER BY died_at DESC, id DESC LIMIT $1";

/// The newest open dead letters.
/// # Errors
/// Only when the database cannot be reached.
pub async fn open(tx: &mut Tx, limit: i64) -> Result<Vec<DeadLetter>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(DEAD_LETTERS_OPEN).bind(limit).fetch_all(conn).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cause_is_one_group_whichever_item_it_hit() {
        let dead = |message: &str| NewDeadLetter {
            origin_key: "k".into(),
            stage: Stage::Ingest,
            queue: "roost.webhooks".into(),
            headers: serde_json::json!({}),
            body: vec![],
            content_type: None,
            error_class: "REFUSED".into(),
            error_code: Some("23514".into()),
            error_message: Some(message.into()),
            replayable: true,
            source: None,
            request_id: None,
            message: None,
            conversation: None,
            account: None,
        };
        let print = |message| dead(message).fingerprint();
        assert_eq!(print("row 17 violates \"msg_dir_ck\" at 0:3"), print("row 4 violates \"other\" at 12:99"));
        assert_ne!(print("row 17 violates"), print("row 17 lacks"));
    }
}
