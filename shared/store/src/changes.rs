//! Waking readers of the change feed. Only a wake-up: what changed is in the feed, so a lost one costs a moment, no row.

use crate::Store;
use crate::open::Pools;
use sqlx::postgres::{PgListener, PgPool};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// PostgreSQL's channel.
const CHANNEL: &str = "roost_feed";
/// Inside a transaction, NOTIFY serialises all commits on one lock; outside, once in 20 ms a process is plenty.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// How long to wait before listening again after the connection went.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Changes {
    version: watch::Sender<u64>,
    /// PostgreSQL: asks the notifier task for a NOTIFY.
    ask: std::sync::Arc<Notify>,
    listening: OnceLock<()>,
    notifying: OnceLock<()>,
    postgres: Option<PgPool>,
}

impl Changes {
    pub(crate) fn new(pools: &Pools) -> Self {
        let postgres = match pools {
            Pools::Postgres(pool) => Some(pool.clone()),
            Pools::Sqlite { .. } => None,
        };
        let (listening, notifying) = (OnceLock::new(), OnceLock::new());
        Self { version: watch::Sender::new(0), ask: std::sync::Arc::default(), listening, notifying, postgres }
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
                    tokio::spawn(notify_when_asked(pool.clone(), changes.ask.clone()));
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
                tokio::spawn(listen(pool.clone(), changes.version.clone()));
            });
        }
        changes.version.subscribe()
    }
}

async fn notify_when_asked(pool: PgPool, ask: std::sync::Arc<Notify>) {
    while !pool.is_closed() {
        ask.notified().await;
        if let Err(error) = sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&pool).await {
            tracing::debug!(%error, "could not wake the feed's readers; they look again by themselves");
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}

async fn listen(pool: PgPool, version: watch::Sender<u64>) {
    while !pool.is_closed() {
        let outcome: Result<(), sqlx::Error> = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            loop {
                // Also right after (re)connecting: something may have been said while nobody listened.
                version.send_modify(|version| *version += 1);
                if listener.try_recv().await?.is_none() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(error) = outcome {
            tracing::debug!(%error, "listening for changes was cut; listening again");
        }
        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
    }
}
