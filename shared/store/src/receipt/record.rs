//! Writing events and what goes with them.

use super::{EventKey, Judged};
use crate::batch::{json, plain, plain_json, plain_opt};
use crate::column::rows;
use crate::{At, Result, Tx};
use domain::{AccountId, AttemptOutcome, ConversationId, Status, Timestamp, WebhookEventId};
use std::collections::{BTreeMap, HashSet};

macro_rules! insert {
    ($set:literal, $order:literal) => {
        concat!(
            "INSERT INTO message_status_events (message_id, conversation_id, channel_account_id, provider_message_id, generation, correlation,
             status, provider_status, error_code, error_message, pricing, source, applied, raw_payload, webhook_event_id, occurred_at, received_at,
             waits_for_message_id)
      SELECT ", $set, $order, "
      ON CONFLICT (channel_account_id, provider_message_id, provider_status, occurred_at) WHERE source = 'PROVIDER' DO NOTHING
      RETURNING channel_account_id, provider_message_id, provider_status, occurred_at"
        )
    };
}
const EVENTS_INSERT_PG: &str = insert!(
    "message_id, conversation_id, account, id, generation, correlation, status, provider_status, error_code, error_message,
             pricing::jsonb, 'PROVIDER', applied, raw, webhook, occurred_at, received_at, waits_for
        FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::smallint[], $7::text[], $8::text[], $9::text[],
                    $10::text[], $11::text[], $12::text[], $13::boolean[], $14::text[], $15::bigint[], $16::timestamptz[], $17::timestamptz[],
                    $18::bigint[])
          AS i(at, message_id, conversation_id, account, id, generation, correlation, status, provider_status, error_code, error_message,
               pricing, applied, raw, webhook, occurred_at, received_at, waits_for)",
    " ORDER BY at"
);
const EVENTS_INSERT_SQLITE: &str = insert!(
    "value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9,
             value ->> 10, 'PROVIDER', value ->> 11, value ->> 12, value ->> 13, value ->> '$[14][0]', value ->> '$[14][1]', value ->> 15
        FROM json_each($1) WHERE true",
    " ORDER BY key"
);

rows! {
    /// The key of an event that was inserted.
    pub struct EventRow {
        /// The account.
        pub channel_account_id: AccountId,
        /// The provider's id.
        pub provider_message_id: String,
        /// The provider's word.
        pub provider_status: String,
        /// The provider's time.
        pub occurred_at: Timestamp,
    }
}

/// Inserts events in the order given; returns the keys of those that were new.
pub(super) async fn insert(tx: &mut Tx, events: &[Judged<'_>]) -> Result<HashSet<EventKey>> {
    let message = |e: &Judged<'_>| e.found.map(|found| found.message.get());
    let waits_for = |e: &Judged<'_>| e.waits_for.map(|found| found.message.get());
    let generation = |e: &Judged<'_>| e.found.or(e.waits_for).map(|found| found.generation);
    let pricing = |e: &Judged<'_>| e.receipt.pricing.as_ref().map(plain_json);
    let status = |e: &Judged<'_>| e.receipt.status.map(Status::as_str);
    let webhook = |e: &Judged<'_>| e.receipt.webhook.map(WebhookEventId::get);
    let conversation = |e: &Judged<'_>| e.found.and_then(|found| found.conversation).map(ConversationId::get);
    // Arrays on PostgreSQL, JSON on SQLite.
    let rows: Vec<EventRow> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(EVENTS_INSERT_PG)
                .bind((0..i32::try_from(events.len()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
                .bind(events.iter().map(message).collect::<Vec<_>>())
                .bind(events.iter().map(conversation).collect::<Vec<_>>())
                .bind(events.iter().map(|e| e.receipt.account.get()).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain(&e.receipt.provider_message_id)).collect::<Vec<_>>())
                .bind(events.iter().map(generation).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain_opt(e.receipt.correlation.as_deref())).collect::<Vec<_>>())
                .bind(events.iter().map(status).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain(&e.receipt.provider_status)).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain_opt(e.receipt.error_code.as_deref())).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain_opt(e.receipt.error_message.as_deref())).collect::<Vec<_>>())
                .bind(events.iter().map(pricing).collect::<Vec<_>>())
                .bind(events.iter().map(|e| e.applied).collect::<Vec<_>>())
                .bind(events.iter().map(|e| plain_opt(e.receipt.raw.as_deref())).collect::<Vec<_>>())
                .bind(events.iter().map(webhook).collect::<Vec<_>>())
                .bind(events.iter().map(|e| At(e.receipt.occurred_at)).collect::<Vec<_>>())
                .bind(events.iter().map(|e| At(e.receipt.received_at)).collect::<Vec<_>>())
                .bind(events.iter().map(waits_for).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = events
                .iter()
                .map(|e| {
                    let who = (message(e), conversation(e), e.receipt.account.get());
                    let words =
                        (plain_opt(e.receipt.error_code.as_deref()), plain_opt(e.receipt.error_message.as_deref()));
                    let at = (e.receipt.occurred_at.micros(), e.receipt.received_at.micros());
                    // The times in one place: there are more columns than a tuple may have.
                    (
                        who.0,
                        who.1,
                        who.2,
                        plain(&e.receipt.provider_message_id),
                        generation(e),
                        plain_opt(e.receipt.correlation.as_deref()),
                        status(e),
                        plain(&e.receipt.provider_status),
                        words.0,
                        words.1,
                        pricing(e),
                        e.applied,
                        plain_opt(e.receipt.raw.as_deref()),
                        webhook(e),
                        at,
                        waits_for(e),
                    )
                })
                .collect();
            sqlx::query_as(EVENTS_INSERT_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?
        }
    };
    let key =
        |row: EventRow| (row.channel_account_id.get(), row.provider_message_id, row.provider_status, row.occurred_at);
    Ok(rows.into_iter().map(key).collect())
}

