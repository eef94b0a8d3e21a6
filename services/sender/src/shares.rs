//! How many calls each account may have in flight. Half of the room belongs to the accounts in equal parts, the other half
//! to whoever needs it: an account whose provider has become a black hole never takes the room of the others.

use domain::AccountId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The room for calls.
#[derive(Debug)]
pub(crate) struct Shares {
    total: usize,
    accounts: usize,
    used: Mutex<HashMap<AccountId, usize>>,
    freed: Arc<Notify>,
}

/// Room for one call; dropping it makes it free again.
#[derive(Debug)]
pub(crate) struct Permit {
    shares: Arc<Shares>,
    account: AccountId,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(used) = self.shares.used().get_mut(&self.account) {
            *used = used.saturating_sub(1);
        }
        self.shares.freed.notify_one();
    }
}

impl Shares {
    /// Room for `total` calls of `accounts` accounts; `freed` is told whenever some becomes free.
    pub(crate) fn new(total: usize, accounts: usize, freed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { total, accounts: accounts.max(1), used: Mutex::default(), freed })
    }

    fn used(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept for each account, whatever the others do.
    fn reserve(&self) -> usize {
        if self.accounts == 1 { self.total } else { (self.total / (2 * self.accounts)).max(1) }
    }

    /// Room for up to `wanted` calls of an account, as much as there is for it.
    pub(crate) fn take(self: &Arc<Self>, account: AccountId, wanted: usize) -> Vec<Permit> {
        let mut used = self.used();
        let reserve = self.reserve();
        let mine = used.get(&account).copied().unwrap_or(0);
        let active: usize =
            used.iter().filter(|(other, _)| **other != account).map(|(_, used)| (*used).max(reserve)).sum();
        let silent = self.accounts.saturating_sub(1 + used.keys().filter(|other| **other != account).count());
        let room = self.total.saturating_sub(active + silent * reserve).max(reserve.min(self.total));
        let granted = wanted.min(room.saturating_sub(mine));
        *used.entry(account).or_default() += granted;
        (0..granted).map(|_| Permit { shares: self.clone(), account }).collect()
    }

    /// How many calls are in flight.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.used().values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(total: usize, accounts: usize) -> Arc<Shares> {
        Shares::new(total, accounts, Arc::default())
    }

    #[test]
    fn a_single_account_has_all_the_room() {
        let shares = shares(8, 1);
        let permits = shares.take(AccountId::new(1), 100);
        assert_eq!((permits.len(), shares.in_use()), (8, 8));
        drop(permits);
        assert_eq!(shares.in_use(), 0);
    }

    #[test]
    fn black_holes_leave_every_other_account_its_part() {
        let shares = shares(100, 4);
        let first = shares.take(AccountId::new(1), 1000);
        assert_eq!(first.len(), 100 - 3 * 12);
        let second = shares.take(AccountId::new(2), 1000);
        assert_eq!(second.len(), 12, "its own part");
        for account in [3, 4] {
            assert_eq!(shares.take(AccountId::new(account), 1000).len(), 12);
        }
        drop(first);
        assert!(shares.take(AccountId::new(3), 1000).len() > 12, "what nobody needs is for whoever does");
    }

    #[test]
    fn more_accounts_than_room_still_get_one_call_each() {
        let shares = shares(2, 5);
        for account in 1..=5 {
            let permits = shares.take(AccountId::new(account), 3);
            assert_eq!(permits.len(), 1, "{account}");
        }
    }
}
