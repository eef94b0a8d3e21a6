//! What this process remembers of contacts and conversations, so that in the steady state neither is asked for. Only what
//! was committed is remembered, and whatever turns out to be gone is asked for again.

use domain::{ContactId, ConversationId, LeadId, Timestamp};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use store::contact::{self, IdentityKey};
use store::conversation::ConversationKey;

/// Who an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) known: contact::Known,
    /// Hash of the names that came with it: a new name is taken over.
    pub(crate) profile: u64,
}

/// A conversation, and the lead its messages belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) conversation: ConversationId,
    /// With whom, as the conversation says.
    pub(crate) contact: ContactId,
    pub(crate) lead: LeadId,
    pub(crate) lead_opened: Timestamp,
}

/// The memory, bounded.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) people: Recent<IdentityKey, Person>,
    pub(crate) threads: Recent<ConversationKey, Thread>,
}

impl Known {
    /// Remembers about `limit` addresses and as many conversations; 0: none.
    pub(crate) fn new(limit: usize) -> Self {
        Self { people: Recent::new(limit), threads: Recent::new(limit) }
    }
}

/// A map of what was used recently, in two generations: when the younger is full, the older is dropped.
///
/// It keeps 128 bits of each key instead of the key, which is several times as large: a hundred thousand addresses with
/// their conversations are 10 MB that way. The bits come from hashes seeded at random, so nobody can make two keys meet; and
/// should two ever do so by chance, the rows do not fit each other, which the insert notices.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<Mark, V>,
    old: HashMap<Mark, V>,
    half: usize,
    seeds: [RandomState; 2],
    keys: PhantomData<fn(&K)>,
}

/// What is kept of a key.
type Mark = [u64; 2];

impl<K: Hash, V: Copy> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: limit.div_ceil(2),
            seeds: [RandomState::new(), RandomState::new()],
            keys: PhantomData,
        }
    }

    fn mark(&self, key: &K) -> Mark {
        self.seeds.each_ref().map(|seed| seed.hash_one(key))
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        let mark = self.mark(key);
        if let Some(value) = self.young.get(&mark) {
            return Some(*value);
        }
        let value = self.old.remove(&mark)?;
        self.keep(mark, value);
        Some(value)
    }

    pub(crate) fn put(&mut self, key: &K, value: V) {
        self.keep(self.mark(key), value);
    }

    fn keep(&mut self, mark: Mark, value: V) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half && !self.young.contains_key(&mark) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(mark, value);
    }

    pub(crate) fn forget(&mut self, key: &K) {
        let mark = self.mark(key);
        self.young.remove(&mark);
        self.old.remove(&mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_makes_room() {
        let mut recent = Recent::new(10);
        for key in 0..100 {
            recent.put(&key, key);
            assert_eq!(recent.get(&0), Some(0), "used every time");
        }
        assert!(recent.young.len() + recent.old.len() <= 11);
        assert_eq!(recent.get(&50), None);
        recent.forget(&0);
        assert_eq!(recent.get(&0), None);
        let mut none = Recent::new(0);
        none.put(&1, 1);
        assert_eq!(none.get(&1), None);
    }
}
