//! Waking readers of the change feed. Only a wake-up: what changed is in the feed, so a lost one costs a moment, no row.

use crate::line::Line;
use crate::open::Pools;
use crate::{Result, Store, StoreError};
use sqlx::postgres::{PgListener, PgPool};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// PostgreSQL's channel.
const CHANNEL: &str = "roost_feed";
/// Inside a transaction, NOTIFY serialises all commits on one lock; outside, once in 20 ms a process is plenty.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// How long to wait before listening again after the connection went.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// After so long without a notification the connection is asked whether it still is one.
const QUIET_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Changes {
    version: watch::Sender<u64>,
    /// PostgreSQL: asks the notifier task for a NOTIFY.
    ask: std::sync::Arc<Notify>,
    listening: OnceLock<()>,
    notifying: OnceLock<()>,
    postgres: Option<PgPool>,
    patience: Duration,
}

impl Changes {
    pub(crate) fn new(pools: &Pools, patience: Duration) -> Self {
        let postgres = match pools {
            Pools::Postgres(pool) => Some(pool.clone()),
            Pools::Sqlite { .. } => None,
        };
        let (listening, notifying) = (OnceLock::new(), OnceLock::new());
        Self {
            version: watch::Sender::new(0),
            ask: std::sync::Arc::default(),
            listening,
            notifying,
            postgres,
            patience,
        }
    }
}

impl Store {
    /// Tells every reader, in every process, that the feed may have grown. Call it after the commit. Returns at once.
    pub fn wake_readers(&self) {
        let changes = &self.changes;
        match &changes.postgres {
            None => changes.version.send_modify(|version| *version += 1),
            Some(pool) => {
                changes.notifying.get_or_init(|| {
                    tokio::spawn(notify_when_asked(pool.clone(), changes.ask.clone(), changes.patience));
                });
                changes.ask.notify_one();
            }
        }
    }

    /// Changes whenever the feed may have grown. The first call on PostgreSQL begins to listen.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let changes = &self.changes;
        if let Some(pool) = &changes.postgres {
            changes.listening.get_or_init(|| {
                tokio::spawn(listen(pool.clone(), changes.version.clone(), changes.patience));
            });
        }
        changes.version.subscribe()
    }
}

async fn notify_when_asked(pool: PgPool, ask: std::sync::Arc<Notify>, patience: Duration) {
    while !pool.is_closed() {
        ask.notified().await;
        if let Err(error) = notify(&pool, patience).await {
            tracing::debug!(%error, "could not wake the feed's readers; they look again by themselves");
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}

async fn notify(pool: &PgPool, patience: Duration) -> Result<()> {
    let mut line = Line::take(pool, patience).await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut line).await?;
    Ok(())
}

async fn listen(pool: PgPool, version: watch::Sender<u64>, patience: Duration) {
    while !pool.is_closed() {
        if let Err(error) = listen_once(&pool, &version, patience).await {
            tracing::debug!(%error, "listening for changes was cut; listening again");
        }
        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
    }
}

async fn listen_once(pool: &PgPool, version: &watch::Sender<u64>, patience: Duration) -> Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    timeout(patience, listener.listen(CHANNEL)).await.map_err(|_| StoreError::Unanswered)??;
    loop {
        // Also right after (re)connecting: something may have been said while nobody listened.
        version.send_modify(|version| *version += 1);
        let heard = loop {
            match timeout(QUIET_FOR, listener.try_recv()).await {
                Ok(heard) => break heard.map_err(StoreError::from)?,
                // Nothing was said, or the line was cut without a word: the server tells.
                Err(_) => {
                    let asked = sqlx::query("SELECT 1").execute(&mut listener);
                    timeout(patience, asked).await.map_err(|_| StoreError::Unanswered)??;
                }
            }
        };
        if heard.is_none() {
            return Ok(());
        }
    }
}
