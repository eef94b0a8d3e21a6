//! What operators see: one method per thing that happens, one table of names, which dashboards and alerts rely on. Labels
//! are names from the configuration and words of our own, never a phone number, an id or a text.

mod family;
mod process;

pub use family::Tally;
pub use process::{processor_time, resident_memory};

use family::{Counter, Distribution, Gauge};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;
use std::time::Duration;

/// All instruments of a process. Cheap to clone; handed to whoever counts.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

/// Declares the instruments: kind, field, name without its suffixes, labels, help.
macro_rules! instruments {
    (
        counters { $($counter:ident $counter_name:literal [$($counter_label:literal),*] $counter_help:literal;)* }
        gauges { $($gauge:ident $gauge_name:literal $unit:literal [$($gauge_label:literal),*] $gauge_help:literal;)* }
        seconds { $($time:ident $time_name:literal [$($time_label:literal),*] $time_help:literal;)* }
        items { $($items:ident $items_name:literal $items_help:literal;)* }
    ) => {
        #[derive(Debug)]
        struct Inner {
            registry: Registry,
            _provider: SdkMeterProvider,
            $($counter: Counter,)*
            $($gauge: Gauge,)*
            $($time: Distribution,)*
            $($items: Distribution,)*
        }

        impl Inner {
            fn new(registry: Registry, provider: SdkMeterProvider) -> Self {
                let meter = provider.meter("roost");
                process::register(&meter);
                Self {
                    $($counter: Counter::new(&meter, $counter_name, &[$($counter_label),*], $counter_help),)*
                    $($gauge: Gauge::new(&meter, $gauge_name, $unit, &[$($gauge_label),*], $gauge_help),)*
                    $($time: Distribution::of_seconds(&meter, $time_name, &[$($time_label),*], $time_help),)*
                    $($items: Distribution::of_items(&meter, $items_name, $items_help),)*
                    registry,
                    _provider: provider,
                }
            }
        }
    };
}

