//! The promises, asked of the database itself: read-only, safe in production, and what every chaos run ends with.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{Result, Tx};

/// One check: what must never be, and the query that finds it.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Short name, for scripts.
    pub name: &'static str,
    /// What holds, in a sentence.
    pub holds: &'static str,
    /// Finds what breaks it: rows of (`id`, `detail`).
    broken_by: &'static str,
}

/// A row that breaks a promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The promise's name.
    pub promise: &'static str,
    /// Id of the row.
    pub id: i64,
    /// What is wrong with it. Never text or addresses.
    pub detail: String,
}

/// Most rows one check reports.
const AT_MOST: i64 = 20;

/// Every check. All are true at any moment between two commits.
pub const PROMISES: &[Promise] = &[
    Promise {
        name: "unfinished_has_send",
        holds: "a row in sends exists exactly while its message is QUEUED or SENDING",
        broken_by: "SELECT m.id AS id, 'message is ' || m.status || ' without a row in sends' AS detail
              FROM messages m WHERE m.status IN ('QUEUED', 'SENDING')
               AND NOT EXISTS (SELECT 1 FROM sends s WHERE s.message_id = m.id)
             UNION ALL
            SELECT m.id, 'message is ' || m.status || ' and still has a row in sends'
              FROM sends s JOIN messages m ON m.id = s.message_id WHERE m.status NOT IN ('QUEUED', 'SENDING') LIMIT $1",
    },
    Promise {
        name: "status_only_rises",
        holds: "applied status events, read in id order, never go backwards within a generation",
        broken_by: "SELECT id, 'applied ' || status || ' after ' || before AS detail FROM (
              SELECT e.message_id AS id, e.status AS status, e.id AS event,
                     lag(e.status) OVER (PARTITION BY e.message_id, coalesce(e.generation, m.send_generation) ORDER BY e.id) AS before
                FROM message_status_events e JOIN messages m ON m.id = e.message_id
               WHERE e.applied AND e.status IN ('SENT', 'FAILED', 'DELIVERED', 'READ')) AS steps
             WHERE before IS NOT NULL
               AND CASE status WHEN 'SENT' THEN 30 WHEN 'FAILED' THEN 35 WHEN 'DELIVERED' THEN 40 ELSE 50 END
                <= CASE before WHEN 'SENT' THEN 30 WHEN 'FAILED' THEN 35 WHEN 'DELIVERED' THEN 40 ELSE 50 END LIMIT $1",
    },
    Promise {
        name: "status_is_highest_receipt",
        holds: "a message's status is at least every receipt of its generation, but for the failure of one attempt among several",
        broken_by: "SELECT m.id AS id, 'message is ' || m.status || ', a receipt says ' || e.status AS detail
              FROM messages m JOIN message_status_events e ON e.message_id = m.id
             WHERE m.direction = 'OUTBOUND' AND e.source = 'PROVIDER' AND coalesce(e.generation, m.send_generation) = m.send_generation
               AND e.status IN ('SENT', 'FAILED', 'DELIVERED', 'READ')
               AND CASE e.status WHEN 'SENT' THEN 30 WHEN 'FAILED' THEN 35 WHEN 'DELIVERED' THEN 40 ELSE 50 END > m.status_rank
               AND NOT (e.status = 'FAILED' AND EXISTS (SELECT 1 FROM send_attempts a WHERE a.message_id = m.id
                     AND a.generation = m.send_generation
                     AND (a.provider_message_id IS NULL OR a.provider_message_id <> e.provider_message_id))) LIMIT $1",
    },
    Promise {
        name: "proof_of_sending",
        holds: "nothing is SENT, DELIVERED or READ without a provider id or a named person's word",
        broken_by: "SELECT id, 'message is ' || status || ' without proof' AS detail FROM messages
             WHERE status IN ('SENT', 'DELIVERED', 'READ') AND channel <> 'INTERNAL_NOTE'
               AND provider_message_id IS NULL AND confirmed_by_user_id IS NULL LIMIT $1",
    },
    Promise {
        name: "one_acceptance_per_generation",
        holds: "no generation of a message was accepted by its provider twice",
        broken_by: "SELECT message_id AS id, 'accepted under ' || count(DISTINCT provider_message_id) || ' provider ids' AS detail
              FROM send_attempts WHERE outcome = 'ACCEPTED'
             GROUP BY message_id, generation HAVING count(DISTINCT provider_message_id) > 1 LIMIT $1",
    },
    Promise {
        name: "accepted_is_over",
        holds: "no send waits for evidence, for a person or for its time, of which the provider took an attempt of this generation",
        // IN_FLIGHT: the acceptance came after the later claim. WAITING: that claim was given back, and the keeper has not
        // looked yet. DISPATCHED: by a statement that began before the acceptance was there; no claim takes it.
        broken_by: "SELECT s.message_id AS id, 'send is ' || s.state || ', although attempt ' || a.attempt || ' was accepted' AS detail
              FROM sends s JOIN send_attempts a ON a.message_id = s.message_id AND a.generation = s.generation
             WHERE a.outcome = 'ACCEPTED' AND a.provider_message_id IS NOT NULL AND s.state NOT IN ('IN_FLIGHT', 'WAITING', 'DISPATCHED') LIMIT $1",
    },
    Promise {
        name: "waiting_receipts_have_a_send",
        holds: "a receipt waits for a message's call only while the message has a row in sends, and that is not settled",
        broken_by: "SELECT e.id AS id, 'waits for message ' || m.id || ', whose send is ' || coalesce(s.state, 'over') AS detail
              FROM message_status_events e JOIN messages m ON m.id = e.waits_for_message_id
              LEFT JOIN sends s ON s.message_id = m.id
             WHERE e.message_id IS NULL AND e.waits_for_message_id IS NOT NULL
               AND (s.message_id IS NULL OR s.state NOT IN ('IN_FLIGHT', 'WAITING', 'DISPATCHED')) LIMIT $1",
    },
    Promise {
        name: "failure_is_explained",
        holds: "a FAILED message says why",
        broken_by: "SELECT id, 'FAILED without a class or a word' AS detail FROM messages
             WHERE status = 'FAILED' AND (error_class IS NULL OR (error_code IS NULL AND error_message IS NULL)) LIMIT $1",
    },
    Promise {
        name: "times_only_grow",
        holds: "a conversation's last message is its latest, and its last inbound its latest inbound",
        broken_by: "SELECT c.id AS id, 'last_message_at or last_inbound_at is behind its messages' AS detail
              FROM conversations c
              JOIN (SELECT conversation_id, max(occurred_at) AS newest,
                           max(CASE WHEN direction = 'INBOUND' THEN occurred_at END) AS inbound
                      FROM messages WHERE type NOT IN ('reaction', 'system') GROUP BY conversation_id) AS m ON m.conversation_id = c.id
             WHERE c.last_message_at < m.newest OR c.last_inbound_at < m.inbound
                OR (m.inbound IS NOT NULL AND c.last_inbound_at IS NULL) LIMIT $1",
    },
    Promise {
        name: "nothing_stored_twice",
        holds: "one row per provider message",
        broken_by: "SELECT min(id) AS id, count(*) || ' rows for one provider id' AS detail FROM messages
             WHERE provider_message_id IS NOT NULL
             GROUP BY channel_account_id, provider_message_id HAVING count(*) > 1 LIMIT $1",
    },
];

