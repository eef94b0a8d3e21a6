//! What this process remembers of contacts and conversations, so that in the steady state neither is asked for. Only what
//! was committed is remembered, and whatever turns out to be gone is asked for again.

use domain::{ConversationId, LeadId, Timestamp};
use std::collections::HashMap;
use std::hash::Hash;
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
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V: Copy> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: limit.div_ceil(2) }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(*value);
        }
        let value = self.old.remove(key)?;
        self.put(key.clone(), value);
        Some(value)
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_makes_room() {
        let mut recent = Recent::new(10);
        for key in 0..100 {
            recent.put(key, key);
            assert_eq!(recent.get(&0), Some(0), "used every time");
        }
        assert!(recent.young.len() + recent.old.len() <= 11);
        assert_eq!(recent.get(&50), None);
        recent.forget(&0);
        assert_eq!(recent.get(&0), None);
        let mut none = Recent::new(0);
        none.put(1, 1);
        assert_eq!(none.get(&1), None);
    }
}
