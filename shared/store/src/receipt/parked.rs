//! What waits: receipts under an id that no message of ours has yet, and receipts whose message is known and whose call is
//! still open. Beside the latter wait our own senders' late acceptances of an older generation, whole, as the report said it:
//! they are the provider's word too, and whoever asks whether something was heard of a message finds both.
//!
//! Taking one up deletes the row and inserts it anew, under the same key of deduplication: in one transaction, so that it is
//! neither lost nor counted twice, and with a new id, so that applied events read in the order of their ids never go
//! backwards. Every path holds the messages before it takes their receipts.

use super::{NewReceipt, Receipts, apply, find};
use crate::batch::{json, plain_opt};
use crate::column::rows;
use crate::set::{Both, numbers, with_ids};
use crate::tx::on_backend;
use crate::{At, Result, StoreError, Tx, result};
use domain::wire::AttemptReport;
use domain::{AccountId, MessageId, Status, Timestamp, WebhookEventId};
use std::borrow::Cow;
use std::collections::BTreeSet;

rows! {
    /// A parked receipt that could be taken up now.
    pub struct Candidate {
        /// The row.
        pub id: i64,
        /// The message it speaks of.
        pub message_id: MessageId,
        /// What it says.
        pub status: Option<Status>,
    }

    /// A receipt that was parked.
    pub struct ParkedRow {
        /// Who said so: the provider, or a sender of ours.
        pub source: String,
        /// The account.
        pub channel_account_id: AccountId,
        /// The provider's id.
        pub provider_message_id: String,
        /// Our word for it.
        pub status: Option<Status>,
        /// The provider's word.
        pub provider_status: String,
        /// The provider's time.
        pub occurred_at: Timestamp,
        /// When it arrived.
        pub received_at: Timestamp,
        /// The string we gave when sending.
        pub correlation: Option<String>,
        /// Code of a failure.
        pub error_code: Option<String>,
        /// Words of a failure.
        pub error_message: Option<String>,
        /// Price information.
        pub pricing: Option<serde_json::Value>,
        /// The item as it arrived.
        pub raw_payload: Option<String>,
        /// The webhook it came in.
        pub webhook_event_id: Option<WebhookEventId>,
    }
}

impl From<ParkedRow> for NewReceipt {
    fn from(row: ParkedRow) -> Self {
        NewReceipt {
            account: row.channel_account_id,
            provider_message_id: row.provider_message_id,
            status: row.status,
            provider_status: row.provider_status,
            occurred_at: row.occurred_at,
            received_at: row.received_at,
            correlation: row.correlation,
            error_code: row.error_code,
            error_message: row.error_message,
            pricing: row.pricing,
            raw: row.raw_payload,
            webhook: row.webhook_event_id,
        }
    }
}

/// Under an id that a message has by now, or an attempt. Asked row by row: PostgreSQL answers `EXISTS` here by reading all
/// attempts there ever were into a hash table.
macro_rules! known_by_now {
    ($parked:literal, $rest:literal) => {
        concat!(
            "SELECT id, message_id, status FROM (SELECT e.id AS id, e.status AS status, coalesce(
        (SELECT m.id FROM messages m WHERE m.provider_message_id = e.provider_message_id
            AND m.channel_account_id = e.channel_account_id AND m.direction = 'OUTBOUND' LIMIT 1),
        (SELECT a.message_id FROM send_attempts a JOIN messages m ON m.id = a.message_id AND m.channel_account_id = e.channel_account_id
          WHERE a.provider_message_id = e.provider_message_id LIMIT 1)) AS message_id
      FROM ",
            $parked,
            " WHERE e.message_id IS NULL AND e.conversation_id IS NULL AND e.waits_for_message_id IS NULL",
            $rest
        )
    };
}
const PARKED_KNOWN: Both = Both {
    postgres: known_by_now!(
        "unnest($1::bigint[], $2::text[]) AS i(account, id)
      JOIN message_status_events e ON e.channel_account_id = i.account AND e.provider_message_id = i.id",
        ") AS c WHERE message_id IS NOT NULL"
    ),
    sqlite: known_by_now!(
        "json_each($1) AS i JOIN message_status_events e
        ON e.channel_account_id = i.value ->> 0 AND e.provider_message_id = i.value ->> 1",
        ") AS c WHERE message_id IS NOT NULL"
    ),
};
const PARKED_KNOWN_ANY: &str = known_by_now!(
    "message_status_events e",
    " AND e.received_at > $1) AS c WHERE message_id IS NOT NULL ORDER BY id LIMIT $2"
);

