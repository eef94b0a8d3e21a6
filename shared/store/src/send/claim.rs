//! DISPATCHED → IN_FLIGHT: a sender makes rows its own, many in one statement, before it calls anybody. The attempt is
//! counted here, so a call that nobody lives to report is known to have been possible.

use crate::batch::json;
use crate::column::rows;
use crate::set::{Both, numbers};
use crate::{At, Result, Tx};
use domain::{AccountId, ConversationId, MessageId, MessageType, Timestamp};
use std::time::Duration;

rows! {
    /// A row claimed, with all its call needs.
    pub struct Claimed {
        /// Which message.
        pub message_id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account.
        pub channel_account_id: AccountId,
        /// Which generation.
        pub generation: i16,
        /// Which attempt this claim is.
        pub attempt: i16,
        /// Trace context of the request that asked for it.
        pub traceparent: Option<String>,
        /// What it is made of.
        pub kind: MessageType,
        /// Its text.
        pub body: Option<String>,
        /// The template's name.
        pub template_name: Option<String>,
        /// The template's language.
        pub template_language: Option<String>,
        /// The template's parameters, an array of texts.
        pub template_params: Option<serde_json::Value>,
        /// Provider id of the message it answers.
        pub reply_to: Option<String>,
        /// Until when free text may be sent; `None` on a channel with a window: it is closed.
        pub window_expires_at: Option<Timestamp>,
        /// When the person last wrote.
        pub last_inbound_at: Option<Timestamp>,
        /// WhatsApp digits of the conversation's identity or of one that is the same address.
        pub wa_id: Option<String>,
        /// WhatsApp business-scoped id, likewise.
        pub wa_bsuid: Option<String>,
        /// Any other address, likewise.
        pub other: Option<String>,
        /// Whose message it is.
        pub deployment: String,
    }
}

/// A claim that reaches the database later than this after [`Claims::now`] claims nothing: what was given up as lost, and may
/// still be under way, cannot take rows when nobody expects it any more.
pub const CLAIM_WITHIN: Duration = Duration::from_secs(1);

/// What a sender wants to claim.
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    /// The lease's token, new for every claim: what a claim whose answer was lost has taken is known by it.
    pub lease_token: &'a str,
    /// Until when, by the database's clock: counted from before the statement was sent.
    pub lease_until: Timestamp,
    /// The database's clock.
    pub now: Timestamp,
    /// Which messages.
    pub messages: &'a [MessageId],
    /// SHA-256 of the access token the sender has for an account, in hex: one that is known to be broken claims nothing.
    pub tokens: &'a [(AccountId, String)],
}

/// The address of the conversation under one name: its own identity, which conversations are keyed on, goes before those
/// known to be the same address. By the contact: an index that begins with the kind would be read through.
macro_rules! address {
    ($kinds:literal) => {
        concat!(
            "(SELECT i.value FROM contact_identities i WHERE i.contact_id = v.contact_id AND i.kind || '' ",
            $kinds,
            " AND (i.id = v.contact_identity_id OR i.alias_of_id = v.contact_identity_id)
             ORDER BY CASE WHEN i.alias_of_id IS NULL THEN 0 ELSE 1 END, i.id LIMIT 1)"
        )
    };
}

/// What the call needs, of the rows named `s`.
macro_rules! claimed {
    ($rows:expr) => {
        concat!(
            "SELECT s.message_id, s.conversation_id, s.channel_account_id, s.generation, s.attempt, s.traceparent,
    m.type AS kind, m.body, m.template_name, m.template_language, m.template_params,
    coalesce(m.reply_to_provider_id, (SELECT r.provider_message_id FROM messages r
       WHERE r.id = m.reply_to_message_id AND r.provider_message_id NOT LIKE 'x:%')) AS reply_to,
    v.window_expires_at, v.last_inbound_at, ",
            address!("= 'WA_ID'"),
            " AS wa_id, ",
            address!("= 'WA_BSUID'"),
            " AS wa_bsuid, ",
            address!("NOT IN ('WA_ID', 'WA_BSUID', 'PHONE')"),
            " AS other, (SELECT id FROM deployment) AS deployment
  FROM ",
            $rows,
            " JOIN messages m ON m.id = s.message_id JOIN conversations v ON v.id = s.conversation_id"
        )
    };
}

