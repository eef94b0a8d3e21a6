//! Contacts are people, identities their addresses. A contact is found by an address, never by a name, and two contacts
//! are never merged here: when one payload names addresses of two, that is reported for a person to decide.

mod introduce;
mod profile;

use crate::batch::json;
use crate::column::rows;
use crate::{Result, Tx};
use domain::{Channel, ContactId, IdentityId, IdentityKind, Timestamp};
use std::collections::{BTreeSet, HashMap};

/// An address, unique within its scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentityKey {
    /// What kind of address.
    pub kind: IdentityKind,
    /// Within what its value is unique: empty for everywhere, else a portfolio or an account of the provider's.
    pub scope: String,
    /// The address.
    pub value: String,
}

impl IdentityKey {
    fn order(&self) -> (&str, &str, &str) {
        (self.kind.as_str(), &self.scope, &self.value)
    }
}

impl PartialOrd for IdentityKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IdentityKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// Who wrote, as one payload names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Every address the payload names, at least one, the one to answer first.
    pub addresses: Vec<IdentityKey>,
    /// Their own name, for display.
    pub display_name: Option<String>,
    /// Their user name, for display.
    pub username: Option<String>,
    /// E.164, for display and search. Ignored when it cannot be one.
    pub phone: Option<String>,
    /// Where they wrote: the source of a new contact.
    pub channel: Channel,
}

/// Who a sender turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The person.
    pub contact: ContactId,
    /// The address conversations are kept under: the first one ever seen of those that mean the same.
    pub identity: IdentityId,
}

/// What became of a batch of senders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// One for each sender, in the order given.
    pub known: Vec<Known>,
    /// Contacts that met in one payload, the one used first. Noted on both (`attributes.mayBeSameAs`), not merged.
    pub met: Vec<(ContactId, ContactId)>,
}

rows! {
    /// An address in the database.
    pub struct IdentityRow {
        /// The row.
        pub id: IdentityId,
        /// Whose.
        pub contact_id: ContactId,
        /// The first known address that means the same.
        pub alias_of_id: Option<IdentityId>,
        /// What kind of address.
        pub kind: IdentityKind,
        /// Within what it is unique.
        pub scope_key: String,
        /// The address.
        pub value: String,
        /// What they called themselves last: their user name,
        pub username: Option<String>,
        /// and their own name.
        pub display_name: Option<String>,
        /// Whether the contact has no name yet,
        pub nameless: bool,
        /// and no number.
        pub numberless: bool,
    }
}

impl IdentityRow {
    fn key(&self) -> IdentityKey {
        IdentityKey { kind: self.kind, scope: self.scope_key.clone(), value: self.value.clone() }
    }

    fn canonical(&self) -> IdentityId {
        self.alias_of_id.unwrap_or(self.id)
    }
}

const IDENTITIES_FIND_PG: &str =
    "SELECT d.id, d.contact_id, d.alias_of_id, d.kind, d.scope_key, d.value, d.username, d.display_name,
           c.full_name IS NULL AS nameless, c.phone_e164 IS NULL AS numberless
      FROM unnest($1::text[], $2::text[], $3::text[]) AS i(kind, scope_key, value)
      JOIN contact_identities d ON d.kind = i.kind AND d.scope_key = i.scope_key AND d.value = i.value
      JOIN contacts c ON c.id = d.contact_id";
const IDENTITIES_FIND_SQLITE: &str =
    "SELECT d.id, d.contact_id, d.alias_of_id, d.kind, d.scope_key, d.value, d.username, d.display_name,
           c.full_name IS NULL AS nameless, c.phone_e164 IS NULL AS numberless
      FROM json_each($1) AS i
      JOIN contact_identities d ON d.kind = i.value ->> 0 AND d.scope_key = i.value ->> 1 AND d.value = i.value ->> 2
      JOIN contacts c ON c.id = d.contact_id";

async fn find(tx: &mut Tx, keys: &[&IdentityKey]) -> Result<Vec<IdentityRow>> {
    // Arrays on PostgreSQL, JSON on SQLite.
    Ok(match tx {
        Tx::Postgres(tx) => {
            sqlx::query_as(IDENTITIES_FIND_PG)
                .bind(keys.iter().map(|key| key.kind.as_str()).collect::<Vec<_>>())
                .bind(keys.iter().map(|key| key.scope.as_str()).collect::<Vec<_>>())
                .bind(keys.iter().map(|key| key.value.as_str()).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await?
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = keys.iter().map(|key| key.order()).collect();
            sqlx::query_as(IDENTITIES_FIND_SQLITE).bind(json(&rows)?).fetch_all(&mut **tx).await?
        }
    })
}

/// Finds the contacts behind senders, or makes them. Two transactions that meet a new address at the same time end with
/// one contact: the loser's is taken back before it can be seen.
/// # Errors
/// When the database cannot be reached, or refuses an address.
pub async fn resolve(tx: &mut Tx, senders: &[Sender], now: Timestamp) -> Result<Resolution> {
    let keys: BTreeSet<&IdentityKey> = senders.iter().flat_map(|sender| &sender.addresses).collect();
    let keys: Vec<&IdentityKey> = keys.into_iter().collect();
    if keys.is_empty() {
        return Ok(Resolution::default());
    }
    let mut rows: HashMap<IdentityKey, IdentityRow> =
        find(tx, &keys).await?.into_iter().map(|row| (row.key(), row)).collect();

    let seen_before: BTreeSet<IdentityKey> = rows.keys().cloned().collect();
    if rows.len() < keys.len() {
        introduce::introduce(tx, senders, &mut rows, now).await?;
    }
    let resolution = choose(senders, &rows);
    let profiles: Vec<&Sender> =
        senders.iter().filter(|sender| sender.addresses.iter().any(|key| seen_before.contains(key))).collect();
    profile::update(tx, &profiles, &rows, now).await?;
    profile::note_meetings(tx, &resolution.met, now).await?;
    Ok(resolution)
}

/// Which contact and which address each sender goes by, once every address has a row.
fn choose(senders: &[Sender], rows: &HashMap<IdentityKey, IdentityRow>) -> Resolution {
    let mut resolution = Resolution::default();
    for sender in senders {
        let mut found = sender.addresses.iter().filter_map(|key| rows.get(key));
        let Some(first) = found.next() else { continue };
        resolution.known.push(Known { contact: first.contact_id, identity: first.canonical() });
        for other in found.filter(|row| row.contact_id != first.contact_id) {
            let pair = (first.contact_id, other.contact_id);
            if !resolution.met.contains(&pair) {
                resolution.met.push(pair);
            }
        }
    }
    resolution
}

/// The sender's number, if it can be one: 7 to 15 digits after `+`, no leading zero. A number for display must not make a
/// message die.
fn phone(sender: &Sender) -> Option<&str> {
    let phone = sender.phone.as_deref()?;
    let digits = phone.strip_prefix('+')?;
    let valid =
        (7..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then_some(phone)
}