const PARKED_WAITING: Both = with_ids!(
    "SELECT e.id AS id, e.waits_for_message_id AS message_id, e.status AS status FROM message_status_events e
      WHERE e.message_id IS NULL
        AND NOT EXISTS (SELECT 1 FROM sends s WHERE s.message_id = e.waits_for_message_id AND s.state = 'IN_FLIGHT')
        AND e.waits_for_message_id IN ",
    "$1",
    ""
);

macro_rules! take {
    ($ids:literal) => {
        concat!(
            "DELETE FROM message_status_events WHERE message_id IS NULL AND conversation_id IS NULL AND id IN ",
            $ids,
            " RETURNING source, channel_account_id, provider_message_id, status, provider_status, occurred_at, received_at,
         correlation, error_code, error_message, pricing, raw_payload, webhook_event_id"
        )
    };
}
const PARKED_TAKE: Both =
    Both { postgres: take!("(SELECT unnest($1::bigint[]))"), sqlite: take!("(SELECT value FROM json_each($1))") };

/// What was taken out.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What the provider said.
    pub(super) receipts: Vec<NewReceipt>,
    /// What our senders said.
    pub(super) acceptances: Vec<AttemptReport>,
}

/// Takes parked rows out; those that somebody else has taken meanwhile are missing.
pub(super) async fn take(tx: &mut Tx, candidates: &[Candidate]) -> Result<Taken> {
    let ids: Vec<i64> = candidates.iter().map(|candidate| candidate.id).collect();
    let rows: Vec<ParkedRow> = match tx {
        Tx::Postgres(tx) => sqlx::query_as(PARKED_TAKE.postgres).bind(ids).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_TAKE.sqlite).bind(json(&ids)?).fetch_all(&mut **tx).await?,
    };
    let mut taken = Taken::default();
    for row in rows {
        if row.source == SENDER {
            let told = serde_json::from_str(row.raw_payload.as_deref().unwrap_or_default());
            let told = told.map_err(|error| StoreError::Database(sqlx::Error::Decode(Box::new(error))))?;
            taken.acceptances.push(told);
        } else {
            taken.receipts.push(row.into());
        }
    }
    Ok(taken)
}

const SENDER: &str = "SENDER";

/// A report told again while it waits is one.
macro_rules! wait_for_call {
    ($set:literal) => {
        concat!(
            "INSERT INTO message_status_events (channel_account_id, provider_message_id, generation, status, provider_status, source,
             raw_payload, occurred_at, received_at, waits_for_message_id)
      SELECT i.account, i.id, i.generation, 'SENT', 'accepted', 'SENDER', i.report, i.at, $1, i.message FROM ",
            $set,
            " WHERE NOT EXISTS (SELECT 1 FROM message_status_events e WHERE e.waits_for_message_id = i.message AND e.message_id IS NULL
             AND e.source = 'SENDER' AND e.raw_payload = i.report)"
        )
    };
}
const WAIT_FOR_CALL: Both = Both {
    postgres: wait_for_call!(
        "unnest($2::bigint[], $3::text[], $4::smallint[], $5::text[], $6::timestamptz[], $7::bigint[])
          AS i(account, id, generation, report, at, message)"
    ),
    sqlite: wait_for_call!(
        "(SELECT value ->> 0 AS account, value ->> 1 AS id, value ->> 2 AS generation, value ->> 3 AS report, value ->> 4 AS at,
                 value ->> 5 AS message FROM json_each($2)) AS i"
    ),
};

