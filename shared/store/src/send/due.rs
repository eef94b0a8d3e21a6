//! SCHEDULED → WAITING: a send enters the lane when its time has come, at the end of it.

use crate::batch::json;
use crate::set::Both;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{AccountId, Timestamp};

const SEND_DUE_CONVERSATIONS: &str = "SELECT DISTINCT conversation_id FROM (
    SELECT conversation_id FROM sends WHERE state = 'SCHEDULED' AND due_at <= $1 ORDER BY due_at LIMIT $2) AS due";

/// The lock under which places in a lane are given out. SQLite has one writer: there it is held already.
const CONVERSATION_LOCK: &str = "SELECT id FROM conversations WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";

macro_rules! fall_due {
    ($conversations:literal) => {
        concat!(
            "UPDATE sends SET state = 'WAITING', seq = place.seq FROM (
  SELECT s.message_id AS id,
         coalesce((SELECT max(l.seq) FROM sends l WHERE l.conversation_id = s.conversation_id), 0)
           + row_number() OVER (PARTITION BY s.conversation_id ORDER BY s.due_at, s.message_id) AS seq
    FROM sends s WHERE s.state = 'SCHEDULED' AND s.due_at <= $1 AND s.conversation_id IN ",
            $conversations,
            ") AS place WHERE sends.message_id = place.id AND sends.state = 'SCHEDULED' RETURNING channel_account_id"
        )
    };
}
const SEND_FALL_DUE: Both = Both {
    postgres: fall_due!("(SELECT unnest($2::bigint[]))"),
    sqlite: fall_due!("(SELECT value FROM json_each($2))"),
};

/// Lets sends whose time has come enter their lanes, of at most `limit` conversations. Returns the accounts that have
/// something to dispatch now, one entry per send.
/// # Errors
/// Only when the database cannot be reached.
pub async fn fall_due(tx: &mut Tx, now: Timestamp, limit: i64) -> Result<Vec<AccountId>> {
    let conversations: Vec<i64> = on_backend!(tx, conn =>
        sqlx::query_scalar(SEND_DUE_CONVERSATIONS).bind(At(now)).bind(limit).fetch_all(conn).await?);
    if conversations.is_empty() {
        return Ok(Vec::new());
    }
    let accounts: Vec<i64> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query(CONVERSATION_LOCK).bind(&conversations).execute(tx.conn()).await?;
            let query = sqlx::query_scalar(SEND_FALL_DUE.postgres).bind(At(now)).bind(&conversations);
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query_scalar(SEND_FALL_DUE.sqlite).bind(At(now)).bind(json(&conversations)?);
            query.fetch_all(&mut **tx).await?
        }
    };
    Ok(accounts.into_iter().map(AccountId::new).collect())
}
