//! UNKNOWN: what the provider's own words make of an attempt whose answer never came, and what follows their silence.
//!
//! **Clocks.** Four take part, and no two of them need agree: the provider's, the database's, ingress' and the sender's.
//! A sender's never decides anything: an attempt has ended at the latest when the database says that it became UNKNOWN.
//! A witness is a word that the *provider* dates later than that, by a margin for what the two may differ, and not later
//! than the database's now: a date that has not come yet proves nothing. An attempt that the database places too early, or a
//! provider whose clock is behind, only makes us listen longer. Its arrival is what ingress says, but never before the
//! provider's own date, so an ingress whose clock is behind cannot let a window begin before the word was said. From there on
//! arrivals are compared with arrivals ([`crate::heartbeat::settled_until`]), and how far we have listened is never later
//! than the database's now.

use crate::batch::json;
use crate::column::rows;
use crate::feed::{self, Change};
use crate::set::{Both, numbers, with_ids};
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{AccountId, ConversationId, MessageId, Status, Timestamp};

/// What a provider said of a message of ours, in a receipt or an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Which message.
    pub message: MessageId,
    /// Which generation it speaks of.
    pub generation: i16,
    /// What it says: SENT or above, or FAILED; anything else settles nothing.
    pub status: Status,
}

macro_rules! settle {
    ($set:literal) => {
        concat!(
            "DELETE FROM sends WHERE state <> 'IN_FLIGHT' AND EXISTS (SELECT 1 FROM ",
            $set,
            " WHERE i.message = sends.message_id
        AND (i.generation = sends.generation OR (i.generation < sends.generation AND i.proof = 1)))
  RETURNING message_id, conversation_id, channel_account_id"
        )
    };
}
const SEND_SETTLE: Both = Both {
    postgres: settle!("unnest($1::bigint[], $2::smallint[], $3::smallint[]) AS i(message, generation, proof)"),
    sqlite: settle!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS generation, value ->> 2 AS proof FROM json_each($1)) AS i"
    ),
};

rows! {
    /// A send that is finished: its lane's next head may go.
    pub struct Settled {
        /// Which message.
        pub message_id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
    }
}

/// Deletes the sends that this evidence finishes, but for those IN_FLIGHT: nothing is settled beside an open call. Of the
/// message's present generation anything at SENT or above and FAILED does, of an older one only DELIVERED and READ. The caller
/// holds the messages and their sends, and raises the status.
/// # Errors
/// Only when the database cannot be reached.
pub async fn settle_by_evidence(tx: &mut Tx, evidence: &[Evidence]) -> Result<Vec<Settled>> {
    let rows: Vec<(i64, i16, i16)> = evidence
        .iter()
        .filter(|said| said.status.rank() >= Status::Sent.rank())
        .map(|said| {
            let proof = i16::from(said.status.rank() >= Status::Delivered.rank());
            (said.message.get(), said.generation, proof)
        })
        .collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    Ok(match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query_as(SEND_SETTLE.postgres)
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>());
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(SEND_SETTLE.sqlite).bind(json(&rows)?).fetch_all(&mut **tx).await?,
    })
}

rows! {
    /// An UNKNOWN send, and what has been heard since.
    pub struct Silence {
        /// Which message.
        pub message_id: MessageId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// The source that signs for the account.
        pub source: String,
        /// Which generation.
        pub generation: i16,
        /// Which attempt.
        pub attempt: i16,
        /// Since when it is UNKNOWN, by the database's clock.
        pub unknown_since: Timestamp,
        /// When the first sign of life after the attempt arrived at ingress.
        pub witness_at: Option<Timestamp>,
        /// How many dead letters of the source are open that may hold what we wait for.
        pub open_dead_letters: i64,
    }
}

