//! Finding the message a receipt speaks of, and holding it.

use super::{Found, NewReceipt};
use crate::batch::json;
use crate::column::rows;
use crate::{Result, Tx};
use domain::{AccountId, ConversationId, Correlation, MessageId, Status};
use std::collections::HashMap;

/// By the message's own id, by the id of one of its attempts, by our correlation. The correlation is believed only if the
/// deployment is ours and we sent the message from the account that the webhook names. Where it is, it says exactly which
/// generation and attempt; an attempt's id does so too; the message's own id is its present generation's.
macro_rules! matches {
    ($set:literal) => {
        concat!(
            "SELECT i.at AS at, coalesce(own.id, past.message_id, ours.id) AS message_id,
             CASE WHEN ours.id = coalesce(own.id, past.message_id, ours.id) THEN i.generation
                  WHEN own.id IS NOT NULL THEN own.send_generation ELSE past.generation END AS generation,
             CASE WHEN ours.id = coalesce(own.id, past.message_id, ours.id) THEN i.attempt
                  WHEN own.id IS NOT NULL THEN NULL ELSE past.attempt END AS attempt
        FROM ", $set, "
        LEFT JOIN messages own ON own.provider_message_id = i.id AND own.channel_account_id = i.account AND own.direction = 'OUTBOUND'
        LEFT JOIN send_attempts past ON past.id = CASE WHEN own.id IS NULL THEN
             (SELECT min(a.id) FROM send_attempts a JOIN messages m ON m.id = a.message_id AND m.channel_account_id = i.account
               WHERE a.provider_message_id = i.id) END
        LEFT JOIN messages ours ON ours.id = i.message AND ours.channel_account_id = i.account AND ours.direction = 'OUTBOUND'
             AND i.deployment = (SELECT id FROM deployment)
       WHERE coalesce(own.id, past.message_id, ours.id) IS NOT NULL"
        )
    };
}
const RECEIPTS_MATCH_PG: &str = matches!(
    "unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::smallint[], $7::smallint[])
        AS i(at, account, id, deployment, message, generation, attempt)"
);
const RECEIPTS_MATCH_SQLITE: &str = matches!(
    "(SELECT value ->> 0 AS at, value ->> 1 AS account, value ->> 2 AS id, value ->> 3 AS deployment, value ->> 4 AS message,
             value ->> 5 AS generation, value ->> 6 AS attempt FROM json_each($1)) AS i"
);

rows! {
    /// Which message a receipt found.
    pub struct MatchRow {
        /// The receipt's place in the batch.
        pub at: i32,
        /// The message.
        pub message_id: MessageId,
        /// Which generation the receipt speaks of.
        pub generation: i16,
        /// Which attempt, where that is known.
        pub attempt: Option<i16>,
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

/// Place, account, provider id; deployment, message, generation, attempt of the correlation.
type Row<'a> = (i32, i64, &'a str, Option<String>, Option<i64>, Option<i16>, Option<i16>);

/// The message of each receipt, in the order given; `None` for those that find none.
pub(super) async fn matches(tx: &mut Tx, receipts: &[&NewReceipt]) -> Result<Vec<Option<Found>>> {
    let rows: Vec<Row<'_>> = receipts
        .iter()
        .zip(0..)
        .map(|(receipt, at)| {
            let ours = receipt.correlation.as_deref().and_then(|text| text.parse::<Correlation>().ok());
            let message = ours.as_ref().map(|ours| ours.message.get());
            let (generation, attempt) = ours.as_ref().map(|ours| (ours.generation, ours.attempt)).unzip();
            let deployment = ours.map(|ours| ours.deployment.as_str().to_owned());
            let id = receipt.provider_message_id.as_str();
            (at, receipt.account.get(), id, deployment, message, generation, attempt)
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
                .bind(rows.iter().map(|row| row.5).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.6).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(RECEIPTS_MATCH_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?,
    };
    let mut found = vec![None; receipts.len()];
    for row in matches {
        if let Some(place) = usize::try_from(row.at).ok().and_then(|at| found.get_mut(at)) {
            *place = Some(Found {
                message: row.message_id,
                conversation: None,
                generation: row.generation,
                attempt: row.attempt,
                older: false,
            });
        }
    }
    Ok(found)
}

const MESSAGES_LOCK_PG: &str =
    "SELECT id, conversation_id, channel_account_id, status, send_generation, provider_message_id
      FROM messages WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
const MESSAGES_LOCK_SQLITE: &str =
    "SELECT id, conversation_id, channel_account_id, status, send_generation, provider_message_id
      FROM messages WHERE id IN (SELECT value FROM json_each($1))";

/// Every path locks conversations, then messages, then sends.
const CONVERSATIONS_LOCK_PG: &str =
    "SELECT id FROM conversations WHERE id IN (SELECT conversation_id FROM messages WHERE id = ANY($1))
    ORDER BY id FOR NO KEY UPDATE";

/// Holds the conversations of messages, in the order of their ids; for what will be noted on them. Before [`lock`].
pub(super) async fn lock_conversations(tx: &mut Tx, ids: &[MessageId]) -> Result<()> {
    // SQLite has one writer.
    if let (Tx::Postgres(tx), false) = (tx, ids.is_empty()) {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        sqlx::query(CONVERSATIONS_LOCK_PG).bind(ids).execute(tx.conn()).await?;
    }
    Ok(())
}

/// Holds messages, in the order of their ids; they cannot change until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, ids: Vec<MessageId>) -> Result<Locked> {
    if ids.is_empty() {
        return Ok(Locked::new());
    }
    // SQLite has one writer: reading is holding.
    let rows: Vec<LockedMessage> = match tx {
        Tx::Postgres(tx) => {
            let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
            sqlx::query_as(MESSAGES_LOCK_PG).bind(ids).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(MESSAGES_LOCK_SQLITE).bind(json(&ids)?).fetch_all(&mut **tx).await?,
    };
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}
