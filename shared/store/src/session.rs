//! Signed-in browsers. Only the SHA-256 of a session's token is kept, so a copy of the database opens nothing.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Role, Timestamp, UserId};

rows! {
    /// Whose session it is.
    pub struct SessionUser {
        /// The user.
        pub user_id: UserId,
        /// Their e-mail.
        pub email: String,
        /// How others see them.
        pub name: String,
        /// What they may do now, not when they signed in.
        pub role: Role,
        /// When the session ends by itself.
        pub expires_at: Timestamp,
    }
}

const SESSION_CREATE: &str =
    "INSERT INTO sessions (token_sha256, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4)";

/// Begins a session. The token itself is random and known only to the browser.
/// # Errors
/// When the database cannot be reached, or the user does not exist.
pub async fn create(tx: &mut Tx, sha256: &[u8; 32], user: UserId, now: Timestamp, until: Timestamp) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(SESSION_CREATE)
        .bind(&sha256[..]).bind(user.get()).bind(At(now)).bind(At(until)).execute(conn).await?.rows_affected());
    Ok(())
}

const SESSION_FIND: &str = "SELECT s.user_id, u.email, u.name, u.role, s.expires_at
    FROM sessions s JOIN users u ON u.id = s.user_id
    WHERE s.token_sha256 = $1 AND s.revoked_at IS NULL AND s.expires_at > $2 AND u.disabled_at IS NULL";

/// Whose session this is; `None` when it ended, was revoked, or never was.
/// # Errors
/// Only when the database cannot be reached.
pub async fn find(tx: &mut Tx, sha256: &[u8; 32], now: Timestamp) -> Result<Option<SessionUser>> {
    Ok(
        on_backend!(tx, conn => sqlx::query_as(SESSION_FIND).bind(&sha256[..]).bind(At(now)).fetch_optional(conn).await?),
    )
}

const SESSION_REVOKE: &str = "UPDATE sessions SET revoked_at = $2 WHERE token_sha256 = $1 AND revoked_at IS NULL";

/// Ends a session at once. `false`: it had ended already.
/// # Errors
/// Only when the database cannot be reached.
pub async fn revoke(tx: &mut Tx, sha256: &[u8; 32], now: Timestamp) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(SESSION_REVOKE)
        .bind(&sha256[..]).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}

const SESSION_FORGET: &str = "DELETE FROM sessions WHERE expires_at < $1";

/// Deletes sessions that ended before `before`; returns how many.
/// # Errors
/// Only when the database cannot be reached.
pub async fn forget(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    Ok(on_backend!(tx, conn => sqlx::query(SESSION_FORGET).bind(At(before)).execute(conn).await?.rows_affected()))
}
