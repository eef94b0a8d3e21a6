//! Conversations: one thread of one address with one of our accounts.

use crate::batch::{json, micros, plain, plain_opt};
use crate::column::rows;
use crate::{At, Result, Tx};
use domain::{AccountId, Channel, ContactId, ConversationId, IdentityId, LeadId, Timestamp};
use std::collections::HashMap;

/// What makes a conversation this one and no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationKey {
    /// Our account.
    pub account: AccountId,
    /// The customer's address, the canonical one of its aliases.
    pub identity: IdentityId,
    /// Which thread of the address; empty where there is one.
    pub thread: String,
}

/// A conversation that should exist.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its key.
    pub key: ConversationKey,
    /// Where it takes place.
    pub channel: Channel,
    /// With whom.
    pub contact: ContactId,
    /// The lead its messages belong to from now on; `None` leaves it as it is.
    pub lead: Option<LeadId>,
    /// What the CRM calls it: `<phone_number_id>_<digits>` on WhatsApp.
    pub external_id: String,
    /// The customer's WhatsApp digits, for the CRM's older readers.
    pub wa_user_wa_id: Option<String>,
    /// When its first message was said.
    pub first_at: Timestamp,
}

const CONVERSATIONS_FIND_PG: &str = "SELECT c.id, c.channel_account_id, c.contact_identity_id, c.thread_key, c.lead_id, c.contact_id
      FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS i(account, identity, thread)
      JOIN conversations c ON c.channel_account_id = i.account AND c.contact_identity_id = i.identity AND c.thread_key = i.thread";
const CONVERSATIONS_FIND_SQLITE: &str = "SELECT c.id, c.channel_account_id, c.contact_identity_id, c.thread_key, c.lead_id, c.contact_id
      FROM json_each($1) AS i
      JOIN conversations c ON c.channel_account_id = i.value ->> 0 AND c.contact_identity_id = i.value ->> 1 AND c.thread_key = i.value ->> 2";

const CONVERSATIONS_UPSERT_PG: &str = "INSERT INTO conversations (channel_account_id, contact_identity_id, thread_key, channel, contact_id, lead_id,
           external_id, external_thread_id, wa_conversation_id, wa_user_wa_id, last_message_at, created_at, updated_at)
    SELECT account, identity, thread, channel, contact, lead, external_id, external_id,
           CASE WHEN channel = 'WHATSAPP' THEN external_id END, wa_user_wa_id, first_at, $10, $10
      FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::timestamptz[])
        AS i(account, identity, thread, channel, contact, lead, external_id, wa_user_wa_id, first_at)
    ON CONFLICT (channel_account_id, contact_identity_id, thread_key) DO UPDATE SET lead_id = coalesce(excluded.lead_id, conversations.lead_id)
    RETURNING id, channel_account_id, contact_identity_id, thread_key, lead_id, contact_id";
const CONVERSATIONS_UPSERT_SQLITE: &str = "INSERT INTO conversations (channel_account_id, contact_identity_id, thread_key, channel, contact_id, lead_id,
           external_id, external_thread_id, wa_conversation_id, wa_user_wa_id, last_message_at, created_at, updated_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 6,
           CASE WHEN value ->> 3 = 'WHATSAPP' THEN value ->> 6 END, value ->> 7, value ->> 8, $2, $2
      FROM json_each($1) WHERE true
    ON CONFLICT (channel_account_id, contact_identity_id, thread_key) DO UPDATE SET lead_id = coalesce(excluded.lead_id, conversations.lead_id)
    RETURNING id, channel_account_id, contact_identity_id, thread_key, lead_id, contact_id";

rows! {
    /// A conversation and its key.
    pub struct ConversationRow {
        /// The row.
        pub id: ConversationId,
        /// Our account.
        pub channel_account_id: AccountId,
        /// The customer's address.
        pub contact_identity_id: IdentityId,
        /// The thread.
        pub thread_key: String,
        /// The lead its messages belong to.
        pub lead_id: Option<LeadId>,
        /// With whom.
        pub contact_id: ContactId,
    }
}

