//! Leads, as far as messaging needs them: every message of a customer belongs to one.

use crate::batch::json;
use crate::column::rows;
use crate::{At, Result, Tx};
use domain::{Channel, ContactId, LeadId, Timestamp};
use std::collections::HashMap;
use std::time::Duration;

/// A lead older than this is not continued: a new message opens a new one.
pub const CONTINUES_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A contact whose lead is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The contact.
    pub contact: ContactId,
    /// Where they wrote: the source of a new lead.
    pub channel: Channel,
    /// Whether one may be opened. A message that is stored already opens none.
    pub may_open: bool,
}

rows! {
    /// A lead that can be continued.
    pub struct OpenLead {
        /// The lead.
        pub id: LeadId,
        /// Whose.
        pub contact_id: ContactId,
        /// When it was opened.
        pub created_at: Timestamp,
    }
}

/// One transaction after the other decides about one contact: no unique key can say "one open lead in 30 days".
const CONTACTS_LOCK_PG: &str = "SELECT id FROM contacts WHERE id = ANY($1) ORDER BY id FOR UPDATE";
const LEADS_OPEN_PG: &str = "SELECT id, contact_id, created_at FROM leads
    WHERE contact_id = ANY($1) AND closed_at IS NULL AND stage NOT IN ('COMPLETED_WON', 'LOST') AND created_at > $2
    ORDER BY contact_id, created_at, id";
const LEADS_OPEN_SQLITE: &str = "SELECT id, contact_id, created_at FROM leads
    WHERE contact_id IN (SELECT value FROM json_each($1)) AND closed_at IS NULL AND stage NOT IN ('COMPLETED_WON', 'LOST')
      AND created_at > $2
    ORDER BY contact_id, created_at, id";
const LEADS_INSERT_PG: &str = "INSERT INTO leads (contact_id, source, created_at, updated_at)
    SELECT contact_id, source, $3, $3 FROM unnest($1::bigint[], $2::text[]) AS i(contact_id, source)
    RETURNING id, contact_id, created_at";
const LEADS_INSERT_SQLITE: &str = "INSERT INTO leads (contact_id, source, created_at, updated_at)
    SELECT value ->> 0, value ->> 1, $2, $2 FROM json_each($1) RETURNING id, contact_id, created_at";

/// Locks contacts, in the order of their ids, until the transaction ends.
/// # Errors
/// When the database cannot be reached, or two transactions lock each other out.
pub async fn lock_contacts(tx: &mut Tx, contacts: &[ContactId]) -> Result<()> {
    // SQLite has one writer: nothing to lock.
    if let Tx::Postgres(tx) = tx {
        let mut ids: Vec<i64> = contacts.iter().map(|contact| contact.get()).collect();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            sqlx::query(CONTACTS_LOCK_PG).bind(ids).execute(tx.conn()).await?;
        }
    }
    Ok(())
}

/// Each contact's newest open lead younger than 30 days. A contact without one is absent.
/// # Errors
/// When the database cannot be reached.
pub async fn continuable(
    tx: &mut Tx,
    contacts: impl IntoIterator<Item = ContactId>,
    now: Timestamp,
) -> Result<HashMap<ContactId, OpenLead>> {
    let mut ids: Vec<i64> = contacts.into_iter().map(ContactId::get).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let since = At(now - CONTINUES_FOR);
    // Arrays on PostgreSQL, JSON on SQLite.
    let open: Vec<OpenLead> = match tx {
        Tx::Postgres(tx) => sqlx::query_as(LEADS_OPEN_PG).bind(&ids).bind(since).fetch_all(tx.conn()).await?,
        Tx::Sqlite(tx) => sqlx::query_as(LEADS_OPEN_SQLITE).bind(json(&ids)?).bind(since).fetch_all(&mut **tx).await?,
    };
    // The newest of a contact comes last and stays.
    Ok(open.into_iter().map(|lead| (lead.contact_id, lead)).collect())
}

/// Each contact's newest open lead younger than 30 days, or a new one where one may be opened. A contact that gets none is
/// absent. Call [`lock_contacts`] before.
/// # Errors
/// When the database cannot be reached.
pub async fn continue_or_open(tx: &mut Tx, wanted: &[Wanted], now: Timestamp) -> Result<HashMap<ContactId, OpenLead>> {
    let mut leads = continuable(tx, wanted.iter().map(|wanted| wanted.contact), now).await?;

    let mut missing: Vec<(i64, String)> = Vec::new();
    for wanted in wanted.iter().filter(|wanted| wanted.may_open && !leads.contains_key(&wanted.contact)) {
        if !missing.iter().any(|(contact, _)| *contact == wanted.contact.get()) {
            missing.push((wanted.contact.get(), wanted.channel.as_str().to_ascii_lowercase()));
        }
    }
    if !missing.is_empty() {
        let opened: Vec<OpenLead> = match tx {
            Tx::Postgres(tx) => {
                let (contacts, sources): (Vec<i64>, Vec<String>) = missing.into_iter().unzip();
                sqlx::query_as(LEADS_INSERT_PG).bind(contacts).bind(sources).bind(At(now)).fetch_all(tx.conn()).await?
            }
            Tx::Sqlite(tx) => {
                sqlx::query_as(LEADS_INSERT_SQLITE).bind(json(&missing)?).bind(At(now)).fetch_all(&mut **tx).await?
            }
        };
        leads.extend(opened.into_iter().map(|lead| (lead.contact_id, lead)));
    }
    Ok(leads)
}