/// Claims and reads in one statement. The rows are found by their ids: the state is written so that the index of what is
/// DISPATCHED cannot be used, or PostgreSQL reads all of it whenever its statistics say that there is little.
const SEND_CLAIM_PG: &str = concat!(
    "WITH s AS (
  UPDATE sends c SET state = 'IN_FLIGHT', attempt = c.attempt + 1, lease_token = $1, lease_until = $2
    FROM unnest($4::bigint[]) AS wanted(id), channel_accounts a
   WHERE c.message_id = wanted.id AND c.state || '' = 'DISPATCHED' AND c.deadline_at > $3 AND clock_timestamp() < $7
     AND a.id = c.channel_account_id AND a.status = 'ACTIVE'
     AND (a.broken_token_sha256 IS NULL OR NOT EXISTS (SELECT 1 FROM unnest($5::bigint[], $6::text[]) AS t(account, token)
           WHERE t.account = a.id AND a.broken_token_sha256 LIKE '%' || t.token || '%'))
     AND ",
    nothing_heard!("c"),
    "
  RETURNING c.message_id, c.conversation_id, c.channel_account_id, c.generation, c.attempt, c.traceparent) ",
    claimed!("s")
);

/// SQLite cannot read what an UPDATE in a WITH returns: it claims, then reads under the token.
const SEND_CLAIM_SQLITE: &str = concat!(
    "UPDATE sends SET state = 'IN_FLIGHT', attempt = attempt + 1, lease_token = $1, lease_until = $2
   WHERE message_id IN (SELECT value FROM json_each($4)) AND state = 'DISPATCHED' AND deadline_at > $3
     AND EXISTS (SELECT 1 FROM channel_accounts a
      WHERE a.id = sends.channel_account_id AND a.status = 'ACTIVE'
        AND (a.broken_token_sha256 IS NULL OR NOT EXISTS (
               SELECT 1 FROM json_each($5) WHERE value->>0 = a.id AND a.broken_token_sha256 LIKE '%' || (value->>1) || '%')))
     AND ",
    nothing_heard!("sends")
);

/// Claims the rows that are still DISPATCHED, whose account is ACTIVE, whose deadline has not passed, and of which nothing was
/// heard meanwhile. A message that is not among the answers is somebody else's, done, cancelled, or may not be sent now ([`super::set_back`] then makes it
/// WAITING again).
/// # Errors
/// When the database cannot be reached. Whether the claim was made is then unknown: once [`CLAIM_WITHIN`] is over
/// [`super::lock`] tells by the token.
pub async fn claim(tx: &mut Tx, claims: &Claims<'_>) -> Result<Vec<Claimed>> {
    if let Tx::Postgres(tx) = tx {
        let (accounts, tokens): (Vec<i64>, Vec<String>) =
            claims.tokens.iter().map(|(account, token)| (account.get(), token.clone())).unzip();
        let query = sqlx::query_as(SEND_CLAIM_PG).bind(claims.lease_token).bind(At(claims.lease_until));
        let query = query.bind(At(claims.now)).bind(numbers(claims.messages)).bind(accounts).bind(tokens);
        let query = query.bind(At(claims.now + CLAIM_WITHIN));
        return Ok(query.fetch_all(tx.conn()).await?);
    }
    if let Tx::Sqlite(tx) = &mut *tx {
        let query = sqlx::query(SEND_CLAIM_SQLITE).bind(claims.lease_token).bind(At(claims.lease_until));
        let query = query.bind(At(claims.now)).bind(json(claims.messages)?).bind(json(claims.tokens)?);
        query.execute(&mut **tx).await?;
    }
    claimed_under(tx, claims.lease_token, claims.messages).await
}

macro_rules! claimed_under {
    ($ids:literal) => {
        concat!(claimed!("sends s"), " WHERE s.state = 'IN_FLIGHT' AND s.lease_token = $1 AND s.message_id IN ", $ids)
    };
}
const SEND_CLAIMED_UNDER: Both = Both {
    postgres: claimed_under!("(SELECT unnest($2::bigint[]))"),
    sqlite: claimed_under!("(SELECT value FROM json_each($2))"),
};

/// What of `messages` is claimed under this token, with all the calls need.
/// # Errors
/// Only when the database cannot be reached.
pub async fn claimed_under(tx: &mut Tx, lease_token: &str, messages: &[MessageId]) -> Result<Vec<Claimed>> {
    Ok(match tx {
        Tx::Postgres(tx) => {
            let query = sqlx::query_as(SEND_CLAIMED_UNDER.postgres).bind(lease_token).bind(numbers(messages));
            query.fetch_all(tx.conn()).await?
        }
        Tx::Sqlite(tx) => {
            let query = sqlx::query_as(SEND_CLAIMED_UNDER.sqlite).bind(lease_token).bind(json(messages)?);
            query.fetch_all(&mut **tx).await?
        }
    })
}
