//! What known people call themselves, and who may be whom.

use super::{IdentityKey, IdentityRow, Sender, phone};
use crate::batch::{json, plain_opt};
use crate::{At, Result, Tx};
use domain::{ContactId, Timestamp};
use std::collections::{BTreeMap, HashMap};

const PROFILES_UPDATE_PG: &str = "UPDATE contact_identities d SET username = coalesce(i.username, d.username), display_name = coalesce(i.display_name, d.display_name)
      FROM unnest($1::bigint[], $2::text[], $3::text[]) AS i(id, username, display_name)
    WHERE d.id = i.id AND (coalesce(i.username, d.username) IS DISTINCT FROM d.username OR coalesce(i.display_name, d.display_name) IS DISTINCT FROM d.display_name)";
const PROFILES_UPDATE_SQLITE: &str = "UPDATE contact_identities SET username = coalesce(i.username, contact_identities.username), display_name = coalesce(i.display_name, contact_identities.display_name)
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS username, value ->> 2 AS display_name FROM json_each($1)) AS i
    WHERE contact_identities.id = i.id AND (coalesce(i.username, contact_identities.username) IS NOT contact_identities.username OR coalesce(i.display_name, contact_identities.display_name) IS NOT contact_identities.display_name)";
const CONTACTS_FILL_PG: &str = "UPDATE contacts c SET full_name = coalesce(c.full_name, i.full_name), phone = coalesce(c.phone, i.phone), phone_e164 = coalesce(c.phone_e164, i.phone), updated_at = $4
      FROM unnest($1::bigint[], $2::text[], $3::text[]) AS i(id, full_name, phone)
    WHERE c.id = i.id AND (c.full_name IS NULL AND i.full_name IS NOT NULL OR c.phone_e164 IS NULL AND i.phone IS NOT NULL)";
const CONTACTS_FILL_SQLITE: &str = "UPDATE contacts SET full_name = coalesce(contacts.full_name, i.full_name), phone = coalesce(contacts.phone, i.phone), phone_e164 = coalesce(contacts.phone_e164, i.phone), updated_at = $2
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS full_name, value ->> 2 AS phone FROM json_each($1)) AS i
    WHERE contacts.id = i.id AND (contacts.full_name IS NULL AND i.full_name IS NOT NULL OR contacts.phone_e164 IS NULL AND i.phone IS NOT NULL)";

/// Takes over what known people call themselves now. What the team wrote into a contact is never overwritten. Next to always
/// nobody has changed, and nothing is asked of the database.
pub(super) async fn update(
    tx: &mut Tx,
    senders: &[&Sender],
    rows: &HashMap<IdentityKey, IdentityRow>,
    now: Timestamp,
) -> Result<()> {
    // Of several who speak for one person, the last counts.
    let mut said: BTreeMap<i64, (&IdentityRow, Option<String>, Option<String>)> = BTreeMap::new();
    let mut told: BTreeMap<i64, (&IdentityRow, Option<String>, Option<String>)> = BTreeMap::new();
    for sender in senders {
        let owned = |text: &Option<String>| plain_opt(text.as_deref()).map(std::borrow::Cow::into_owned);
        let (username, name) = (owned(&sender.username), owned(&sender.display_name));
        let number = phone(sender).map(str::to_owned);
        let Some(first) = sender.addresses.iter().find_map(|key| rows.get(key)) else { continue };
        if username.is_some() || name.is_some() {
            said.insert(first.id.get(), (first, username, name.clone()));
        }
        if name.is_some() || number.is_some() {
            told.insert(first.contact_id.get(), (first, name, number));
        }
    }
    let changed = |said: &Option<String>, known: &Option<String>| said.is_some() && said != known;
    let profiles: Vec<_> = said
        .into_iter()
        .filter(|(_, (row, username, name))| changed(username, &row.username) || changed(name, &row.display_name))
        .map(|(id, (_, username, name))| (id, username, name))
        .collect();
    let contacts: Vec<_> = told
        .into_iter()
        .filter(|(_, (row, name, number))| row.nameless && name.is_some() || row.numberless && number.is_some())
        .map(|(id, (_, name, number))| (id, name, number))
        .collect();
    match tx {
        Tx::Postgres(tx) => {
            if !profiles.is_empty() {
                sqlx::query(PROFILES_UPDATE_PG)
                    .bind(profiles.iter().map(|row| row.0).collect::<Vec<_>>())
                    .bind(profiles.iter().map(|row| row.1.as_deref()).collect::<Vec<_>>())
                    .bind(profiles.iter().map(|row| row.2.as_deref()).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
            if !contacts.is_empty() {
                sqlx::query(CONTACTS_FILL_PG)
                    .bind(contacts.iter().map(|row| row.0).collect::<Vec<_>>())
                    .bind(contacts.iter().map(|row| row.1.as_deref()).collect::<Vec<_>>())
                    .bind(contacts.iter().map(|row| row.2.as_deref()).collect::<Vec<_>>())
                    .bind(At(now))
                    .execute(tx.conn())
                    .await?;
            }
        }
        Tx::Sqlite(tx) => {
            if !profiles.is_empty() {
                sqlx::query(PROFILES_UPDATE_SQLITE).bind(json(&profiles)?).execute(&mut **tx).await?;
            }
            if !contacts.is_empty() {
                sqlx::query(CONTACTS_FILL_SQLITE).bind(json(&contacts)?).bind(At(now)).execute(&mut **tx).await?;
            }
        }
    }
    Ok(())
}

const MEETINGS_NOTE_PG: &str =
    "UPDATE contacts c SET updated_at = $3, attributes = jsonb_set(c.attributes, '{mayBeSameAs}',
           coalesce(c.attributes -> 'mayBeSameAs', '[]'::jsonb) || to_jsonb(i.other))
      FROM unnest($1::bigint[], $2::bigint[]) AS i(id, other)
    WHERE c.id = i.id AND NOT coalesce(c.attributes -> 'mayBeSameAs' @> to_jsonb(i.other), false)";
const MEETINGS_NOTE_SQLITE: &str = "UPDATE contacts SET updated_at = $2, attributes = json_set(attributes, '$.mayBeSameAs',
           json_insert(coalesce(attributes -> 'mayBeSameAs', json('[]')), '$[#]', i.other))
      FROM (SELECT value ->> 0 AS id, value ->> 1 AS other FROM json_each($1)) AS i
    WHERE contacts.id = i.id AND NOT EXISTS (SELECT 1 FROM json_each(attributes, '$.mayBeSameAs') AS known WHERE known.value = i.other)";

/// Leaves word on both contacts that they may be one person.
pub(super) async fn note_meetings(tx: &mut Tx, met: &[(ContactId, ContactId)], now: Timestamp) -> Result<()> {
    // One statement updates a row once, so one meeting for each contact; a further one is noted when it happens again.
    let mut notes: BTreeMap<i64, i64> = BTreeMap::new();
    for (one, other) in met {
        notes.insert(one.get(), other.get());
        notes.insert(other.get(), one.get());
    }
    if notes.is_empty() {
        return Ok(());
    }
    let notes: Vec<(i64, i64)> = notes.into_iter().collect();
    match tx {
        Tx::Postgres(tx) => {
            let (ids, others): (Vec<i64>, Vec<i64>) = notes.into_iter().unzip();
            sqlx::query(MEETINGS_NOTE_PG).bind(ids).bind(others).bind(At(now)).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            sqlx::query(MEETINGS_NOTE_SQLITE).bind(json(&notes)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