macro_rules! complete {
    ($set:literal) => {
        concat!(
            "UPDATE send_attempts SET outcome = i.outcome, provider_message_id = coalesce(send_attempts.provider_message_id, i.id) FROM ",
            $set,
            " WHERE send_attempts.message_id = i.message AND send_attempts.generation = i.generation AND send_attempts.attempt = i.attempt
                AND send_attempts.outcome = 'UNKNOWN'"
        )
    };
}
const ATTEMPTS_COMPLETE_PG: &str = complete!(
    "unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::text[], $5::text[]) AS i(message, generation, attempt, id, outcome)"
);
const ATTEMPTS_COMPLETE_SQLITE: &str = complete!(
    "(SELECT value ->> 0 AS message, value ->> 1 AS generation, value ->> 2 AS attempt, value ->> 3 AS id, value ->> 4 AS outcome
        FROM json_each($1)) AS i"
);

/// An attempt of unknown outcome of which the provider speaks was accepted, whatever became of the message since. But one
/// that failed while another attempt of its generation decides about the message is over as if it had been refused: an
/// acceptance would settle the message.
pub(super) async fn complete_attempts(tx: &mut Tx, kept: &[&Judged<'_>]) -> Result<()> {
    let mut spoken_of: BTreeMap<(i64, i16, i16), (&str, &'static str)> = BTreeMap::new();
    for event in kept {
        let said = event.receipt.status.filter(|status| status.rank() >= Status::Sent.rank());
        let (Some(status), Some(found)) = (said, event.found) else { continue };
        let Some(attempt) = found.attempt else { continue };
        let refused = status == Status::Failed && !event.counts && !found.older;
        let outcome = if refused { AttemptOutcome::Rejected } else { AttemptOutcome::Accepted };
        let id = event.receipt.provider_message_id.as_str();
        spoken_of.entry((found.message.get(), found.generation, attempt)).or_insert((id, outcome.as_str()));
    }
    if spoken_of.is_empty() {
        return Ok(());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(ATTEMPTS_COMPLETE_PG)
                .bind(spoken_of.keys().map(|key| key.0).collect::<Vec<_>>())
                .bind(spoken_of.keys().map(|key| key.1).collect::<Vec<_>>())
                .bind(spoken_of.keys().map(|key| key.2).collect::<Vec<_>>())
                .bind(spoken_of.values().map(|said| said.0).collect::<Vec<_>>())
                .bind(spoken_of.values().map(|said| said.1).collect::<Vec<_>>())
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = spoken_of.iter().map(|(key, said)| (key.0, key.1, key.2, said.0, said.1)).collect();
            sqlx::query(ATTEMPTS_COMPLETE_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

const CONVERSATIONS_FAILED_PG: &str = "UPDATE conversations c SET last_failed_at = greatest(c.last_failed_at, i.at)
      FROM unnest($1::bigint[], $2::timestamptz[]) AS i(id, at) WHERE c.id = i.id";
const CONVERSATIONS_FAILED_SQLITE: &str =
    "UPDATE conversations SET last_failed_at = max(coalesce(last_failed_at, i.at), i.at)
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS at FROM json_each($1)) AS i WHERE conversations.id = i.id";

/// Notes on conversations that something of theirs failed.
pub(super) async fn note_failures(tx: &mut Tx, failed: &[(ConversationId, Timestamp)]) -> Result<()> {
    let mut latest: BTreeMap<i64, Timestamp> = BTreeMap::new();
    for (conversation, at) in failed {
        let known = latest.entry(conversation.get()).or_insert(*at);
        *known = (*known).max(*at);
    }
    if latest.is_empty() {
        return Ok(());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            let (ids, times): (Vec<i64>, Vec<At>) = latest.into_iter().map(|(id, at)| (id, At(at))).unzip();
            sqlx::query(CONVERSATIONS_FAILED_PG).bind(ids).bind(times).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<(i64, i64)> = latest.into_iter().map(|(id, at)| (id, at.micros())).collect();
            sqlx::query(CONVERSATIONS_FAILED_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
