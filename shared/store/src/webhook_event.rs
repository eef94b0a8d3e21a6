//! What arrived, byte for byte: one row per webhook request, kept for replays.

use crate::batch::{json, micros, plain};
use crate::column::rows;
use crate::set::Both;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{Timestamp, WebhookEventId};
use std::collections::HashMap;
use uuid::Uuid;

/// What became of a webhook as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Every item was stored.
    Processed,
    /// Some items became dead letters.
    Partial,
    /// It held nothing for us.
    Ignored,
    /// All of it became dead letters.
    Dead,
}

impl Outcome {
    /// The outcome of a webhook with `items` items, `dead` of which could not be stored.
    pub const fn of(items: usize, dead: usize) -> Self {
        match (items, dead) {
            (0, 0) => Outcome::Ignored,
            (_, 0) => Outcome::Processed,
            (items, dead) if dead >= items => Outcome::Dead,
            _ => Outcome::Partial,
        }
    }

    /// The stored text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Processed => "PROCESSED",
            Outcome::Partial => "PARTIAL",
            Outcome::Ignored => "IGNORED",
            Outcome::Dead => "DEAD",
        }
    }
}

/// A webhook's bytes, or the key they have in the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawBody<'a> {
    /// As they arrived.
    Bytes(&'a [u8]),
    /// Where they are.
    Stored(&'a str),
}

/// A webhook to be kept.
#[derive(Clone, Copy, Debug)]
pub struct NewWebhook<'a> {
    /// Given by ingress; a redelivered frame has the same.
    pub request_id: Uuid,
    /// Who signed it.
    pub source: &'a str,
    /// When ingress had all of it.
    pub received_at: Timestamp,
    /// The headers that were kept.
    pub headers: &'a [(String, String)],
    /// The raw body.
    pub body: RawBody<'a>,
    /// How many items it held.
    pub items: usize,
    /// What became of it.
    pub outcome: Outcome,
}

const WEBHOOK_UPSERT_PG: &str = "INSERT INTO webhook_events (request_id, source, received_at, headers, body, body_ref, items, outcome)
    SELECT request_id, source, received_at, headers::jsonb, body, body_ref, items, outcome
      FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::bytea[], $6::text[], $7::smallint[], $8::text[])
        AS i(request_id, source, received_at, headers, body, body_ref, items, outcome)
     ORDER BY request_id
    ON CONFLICT (request_id) DO UPDATE SET outcome = excluded.outcome, items = excluded.items RETURNING id, request_id";
/// All bodies in one blob, cut by offset and length: JSON carries no bytes.
const WEBHOOK_UPSERT_SQLITE: &str =
    "INSERT INTO webhook_events (request_id, source, received_at, headers, body, body_ref, items, outcome)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3,
           CASE WHEN value ->> 5 IS NULL THEN substr($2, 1 + (value ->> 4 ->> 0), value ->> 4 ->> 1) END,
           value ->> 5, value ->> 6, value ->> 7
      FROM json_each($1) WHERE true ORDER BY value ->> 0
    ON CONFLICT (request_id) DO UPDATE SET outcome = excluded.outcome, items = excluded.items RETURNING id, request_id";

rows! {
    /// A kept webhook's id.
    pub struct WebhookRow {
        /// The row.
        pub id: WebhookEventId,
        /// The request, as text.
        pub request_id: String,
    }
}

