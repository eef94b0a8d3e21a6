//! `channel_accounts`: the mirror of the configuration, and what holds at run time (paused, broken). The configuration
//! says what an account is; the row says whether it may send, and gives it the id that every other row refers to.

use crate::column::rows;
use crate::rate_limit::{account_scope, app_scope, parent_scope};
use crate::set::Both;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Account, AccountId, AccountKey, AccountName, Channel, Timestamp, UserId};
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The configured accounts with the ids of their rows.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    accounts: HashMap<AccountId, Arc<Account>>,
    by_key: HashMap<(Channel, String), AccountId>,
    by_name: HashMap<AccountName, AccountId>,
    shared: HashMap<String, f64>,
}

impl Directory {
    /// Pairs accounts with their ids.
    pub fn of(accounts: impl IntoIterator<Item = (AccountId, Account)>) -> Self {
        let mut directory = Self::default();
        for (id, account) in accounts {
            directory.by_key.insert((account.channel, account.external_id.clone()), id);
            directory.by_name.insert(account.name.clone(), id);
            for scope in shared_scopes(&account) {
                *directory.shared.entry(scope).or_default() += account.rate_per_second;
            }
            directory.accounts.insert(id, Arc::new(account));
        }
        directory
    }

    /// The account with this id; `None` for one that left the configuration.
    pub fn account(&self, id: AccountId) -> Option<&Arc<Account>> {
        self.accounts.get(&id)
    }

    /// The id of the account that a payload names.
    pub fn id_of(&self, key: &AccountKey) -> Option<AccountId> {
        self.by_key.get(&(key.channel, key.external_id.clone())).copied()
    }

    /// The id of the account that the configuration calls so.
    pub fn id_named(&self, name: &AccountName) -> Option<AccountId> {
        self.by_name.get(name).copied()
    }

    /// Every configured account, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (AccountId, &Arc<Account>)> {
        let sorted: BTreeMap<AccountId, &Arc<Account>> =
            self.accounts.iter().map(|(id, account)| (*id, account)).collect();
        sorted.into_iter()
    }

    /// The scopes that an account shares with others, each with the sum of their configured rates.
    pub fn shared_scopes(&self, account: &Account) -> Vec<(String, f64)> {
        let rate = |scope: &String| self.shared.get(scope).copied().unwrap_or(account.rate_per_second);
        shared_scopes(account).into_iter().map(|scope| (scope.clone(), rate(&scope))).collect()
    }
}

fn shared_scopes(account: &Account) -> Vec<String> {
    let parent = account.parent_external_id.as_deref().map(parent_scope);
    std::iter::once(app_scope(account.source.as_str())).chain(parent).collect()
}

rows! {
    /// An account's row.
    pub struct AccountRow {
        /// Its id.
        pub id: AccountId,
        /// Its channel.
        pub channel: Channel,
        /// The provider's id.
        pub external_account_id: String,
        /// The configuration's name.
        pub name: String,
        /// The source that signs for it.
        pub source: String,
        /// What people call its address.
        pub display_address: Option<String>,
        /// The configured rate.
        pub rate_per_sec: f64,
        /// ACTIVE, PAUSED, BROKEN or DISABLED.
        pub status: String,
        /// Why, in words, where it is not ACTIVE.
        pub status_reason: Option<String>,
        /// When a pause ends by itself.
        pub paused_until: Option<Timestamp>,
        /// When its state last changed.
        pub updated_at: Timestamp,
    }
}

const ACCOUNT_ALL: &str =
    "SELECT id, channel, external_account_id, name, source, display_address, rate_per_sec, status,
    status_reason, paused_until, updated_at FROM channel_accounts ORDER BY id";

/// Every account there ever was, with its present state.
/// # Errors
/// Only when the database cannot be reached.
pub async fn all(tx: &mut Tx) -> Result<Vec<AccountRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(ACCOUNT_ALL).fetch_all(conn).await?))
}

const ACCOUNT_MIRROR: &str = "INSERT INTO channel_accounts (channel, external_account_id, name, source, parent_external_id,
    portfolio_id, display_address, window_hours, rate_per_sec, pair_interval_ms, status, created_at, updated_at)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'ACTIVE', $11, $11)
  ON CONFLICT (channel, external_account_id) DO UPDATE SET name = excluded.name, source = excluded.source,
    parent_external_id = excluded.parent_external_id, portfolio_id = excluded.portfolio_id,
    display_address = excluded.display_address, window_hours = excluded.window_hours, rate_per_sec = excluded.rate_per_sec,
    pair_interval_ms = excluded.pair_interval_ms, updated_at = excluded.updated_at,
    status = CASE WHEN channel_accounts.status <> 'DISABLED' THEN channel_accounts.status
      WHEN channel_accounts.paused_by IS NOT NULL OR channel_accounts.paused_until IS NOT NULL THEN 'PAUSED'
      WHEN channel_accounts.broken_token_sha256 IS NOT NULL THEN 'BROKEN' ELSE 'ACTIVE' END,
    status_reason = CASE WHEN channel_accounts.status <> 'DISABLED' OR channel_accounts.paused_by IS NOT NULL
        OR channel_accounts.paused_until IS NOT NULL OR channel_accounts.broken_token_sha256 IS NOT NULL
      THEN channel_accounts.status_reason END
  RETURNING id";