instruments! {
    counters {
        webhooks_received "roost.webhooks.received" ["source", "outcome"] "Webhooks answered, by source and by what became of them.";
        webhooks_refused "roost.webhooks.refused" ["source", "reason"] "Webhooks refused, by source and reason.";
        ingest_items "roost.ingest.items" ["kind"] "Items stored: messages, receipts, others.";
        ingest_duplicates "roost.ingest.duplicates" [] "Items that were there already.";
        receipts_parked "roost.receipts.parked" [] "Receipts that came before their message's id was known.";
        redelivered "roost.redelivered" ["queue"] "Deliveries the broker made more than once.";
        dead_letters "roost.dead_letters" ["queue", "reason"] "Dead letters written.";
        send_attempts "roost.send.attempts" ["account", "outcome", "code"] "Attempts to send, by verdict and provider's code.";
        http_refused "roost.http.refused" ["reason"] "Connections and requests refused for want of room.";
        http_timeouts "roost.http.timeouts" ["what"] "Deadlines of connections that ran out.";
        http_panics "roost.http.panics" [] "Handlers that panicked; each was answered 500.";
    }
    gauges {
        build_info "roost.build_info" "" ["version", "roles"] "What runs here; always 1.";
        account_paused "roost.account_paused" "" ["account", "reason"] "1 while an account is paused or broken.";
        broker_connected "roost.broker_connected" "" [] "1 while the broker is reachable.";
        broker_blocked "roost.broker_blocked" "" [] "1 while the broker takes no publishes.";
        sends "roost.sends" "" ["state"] "Messages on their way out, by state.";
        lane_heads_waiting "roost.lane_heads_waiting" "" ["account"] "Conversations whose next message is due and not dispatched.";
        oldest_due_age "roost.sends.oldest_due_age" "s" ["account"] "Age of the oldest due message that waits.";
        rate_limit "roost.rate_limit_per_second" "" ["scope"] "The rate a scope is held to just now.";
        queue_depth "roost.queue.depth" "" ["queue"] "Queue messages that wait.";
        queue_oldest_age "roost.queue.oldest_age" "s" ["queue"] "Age of the queue message taken last.";
        db_pool "roost.db_pool_connections" "" ["state"] "Database connections, in use and idle.";
        http_connections "roost.http.connections" "" [] "Open HTTP connections.";
    }
    seconds {
        webhook_ack "roost.webhook.ack" ["outcome"] "From a webhook's head to its answer.";
        ingest_lag "roost.ingest.lag" [] "From the provider's time of an item to its commit.";
        ingest_commit "roost.ingest.commit" [] "One transaction of ingest.";
        provider_call "roost.provider.call" ["account"] "One call to a provider.";
        rate_wait "roost.rate_limit.wait" ["account"] "How long a send waited for its rate slot.";
        send_end_to_end "roost.send.end_to_end" [] "From accepting a message to the provider's id for it.";
        receipt_lag "roost.receipt.lag" [] "From the provider's time of a receipt to its commit.";
        feed_lag "roost.change_feed.lag" [] "From a change to its event on the page.";
    }
    items {
        webhook_batch "roost.webhook.batch_size" "Webhooks in one queue message.";
        ingest_batch "roost.ingest.batch_size" "Items in one transaction of ingest.";
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Instruments of their own registry. One per process; tests make as many as they like.
    pub fn new() -> Self {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build();
        let provider = match exporter {
            Ok(exporter) => SdkMeterProvider::builder().with_reader(exporter).build(),
            Err(error) => {
                tracing::error!(%error, "Metrics cannot be exported; everything else goes on");
                SdkMeterProvider::default()
            }
        };
        Self(Arc::new(Inner::new(registry, provider)))
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "Metrics cannot be written");
            String::new()
        })
    }

    /// What runs here.
    pub fn build_info(&self, version: &str, roles: &str) {
        self.0.build_info.set(&[version, roles], 1.0);
    }

    /// A webhook was answered, `after` so long.
    pub fn webhook_answered(&self, source: &str, outcome: &str, after: Duration) {
        self.0.webhooks_received.add(&[source, outcome], 1);
        self.0.webhook_ack.seconds(&[outcome], after);
    }

    /// A webhook was refused.
    pub fn webhook_refused(&self, source: &str, reason: &str) {
        self.0.webhooks_refused.add(&[source, reason], 1);
    }

    /// A queue message with so many webhooks was published.
    pub fn webhook_batch(&self, webhooks: usize) {
        self.0.webhook_batch.items(webhooks);
    }

    /// Ingest committed a batch.
    pub fn ingest_batch(&self, items: usize, commit: Duration) {
        self.0.ingest_batch.items(items);
        self.0.ingest_commit.seconds(&[], commit);
    }

    /// So many items of a kind were new.
    pub fn ingest_items(&self, kind: &str, count: u64) {
        self.0.ingest_items.add(&[kind], count);
    }

    /// So many items were there already.
    pub fn ingest_duplicates(&self, count: u64) {
        self.0.ingest_duplicates.add(&[], count);
    }

    /// From the provider's time of an item to its commit.
    pub fn ingest_lag(&self, lag: Duration) {
        self.0.ingest_lag.seconds(&[], lag);
    }

    /// From the provider's time of a receipt to its commit.
    pub fn receipt_lag(&self, lag: Duration) {
        self.0.receipt_lag.seconds(&[], lag);
    }

    /// So many receipts wait for their message's id.
    pub fn receipts_parked(&self, count: u64) {
        self.0.receipts_parked.add(&[], count);
    }

    /// The broker delivered something again.
    pub fn redelivered(&self, queue: &str) {
        self.0.redelivered.add(&[queue], 1);
    }

    /// A dead letter was written.
    pub fn dead_letter(&self, queue: &str, reason: &str) {
        self.0.dead_letters.add(&[queue, reason], 1);
    }

    /// An attempt ended. `code` is the provider's, or ours; empty when there is none.
    pub fn send_attempt(&self, account: &str, outcome: &str, code: &str) {
        self.0.send_attempts.add(&[account, outcome, code], 1);
    }

    /// A provider was called for so long.
    pub fn provider_call(&self, account: &str, took: Duration) {
        self.0.provider_call.seconds(&[account], took);
    }

    /// A send waited so long for its rate slot.
    pub fn rate_wait(&self, account: &str, waited: Duration) {
        self.0.rate_wait.seconds(&[account], waited);
    }

    /// From accepting a message to the provider's id for it.
    pub fn send_end_to_end(&self, took: Duration) {
        self.0.send_end_to_end.seconds(&[], took);
    }

    /// An account is paused or broken, with the reason's word; `None`: it is active.
    pub fn account_paused(&self, account: &str, reason: Option<&str>) {
        self.0.account_paused.forget(|values| {
            values.first().is_some_and(|known| known == account) && values.get(1).map(String::as_str) != reason
        });
        if let Some(reason) = reason {
            self.0.account_paused.set(&[account, reason], 1.0);
        }
    }

    /// How the broker is.
    pub fn broker(&self, connected: bool, blocked: bool) {
        self.0.broker_connected.set(&[], f64::from(u8::from(connected)));
        self.0.broker_blocked.set(&[], f64::from(u8::from(blocked)));
    }

    /// So many messages on their way out are in a state.
    pub fn sends(&self, state: &str, count: u64) {
        self.0.sends.set(&[state], as_f64(count));
    }

    /// So many conversations of an account have a due message that is not dispatched.
    pub fn lane_heads_waiting(&self, account: &str, count: u64) {
        self.0.lane_heads_waiting.set(&[account], as_f64(count));
    }

    /// Age of the oldest due message of an account that waits.
    pub fn oldest_due_age(&self, account: &str, age: Duration) {
        self.0.oldest_due_age.set(&[account], age.as_secs_f64());
    }

    /// The rate a scope is held to just now.
    pub fn rate_limit(&self, scope: &str, per_second: f64) {
        self.0.rate_limit.set(&[scope], per_second);
    }

    /// So many queue messages wait.
    pub fn queue_depth(&self, queue: &str, ready: u64) {
        self.0.queue_depth.set(&[queue], as_f64(ready));
    }

    /// Age of the queue message taken last.
    pub fn queue_oldest_age(&self, queue: &str, age: Duration) {
        self.0.queue_oldest_age.set(&[queue], age.as_secs_f64());
    }

    /// Database connections in a state (`used`, `idle`).
    pub fn db_pool(&self, state: &str, connections: u64) {
        self.0.db_pool.set(&[state], as_f64(connections));
    }

    /// From a change to its event on the page.
    pub fn feed_lag(&self, lag: Duration) {
        self.0.feed_lag.seconds(&[], lag);
    }

    pub(crate) fn http_connections(&self, open: usize) {
        self.0.http_connections.set(&[], as_f64(u64::try_from(open).unwrap_or(u64::MAX)));
    }

    pub(crate) fn http_refused(&self, reason: &str) {
        self.0.http_refused.add(&[reason], 1);
    }

    pub(crate) fn http_timeout(&self, what: &str) {
        self.0.http_timeouts.add(&[what], 1);
    }

    pub(crate) fn http_panic(&self) {
        self.0.http_panics.add(&[], 1);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows are below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_documented_ones() {
        let metrics = Metrics::new();
        metrics.build_info("0.1.0", "ingress");
        metrics.webhook_answered("meta", "kept", Duration::from_millis(2));
        metrics.webhook_answered("meta", "kept", Duration::from_millis(20));
        metrics.webhook_refused("meta", "bad_signature");
        metrics.webhook_batch(17);
        metrics.ingest_lag(Duration::from_secs(2));
        metrics.dead_letter("roost.webhooks", "UNKNOWN_ACCOUNT");
        metrics.send_attempt("sales", "ACCEPTED", "");
        metrics.broker(true, false);
        let text = metrics.render();
        for line in [
            r#"roost_build_info{roles="ingress",version="0.1.0"} 1"#,
            r#"roost_webhooks_received_total{outcome="kept",source="meta"} 2"#,
            r#"roost_webhooks_refused_total{reason="bad_signature",source="meta"} 1"#,
            r#"roost_webhook_ack_seconds_bucket{outcome="kept",le="0.0025"} 1"#,
            r#"roost_webhook_ack_seconds_count{outcome="kept"} 2"#,
            r#"roost_webhook_batch_size_bucket{le="32"} 1"#,
            r#"roost_ingest_lag_seconds_sum 2"#,
            r#"roost_dead_letters_total{queue="roost.webhooks",reason="UNKNOWN_ACCOUNT"} 1"#,
            r#"roost_send_attempts_total{account="sales",code="",outcome="ACCEPTED"} 1"#,
            "roost_broker_connected 1",
            "roost_broker_blocked 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total "] {
            assert!(text.lines().any(|found| found.starts_with(name)), "no {name} in\n{text}");
        }
    }

    #[test]
    fn an_account_that_works_again_is_no_longer_shown_as_paused() {
        let metrics = Metrics::new();
        metrics.account_paused("sales", Some("token"));
        metrics.account_paused("sales", Some("person"));
        let text = metrics.render();
        assert!(text.contains(r#"roost_account_paused{account="sales",reason="person"} 1"#), "{text}");
        assert!(!text.contains(r#"reason="token""#), "{text}");
        metrics.account_paused("sales", None);
        assert!(!metrics.render().contains(r#"account="sales""#));
    }
}
