//! Who may open the page. The configuration declares them; the rows give them ids that messages, sessions and the audit
//! trail can name, and stay when somebody leaves.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Role, Timestamp, UserId};

rows! {
    /// Somebody who may open the page.
    pub struct UserRow {
        /// Their id.
        pub id: UserId,
        /// By which they sign in; lower case.
        pub email: String,
        /// How others see them.
        pub name: String,
        /// What they may do.
        pub role: Role,
    }
}

/// A user as the configuration declares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Lower case; the key.
    pub email: String,
    /// How others see them.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

const USER_DECLARE: &str = "INSERT INTO users (email, name, role, created_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (email) DO UPDATE SET name = excluded.name, role = excluded.role, disabled_at = NULL";
const USER_LIST: &str = "SELECT id, email, name, role FROM users WHERE disabled_at IS NULL ORDER BY name, id";
const USER_DISABLE: &str = "UPDATE users SET disabled_at = $2 WHERE id = $1 AND disabled_at IS NULL";
const USER_SESSIONS_REVOKE: &str = "UPDATE sessions SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL";

/// Brings the rows in line with the configuration: new people get a row, changed ones their name and role, and those no
/// longer declared are disabled with their sessions. Returns everybody who may sign in. Repeating it changes nothing.
/// # Errors
/// Only when the database cannot be reached.
pub async fn mirror(tx: &mut Tx, declared: &[Declared], now: Timestamp) -> Result<Vec<UserRow>> {
    for user in declared {
        on_backend!(tx, conn => sqlx::query(USER_DECLARE)
            .bind(&user.email).bind(&user.name).bind(user.role.as_str()).bind(At(now)).execute(conn).await?.rows_affected());
    }
    let known = list(tx).await?;
    let (kept, gone): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|user| declared.iter().any(|declared| declared.email == user.email));
    for user in gone {
        on_backend!(tx, conn => sqlx::query(USER_DISABLE).bind(user.id.get()).bind(At(now)).execute(conn).await?.rows_affected());
        on_backend!(tx, conn => sqlx::query(USER_SESSIONS_REVOKE).bind(user.id.get()).bind(At(now)).execute(conn).await?.rows_affected());
    }
    Ok(kept)
}

/// Everybody who may sign in, by name.
/// # Errors
/// Only when the database cannot be reached.
pub async fn list(tx: &mut Tx) -> Result<Vec<UserRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(USER_LIST).fetch_all(conn).await?))
}

const USER_BY_ID: &str = "SELECT id, email, name, role FROM users WHERE id = $1 AND disabled_at IS NULL";

/// One user who may sign in; `None` for an unknown or a disabled one.
/// # Errors
/// Only when the database cannot be reached.
pub async fn by_id(tx: &mut Tx, id: UserId) -> Result<Option<UserRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(USER_BY_ID).bind(id.get()).fetch_optional(conn).await?))
}