/// A rate that was never lowered follows the configuration; a learnt one only keeps below it.
const LIMIT_MIRROR: &str = "INSERT INTO rate_limits (scope, tat, rate_per_sec) VALUES ($1, $2, $3)
  ON CONFLICT (scope) DO UPDATE SET rate_per_sec = CASE
    WHEN rate_limits.rate_per_sec >= $4 OR rate_limits.rate_per_sec > excluded.rate_per_sec THEN excluded.rate_per_sec
    ELSE rate_limits.rate_per_sec END";

/// Rows that point to the queue of the old name go back to the lane, from where they reach the new one.
const SEND_FOLLOW_RENAME: &str = "UPDATE sends SET state = 'WAITING', dispatched_at = NULL
  WHERE channel_account_id = $1 AND state = 'DISPATCHED'";

/// Why it did not send before stays noted: it holds again when the account comes back.
macro_rules! disable {
    ($which:literal) => {
        concat!(
            "UPDATE channel_accounts SET status = 'DISABLED', status_reason =
               CASE status WHEN 'ACTIVE' THEN 'It is no longer in the configuration.' ELSE status_reason END,
             updated_at = $1 WHERE status <> 'DISABLED' AND ",
            $which
        )
    };
}
const ACCOUNT_DISABLE: Both =
    Both { postgres: disable!("NOT id = ANY($2)"), sqlite: disable!("id NOT IN (SELECT value FROM json_each($2))") };

/// Nobody reads the queue of an account that left: what is in it goes back to the lane, from where it may still be taken back,
/// or go when the account returns. At every start, as a dispatch that was under way may have come in between.
const SEND_LEAVE_DISABLED: &str = "UPDATE sends SET state = 'WAITING', dispatched_at = NULL
  WHERE state = 'DISPATCHED' AND channel_account_id IN (SELECT id FROM channel_accounts WHERE status = 'DISABLED')";

/// Writes the configured accounts into the database and returns their ids. An account is known by its channel and the
/// provider's id: a rename keeps the row. One that left the configuration becomes DISABLED, its sends wait. When it comes
/// back it is PAUSED if a person or a time is noted for its pause, BROKEN if a refused token is (a sender with another one
/// revives it), else ACTIVE. Every role may call it at its start, as often as it likes.
/// # Errors
/// When the database cannot be reached.
pub async fn mirror(tx: &mut Tx, accounts: &[Account], now: Timestamp) -> Result<Directory> {
    let before = all(tx).await?;
    let old = |account: &Account| {
        before.iter().find(|row| row.channel == account.channel && row.external_account_id == account.external_id)
    };
    let old_sums = before.iter().fold(HashMap::<&str, f64>::new(), |mut sums, row| {
        *sums.entry(row.source.as_str()).or_default() += row.rate_per_sec;
        sums
    });
    // In one order in every process, so that two that start together do not wait for each other in a circle. A handful of
    // rows, once a start: no need for a set.
    let mut sorted: Vec<&Account> = accounts.iter().collect();
    sorted.sort_by(|a, b| (a.channel.as_str(), &a.external_id).cmp(&(b.channel.as_str(), &b.external_id)));
    let mut mirrored = Vec::new();
    for account in sorted {
        let hours = account.window.map(|window| i16::try_from(window.as_secs() / 3600).unwrap_or(i16::MAX));
        let pair = i32::try_from(account.pair_interval.as_millis()).unwrap_or(i32::MAX);
        let id: i64 = on_backend!(&mut *tx, conn => sqlx::query_scalar(ACCOUNT_MIRROR)
            .bind(account.channel.as_str()).bind(&account.external_id).bind(account.name.as_str())
            .bind(account.source.as_str()).bind(&account.parent_external_id).bind(&account.portfolio_id)
            .bind(&account.display_address).bind(hours).bind(account.rate_per_second).bind(pair).bind(At(now))
            .fetch_one(conn).await?);
        if old(account).is_some_and(|row| row.name != account.name.as_str()) {
            on_backend!(&mut *tx, conn => { sqlx::query(SEND_FOLLOW_RENAME).bind(id).execute(conn).await?; });
        }
        mirrored.push((AccountId::new(id), account.clone()));
    }
    let directory = Directory::of(mirrored);
    let mut scopes: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (id, account) in directory.iter() {
        let was = old(account).map_or(account.rate_per_second, |row| row.rate_per_sec);
        scopes.insert(account_scope(id), (account.rate_per_second, was));
        for (scope, sum) in directory.shared_scopes(account) {
            let was = if scope.starts_with("app:") { old_sums.get(account.source.as_str()).copied() } else { None };
            scopes.insert(scope, (sum, was.unwrap_or(sum)));
        }
    }
    for (scope, (rate, was)) in scopes {
        on_backend!(&mut *tx, conn => { sqlx::query(LIMIT_MIRROR)
            .bind(scope).bind(At(Timestamp::EPOCH)).bind(rate).bind(was).execute(conn).await?; });
    }
    let ids: Vec<i64> = directory.iter().map(|(id, _)| id.get()).collect();
    match &mut *tx {
        Tx::Postgres(tx) => {
            sqlx::query(ACCOUNT_DISABLE.postgres).bind(At(now)).bind(ids).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            let ids = crate::batch::json(&ids)?;
            sqlx::query(ACCOUNT_DISABLE.sqlite).bind(At(now)).bind(ids).execute(&mut **tx).await?;
        }
    }
    on_backend!(tx, conn => { sqlx::query(SEND_LEAVE_DISABLED).execute(conn).await?; });
    Ok(directory)
}