impl ConversationRow {
    fn key(&self) -> ConversationKey {
        ConversationKey {
            account: self.channel_account_id,
            identity: self.contact_identity_id,
            thread: self.thread_key.clone(),
        }
    }

    fn opened(&self) -> Opened {
        Opened { conversation: self.id, contact: self.contact_id }
    }
}

/// A conversation that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The row.
    pub conversation: ConversationId,
    /// With whom, as the row says: once somebody has moved it to another contact, that is not the address's own any more.
    pub contact: ContactId,
}

/// Finds or opens conversations. An existing one takes over the lead and nothing else; whether it is opened again is
/// decided by the messages that are really new ([`crate::message::insert_inbound`]).
/// # Errors
/// When the database cannot be reached, or a row referred to is gone ([`crate::StoreError::is_missing_reference`]).
pub async fn upsert(tx: &mut Tx, wanted: &[Wanted], now: Timestamp) -> Result<HashMap<ConversationKey, Opened>> {
    // One row must not be updated twice by one statement; and in one order everywhere, so that two transactions meet as
    // in a queue, not in a deadlock.
    let mut distinct: Vec<&Wanted> = wanted.iter().collect();
    distinct.sort_by(|a, b| a.key.cmp(&b.key));
    distinct.dedup_by(|a, b| a.key == b.key);
    // Most are there and as they should be. To update a row into what it is costs as much as to change it, and makes
    // PostgreSQL ask again for everything that it refers to when its counters move in the same transaction.
    let mut found: HashMap<ConversationKey, Opened> = HashMap::with_capacity(distinct.len());
    if !distinct.is_empty() {
        let known: HashMap<ConversationKey, ConversationRow> =
            find(tx, &distinct).await?.into_iter().map(|row| (row.key(), row)).collect();
        distinct.retain(|wanted| match known.get(&wanted.key) {
            Some(row) if wanted.lead.is_none() || wanted.lead == row.lead_id => {
                found.insert(wanted.key.clone(), row.opened());
                false
            }
            _ => true,
        });
    }
    if distinct.is_empty() {
        return Ok(found);
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    let upserted: Vec<ConversationRow> = match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(CONVERSATIONS_UPSERT_PG)
                .bind(distinct.iter().map(|w| w.key.account.get()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.key.identity.get()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| plain(&w.key.thread)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.channel.as_str()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.contact.get()).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| w.lead.map(LeadId::get)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| plain(&w.external_id)).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| plain_opt(w.wa_user_wa_id.as_deref())).collect::<Vec<_>>())
                .bind(distinct.iter().map(|w| At(w.first_at)).collect::<Vec<_>>())
                .bind(At(now))
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = distinct
                .iter()
                .map(|w| {
                    (
                        w.key.account.get(),
                        w.key.identity.get(),
                        plain(&w.key.thread),
                        w.channel.as_str(),
                        w.contact.get(),
                        w.lead.map(LeadId::get),
                        plain(&w.external_id),
                        plain_opt(w.wa_user_wa_id.as_deref()),
                        micros(Some(w.first_at)),
                    )
                })
                .collect();
            sqlx::query_as(CONVERSATIONS_UPSERT_SQLITE).bind(json(&rows)?).bind(At(now)).fetch_all(&mut **tx).await?
        }
    };
    found.extend(upserted.into_iter().map(|row| (row.key(), row.opened())));
    Ok(found)
}

async fn find(tx: &mut Tx, wanted: &[&Wanted]) -> Result<Vec<ConversationRow>> {
    // Arrays on PostgreSQL, JSON on SQLite.
    Ok(match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(CONVERSATIONS_FIND_PG)
                .bind(wanted.iter().map(|w| w.key.account.get()).collect::<Vec<_>>())
                .bind(wanted.iter().map(|w| w.key.identity.get()).collect::<Vec<_>>())
                .bind(wanted.iter().map(|w| plain(&w.key.thread)).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> =
                wanted.iter().map(|w| (w.key.account.get(), w.key.identity.get(), plain(&w.key.thread))).collect();
            sqlx::query_as(CONVERSATIONS_FIND_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?
        }
    })
}
