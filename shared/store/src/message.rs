//! Messages: storing what people wrote, and raising the status of what we sent.

use crate::batch::{json, micros, plain, plain_json, plain_opt};
use crate::column::rows;
use crate::{At, Result, Tx, lead};
use domain::text::{folded, preview};
use domain::{
    AccountId, Channel, ContactId, ConversationId, LeadId, MessageId, MessageType, Status, Timestamp, WebhookEventId,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// A message from a person, on its way into its conversation.
#[derive(Clone, Debug)]
pub struct NewInbound {
    /// Its conversation.
    pub conversation: ConversationId,
    /// The conversation's account: part of the key.
    pub account: AccountId,
    /// Whose conversation it is.
    pub contact: ContactId,
    /// Where it takes place.
    pub channel: Channel,
    /// The lead it belongs to.
    pub lead: Option<LeadId>,
    /// The provider's id, or one derived from the item's bytes: this is the deduplication.
    pub key: String,
    /// What it is made of.
    pub kind: MessageType,
    /// Text shown.
    pub body: Option<String>,
    /// Type of its first file.
    pub media_mime_type: Option<String>,
    /// Provider id of the message it answers.
    pub reply_to: Option<String>,
    /// What it carried beyond its text.
    pub payload: Option<serde_json::Value>,
    /// The item as it arrived.
    pub raw: Option<String>,
    /// The webhook it came in.
    pub webhook: Option<WebhookEventId>,
    /// The provider's time, or the arrival.
    pub occurred_at: Timestamp,
    /// Whether it moves counters, window and the conversation's state, if it is new. A replayed old one does not.
    pub counts: bool,
    /// Until when free text may be answered because of it.
    pub window_until: Option<Timestamp>,
}

impl NewInbound {
    /// What the conversation list shows of it: its words, else what it is in brackets.
    fn preview(&self) -> String {
        match self.body.as_deref().map(preview).filter(|line| !line.is_empty()) {
            Some(line) => plain(&line).into_owned(),
            None => format!("[{}]", self.kind),
        }
    }

    fn search_text(&self) -> Option<String> {
        self.body.as_deref().map(|body| plain(&folded(body)).into_owned())
    }

    fn body(&self) -> Option<Cow<'_, str>> {
        plain_opt(self.body.as_deref())
    }

    fn payload(&self) -> Option<String> {
        self.payload.as_ref().map(plain_json)
    }
}

/// A message that was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its place in what was handed in.
    pub at: usize,
    /// The row.
    pub message: MessageId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Whose it is.
    pub contact: ContactId,
}

/// What came of storing a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// The messages that were new, in the order handed in. The others were there already.
    pub stored: Vec<StoredMessage>,
    /// How many conversations and leads are not what those handed in say: gone, somebody else's, or a lead that can no
    /// longer be continued. What was remembered about them is stale, and nothing of this may be committed.
    pub stale: usize,
}

