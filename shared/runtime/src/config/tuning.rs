//! `[tuning]`: clocks and sizes of the machinery. The defaults are what was measured; nobody needs to set one. Tests do, so
//! that the very same machinery goes through an outage in seconds.

use super::reader::TableReader;
use std::time::Duration;

macro_rules! kind {
    (ms) => {
        Duration
    };
    (count) => {
        usize
    };
    (ratio) => {
        f64
    };
}

macro_rules! default {
    (ms $value:expr) => {
        Duration::from_millis($value)
    };
    (count $value:expr) => {
        $value
    };
    (ratio $value:expr) => {
        $value
    };
}

macro_rules! read {
    (ms $table:ident $key:literal $least:literal $most:literal) => {
        $table.whole($key, $least..=$most).map(Duration::from_millis)
    };
    (count $table:ident $key:literal $least:literal $most:literal) => {
        $table.whole($key, $least..=$most).and_then(|number| usize::try_from(number).ok())
    };
    (ratio $table:ident $key:literal $least:literal $most:literal) => {
        $table.number($key, $least..=$most)
    };
}

macro_rules! show {
    (ms $value:expr) => {
        $value.as_millis().to_string()
    };
    (count $value:expr) => {
        $value.to_string()
    };
    (ratio $value:expr) => {
        format!("{:?}", $value)
    };
}

/// One row per setting: kind, field, key, default, least and most. Keys of times end in `_ms`.
macro_rules! tuning {
    ($($(#[$doc:meta])* $kind:ident $field:ident $key:literal = $value:expr, $least:literal to $most:literal;)*) => {
        /// `[tuning]`: clocks and sizes of the machinery, see the fields.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Tuning { $($(#[$doc])* pub $field: kind!($kind),)* }

        impl Default for Tuning {
            fn default() -> Self { Self { $($field: default!($kind $value),)* } }
        }

        impl Tuning {
            /// Every key of `[tuning]`.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            pub(super) fn read(table: TableReader<'_, '_>) -> Self {
                let mut tuning = Self::default();
                $(if let Some(value) = read!($kind table $key $least $most) { tuning.$field = value; })*
                check(&tuning, &table);
                table.finish();
                tuning
            }

            /// Keys and values as the file would have them.
            pub(super) fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$(($key, show!($kind self.$field)),)*]
            }
        }
    };
}

