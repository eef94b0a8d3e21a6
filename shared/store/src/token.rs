//! Programs that may use the API. The configuration holds their hashes; the rows hold ids for the audit trail and when each
//! was last seen.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Timestamp, TokenId};

rows! {
    /// A program that may use the API.
    pub struct TokenRow {
        /// Its id.
        pub id: TokenId,
        /// The configuration's name for it.
        pub name: String,
        /// When it was last seen, to the minute.
        pub last_used_at: Option<Timestamp>,
    }
}

const TOKEN_DECLARE: &str =
    "INSERT INTO api_tokens (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET disabled_at = NULL";
const TOKEN_LIST: &str = "SELECT id, name, last_used_at FROM api_tokens WHERE disabled_at IS NULL ORDER BY name";
const TOKEN_DISABLE: &str = "UPDATE api_tokens SET disabled_at = $2 WHERE id = $1";

/// Brings the rows in line with the configuration's names and returns those in force. Repeating it changes nothing.
/// # Errors
/// Only when the database cannot be reached.
pub async fn mirror(tx: &mut Tx, names: &[String], now: Timestamp) -> Result<Vec<TokenRow>> {
    for name in names {
        on_backend!(tx, conn => sqlx::query(TOKEN_DECLARE).bind(name).execute(conn).await?.rows_affected());
    }
    let known: Vec<TokenRow> = on_backend!(tx, conn => sqlx::query_as(TOKEN_LIST).fetch_all(conn).await?);
    let (kept, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(|token| names.contains(&token.name));
    for token in gone {
        on_backend!(tx, conn => sqlx::query(TOKEN_DISABLE).bind(token.id.get()).bind(At(now)).execute(conn).await?.rows_affected());
    }
    Ok(kept)
}

const TOKEN_USED: &str =
    "UPDATE api_tokens SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";

/// Notes that a token was seen. Call it at most once a minute and token.
/// # Errors
/// Only when the database cannot be reached.
pub async fn used(tx: &mut Tx, id: TokenId, at: Timestamp) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(TOKEN_USED).bind(id.get()).bind(At(at)).execute(conn).await?.rows_affected());
    Ok(())
}