/// One statement: what was inserted is what counts. Counters are summed per conversation, because one update for each
/// message is what makes the plain design slow. Materialised, because the insert and its count must see the same rows.
/// Whether what was remembered still holds is asked where the rows are touched anyway, and counted with `at` = -1: whoever
/// reads a count there rolls everything back.
const INBOUND_INSERT_PG: &str = "WITH i AS MATERIALIZED (
      SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                           $13::text[], $14::text[], $15::bigint[], $16::timestamptz[], $17::boolean[], $18::timestamptz[], $19::text[])
        AS i(at, conversation_id, lead_id, contact_id, channel_account_id, channel, key, type, body, search_text, media_mime_type, reply_to, payload, raw, webhook_event_id,
             occurred_at, counts, window_until, preview)),
    m AS (
      INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel, type, body, search_text,
             media_mime_type, status, provider_message_id, origin, reply_to_provider_id, payload, raw_payload, webhook_event_id,
             occurred_at, created_at)
      SELECT conversation_id, contact_id, lead_id, channel_account_id, 'INBOUND', channel, type, body, search_text,
             media_mime_type, 'RECEIVED', key, 'CONTACT', reply_to, payload::jsonb, raw, webhook_event_id, occurred_at, $21
        FROM i ORDER BY at
      ON CONFLICT (provider_message_id, channel_account_id) DO NOTHING
      RETURNING id, provider_message_id, channel_account_id),
    n AS MATERIALIZED (
      SELECT m.id, i.at, i.conversation_id, i.contact_id, i.channel_account_id, i.lead_id, i.channel, i.occurred_at, i.counts, i.window_until, i.preview
        FROM m JOIN i ON i.key = m.provider_message_id AND i.channel_account_id = m.channel_account_id),
    g AS MATERIALIZED (
      SELECT conversation_id, contact_id, channel_account_id, count(*) FILTER (WHERE counts) AS counted, max(occurred_at) AS last_at,
             min(occurred_at) FILTER (WHERE counts) AS first_counted, max(occurred_at) FILTER (WHERE counts) AS last_counted,
             max(window_until) FILTER (WHERE counts) AS window_until, max(channel) AS channel, max(lead_id) AS lead_id,
             (array_agg(id ORDER BY occurred_at DESC, id DESC))[1] AS last_id,
             (array_agg(preview ORDER BY occurred_at DESC, id DESC))[1] AS preview
        FROM n GROUP BY conversation_id, contact_id, channel_account_id ORDER BY conversation_id),
    u AS (
      UPDATE conversations c SET unread_count = c.unread_count + g.counted,
             last_message_id = CASE WHEN g.last_at >= c.last_message_at THEN g.last_id ELSE c.last_message_id END,
             last_message_preview = CASE WHEN g.last_at >= c.last_message_at THEN g.preview ELSE c.last_message_preview END,
             last_message_direction = CASE WHEN g.last_at >= c.last_message_at THEN 'INBOUND' ELSE c.last_message_direction END,
             last_message_at = greatest(c.last_message_at, g.last_at),
             last_inbound_at = greatest(c.last_inbound_at, g.last_at),
             window_expires_at = greatest(c.window_expires_at, g.window_until),
             needs_reply_since = CASE WHEN c.needs_reply_since IS NULL AND (c.last_outbound_at IS NULL OR g.last_counted > c.last_outbound_at)
                                      THEN CASE WHEN g.first_counted > c.last_outbound_at THEN g.first_counted
                                                WHEN c.last_outbound_at IS NULL THEN g.first_counted ELSE g.last_counted END
                                      ELSE c.needs_reply_since END,
             status = CASE WHEN g.counted > 0 AND (c.status IN ('CLOSED', 'SNOOZED') OR c.deleted_at IS NOT NULL) THEN 'OPEN' ELSE c.status END,
             closed_at = CASE WHEN g.counted > 0 THEN NULL ELSE c.closed_at END,
             snoozed_until = CASE WHEN g.counted > 0 THEN NULL ELSE c.snoozed_until END,
             deleted_at = CASE WHEN g.counted > 0 THEN NULL ELSE c.deleted_at END,
             updated_at = $21
        FROM g WHERE c.id = g.conversation_id RETURNING c.contact_id = g.contact_id AND c.channel_account_id = g.channel_account_id AS fits),
    x AS MATERIALIZED (SELECT lead_id, max(last_at) AS last_at, max(channel) AS channel FROM g WHERE lead_id IS NOT NULL GROUP BY lead_id ORDER BY lead_id),
    k AS (
      UPDATE leads l SET last_contact_channel = CASE WHEN x.last_at >= coalesce(l.last_contact_at, x.last_at) THEN x.channel ELSE l.last_contact_channel END,
             last_contact_at = greatest(l.last_contact_at, x.last_at), last_inbound_at = greatest(l.last_inbound_at, x.last_at), updated_at = $21
        FROM x
       WHERE l.id = x.lead_id AND l.closed_at IS NULL AND l.stage NOT IN ('COMPLETED_WON', 'LOST') AND l.created_at > $20 RETURNING l.id)
    SELECT at, id, conversation_id, contact_id FROM n
    UNION ALL SELECT -1, (SELECT count(*) FROM g) - (SELECT count(*) FROM u WHERE fits) + (SELECT count(*) FROM x) - (SELECT count(*) FROM k), 0, 0
    ORDER BY 1";

/// SQLite: no statement may change data inside another, so the same in four; the sums are made here in between.
const INBOUND_LIVE_SQLITE: &str = "SELECT count(*) FROM json_each($1) AS i
      JOIN conversations c ON c.id = i.value ->> 0 AND c.contact_id = i.value ->> 2 AND c.channel_account_id = i.value ->> 3
      LEFT JOIN leads l ON l.id = i.value ->> 1
    WHERE i.value ->> 1 IS NULL OR (l.closed_at IS NULL AND l.stage NOT IN ('COMPLETED_WON', 'LOST') AND l.created_at > $2)";