tuning! {
    /// Threads of the runtime that serves webhooks when ingress runs alone; one does about 50,000 requests a second.
    count ingress_threads "ingress_threads" = 1, 1 to 64;
    /// Most webhooks in one queue message.
    count ingress_batch "ingress_batch" = 128, 1 to 10_000;
    /// Most bytes in one queue message; a webhook larger than this goes alone. Below one AMQP frame (128 KB).
    count ingress_batch_bytes "ingress_batch_bytes" = 120_000, 1_000 to 10_000_000;
    /// Webhooks that may wait for a slot; the next one is told 503.
    count ingress_backlog "ingress_backlog" = 8_192, 1 to 1_000_000;
    /// A body larger than this, in bytes, goes to the object store and travels by reference.
    count ingress_inline_body "ingress_inline_body" = 1_048_576, 1_000 to 100_000_000;
    /// Longest wait for the queue's confirm, by whoever publishes.
    ms confirm_timeout "confirm_timeout_ms" = 2_000, 50 to 60_000;
    /// Time between two signs of life of ingress.
    ms beat_interval "beat_interval_ms" = 15_000, 50 to 600_000;

    /// Most items ingest writes in one transaction.
    count ingest_batch "ingest_batch" = 500, 1 to 10_000;
    /// Queue messages ingest holds, in memory: two batches, where a message carries some thirty webhooks.
    count ingest_prefetch "ingest_prefetch" = 64, 1 to 10_000;
    /// Writers inside an ingest process, sharded by contact.
    count ingest_writers "ingest_writers" = 2, 1 to 64;
    /// Identities ingest remembers.
    count ingest_identities "ingest_identities" = 100_000, 0 to 10_000_000;
    /// How long ingest holds its deliveries while the database is away, before it gives them back.
    ms database_patience "database_patience_ms" = 300_000, 100 to 1_500_000;

    /// Time between two sweeps for due heads of lanes.
    ms sweep "sweep_ms" = 500, 10 to 60_000;
    /// After so long without a claim a dispatched row is published again.
    ms redispatch "redispatch_ms" = 60_000, 100 to 3_600_000;
    /// Time between two looks of the keeper at leases, parked receipts and evidence windows.
    ms keeper_interval "keeper_interval_ms" = 1_000, 10 to 600_000;
    /// How long the keeper's lease on one of its jobs lasts.
    ms keeper_lease "keeper_lease_ms" = 30_000, 100 to 600_000;
    /// Time between two looks at receipts that wait for their message.
    ms receipts_interval "receipts_interval_ms" = 10_000, 10 to 600_000;

    /// Provider calls a sender has in flight.
    count sender_concurrency "sender_concurrency" = 256, 1 to 16_384;
    /// References a sender holds over all its accounts; 1.5 to 2 times its concurrency.
    count sender_prefetch "sender_prefetch" = 512, 1 to 65_535;
    /// Most rows a sender claims in one statement.
    count claim_batch "claim_batch" = 256, 1 to 10_000;
    /// How long a sender waits for a claim or a report to fill.
    ms sender_linger "sender_linger_ms" = 2, 0 to 1_000;
    /// Most results a sender reports in one queue message.
    count report_batch "report_batch" = 256, 1 to 10_000;
    /// Longest wait for a provider's answer. Well below `lease_ms`, or a slow send would be made twice.
    ms call_timeout "call_timeout_ms" = 10_000, 50 to 600_000;
    /// How long a claimed send stays its sender's before its outcome counts as unknown.
    ms lease "lease_ms" = 20_000, 100 to 3_600_000;
    /// How long after the witness webhooks must have been quiet before an attempt counts as not sent.
    ms evidence_window "evidence_window_ms" = 60_000, 50 to 3_600_000;
    /// After so long without a witness an attempt of unknown outcome is held for a person.
    ms witness_timeout "witness_timeout_ms" = 600_000, 100 to 86_400_000;
    /// Factor on the waits between attempts: 1 is 5 s, 30 s, 2 min, …
    ratio retry_scale "retry_scale" = 1.0, 0.0001 to 10.0;
    /// How long a message may be tried.
    ms send_deadline "send_deadline_ms" = 86_400_000, 100 to 2_592_000_000;
    /// How long the page lets a person take a message back.
    ms undo_hold "undo_hold_ms" = 0, 0 to 60_000;

    /// Longest wait for a new connection to a provider or to the broker. A database's is within `acquire_timeout_ms`.
    ms connect_timeout "connect_timeout_ms" = 3_000, 50 to 60_000;
    /// Longest wait for a free database connection.
    ms acquire_timeout "acquire_timeout_ms" = 5_000, 50 to 60_000;
    /// Longest run of one database statement.
    ms statement_timeout "statement_timeout_ms" = 30_000, 100 to 600_000;
    /// First wait before a lost connection, the broker's or the database's, is tried again; doubles from there.
    ms reconnect_first "reconnect_first_ms" = 200, 10 to 60_000;
    /// Longest wait between two tries.
    ms reconnect_most "reconnect_most_ms" = 10_000, 10 to 600_000;
    /// From SIGTERM to the end, at most.
    ms drain "drain_ms" = 25_000, 100 to 600_000;
}

/// Settings that only make sense together.
fn check(tuning: &Tuning, table: &TableReader<'_, '_>) {
    if tuning.lease < tuning.call_timeout.mul_f64(1.5) {
        table.complain(format!(
            "must have `lease_ms` ({}) at least one and a half times `call_timeout_ms` ({}), or a slow send could be made twice",
            tuning.lease.as_millis(),
            tuning.call_timeout.as_millis()
        ));
    }
    if tuning.witness_timeout < tuning.evidence_window {
        table.complain("must have `witness_timeout_ms` at least as long as `evidence_window_ms`");
    }
    if tuning.sender_prefetch < tuning.sender_concurrency {
        table.complain("must have `sender_prefetch` at least as large as `sender_concurrency`, or the sender idles");
    }
    if tuning.reconnect_most < tuning.reconnect_first {
        table.complain("must have `reconnect_most_ms` at least as long as `reconnect_first_ms`");
    }
}