/// A dead letter may hold what we wait for if it died after the attempt began: by the earliest time known of that, less a
/// minute for what the clocks may differ. Of the source itself, or of nobody knows which: what could not even be read, and
/// what a sender reported and could not be written.
macro_rules! silences {
    ($minute:literal) => {
        concat!(
            "SELECT s.message_id, s.channel_account_id, a.source, s.generation, s.attempt, s.unknown_since, s.witness_at,
    (SELECT count(*) FROM dead_letters d WHERE d.state IN ('OPEN', 'REPLAYING')
        AND (d.source = a.source OR (d.source IS NULL AND d.stage IN ('INGEST', 'RESULT')))
        AND d.died_at >= CASE WHEN coalesce(t.started_at, s.unknown_since) < coalesce(s.dispatched_at, s.unknown_since)
              THEN coalesce(t.started_at, s.unknown_since) ELSE coalesce(s.dispatched_at, s.unknown_since) END - ",
            $minute,
            ") AS open_dead_letters
  FROM sends s JOIN channel_accounts a ON a.id = s.channel_account_id
  LEFT JOIN send_attempts t ON t.message_id = s.message_id AND t.generation = s.generation AND t.attempt = s.attempt
 WHERE s.state = 'UNKNOWN' ORDER BY s.unknown_since LIMIT $1"
        )
    };
}
const SEND_SILENCES: Both = Both { postgres: silences!("interval '1 minute'"), sqlite: silences!("60000000") };

/// The sends of unknown outcome, oldest first.
/// # Errors
/// Only when the database cannot be reached.
pub async fn silences(tx: &mut Tx, limit: i64) -> Result<Vec<Silence>> {
    let sql = if tx.is_postgres() { SEND_SILENCES.postgres } else { SEND_SILENCES.sqlite };
    Ok(on_backend!(tx, conn => sqlx::query_as(sql).bind(limit).fetch_all(conn).await?))
}

/// How many of the newest status events are looked at for witnesses. The keeper looks every second and remembers what it
/// found, so this is far more than can have come in between.
const RECENT_EVENTS: i64 = 20_000;

/// Two clocks that are both kept right differ by far less than this, and providers date by the whole second.
macro_rules! witnesses {
    ($margin:literal) => {
        concat!(
            "SELECT s.message_id AS id, min(CASE WHEN e.received_at > e.occurred_at THEN e.received_at ELSE e.occurred_at END) AS at
    FROM sends s
    JOIN message_status_events e ON e.channel_account_id = s.channel_account_id AND e.source = 'PROVIDER'
     AND e.occurred_at > s.unknown_since + ",
            $margin,
            " AND e.occurred_at <= $2
     AND (e.message_id IS NULL OR e.message_id <> s.message_id)
     AND (e.waits_for_message_id IS NULL OR e.waits_for_message_id <> s.message_id)
   WHERE s.state = 'UNKNOWN' AND s.witness_at IS NULL
     AND e.id > (SELECT coalesce(max(id), 0) FROM message_status_events) - $1
   GROUP BY s.message_id ORDER BY s.message_id"
        )
    };
}
const SEND_WITNESSES: Both = Both { postgres: witnesses!("interval '2 seconds'"), sqlite: witnesses!("2000000") };

macro_rules! note_witness {
    ($set:literal) => {
        concat!(
            "UPDATE sends SET witness_at = i.at FROM ",
            $set,
            " WHERE sends.message_id = i.message AND sends.state = 'UNKNOWN' AND sends.witness_at IS NULL"
        )
    };
}
const SEND_NOTE_WITNESS: Both = Both {
    postgres: note_witness!("unnest($1::bigint[], $2::timestamptz[]) AS i(message, at)"),
    sqlite: note_witness!("(SELECT value ->> 0 AS message, value ->> 1 AS at FROM json_each($1)) AS i"),
};

rows! {
    /// The first word after an attempt.
    pub struct Witness {
        /// The message that is waited for.
        pub id: MessageId,
        /// When the word arrived.
        pub at: Timestamp,
    }
}

/// Notes for each UNKNOWN send without one its witness: the first word of the provider's on another message of the account
/// that it dates later than the attempt, by when it arrived. It proves that the account's webhooks reach us. In a transaction
/// of its own: it holds rows of `sends` without their messages.
/// # Errors
/// Only when the database cannot be reached.
pub async fn note_witnesses(tx: &mut Tx) -> Result<u64> {
    let now = At(tx.database_now().await?);
    let find = if tx.is_postgres() { SEND_WITNESSES.postgres } else { SEND_WITNESSES.sqlite };
    let heard: Vec<Witness> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(find).bind(RECENT_EVENTS).bind(now).fetch_all(conn).await?);
    if heard.is_empty() {
        return Ok(0);
    }
    // In the order of the ids, as everybody holds them.
    super::lock(tx, &heard.iter().map(|witness| witness.id).collect::<Vec<_>>()).await?;
    Ok(match tx {
        Tx::Postgres(tx) => {
            let (ids, times): (Vec<i64>, Vec<At>) =
                heard.iter().map(|witness| (witness.id.get(), At(witness.at))).unzip();
            sqlx::query(SEND_NOTE_WITNESS.postgres).bind(ids).bind(times).execute(tx.conn()).await?.rows_affected()
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<(i64, i64)> = heard.iter().map(|witness| (witness.id.get(), witness.at.micros())).collect();
            sqlx::query(SEND_NOTE_WITNESS.sqlite).bind(json(&rows)?).execute(&mut **tx).await?.rows_affected()
        }
    })
}