/// Keeps late acceptances until the open calls of their messages are over. The caller holds the messages and their sends.
pub(crate) async fn wait_for_call(tx: &mut Tx, accepted: &[&AttemptReport], now: Timestamp) -> Result<()> {
    if accepted.is_empty() {
        return Ok(());
    }
    let encoded = |report: &&AttemptReport| {
        serde_json::to_string(report).map_err(|error| StoreError::Database(sqlx::Error::Encode(Box::new(error))))
    };
    let told: Vec<String> = accepted.iter().map(encoded).collect::<Result<_>>()?;
    let id = |report: &AttemptReport| plain_opt(report.provider_message_id.as_deref()).map(Cow::into_owned);
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(WAIT_FOR_CALL.postgres)
                .bind(At(now))
                .bind(accepted.iter().map(|report| report.account.get()).collect::<Vec<_>>())
                .bind(accepted.iter().map(|report| id(report)).collect::<Vec<_>>())
                .bind(accepted.iter().map(|report| report.generation).collect::<Vec<_>>())
                .bind(told)
                .bind(accepted.iter().map(|report| At(report.finished_at)).collect::<Vec<_>>())
                .bind(accepted.iter().map(|report| report.message.get()).collect::<Vec<_>>())
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            let row = |(report, told): (&&AttemptReport, String)| {
                let at = report.finished_at.micros();
                (report.account.get(), id(report), report.generation, told, at, report.message.get())
            };
            let rows: Vec<_> = accepted.iter().zip(told).map(row).collect();
            sqlx::query(WAIT_FOR_CALL.sqlite).bind(At(now)).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

/// Takes up what waits: holds conversations and messages in the order of every path, then takes the rows.
async fn take_up(tx: &mut Tx, candidates: &[Candidate], now: Timestamp) -> Result<Receipts> {
    if candidates.is_empty() {
        return Ok(Receipts::default());
    }
    let failed = candidates.iter().filter(|candidate| candidate.status == Some(Status::Failed));
    let failed: BTreeSet<MessageId> = failed.map(|candidate| candidate.message_id).collect();
    find::lock_conversations(tx, failed.into_iter().collect()).await?;
    let messages: BTreeSet<MessageId> = candidates.iter().map(|candidate| candidate.message_id).collect();
    find::lock(tx, messages.into_iter().collect()).await?;
    let taken = take(tx, candidates).await?;
    let mut heard = apply(tx, &taken.receipts, now).await?;
    heard.look_again.extend(result::tell_again(tx, taken.acceptances, now).await?);
    Ok(heard)
}

/// Applies what is parked under these ids, for messages that have them by now. In a transaction of its own, after the commit
/// that learnt or parked the ids and before the acknowledgement.
/// # Errors
/// As [`apply`].
pub async fn second_look(tx: &mut Tx, ids: &[(AccountId, String)], now: Timestamp) -> Result<Receipts> {
    if ids.is_empty() {
        return Ok(Receipts::default());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let known: Vec<Candidate> = match tx {
        Tx::Postgres(tx) => {
            let (accounts, ids): (Vec<i64>, Vec<&str>) =
                ids.iter().map(|(account, id)| (account.get(), id.as_str())).unzip();
            sqlx::query_as(PARKED_KNOWN.postgres).bind(accounts).bind(ids).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_KNOWN.sqlite).bind(json(ids)?).fetch_all(&mut **tx).await?,
    };
    take_up(tx, &known, now).await
}

/// What waits for the end of these messages' calls and need not wait any longer.
pub(crate) async fn waiting_for(tx: &mut Tx, messages: &[MessageId]) -> Result<Vec<Candidate>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    Ok(match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(PARKED_WAITING.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(PARKED_WAITING.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    })
}

/// Applies what came while the call of these messages was open, where it is over. Within the transaction that ends the call,
/// acceptances included: what another attempt is said to have done may wait there too. So no send is ever seen waiting to go
/// again while the provider's word on it lies here.
/// # Errors
/// As [`apply`].
pub async fn look_for(tx: &mut Tx, messages: &[MessageId], now: Timestamp) -> Result<Receipts> {
    let waiting = waiting_for(tx, messages).await?;
    take_up(tx, &waiting, now).await
}

/// As [`second_look`] for whatever has been parked since `since`: what the keeper repeats, should a process have died between
/// its commit and its second look. At most `limit` receipts. What waits for a call that ended without a report is
/// [`crate::result::settle`]'s.
/// # Errors
/// As [`apply`].
pub async fn second_look_at_all(tx: &mut Tx, since: Timestamp, limit: i64, now: Timestamp) -> Result<Receipts> {
    let known: Vec<Candidate> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(PARKED_KNOWN_ANY).bind(At(since)).bind(limit).fetch_all(&mut *conn).await?);
    take_up(tx, &known, now).await
}

const PROOF_WAITING: Both = with_ids!(
    "SELECT waits_for_message_id, generation FROM message_status_events
      WHERE message_id IS NULL AND waits_for_message_id IS NOT NULL AND generation IS NOT NULL
        AND status IN ('SENT', 'DELIVERED', 'READ') AND waits_for_message_id IN ",
    "$1",
    ""
);

/// Of these messages, the generations that the provider says it took, in receipts that wait for the call's end.
pub(crate) async fn proof_waiting_for(tx: &mut Tx, messages: &[MessageId]) -> Result<Vec<(MessageId, i16)>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(i64, i16)> = match tx {
        Tx::Postgres(tx) => sqlx::query_as(PROOF_WAITING.postgres).bind(numbers(messages)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(PROOF_WAITING.sqlite).bind(json(messages)?).fetch_all(&mut **tx).await?,
    };
    Ok(rows.into_iter().map(|(message, generation)| (MessageId::new(message), generation)).collect())
}

const PARKED_COUNT: &str =
    "SELECT count(*) FROM message_status_events WHERE message_id IS NULL AND conversation_id IS NULL";

/// How many receipts wait for their message, or for the end of its call.
/// # Errors
/// Only when the database cannot be reached.
pub async fn parked_count(tx: &mut Tx) -> Result<i64> {
    Ok(on_backend!(tx, conn => sqlx::query_scalar(PARKED_COUNT).fetch_one(conn).await?))
}