/// Keeps webhooks and returns their rows in the order given. One that is kept already only takes over the new outcome, so
/// a redelivered frame changes nothing else.
/// # Errors
/// When the database cannot be reached, or refuses a row.
pub async fn upsert(tx: &mut Tx, webhooks: &[NewWebhook<'_>]) -> Result<Vec<WebhookEventId>> {
    if webhooks.is_empty() {
        return Ok(Vec::new());
    }
    // One row must not be updated twice by one statement: of a frame that is there twice, the last counts.
    let mut position: HashMap<Uuid, usize> = HashMap::with_capacity(webhooks.len());
    let mut distinct: Vec<&NewWebhook<'_>> = Vec::with_capacity(webhooks.len());
    for webhook in webhooks {
        match position.get(&webhook.request_id).and_then(|at| distinct.get_mut(*at)) {
            Some(seen) => *seen = webhook,
            None => {
                position.insert(webhook.request_id, distinct.len());
                distinct.push(webhook);
            }
        }
    }
    let headers = |webhook: &NewWebhook<'_>| {
        let map: serde_json::Map<String, serde_json::Value> =
            webhook.headers.iter().map(|(name, value)| (plain(name).into_owned(), plain(value).into())).collect();
        serde_json::Value::Object(map).to_string()
    };
    let items = |webhook: &NewWebhook<'_>| i16::try_from(webhook.items).unwrap_or(i16::MAX);
    let bytes = |webhook: &NewWebhook<'_>| match webhook.body {
        RawBody::Bytes(bytes) => Some(bytes.to_vec()),
        RawBody::Stored(_) => None,
    };
    let stored = |webhook: &NewWebhook<'_>| match webhook.body {
        RawBody::Bytes(_) => None,
        RawBody::Stored(key) => Some(key.to_owned()),
    };
    // Arrays on PostgreSQL, JSON and one blob on SQLite.
    let kept: Vec<WebhookRow> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(WEBHOOK_UPSERT_PG)
                .bind(distinct.iter().map(|w| w.request_id.to_string()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.source).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| At(w.received_at)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| headers(w)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| bytes(w)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| stored(w)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| items(w)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.outcome.as_str()).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => {
            let mut blob: Vec<u8> = Vec::new();
            let rows: Vec<_> = distinct
                .iter()
                .map(|w| {
                    let from = blob.len();
                    if let RawBody::Bytes(bytes) = w.body {
                        blob.extend_from_slice(bytes);
                    }
                    let (cut, time) = ((from, blob.len() - from), micros(Some(w.received_at)));
                    let request_id = w.request_id.to_string();
                    (request_id, w.source, time, headers(w), cut, stored(w), items(w), w.outcome.as_str())
                })
                .collect();
            sqlx::query_as(WEBHOOK_UPSERT_SQLITE).bind(json(&rows)?).bind(blob).fetch_all(&mut **tx).await?
        }
    };
    let ids: HashMap<&str, WebhookEventId> = kept.iter().map(|row| (row.request_id.as_str(), row.id)).collect();
    webhooks
        .iter()
        .map(|w| ids.get(w.request_id.to_string().as_str()).copied().ok_or(sqlx::Error::RowNotFound.into()))
        .collect()
}

rows! {
    /// A webhook as it was kept, for Trace and for replays.
    pub struct KeptWebhook {
        /// The row.
        pub id: WebhookEventId,
        /// The request.
        pub request_id: String,
        /// Who signed it.
        pub source: String,
        /// When it arrived.
        pub received_at: Timestamp,
        /// The headers that were kept.
        pub headers: serde_json::Value,
        /// The bytes, unless they are in the object store.
        pub body: Option<Vec<u8>>,
        /// Their key in the object store.
        pub body_ref: Option<String>,
        /// How many items it held.
        pub items: Option<i16>,
        /// What became of it.
        pub outcome: String,
    }
}

const WEBHOOK_FIND: &str = "SELECT id, request_id, source, received_at, headers, body, body_ref, items, outcome
      FROM webhook_events WHERE request_id = $1";

/// The webhook of a request; `None` when it never arrived, or its time is over.
/// # Errors
/// Only when the database cannot be reached.
pub async fn find(tx: &mut Tx, request_id: Uuid) -> Result<Option<KeptWebhook>> {
    let request_id = request_id.to_string();
    Ok(on_backend!(tx, conn => sqlx::query_as(WEBHOOK_FIND).bind(request_id).fetch_optional(conn).await?))
}

macro_rules! referred {
    ($among:literal) => {
        concat!(
            "SELECT body_ref FROM webhook_events WHERE body_ref IS NOT NULL AND body_ref ",
            $among,
            " UNION SELECT headers ->> 'body_ref' FROM dead_letters WHERE state IN ('OPEN', 'REPLAYING') AND headers ->> 'body_ref' ",
            $among
        )
    };
}
const BODY_REFERRED: Both =
    Both { postgres: referred!("= ANY($1)"), sqlite: referred!("IN (SELECT value FROM json_each($1))") };

/// Those of `keys` under which the object store has something that is still needed: the body of a kept webhook, or of a dead
/// letter that can be replayed.
/// # Errors
/// Only when the database cannot be reached.
pub async fn referred(tx: &mut Tx, keys: &[String]) -> Result<Vec<String>> {
    Ok(match tx {
        Tx::Postgres(tx) => sqlx::query_scalar(BODY_REFERRED.postgres).bind(keys).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_scalar(BODY_REFERRED.sqlite).bind(json(keys)?).fetch_all(&mut **tx).await?,
    })
}
