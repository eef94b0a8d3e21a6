//! Who did what to which, when. Append-only: there is no statement here that changes or deletes a row.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Timestamp, TokenId, UserId};
use sqlx::types::Json;

/// Who acted: a person, a program, or neither (a failed login).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// The person.
    pub user: Option<UserId>,
    /// The program.
    pub token: Option<TokenId>,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    /// By whom.
    pub actor: Actor,
    /// What: `login`, `message.send`, `conversation.assign`, …
    pub action: &'a str,
    /// To what kind of thing.
    pub target_type: &'a str,
    /// To which of them.
    pub target_id: &'a str,
    /// Particulars; never message text, phone numbers or secrets.
    pub detail: serde_json::Value,
    /// The request that did it.
    pub request_id: Option<&'a str>,
    /// From where.
    pub ip: Option<&'a str>,
}

rows! {
    /// A line of the trail.
    pub struct AuditRow {
        /// Position in the trail.
        pub id: i64,
        /// The person who acted.
        pub actor_user_id: Option<UserId>,
        /// The program that acted.
        pub actor_token_id: Option<TokenId>,
        /// What was done.
        pub action: String,
        /// To what kind of thing.
        pub target_type: String,
        /// To which of them.
        pub target_id: String,
        /// Particulars.
        pub detail: serde_json::Value,
        /// The request that did it.
        pub request_id: Option<String>,
        /// From where.
        pub ip: Option<String>,
        /// When.
        pub created_at: Timestamp,
    }
}

const AUDIT_RECORD: &str = "INSERT INTO audit_log
    (actor_user_id, actor_token_id, action, target_type, target_id, detail, request_id, ip, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Adds a line, in the transaction of what it tells of: either both are kept or neither.
/// # Errors
/// Only when the database cannot be reached.
pub async fn record(tx: &mut Tx, entry: &Entry<'_>, now: Timestamp) -> Result<()> {
    on_backend!(tx, conn => sqlx::query(AUDIT_RECORD)
        .bind(entry.actor.user.map(UserId::get)).bind(entry.actor.token.map(TokenId::get))
        .bind(entry.action).bind(entry.target_type).bind(entry.target_id).bind(Json(&entry.detail))
        .bind(entry.request_id).bind(entry.ip).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(())
}

const AUDIT_OF: &str =
    "SELECT id, actor_user_id, actor_token_id, action, target_type, target_id, detail, request_id, ip,
    created_at FROM audit_log WHERE target_type = $1 AND target_id = $2 ORDER BY created_at DESC, id DESC LIMIT $3";

/// What was done to one thing, newest first.
/// # Errors
/// Only when the database cannot be reached.
pub async fn of(tx: &mut Tx, target_type: &str, target_id: &str, limit: i64) -> Result<Vec<AuditRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(AUDIT_OF)
        .bind(target_type).bind(target_id).bind(limit).fetch_all(conn).await?))
}
