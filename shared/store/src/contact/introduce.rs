//! Addresses and people never seen before.

use super::{IdentityKey, IdentityRow, Sender, find, phone};
use crate::batch::{Numbered, json, next_ids, plain_opt};
use crate::{At, Result, Tx};
use domain::{ContactId, IdentityId, Timestamp};
use std::collections::{BTreeMap, HashMap};

/// A set of new addresses that belong to one person, and whose they are.
struct Introduction<'a> {
    /// New addresses, in the order in which they were named.
    keys: Vec<&'a IdentityKey>,
    /// The known address they belong to; `None`: the person is new as well.
    known: Option<(ContactId, IdentityId)>,
    /// Who named them first.
    sender: &'a Sender,
}

/// Sorts the new addresses into people: addresses named by one payload are one person's.
fn introductions<'a>(senders: &'a [Sender], rows: &HashMap<IdentityKey, IdentityRow>) -> Vec<Introduction<'a>> {
    let mut people: Vec<Introduction<'a>> = Vec::new();
    let mut person_of: HashMap<&IdentityKey, usize> = HashMap::new();
    for sender in senders {
        let mut known =
            sender.addresses.iter().find_map(|key| rows.get(key)).map(|row| (row.contact_id, row.canonical()));
        let mut keys: Vec<&IdentityKey> = Vec::new();
        let mut first = None;
        // Two that turn out to be one become one.
        for key in &sender.addresses {
            if rows.contains_key(key) || keys.contains(&key) {
                continue;
            }
            match person_of.get(key).copied() {
                Some(at) if first.is_none() => first = Some(at),
                Some(at) if first != Some(at) => {
                    if let Some(other) = people.get_mut(at) {
                        keys.append(&mut other.keys);
                        known = known.or(other.known);
                    }
                }
                Some(_) => {}
                None => keys.push(key),
            }
        }
        if keys.is_empty() && first.is_none() {
            continue;
        }
        let at = first.unwrap_or(people.len());
        for key in &keys {
            person_of.insert(key, at);
        }
        match people.get_mut(at) {
            Some(person) => {
                person.keys.append(&mut keys);
                person.known = person.known.or(known);
            }
            None => people.push(Introduction { keys, known, sender }),
        }
    }
    people.retain(|person| !person.keys.is_empty());
    people
}

const CONTACTS_INSERT_PG: &str = "INSERT INTO contacts (id, full_name, phone, phone_e164, source, created_at, updated_at)
    SELECT id, full_name, phone, phone, source, $5, $5 FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS i(id, full_name, phone, source)";
const CONTACTS_INSERT_SQLITE: &str =
    "INSERT INTO contacts (id, full_name, phone, phone_e164, source, created_at, updated_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 2, value ->> 3, $2, $2 FROM json_each($1)";
const IDENTITIES_INSERT_PG: &str =
    "INSERT INTO contact_identities (id, contact_id, kind, scope_key, value, username, display_name, first_seen_at)
    SELECT id, contact_id, kind, scope_key, value, username, display_name, $8
      FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
        AS i(id, contact_id, kind, scope_key, value, username, display_name)
     ORDER BY kind, scope_key, value
    ON CONFLICT (kind, scope_key, value) DO NOTHING";
const IDENTITIES_INSERT_SQLITE: &str = "INSERT INTO contact_identities (id, contact_id, kind, scope_key, value, username, display_name, first_seen_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, $2 FROM json_each($1) WHERE true
    ON CONFLICT (kind, scope_key, value) DO NOTHING";
const IDENTITIES_SETTLE_PG: &str =
    "UPDATE contact_identities d SET contact_id = i.contact_id, alias_of_id = i.alias_of_id
      FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS i(id, contact_id, alias_of_id) WHERE d.id = i.id";
const IDENTITIES_SETTLE_SQLITE: &str =
    "UPDATE contact_identities SET contact_id = i.contact_id, alias_of_id = i.alias_of_id
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS contact_id, value ->> 2 AS alias_of_id FROM json_each($1)) AS i
    WHERE contact_identities.id = i.id";
const CONTACTS_TAKE_BACK_PG: &str = "DELETE FROM contacts WHERE id = ANY($1)";
const CONTACTS_TAKE_BACK_SQLITE: &str = "DELETE FROM contacts WHERE id IN (SELECT value FROM json_each($1))";

