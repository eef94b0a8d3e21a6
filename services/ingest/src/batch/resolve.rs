//! From who wrote to which conversation: remembered in the steady state, asked for otherwise.

use super::known::{Person, Thread};
use super::{Known, Piece, Work, identity_key, without_nul};
use domain::inbound::InboundMessage;
use domain::{AccountId, ContactId, IdentityKind, Timestamp};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use store::contact::{self, IdentityKey, Sender};
use store::conversation::{self, ConversationKey};
use store::lead::{self, CONTINUES_FOR};
use store::{StoreError, Tx, message};
use tracing::info;

/// A message of the batch with its keys.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    pub(super) work: &'a Work,
    pub(super) message: &'a InboundMessage,
    /// The deduplication key.
    pub(super) key: String,
    addresses: Vec<IdentityKey>,
    profile: u64,
}

impl<'a> Incoming<'a> {
    /// `None` for work that is no message.
    pub(super) fn of(work: &'a Work) -> Option<Self> {
        let Piece::Message(message) = &work.piece else { return None };
        let mut hasher = DefaultHasher::new();
        (&message.display_name, &message.username, &message.phone).hash(&mut hasher);
        Some(Self {
            work,
            message,
            key: super::transact::message_key(work, message),
            addresses: message.identities.iter().map(|identity| identity_key(identity, &work.config)).collect(),
            profile: hasher.finish(),
        })
    }

    fn sender(&self) -> Sender {
        Sender {
            addresses: self.addresses.clone(),
            display_name: self.message.display_name.clone(),
            username: self.message.username.clone(),
            phone: self.message.phone.clone(),
            channel: self.work.config.channel,
        }
    }

    fn conversation_key(&self, person: &contact::Known) -> ConversationKey {
        ConversationKey {
            account: self.work.account,
            identity: person.identity,
            thread: without_nul(&self.message.thread_key),
        }
    }

    /// What the CRM calls the conversation: `<phone_number_id>_<digits>`.
    fn external_id(&self) -> String {
        let digits = self.addresses.iter().find(|key| key.kind == IdentityKind::WaId).or(self.addresses.first());
        let address = digits.map(|key| key.value.as_str()).unwrap_or_default();
        let thread = Some(self.message.thread_key.as_str()).filter(|thread| !thread.is_empty());
        let parts = [Some(self.work.config.external_id.as_str()), Some(address), thread];
        parts.into_iter().flatten().collect::<Vec<_>>().join("_")
    }

    pub(super) fn occurred_at(&self, received_at: Timestamp) -> Timestamp {
        self.message.occurred_at.unwrap_or(received_at)
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) conversation: domain::ConversationId,
    pub(super) lead: Option<domain::LeadId>,
    /// Whose it is.
    pub(super) contact: ContactId,
}

/// What a batch learnt, to be remembered once it is committed.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    people: Vec<(IdentityKey, Person)>,
    threads: Vec<(ConversationKey, Thread)>,
}

