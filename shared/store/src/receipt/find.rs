//! Finding the message a receipt speaks of, and holding it.

use super::{Found, NewReceipt};
use crate::batch::json;
use crate::column::rows;
use crate::send::{self, SendRow};
use crate::set::numbers;
use crate::{Result, Tx};
use domain::{AccountId, ConversationId, Correlation, MessageId, Status};
use std::collections::HashMap;

/// By the message's own id and by our correlation, which is believed only if the deployment is ours and we sent the message
/// from the account that the webhook names.
macro_rules! matches {
    ($set:literal) => {
        concat!(
            "SELECT i.at AS at, own.id AS own_id, own.send_generation AS own_generation, ours.id AS our_id
        FROM ",
            $set,
            "
        LEFT JOIN messages own ON own.provider_message_id = i.id AND own.channel_account_id = i.account AND own.direction = 'OUTBOUND'
        LEFT JOIN messages ours ON ours.id = i.message AND ours.channel_account_id = i.account AND ours.direction = 'OUTBOUND'
             AND i.deployment = (SELECT id FROM deployment)
       WHERE own.id IS NOT NULL OR ours.id IS NOT NULL"
        )
    };
}
const RECEIPTS_MATCH_PG: &str = matches!(
    "unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::bigint[]) AS i(at, account, id, deployment, message)"
);
const RECEIPTS_MATCH_SQLITE: &str = matches!(
    "(SELECT value ->> 0 AS at, value ->> 1 AS account, value ->> 2 AS id, value ->> 3 AS deployment, value ->> 4 AS message
        FROM json_each($1)) AS i"
);
/// By the id of an attempt: for the few that no message has.
const ATTEMPTS_MATCH_PG: &str = "SELECT i.at AS at, a.message_id, a.generation, a.attempt
      FROM unnest($1::integer[], $2::bigint[], $3::text[]) AS i(at, account, id)
      JOIN send_attempts a ON a.provider_message_id = i.id
      JOIN messages m ON m.id = a.message_id AND m.channel_account_id = i.account ORDER BY a.id";
const ATTEMPTS_MATCH_SQLITE: &str =
    "SELECT i.value ->> 0 AS at, a.message_id, a.generation, a.attempt FROM json_each($1) AS i
      JOIN send_attempts a ON a.provider_message_id = i.value ->> 2
      JOIN messages m ON m.id = a.message_id AND m.channel_account_id = i.value ->> 1 ORDER BY a.id";

rows! {
    /// The messages a receipt found.
    pub struct MatchRow {
        /// The receipt's place in the batch.
        pub at: i32,
        /// The message that has its id.
        pub own_id: Option<MessageId>,
        /// That message's present generation.
        pub own_generation: Option<i16>,
        /// The message its correlation names.
        pub our_id: Option<MessageId>,
    }
    /// The attempt a receipt found.
    pub struct AttemptMatch {
        /// The receipt's place in the batch.
        pub at: i32,
        /// The message.
        pub message_id: MessageId,
        /// Which generation.
        pub generation: i16,
        /// Which attempt.
        pub attempt: i16,
    }
    /// A message, held until the transaction ends.
    pub struct LockedMessage {
        /// The row.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Its status.
        pub status: Status,
        /// Its present generation.
        pub send_generation: i16,
        /// The provider's id, if it is known.
        pub provider_message_id: Option<String>,
    }
}

/// The messages held, by id.
pub(super) type Locked = HashMap<MessageId, LockedMessage>;

/// Place, account, provider id; deployment and message of the correlation.
type Row<'a> = (i32, i64, &'a str, Option<String>, Option<i64>);