const INBOUND_INSERT_SQLITE: &str = "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel, type, body, search_text,
           media_mime_type, status, provider_message_id, origin, reply_to_provider_id, payload, raw_payload, webhook_event_id,
           occurred_at, created_at)
    SELECT c.id, c.contact_id, i.value ->> 1, c.channel_account_id, 'INBOUND', c.channel, i.value ->> 3, i.value ->> 4, i.value ->> 5,
           i.value ->> 6, 'RECEIVED', i.value ->> 2, 'CONTACT', i.value ->> 7, i.value ->> 8, i.value ->> 9, i.value ->> 10,
           i.value ->> 11, $2
      FROM json_each($1) AS i JOIN conversations c ON c.id = i.value ->> 0 WHERE true ORDER BY i.key
    ON CONFLICT (provider_message_id, channel_account_id) DO NOTHING
    RETURNING id, conversation_id, contact_id, channel_account_id, provider_message_id, channel";
const CONVERSATIONS_COUNT_SQLITE: &str = "UPDATE conversations SET unread_count = unread_count + g.counted,
           last_message_id = CASE WHEN g.last_at >= last_message_at THEN g.last_id ELSE last_message_id END,
           last_message_preview = CASE WHEN g.last_at >= last_message_at THEN g.preview ELSE last_message_preview END,
           last_message_direction = CASE WHEN g.last_at >= last_message_at THEN 'INBOUND' ELSE last_message_direction END,
           last_message_at = max(last_message_at, g.last_at),
           last_inbound_at = max(coalesce(last_inbound_at, g.last_at), g.last_at),
           window_expires_at = CASE WHEN g.window_until IS NULL OR g.window_until < window_expires_at THEN window_expires_at ELSE g.window_until END,
           needs_reply_since = CASE WHEN needs_reply_since IS NULL AND (last_outbound_at IS NULL OR g.last_counted > last_outbound_at)
                                    THEN CASE WHEN g.first_counted > last_outbound_at THEN g.first_counted
                                              WHEN last_outbound_at IS NULL THEN g.first_counted ELSE g.last_counted END
                                    ELSE needs_reply_since END,
           status = CASE WHEN g.counted > 0 AND (status IN ('CLOSED', 'SNOOZED') OR deleted_at IS NOT NULL) THEN 'OPEN' ELSE status END,
           closed_at = CASE WHEN g.counted > 0 THEN NULL ELSE closed_at END,
           snoozed_until = CASE WHEN g.counted > 0 THEN NULL ELSE snoozed_until END,
           deleted_at = CASE WHEN g.counted > 0 THEN NULL ELSE deleted_at END,
           updated_at = $2
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS counted, value ->> 2 AS last_at, value ->> 3 AS first_counted, value ->> 4 AS last_counted,
                   value ->> 5 AS window_until, value ->> 6 AS last_id, value ->> 7 AS preview FROM json_each($1)) AS g
    WHERE conversations.id = g.id";
const LEADS_TOUCH_SQLITE: &str = "UPDATE leads SET last_contact_channel = CASE WHEN x.last_at >= coalesce(last_contact_at, x.last_at) THEN x.channel ELSE last_contact_channel END,
           last_contact_at = max(coalesce(last_contact_at, x.last_at), x.last_at), last_inbound_at = max(coalesce(last_inbound_at, x.last_at), x.last_at),
           updated_at = $2
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS last_at, value ->> 2 AS channel FROM json_each($1)) AS x
    WHERE leads.id = x.id";

rows! {
    /// A row that the insert made.
    pub struct InsertedRow {
        /// The row.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Whose it is.
        pub contact_id: ContactId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Its key.
        pub provider_message_id: String,
        /// Where it was said.
        pub channel: Channel,
    }
}

/// For a transaction that writes a batch: its statements are the same every time and find their rows by index, so their
/// plans are made once for each connection. Made for the values at hand they cost a tenth of the batch, and the arrays make
/// them no better. SQLite plans once anyway.
/// # Errors
/// When the database cannot be reached.
pub async fn plan_once(tx: &mut Tx) -> Result<()> {
    const PLAN_ONCE: &str =
        "SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)";
    if let Tx::Postgres(tx) = tx {
        sqlx::query(PLAN_ONCE).execute(tx.conn()).await?;
    }
    Ok(())
}