/// What becomes of a send whose evidence window ended in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// HELD: may have been sent, a person decides; the lane goes on.
    Hold,
    /// WAITING: it goes again, at its old place.
    Resend,
}

macro_rules! conclude {
    ($set:literal, $change:literal) => {
        concat!(
            "UPDATE sends SET ",
            $change,
            " FROM ",
            $set,
            " WHERE sends.message_id = i.message AND sends.generation = i.generation AND sends.attempt = i.attempt
    AND sends.state = 'UNKNOWN' RETURNING message_id, conversation_id, channel_account_id"
        )
    };
}
macro_rules! set_pg {
    ($change:literal) => {
        conclude!("unnest($1::bigint[], $2::smallint[], $3::smallint[]) AS i(message, generation, attempt)", $change)
    };
}
macro_rules! set_sqlite {
    ($change:literal) => {
        conclude!(
            "(SELECT value ->> 0 AS message, value ->> 1 AS generation, value ->> 2 AS attempt FROM json_each($1)) AS i",
            $change
        )
    };
}
const SEND_HOLD: Both =
    Both { postgres: set_pg!("state = 'HELD', seq = NULL"), sqlite: set_sqlite!("state = 'HELD', seq = NULL") };
const SEND_RESEND: Both = Both {
    postgres: set_pg!("state = 'WAITING', unknown_since = NULL, witness_at = NULL, dispatched_at = NULL"),
    sqlite: set_sqlite!("state = 'WAITING', unknown_since = NULL, witness_at = NULL, dispatched_at = NULL"),
};

/// The messages first: the order of every path.
const MESSAGE_LOCK: &str = "SELECT id FROM messages WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
const MESSAGE_REQUEUE: Both = with_ids!(
    "UPDATE messages SET status = 'QUEUED', outcome_unknown = false WHERE status = 'SENDING' AND id IN ",
    "$1",
    ""
);

/// Ends the evidence windows of these sends, where they are still UNKNOWN in this very attempt. Returns those it ended.
/// # Errors
/// Only when the database cannot be reached.
pub async fn conclude(tx: &mut Tx, silent: &[&Silence], verdict: Verdict, now: Timestamp) -> Result<Vec<Settled>> {
    if silent.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(i64, i16, i16)> =
        silent.iter().map(|row| (row.message_id.get(), row.generation, row.attempt)).collect();
    let sql = match verdict {
        Verdict::Hold => SEND_HOLD,
        Verdict::Resend => SEND_RESEND,
    };
    let ended: Vec<Settled> = match tx {
        Tx::Postgres(tx) => {
            let ids: Vec<i64> = rows.iter().map(|row| row.0).collect();
            sqlx::query(MESSAGE_LOCK).bind(&ids).execute(tx.conn()).await?;
            let query = sqlx::query_as(sql.postgres)
                .bind(ids)
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>());
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => sqlx::query_as(sql.sqlite).bind(json(&rows)?).fetch_all(&mut **tx).await?,
    };
    let ids: Vec<MessageId> = ended.iter().map(|row| row.message_id).collect();
    if verdict == Verdict::Resend {
        match tx {
            Tx::Postgres(tx) => {
                sqlx::query(MESSAGE_REQUEUE.postgres).bind(numbers(&ids)).execute(tx.conn()).await?;
            }
            Tx::Sqlite(tx) => {
                sqlx::query(MESSAGE_REQUEUE.sqlite).bind(json(&ids)?).execute(&mut **tx).await?;
            }
        }
    }
    let status = match verdict {
        Verdict::Hold => Status::Sending,
        Verdict::Resend => Status::Queued,
    };
    let changes = ended.iter().map(|row| Change::MessageStatus {
        conversation: row.conversation_id,
        message: row.message_id,
        status,
    });
    feed::write(tx, &changes.collect::<Vec<_>>(), now).await?;
    Ok(ended)
}