/// The message of each receipt, in the order given; `None` for those that find none. The message's own id comes first, then
/// an attempt's, then our correlation. Where the correlation names the same message, it says exactly which generation and
/// attempt; an attempt's id does so too; the message's own id is its present generation's.
pub(super) async fn matches(tx: &mut Tx, receipts: &[&NewReceipt]) -> Result<Vec<Option<Found>>> {
    let correlations: Vec<Option<Correlation>> =
        receipts.iter().map(|receipt| receipt.correlation.as_deref().and_then(|text| text.parse().ok())).collect();
    let rows: Vec<Row<'_>> = receipts
        .iter()
        .zip(&correlations)
        .zip(0..)
        .map(|((receipt, ours), at)| {
            let deployment = ours.as_ref().map(|ours| ours.deployment.as_str().to_owned());
            let message = ours.as_ref().map(|ours| ours.message.get());
            (at, receipt.account.get(), receipt.provider_message_id.as_str(), deployment, message)
        })
        .collect();
    // Arrays on PostgreSQL, JSON on SQLite.
    let matches: Vec<MatchRow> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(RECEIPTS_MATCH_PG)
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.3.as_deref()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.4).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(RECEIPTS_MATCH_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?,
    };
    let matches: HashMap<i32, MatchRow> = matches.into_iter().map(|row| (row.at, row)).collect();
    let nobodys: Vec<(i32, i64, &str)> = rows
        .iter()
        .filter(|row| matches.get(&row.0).is_none_or(|found| found.own_id.is_none()))
        .map(|row| (row.0, row.1, row.2))
        .collect();
    let attempts = attempts(tx, &nobodys).await?;

    let found = |(at, ours): (i32, &Option<Correlation>)| {
        let by_id = matches.get(&at);
        let own = by_id.and_then(|found| Some((found.own_id?, found.own_generation?, None)));
        let past = attempts.get(&at).map(|past| (past.message_id, past.generation, Some(past.attempt)));
        let named = ours.as_ref().filter(|ours| by_id.and_then(|found| found.our_id) == Some(ours.message));
        let named = named.map(|ours| (ours.message, ours.generation, Some(ours.attempt)));
        let (message, generation, attempt) = own.or(past).or(named)?;
        let exact = named.filter(|(named, ..)| *named == message);
        let (_, generation, attempt) = exact.unwrap_or((message, generation, attempt));
        Some(Found { message, conversation: None, generation, attempt, older: false })
    };
    Ok((0..).zip(&correlations).map(found).collect())
}

/// The first attempt that has each id.
async fn attempts(tx: &mut Tx, ids: &[(i32, i64, &str)]) -> Result<HashMap<i32, AttemptMatch>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let attempts: Vec<AttemptMatch> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(ATTEMPTS_MATCH_PG)
                .bind(ids.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(ids.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(ids.iter().map(|row| row.2).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(ATTEMPTS_MATCH_SQLITE).bind(json(ids)?).fetch_all(&mut **tx).await?,
    };
    // Of several the first stays.
    Ok(attempts.into_iter().rev().map(|row| (row.at, row)).collect())
}

/// Every path locks conversations, then messages, then sends.
const CONVERSATIONS_LOCK_PG: &str =
    "SELECT id FROM conversations WHERE id IN (SELECT conversation_id FROM messages WHERE id = ANY($1))
    ORDER BY id FOR NO KEY UPDATE";

/// Holds the conversations of messages, in the order of their ids; for what will be noted on them. Before [`lock`].
pub(super) async fn lock_conversations(tx: &mut Tx, ids: Vec<MessageId>) -> Result<()> {
    // SQLite has one writer.
    if let (Tx::Postgres(tx), false) = (tx, ids.is_empty()) {
        sqlx::query(CONVERSATIONS_LOCK_PG).bind(numbers(&ids)).execute(tx.conn()).await?;
    }
    Ok(())
}

const MESSAGES_LOCK_PG: &str =
    "SELECT id, conversation_id, channel_account_id, status, send_generation, provider_message_id
      FROM messages WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
const MESSAGES_LOCK_SQLITE: &str =
    "SELECT id, conversation_id, channel_account_id, status, send_generation, provider_message_id
      FROM messages WHERE id IN (SELECT value FROM json_each($1))";

/// Holds messages, in the order of their ids; they cannot change until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, ids: Vec<MessageId>) -> Result<Locked> {
    if ids.is_empty() {
        return Ok(Locked::new());
    }
    // SQLite has one writer: reading is holding.
    let rows: Vec<LockedMessage> = match tx {
        Tx::Postgres(tx) => sqlx::query_as(MESSAGES_LOCK_PG).bind(numbers(&ids)).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(MESSAGES_LOCK_SQLITE).bind(json(&ids)?).fetch_all(&mut **tx).await?,
    };
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// The unfinished sends, by message.
pub(super) type Unfinished = HashMap<MessageId, SendRow>;

/// The sends of messages that are held, and holds them too. In a statement of its own, after [`lock`]: what a report has
/// committed before it let go of the messages is seen here. A message that is SENT or further has none.
pub(super) async fn unfinished(tx: &mut Tx, locked: &Locked) -> Result<Unfinished> {
    let mut ids: Vec<MessageId> = locked
        .values()
        .filter(|message| message.status.rank() < Status::Sent.rank())
        .map(|message| message.id)
        .collect();
    if ids.is_empty() {
        return Ok(Unfinished::new());
    }
    ids.sort_unstable();
    Ok(send::lock(tx, &ids).await?.into_iter().map(|row| (row.message_id, row)).collect())
}