/// Stores messages, moves the counters, window and state of their conversations and the times of their leads: all for
/// those messages only that were really new. Each key must be there once. When [`Inserted::stale`] is not zero, roll back,
/// resolve again and repeat.
/// # Errors
/// When the database cannot be reached, or refuses a message; on PostgreSQL also when a conversation is gone
/// ([`crate::StoreError::is_missing_reference`]), which is staleness as well.
pub async fn insert_inbound(tx: &mut Tx, messages: &[NewInbound], now: Timestamp) -> Result<Inserted> {
    if messages.is_empty() {
        return Ok(Inserted::default());
    }
    let since = At(now - lead::CONTINUES_FOR);
    match tx {
        Tx::Postgres(tx) => {
            let rows: Vec<(i32, i64, i64, i64)> = sqlx::query_as(INBOUND_INSERT_PG)
                .bind((0..i32::try_from(messages.len()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.conversation.get()).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.lead.map(LeadId::get)).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.contact.get()).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.account.get()).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.channel.as_str()).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| plain(&m.key)).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.kind.as_str()).collect::<Vec<_>>())
                .bind(messages.iter().map(NewInbound::body).collect::<Vec<_>>())
                .bind(messages.iter().map(NewInbound::search_text).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| plain_opt(m.media_mime_type.as_deref())).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| plain_opt(m.reply_to.as_deref())).collect::<Vec<_>>())
                .bind(messages.iter().map(NewInbound::payload).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| plain_opt(m.raw.as_deref())).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.webhook.map(WebhookEventId::get)).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| At(m.occurred_at)).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.counts).collect::<Vec<_>>())
                .bind(messages.iter().map(|m| m.window_until.map(At)).collect::<Vec<_>>())
                .bind(messages.iter().map(NewInbound::preview).collect::<Vec<_>>())
                .bind(since)
                .bind(At(now))
                .fetch_all(tx.conn())
                .await?;
            let mut inserted = Inserted::default();
            for (at, id, conversation, contact) in rows {
                match usize::try_from(at) {
                    Ok(at) => inserted.stored.push(StoredMessage {
                        at,
                        message: MessageId::new(id),
                        conversation: ConversationId::new(conversation),
                        contact: ContactId::new(contact),
                    }),
                    Err(_) => inserted.stale = usize::try_from(id).unwrap_or(0),
                }
            }
            Ok(inserted)
        }
        Tx::Sqlite(tx) => {
            let named: Vec<(i64, Option<i64>, i64, i64)> = messages
                .iter()
                .map(|m| (m.conversation.get(), m.lead.map(LeadId::get), m.contact.get(), m.account.get()))
                .collect();
            let live: i64 =
                sqlx::query_scalar(INBOUND_LIVE_SQLITE).bind(json(&named)?).bind(since).fetch_one(&mut **tx).await?;
            let stale = messages.len().saturating_sub(usize::try_from(live).unwrap_or(0));
            if stale > 0 {
                return Ok(Inserted { stored: Vec::new(), stale });
            }
            let rows: Vec<_> = messages
                .iter()
                .map(|m| {
                    let words = (m.kind.as_str(), m.body(), m.search_text(), plain_opt(m.media_mime_type.as_deref()));
                    let rest = (plain_opt(m.reply_to.as_deref()), m.payload(), plain_opt(m.raw.as_deref()));
                    (
                        m.conversation.get(),
                        m.lead.map(LeadId::get),
                        plain(&m.key),
                        words.0,
                        words.1,
                        words.2,
                        words.3,
                        rest.0,
                        rest.1,
                        rest.2,
                        m.webhook.map(WebhookEventId::get),
                        m.occurred_at.micros(),
                    )
                })
                .collect();
            let query = sqlx::query_as(INBOUND_INSERT_SQLITE).bind(json(&rows)?).bind(At(now));
            let inserted: Vec<InsertedRow> = query.fetch_all(&mut **tx).await?;
            let (stored, conversations, leads) = summed(messages, inserted);
            if !conversations.is_empty() {
                let query = sqlx::query(CONVERSATIONS_COUNT_SQLITE).bind(json(&conversations)?).bind(At(now));
                query.execute(&mut **tx).await?;
            }
            if !leads.is_empty() {
                sqlx::query(LEADS_TOUCH_SQLITE).bind(json(&leads)?).bind(At(now)).execute(&mut **tx).await?;
            }
            Ok(Inserted { stored, stale: 0 })
        }
    }
}

