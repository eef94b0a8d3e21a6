//! What the roles stand on: store, queue, object store, metrics, health. Opened once, in this order, and watched.

use crate::cli::Role;
use anyhow::{Context as _, Result};
use domain::Clock;
use queue::{Queue, QueueHealth, QueueOptions, QueueUrl, Timing};
use runtime::blobs::Blobs;
use runtime::config::{QueuePlace, StorePlace};
use runtime::health::{Health, Part};
use runtime::metrics::Metrics;
use runtime::{Config, instance};
use std::sync::Arc;
use std::time::Duration;
use store::{SchemaState, Store, StoreOptions, StoreUrl};
use tokio_util::sync::CancellationToken;

/// How often a store that is not ready is asked again, and one that is.
const ASK_STORE_AGAIN: Duration = Duration::from_millis(200);
const ASK_READY_STORE_AGAIN: Duration = Duration::from_secs(2);
/// How often gauges are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// What the roles stand on.
pub(crate) struct Foundation {
    pub(crate) config: Arc<Config>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) instance: String,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Queue,
    /// Ingress alone opens no database.
    pub(crate) store: Option<Store>,
    pub(crate) blobs: Blobs,
}

/// The store's options under this configuration.
pub(crate) fn store_options(config: &Config, instance: &str) -> StoreOptions {
    let url = match &config.store.place {
        StorePlace::Postgres(url) => StoreUrl::Postgres(url.expose().to_owned()),
        StorePlace::Sqlite(path) => StoreUrl::Sqlite(path.clone()),
    };
    StoreOptions {
        application_name: format!("roost/{instance}"),
        max_connections: config.store.max_connections,
        acquire_timeout: config.tuning.acquire_timeout,
        statement_timeout: config.tuning.statement_timeout,
        ..StoreOptions::new(url)
    }
}

impl Foundation {
    /// Opens everything `roles` need. A broker or a database server may be away: the roles wait for it and say so.
    pub(crate) async fn open(config: Config, roles: &[Role], metrics: Metrics) -> Result<Self> {
        runtime::tls::install_provider();
        let instance = instance::instance_name();
        let health = Health::new();
        let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        metrics.build_info(env!("CARGO_PKG_VERSION"), &names.join(" "));

        let store = if roles == [Role::Ingress] {
            None
        } else {
            let opened = Store::open(&store_options(&config, &instance)).await;
            Some(opened.context("the store cannot be opened; [store] url says where it is")?)
        };
        let url = match &config.queue.place {
            QueuePlace::RabbitMq(url) => QueueUrl::Amqp(url.clone()),
            QueuePlace::Embedded(path) => QueueUrl::Embedded(path.clone()),
        };
        let options = QueueOptions {
            url,
            prefix: config.queue.prefix.clone(),
            role: names.join("+"),
            instance: instance.clone(),
            timing: Timing {
                confirm_timeout: config.tuning.confirm_timeout,
                connect_timeout: config.tuning.connect_timeout,
                reconnect_first: config.tuning.reconnect_first,
                reconnect_most: config.tuning.reconnect_most,
            },
        };
        let queue = Queue::open(options).await.context("the queue cannot be opened")?;
        let blobs = Blobs::open(&config.blobs).context("[media] url names a folder that cannot be used")?;

        let clock = config.clock();
        Ok(Self { config: Arc::new(config), clock, instance, health, metrics, queue, store, blobs })
    }

    /// Keeps health and gauges true from now on. Not ready before the first look has gone well.
    pub(crate) fn watch(&self, stop: &CancellationToken) {
        let watch = watch_queue(self.queue.clone(), self.health.part("queue"), self.metrics.clone());
        // A queue that we close ourselves is no news.
        tokio::spawn(stop.clone().run_until_cancelled_owned(watch));
        if let Some(store) = &self.store {
            tokio::spawn(watch_store(store.clone(), self.health.part("store"), stop.clone()));
        }
        tokio::spawn(read_gauges(self.queue.clone(), self.store.clone(), self.metrics.clone()));
    }

    /// The store, for a role that has one.
    pub(crate) fn store(&self) -> Result<Store> {
        self.store.clone().context("this role runs without a store")
    }

    /// Closes what was opened, in reverse.
    pub(crate) async fn close(self) {
        self.queue.close(Duration::from_secs(5)).await;
        if let Some(store) = self.store {
            // A connection stuck in a dead network must not keep the process.
            let _ = tokio::time::timeout(Duration::from_secs(5), store.close()).await;
        }
    }
}

async fn watch_queue(queue: Queue, part: Part, metrics: Metrics) {
    let mut health = queue.health();
    loop {
        let now = health.borrow_and_update().clone();
        metrics.broker(now.is_up() || matches!(now, QueueHealth::Blocked(_)), matches!(now, QueueHealth::Blocked(_)));
        match now {
            QueueHealth::Up => part.ready(),
            // It has not said anything yet.
            QueueHealth::Connecting => {}
            QueueHealth::Down(reason) => part.not_ready(format!("the broker is away: {reason}")),
            QueueHealth::Blocked(reason) => part.not_ready(format!("the broker takes nothing for now: {reason}")),
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_store(store: Store, part: Part, stop: CancellationToken) {
    loop {
        let wait = match store.schema_state().await {
            Ok(SchemaState::Fits) => {
                part.ready();
                ASK_READY_STORE_AGAIN
            }
            Ok(schema @ SchemaState::TooOld { .. }) => {
                part.not_ready(schema.to_string());
                ASK_STORE_AGAIN
            }
            Err(error) => {
                part.not_ready(format!("the database is away: {error}"));
                ASK_STORE_AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn read_gauges(queue: Queue, store: Option<Store>, metrics: Metrics) {
    let mut ticks = tokio::time::interval(GAUGES_EVERY);
    loop {
        ticks.tick().await;
        for (name, topic) in queue.stats().topics {
            if let Some(age) = topic.last_age {
                metrics.queue_oldest_age(&name, age);
            }
        }
        if let Some(store) = &store {
            let (open, idle) = store.pool_size();
            gauge_pool(&metrics, u64::from(open), u64::try_from(idle).unwrap_or(u64::MAX));
        }
    }
}

fn gauge_pool(metrics: &Metrics, open: u64, idle: u64) {
    // Read one after the other: a connection may have come back in between.
    metrics.db_pool("used", open.saturating_sub(idle));
    metrics.db_pool("idle", idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_gauge_counts_each_connection_once_in_use_or_idle() {
        let metrics = Metrics::new();
        gauge_pool(&metrics, 8, 3);
        let text = metrics.render();
        let of_pool = text.lines().filter(|line| line.starts_with("roost_db_pool_connections{"));
        let mut values: Vec<&str> = of_pool.filter_map(|line| line.rsplit(' ').next()).collect();
        values.sort_unstable();
        assert_eq!(values, ["3", "5"], "{text}");
        assert!(text.contains("state=\"used\"") && text.contains("state=\"idle\""), "{text}");
    }
}