/// True once nothing is on its way: what a chaos run adds after everything has settled.
pub const SETTLED: &[Promise] = &[
    Promise {
        name: "receipts_find_their_message",
        holds: "no receipt is parked under an id that a message has",
        broken_by: "SELECT e.id AS id, 'parked, although message ' || m.id || ' has its id' AS detail
              FROM message_status_events e
              JOIN messages m ON m.provider_message_id = e.provider_message_id AND m.channel_account_id = e.channel_account_id
             WHERE e.message_id IS NULL AND e.conversation_id IS NULL LIMIT $1",
    },
    Promise {
        name: "nothing_waits_for_a_call",
        holds: "no receipt waits for the end of a call, and no send waits that the provider has taken",
        broken_by: "SELECT e.id AS id, 'waits for message ' || e.waits_for_message_id AS detail FROM message_status_events e
             WHERE e.message_id IS NULL AND e.waits_for_message_id IS NOT NULL
             UNION ALL
            SELECT s.message_id, 'send is ' || s.state || ', although attempt ' || a.attempt || ' was accepted'
              FROM sends s JOIN send_attempts a ON a.message_id = s.message_id AND a.generation = s.generation
             WHERE a.outcome = 'ACCEPTED' AND a.provider_message_id IS NOT NULL LIMIT $1",
    },
];

rows! {
    /// What a check finds.
    pub struct Found {
        /// Id of the row.
        pub id: i64,
        /// What is wrong with it.
        pub detail: String,
    }
}

/// Asks every promise of `promises`; empty means all of them hold.
/// # Errors
/// When the database cannot be reached.
pub async fn audit(tx: &mut Tx, promises: &'static [Promise]) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for promise in promises {
        let found: Vec<Found> =
            on_backend!(tx, conn => sqlx::query_as(promise.broken_by).bind(AT_MOST).fetch_all(conn).await?);
        let name = promise.name;
        violations.extend(found.into_iter().map(|row| Violation { promise: name, id: row.id, detail: row.detail }));
    }
    Ok(violations)
}