/// Id, counted, last, first and last counted, window, id and preview of the last: what `g` is on PostgreSQL.
type ConversationSum = (i64, i64, i64, Option<i64>, Option<i64>, Option<i64>, i64, String);
/// Id, last, channel: what `x` is on PostgreSQL.
type LeadSum = (i64, i64, &'static str);

fn summed(
    messages: &[NewInbound],
    inserted: Vec<InsertedRow>,
) -> (Vec<StoredMessage>, Vec<ConversationSum>, Vec<LeadSum>) {
    let places: HashMap<(AccountId, Cow<'_, str>), usize> =
        messages.iter().enumerate().map(|(at, m)| ((m.account, plain(&m.key)), at)).collect();
    let mut stored = Vec::with_capacity(inserted.len());
    let mut conversations: BTreeMap<i64, ConversationSum> = BTreeMap::new();
    let mut leads: BTreeMap<i64, LeadSum> = BTreeMap::new();
    for row in inserted {
        let place = places.get(&(row.channel_account_id, Cow::Borrowed(row.provider_message_id.as_str()))).copied();
        let Some((at, message)) = place.and_then(|at| messages.get(at).map(|message| (at, message))) else { continue };
        stored.push(StoredMessage { at, message: row.id, conversation: row.conversation_id, contact: row.contact_id });
        let occurred = message.occurred_at.micros();
        let empty = || (row.conversation_id.get(), 0, i64::MIN, None, None, None, 0, String::new());
        let sum = conversations.entry(row.conversation_id.get()).or_insert_with(empty);
        if (occurred, row.id.get()) >= (sum.2, sum.6) {
            (sum.2, sum.6, sum.7) = (occurred, row.id.get(), message.preview());
        }
        if message.counts {
            sum.1 += 1;
            sum.3 = Some(sum.3.map_or(occurred, |first| first.min(occurred)));
            sum.4 = Some(sum.4.map_or(occurred, |last| last.max(occurred)));
            sum.5 = sum.5.max(micros(message.window_until));
        }
        if let Some(lead) = message.lead {
            let sum = leads.entry(lead.get()).or_insert((lead.get(), occurred, row.channel.as_str()));
            (sum.1, sum.2) = (sum.1.max(occurred), sum.2.max(row.channel.as_str()));
        }
    }
    stored.sort_unstable_by_key(|stored| stored.at);
    (stored, conversations.into_values().collect(), leads.into_values().collect())
}

const KEYS_KNOWN_PG: &str =
    "SELECT m.channel_account_id, m.provider_message_id FROM unnest($1::bigint[], $2::text[]) AS i(account, key)
      JOIN messages m ON m.provider_message_id = i.key AND m.channel_account_id = i.account";
const KEYS_KNOWN_SQLITE: &str = "SELECT m.channel_account_id, m.provider_message_id FROM json_each($1) AS i
      JOIN messages m ON m.provider_message_id = i.value ->> 1 AND m.channel_account_id = i.value ->> 0";

/// Which of these keys have a message already. For deciding what a message may open; the insert itself needs no asking.
/// # Errors
/// Only when the database cannot be reached.
pub async fn known_keys(tx: &mut Tx, keys: &[(AccountId, &str)]) -> Result<Vec<(AccountId, String)>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let known: Vec<(i64, String)> = match tx {
        Tx::Postgres(tx) => {
            let (accounts, keys): (Vec<i64>, Vec<&str>) =
                keys.iter().map(|(account, key)| (account.get(), *key)).unzip();
            sqlx::query_as(KEYS_KNOWN_PG).bind(accounts).bind(keys).fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<(i64, &str)> = keys.iter().map(|(account, key)| (account.get(), *key)).collect();
            sqlx::query_as(KEYS_KNOWN_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?
        }
    };
    Ok(known.into_iter().map(|(account, key)| (AccountId::new(account), key)).collect())
}

/// What receipts make of one message: a status to rise to, and the times they tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// Which message.
    pub message: MessageId,
    /// The status it comes to, if it rises.
    pub status: Option<Status>,
    /// The provider's id, if the message has none yet.
    pub provider_message_id: Option<String>,
    /// Earliest time at which it is known to have been sent.
    pub sent_at: Option<Timestamp>,
    /// … delivered.
    pub delivered_at: Option<Timestamp>,
    /// … read.
    pub read_at: Option<Timestamp>,
    /// Why it failed, when it comes to FAILED: class, code, words.
    pub failure: Option<(String, Option<String>, Option<String>)>,
    /// When it failed.
    pub failed_at: Option<Timestamp>,
}

/// The rank is asked once more, although the row is locked: a status must not fall, whoever calls. Earliest times win, so
/// each kind of time is never later than the one that implies it.
macro_rules! advance {
    ($set:literal, $least_sent:literal, $least_delivered:literal, $least_read:literal) => {
        concat!(
            "UPDATE messages SET status = coalesce(i.status, messages.status),
             outcome_unknown = CASE WHEN i.status IS NULL THEN messages.outcome_unknown ELSE false END,
             provider_message_id = coalesce(messages.provider_message_id, i.provider_message_id),
             sent_at = ",
            $least_sent,
            ", delivered_at = ",
            $least_delivered,
            ", read_at = ",
            $least_read,
            ",
             failed_at = CASE WHEN i.status IS NULL THEN messages.failed_at ELSE i.failed_at END,
             error_class = CASE WHEN i.status IS NULL THEN messages.error_class ELSE i.error_class END,
             error_code = CASE WHEN i.status IS NULL THEN messages.error_code ELSE i.error_code END,
             error_message = CASE WHEN i.status IS NULL THEN messages.error_message ELSE i.error_message END
        FROM ",
            $set,
            " WHERE messages.id = i.id AND (i.status IS NULL OR messages.status_rank < i.status_rank)"
        )
    };
}
const MESSAGES_ADVANCE_PG: &str = advance!(
    "unnest($1::bigint[], $2::text[], $3::smallint[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[],
        $9::text[], $10::text[], $11::text[])
     AS i(id, status, status_rank, provider_message_id, sent_at, delivered_at, read_at, failed_at, error_class, error_code, error_message)",
    "least(messages.sent_at, i.sent_at)",
    "least(messages.delivered_at, i.delivered_at)",
    "least(messages.read_at, i.read_at)"
);
/// `min(a, b)` is NULL where one is, unlike `least`.
const MESSAGES_ADVANCE_SQLITE: &str = advance!(
    "(SELECT value ->> 0 AS id, value ->> 1 AS status, value ->> 2 AS status_rank, value ->> 3 AS provider_message_id, value ->> 4 AS sent_at,
             value ->> 5 AS delivered_at, value ->> 6 AS read_at, value ->> 7 AS failed_at, value ->> 8 AS error_class, value ->> 9 AS error_code,
             value ->> 10 AS error_message FROM json_each($1)) AS i",
    "min(coalesce(messages.sent_at, i.sent_at), coalesce(i.sent_at, messages.sent_at))",
    "min(coalesce(messages.delivered_at, i.delivered_at), coalesce(i.delivered_at, messages.delivered_at))",
    "min(coalesce(messages.read_at, i.read_at), coalesce(i.read_at, messages.read_at))"
);