const ACCOUNT_PAUSE: &str = "UPDATE channel_accounts SET status = 'PAUSED', status_reason = $2, paused_by = $3,
    paused_until = $4, updated_at = $5 WHERE id = $1 AND status IN ('ACTIVE', 'PAUSED')";

/// Stops an account's calls: within the second no sender claims for it any more. `until`: it goes on by itself then.
/// `false`: it is broken or disabled.
/// # Errors
/// Only when the database cannot be reached.
pub async fn pause(
    tx: &mut Tx,
    id: AccountId,
    reason: Option<&str>,
    by: Option<UserId>,
    until: Option<Timestamp>,
    now: Timestamp,
) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(ACCOUNT_PAUSE).bind(id.get()).bind(reason)
        .bind(by.map(UserId::get)).bind(until.map(At)).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}

const ACCOUNT_RESUME: &str = "UPDATE channel_accounts SET status = 'ACTIVE', status_reason = NULL, paused_by = NULL,
    paused_until = NULL, broken_token_sha256 = NULL, updated_at = $2 WHERE id = $1 AND status IN ('PAUSED', 'BROKEN')";

/// A person says "go on": a paused or broken account is ACTIVE again, whatever its token.
/// # Errors
/// Only when the database cannot be reached.
pub async fn resume(tx: &mut Tx, id: AccountId, now: Timestamp) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(ACCOUNT_RESUME).bind(id.get()).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}

const ACCOUNT_PAUSE_OVER: &str =
    "UPDATE channel_accounts SET status = 'ACTIVE', status_reason = NULL, paused_by = NULL,
    paused_until = NULL, updated_at = $1 WHERE status = 'PAUSED' AND paused_until <= $1";

/// Ends the pauses that were to end by themselves. Returns how many.
/// # Errors
/// Only when the database cannot be reached.
pub async fn end_pauses(tx: &mut Tx, now: Timestamp) -> Result<u64> {
    Ok(on_backend!(tx, conn => sqlx::query(ACCOUNT_PAUSE_OVER).bind(At(now)).execute(conn).await?.rows_affected()))
}

/// Every token that was refused is noted until a person says "go on": two senders with different tokens, as an update that
/// stands still leaves them, would else revive the account in turn, for ever.
const ACCOUNT_BREAK: &str = "UPDATE channel_accounts SET status = 'BROKEN', status_reason = $2,
    broken_token_sha256 = coalesce(broken_token_sha256 || ' ', '') || $3,
    last_error = $4, updated_at = $5 WHERE id = $1 AND status IN ('ACTIVE', 'PAUSED')
    AND coalesce(broken_token_sha256, '') NOT LIKE '%' || $3 || '%'";

/// The provider says that nothing can be sent from this account (token, ban, payment): BROKEN, with its words. Nothing
/// fails; the account's sends wait. `token_sha256` is the token that was refused, in hex.
/// # Errors
/// Only when the database cannot be reached.
pub async fn mark_broken(
    tx: &mut Tx,
    id: AccountId,
    token_sha256: &str,
    code: &str,
    reason: &str,
    now: Timestamp,
) -> Result<bool> {
    let words = crate::batch::plain(reason).into_owned();
    let error = serde_json::json!({ "code": code, "reason": words, "at": now });
    let rows = on_backend!(tx, conn => sqlx::query(ACCOUNT_BREAK).bind(id.get()).bind(&words)
        .bind(token_sha256).bind(Json(error)).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}

const ACCOUNT_REVIVE: &str = "UPDATE channel_accounts SET status_reason = NULL, updated_at = $3,
      status = CASE WHEN paused_by IS NULL AND paused_until IS NULL THEN 'ACTIVE' ELSE 'PAUSED' END
    WHERE id = $1 AND status = 'BROKEN' AND broken_token_sha256 NOT LIKE '%' || $2 || '%'";

/// A sender with a token that was never refused tries again. Those that were stay noted, so that senders which still have one
/// claim nothing; once every token in the fleet was refused, nobody revives the account but a person. What was PAUSED when it
/// broke is PAUSED again.
/// # Errors
/// Only when the database cannot be reached.
pub async fn revive(tx: &mut Tx, id: AccountId, token_sha256: &str, now: Timestamp) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(ACCOUNT_REVIVE)
        .bind(id.get()).bind(token_sha256).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}