/// Gives every new address a row, and every new person a contact. Afterwards `rows` knows all of them.
pub(super) async fn introduce(
    tx: &mut Tx,
    senders: &[Sender],
    rows: &mut HashMap<IdentityKey, IdentityRow>,
    now: Timestamp,
) -> Result<()> {
    let people = introductions(senders, rows);
    let newcomers = people.iter().filter(|person| person.known.is_none()).count();
    let mut contact_ids = next_ids(tx, Numbered::Contacts, newcomers).await?.into_iter().map(ContactId::new);
    let addresses = people.iter().map(|person| person.keys.len()).sum();
    let mut identity_ids = next_ids(tx, Numbered::Identities, addresses).await?.into_iter().map(IdentityId::new);

    let mut contacts: Vec<(ContactId, &Sender)> = Vec::new();
    let mut ours: BTreeMap<&IdentityKey, (IdentityRow, &Sender)> = BTreeMap::new();
    for person in &people {
        let contact = match person.known {
            Some((contact, _)) => contact,
            None => {
                let Some(contact) = contact_ids.next() else { continue };
                contacts.push((contact, person.sender));
                contact
            }
        };
        let mut canonical = person.known.map(|(_, identity)| identity);
        for key in &person.keys {
            let Some(id) = identity_ids.next() else { continue };
            let row = IdentityRow {
                id,
                contact_id: contact,
                alias_of_id: canonical,
                kind: key.kind,
                scope_key: key.scope.clone(),
                value: key.value.clone(),
                username: None,
                display_name: None,
                nameless: false,
                numberless: false,
            };
            canonical = canonical.or(Some(id));
            ours.insert(key, (row, person.sender));
        }
    }
    insert_contacts(tx, &contacts, now).await?;
    insert_identities(tx, &ours, now).await?;

    // Read back: another transaction may have been faster with some of them.
    let keys: Vec<&IdentityKey> = ours.keys().copied().collect();
    for row in find(tx, &keys).await? {
        rows.insert(row.key(), row);
    }
    let mut settle: Vec<(i64, i64, Option<i64>)> = Vec::new();
    let mut superfluous: Vec<i64> = Vec::new();
    for person in &people {
        let is_ours = |key: &IdentityKey, row: &IdentityRow| ours.get(key).is_some_and(|(mine, _)| mine.id == row.id);
        let winner = person.keys.iter().filter_map(|key| rows.get(*key).map(|row| (*key, row)));
        let winner = winner.filter(|(key, row)| !is_ours(key, row)).map(|(_, row)| row).min_by_key(|row| row.id);
        let winner = winner.map(|row| (row.contact_id, row.canonical()));
        // A known person keeps their contact; a newcomer whom somebody else was faster with is that contact.
        let (contact, canonical) = match (person.known, winner) {
            (Some(known), _) => (Some(known.0), Some(known.1)),
            (None, Some(winner)) => (Some(winner.0), Some(winner.1)),
            (None, None) => (None, None),
        };
        let mut canonical = canonical;
        for key in &person.keys {
            let Some((mine, _)) = ours.get(key) else { continue };
            let Some(row) = rows.get_mut(*key).filter(|row| row.id == mine.id) else { continue };
            let target = contact.unwrap_or(row.contact_id);
            if row.contact_id != target && person.known.is_none() {
                superfluous.push(row.contact_id.get());
            }
            (row.contact_id, row.alias_of_id) = (target, canonical);
            if row.alias_of_id.is_some() || target != mine.contact_id {
                settle.push((row.id.get(), target.get(), row.alias_of_id.map(IdentityId::get)));
            }
            canonical = canonical.or(Some(row.id));
        }
        // Every address of a newcomer may have been lost: then no row of ours leads to the contact made for them.
        if let (None, Some(_), Some((mine, _))) =
            (person.known, contact, person.keys.first().and_then(|key| ours.get(key)))
        {
            superfluous.push(mine.contact_id.get());
        }
    }
    superfluous.sort_unstable();
    superfluous.dedup();
    if !settle.is_empty() {
        match tx {
            Tx::Postgres(tx) => {
                sqlx::query(IDENTITIES_SETTLE_PG)
                    .bind(settle.iter().map(|row| row.0).collect::<Vec<_>>())
                    .bind(settle.iter().map(|row| row.1).collect::<Vec<_>>())
                    .bind(settle.iter().map(|row| row.2).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
            Tx::Sqlite(tx) => {
                sqlx::query(IDENTITIES_SETTLE_SQLITE).bind(json(&settle)?).execute(&mut **tx).await?;
            }
        }
    }
    if !superfluous.is_empty() {
        match tx {
            Tx::Postgres(tx) => {
                sqlx::query(CONTACTS_TAKE_BACK_PG).bind(superfluous).execute(tx.conn()).await.map(drop)?;
            }
            Tx::Sqlite(tx) => {
                sqlx::query(CONTACTS_TAKE_BACK_SQLITE).bind(json(&superfluous)?).execute(&mut **tx).await.map(drop)?;
            }
        }
    }
    Ok(())
}

async fn insert_contacts(tx: &mut Tx, contacts: &[(ContactId, &Sender)], now: Timestamp) -> Result<()> {
    if contacts.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = contacts
        .iter()
        .map(|(id, sender)| {
            let source = sender.channel.as_str().to_ascii_lowercase();
            (id.get(), plain_opt(sender.display_name.as_deref()), phone(sender), source)
        })
        .collect();
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(CONTACTS_INSERT_PG)
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1.as_deref()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.3.as_str()).collect::<Vec<_>>())
                .bind(At(now))
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            sqlx::query(CONTACTS_INSERT_SQLITE).bind(json(&rows)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

async fn insert_identities(
    tx: &mut Tx,
    ours: &BTreeMap<&IdentityKey, (IdentityRow, &Sender)>,
    now: Timestamp,
) -> Result<()> {
    let rows: Vec<_> = ours
        .values()
        .map(|(row, sender)| {
            (
                row.id.get(),
                row.contact_id.get(),
                row.kind.as_str(),
                row.scope_key.as_str(),
                row.value.as_str(),
                plain_opt(sender.username.as_deref()),
                plain_opt(sender.display_name.as_deref()),
            )
        })
        .collect();
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(IDENTITIES_INSERT_PG)
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.3).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.4).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.5.as_deref()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.6.as_deref()).collect::<Vec<_>>())
                .bind(At(now))
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            sqlx::query(IDENTITIES_INSERT_SQLITE).bind(json(&rows)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