/// Moves messages forward; a status that does not rise changes nothing but missing times. Each message at most once.
/// # Errors
/// When the database cannot be reached, or the status lacks its proof.
pub async fn advance(tx: &mut Tx, advances: &[Advance]) -> Result<()> {
    if advances.is_empty() {
        return Ok(());
    }
    let class = |a: &Advance| a.failure.as_ref().map(|f| plain(&f.0).into_owned());
    let code = |a: &Advance| a.failure.as_ref().and_then(|f| plain_opt(f.1.as_deref()).map(Cow::into_owned));
    let words = |a: &Advance| a.failure.as_ref().and_then(|f| plain_opt(f.2.as_deref()).map(Cow::into_owned));
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(MESSAGES_ADVANCE_PG)
                .bind(advances.iter().map(|a| a.message.get()).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.status.map(Status::as_str)).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.status.map(Status::rank)).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.provider_message_id.as_deref()).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.sent_at.map(At)).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.delivered_at.map(At)).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.read_at.map(At)).collect::<Vec<_>>())
                .bind(advances.iter().map(|a| a.failed_at.map(At)).collect::<Vec<_>>())
                .bind(advances.iter().map(class).collect::<Vec<_>>())
                .bind(advances.iter().map(code).collect::<Vec<_>>())
                .bind(advances.iter().map(words).collect::<Vec<_>>())
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = advances
                .iter()
                .map(|a| {
                    let status = (a.status.map(Status::as_str), a.status.map(Status::rank));
                    let times = (micros(a.sent_at), micros(a.delivered_at), micros(a.read_at), micros(a.failed_at));
                    let id = a.provider_message_id.as_deref();
                    let (m, c, w) = (class(a), code(a), words(a));
                    (a.message.get(), status.0, status.1, id, times.0, times.1, times.2, times.3, m, c, w)
                })
                .collect();
            sqlx::query(MESSAGES_ADVANCE_SQLITE).bind(json(&rows)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