impl Learnt {
    pub(super) fn remember(self, known: &Mutex<Known>) {
        let mut known = lock(known);
        for (key, person) in self.people {
            known.people.put(&key, person);
        }
        for (key, thread) in self.threads {
            known.threads.put(&key, thread);
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets everything that messages of these senders would be placed by.
pub(super) fn forget(known: &Mutex<Known>, incoming: &[Incoming<'_>]) {
    let mut known = lock(known);
    for one in incoming {
        if let Some(person) = one.addresses.first().and_then(|key| known.people.get(key)) {
            known.threads.forget(&one.conversation_key(&person.known));
        }
        for key in &one.addresses {
            known.people.forget(key);
        }
    }
}

/// A conversation for each message, in the order given.
pub(super) async fn places(
    tx: &mut Tx,
    incoming: &[Incoming<'_>],
    arrivals: &[Timestamp],
    known: &Mutex<Known>,
    now: Timestamp,
) -> Result<(Vec<Place>, Learnt), StoreError> {
    let mut learnt = Learnt::default();
    let people = people(tx, incoming, known, &mut learnt, now).await?;
    let keys: Vec<ConversationKey> =
        incoming.iter().zip(&people).map(|(one, person)| one.conversation_key(person)).collect();
    let mut found: HashMap<&ConversationKey, Place> = HashMap::with_capacity(keys.len());
    {
        let mut known = lock(known);
        for key in &keys {
            // A lead that has grown too old is not continued; one that was closed since is noticed by the insert.
            let fresh = |thread: &Thread| thread.lead_opened + CONTINUES_FOR > now;
            if let Some(thread) = known.threads.get(key).filter(fresh) {
                let Thread { conversation, contact, lead, .. } = thread;
                found.insert(key, Place { conversation, lead: Some(lead), contact });
            }
        }
    }
    let missing: Vec<usize> =
        (0..keys.len()).filter(|at| keys.get(*at).is_some_and(|key| !found.contains_key(key))).collect();
    if !missing.is_empty() {
        let opened = open(tx, incoming, arrivals, &people, &keys, &missing, &mut learnt, now).await?;
        for at in missing {
            if let Some(key) = keys.get(at)
                && let Some(place) = opened.get(key)
            {
                found.insert(key, *place);
            }
        }
    }
    let places: Option<Vec<Place>> = keys.iter().map(|key| found.get(key).copied()).collect();
    Ok((places.unwrap_or_default(), learnt))
}

/// Who wrote each message.
async fn people(
    tx: &mut Tx,
    incoming: &[Incoming<'_>],
    known: &Mutex<Known>,
    learnt: &mut Learnt,
    now: Timestamp,
) -> Result<Vec<contact::Known>, StoreError> {
    let mut people: Vec<Option<contact::Known>> = Vec::with_capacity(incoming.len());
    {
        let mut known = lock(known);
        for one in incoming {
            let remembered: Option<Vec<Person>> = one.addresses.iter().map(|key| known.people.get(key)).collect();
            let first = remembered.and_then(|all| all.first().copied());
            people.push(first.filter(|person| person.profile == one.profile).map(|person| person.known));
        }
    }
    let missing: Vec<&Incoming<'_>> =
        incoming.iter().zip(&people).filter(|(_, person)| person.is_none()).map(|(one, _)| one).collect();
    if missing.is_empty() {
        return Ok(people.into_iter().flatten().collect());
    }
    let senders: Vec<Sender> = missing.iter().map(|one| one.sender()).collect();
    let resolution = contact::resolve(tx, &senders, now).await?;
    for (one, other) in &resolution.met {
        info!(contact.id = %one, other.id = %other, "One payload names addresses of contacts {one} and {other}; they may be the same person");
    }
    let met: HashSet<ContactId> = resolution.met.iter().flat_map(|(one, other)| [*one, *other]).collect();
    for (one, known) in missing.iter().zip(&resolution.known) {
        // Addresses of two contacts are not remembered: each payload that names both is reported.
        if !met.contains(&known.contact) {
            let person = Person { known: *known, profile: one.profile };
            learnt.people.extend(one.addresses.iter().map(|key| (key.clone(), person)));
        }
    }
    let mut found = resolution.known.into_iter();
    Ok(people.into_iter().filter_map(|person| person.or_else(|| found.next())).collect())
}

/// Opens conversations and leads for the messages at `missing`, or finds them.
#[expect(clippy::too_many_arguments, reason = "one step of `places`, with everything it has")]
async fn open(
    tx: &mut Tx,
    incoming: &[Incoming<'_>],
    arrivals: &[Timestamp],
    people: &[contact::Known],
    keys: &[ConversationKey],
    missing: &[usize],
    learnt: &mut Learnt,
    now: Timestamp,
) -> Result<HashMap<ConversationKey, Place>, StoreError> {
    let all = |at: &usize| Some((incoming.get(*at)?, arrivals.get(*at)?, people.get(*at)?, keys.get(*at)?));
    let missing: Vec<_> = missing.iter().filter_map(all).collect();
    // A lead that can be continued needs no lock: whether it still can be is asked by the insert.
    let mut leads = lead::continuable(tx, missing.iter().map(|(_, _, person, _)| person.contact), now).await?;
    let without: Vec<_> = missing.iter().filter(|(_, _, person, _)| !leads.contains_key(&person.contact)).collect();
    if !without.is_empty() {
        let contacts: Vec<ContactId> = without.iter().map(|(_, _, person, _)| person.contact).collect();
        lead::lock_contacts(tx, &contacts).await?;
        // Under the lock, so that it is certain: a message that is stored already opens no lead.
        let asked: Vec<(AccountId, &str)> =
            without.iter().map(|(one, ..)| (one.work.account, one.key.as_str())).collect();
        let stored: HashSet<(AccountId, String)> = message::known_keys(tx, &asked).await?.into_iter().collect();
        let wanted: Vec<lead::Wanted> = without
            .iter()
            .map(|(one, _, person, _)| lead::Wanted {
                contact: person.contact,
                channel: one.work.config.channel,
                may_open: !stored.contains(&(one.work.account, one.key.clone())),
            })
            .collect();
        leads.extend(lead::continue_or_open(tx, &wanted, now).await?);
    }

    let mut wanted: HashMap<ConversationKey, conversation::Wanted> = HashMap::with_capacity(missing.len());
    for (one, arrived, person, key) in &missing {
        let said_at = one.occurred_at(**arrived);
        match wanted.entry((*key).clone()) {
            Entry::Occupied(mut known) => {
                let first = &mut known.get_mut().first_at;
                *first = (*first).min(said_at);
            }
            Entry::Vacant(new) => {
                let digits = one.addresses.iter().find(|address| address.kind == IdentityKind::WaId);
                new.insert(conversation::Wanted {
                    key: (*key).clone(),
                    channel: one.work.config.channel,
                    contact: person.contact,
                    lead: leads.get(&person.contact).map(|lead| lead.id),
                    external_id: one.external_id(),
                    wa_user_wa_id: digits.map(|address| address.value.clone()),
                    first_at: said_at,
                });
            }
        }
    }
    let wanted: Vec<conversation::Wanted> = wanted.into_values().collect();
    let opened = conversation::upsert(tx, &wanted, now).await?;
    // The lead is the address's; the contact the conversation's own, should somebody have moved it.
    let address_of: HashMap<&ConversationKey, ContactId> = wanted.iter().map(|one| (&one.key, one.contact)).collect();
    let place = |(key, opened): (ConversationKey, conversation::Opened)| {
        let conversation::Opened { conversation, contact } = opened;
        let lead = leads.get(address_of.get(&key)?);
        if let Some(lead) = lead {
            let thread = Thread { conversation, contact, lead: lead.id, lead_opened: lead.created_at };
            learnt.threads.push((key.clone(), thread));
        }
        Some((key, Place { conversation, lead: lead.map(|lead| lead.id), contact }))
    };
    Ok(opened.into_iter().filter_map(place).collect())
}
