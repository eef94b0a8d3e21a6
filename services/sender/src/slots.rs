//! When each account may call: a call needs a slot of its account and one of each scope that the account shares with others
//! and that is limited just now, all of them at about the same time.

use domain::limits::SLOT_TOLERANCE;
use domain::{AccountId, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Slots of two scopes that start at most so far apart make one: what is left of the tolerance is the time to use it.
const TOGETHER: Duration = Duration::from_millis(10);

/// When one call may be made, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Not before.
    pub(crate) start: Timestamp,
    /// Not after: then it is lost.
    pub(crate) end: Timestamp,
}

/// Joins the accounts' own slots with those of the scopes they share. `shared` names for each account the scopes that limit
/// it now; slots that find no partner are lost.
pub(crate) fn join(
    own: &BTreeMap<AccountId, Vec<Timestamp>>,
    shared: &HashMap<AccountId, Vec<String>>,
    granted: &HashMap<String, Vec<Timestamp>>,
) -> HashMap<AccountId, Vec<Slot>> {
    let mut rest: HashMap<&str, VecDeque<Timestamp>> =
        granted.iter().map(|(scope, starts)| (scope.as_str(), starts.iter().copied().collect())).collect();
    let mut candidates: Vec<(Timestamp, AccountId)> =
        own.iter().flat_map(|(account, starts)| starts.iter().map(|start| (*start, *account))).collect();
    candidates.sort_unstable();
    let mut joined: HashMap<AccountId, Vec<Slot>> = HashMap::new();
    for (start, account) in candidates {
        let scopes = shared.get(&account).map(Vec::as_slice).unwrap_or_default();
        let (mut first, mut last, mut complete) = (start, start, true);
        for scope in scopes {
            let partner = rest.get_mut(scope.as_str()).and_then(|starts| {
                while starts.front().is_some_and(|other| *other + TOGETHER < start) {
                    starts.pop_front();
                }
                starts.front().copied().filter(|other| *other <= start + TOGETHER)
            });
            match partner {
                Some(other) => (first, last) = (first.min(other), last.max(other)),
                None => complete = false,
            }
        }
        if !complete {
            continue;
        }
        for scope in scopes {
            if let Some(starts) = rest.get_mut(scope.as_str()) {
                starts.pop_front();
            }
        }
        joined.entry(account).or_default().push(Slot { start: last, end: first + SLOT_TOLERANCE });
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALES: AccountId = AccountId::new(1);
    const SUPPORT: AccountId = AccountId::new(2);

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_seconds(1_795_339_800) + Duration::from_millis(ms)
    }

    fn times(ms: &[u64]) -> Vec<Timestamp> {
        ms.iter().map(|ms| at(*ms)).collect()
    }

    fn slot(start: u64, end: u64) -> Slot {
        Slot { start: at(start), end: at(end) }
    }

    #[test]
    fn an_account_alone_uses_its_own_slots() {
        let own = BTreeMap::from([(SALES, times(&[0, 13]))]);
        let joined = join(&own, &HashMap::new(), &HashMap::new());
        assert_eq!(joined[&SALES], [slot(0, 20), slot(13, 33)]);
    }

    #[test]
    fn a_shared_scope_gives_each_slot_once_and_no_slot_is_used_outside_its_tolerance() {
        let own = BTreeMap::from([(SALES, times(&[0, 13, 26, 39])), (SUPPORT, times(&[2, 15, 28]))]);
        let app = || vec!["app:meta".to_owned()];
        let shared = HashMap::from([(SALES, app()), (SUPPORT, app())]);
        let granted = HashMap::from([("app:meta".to_owned(), times(&[1, 19, 37]))]);
        let joined = join(&own, &shared, &granted);
        assert_eq!(joined[&SALES], [slot(1, 20), slot(19, 33)]);
        assert_eq!(joined[&SUPPORT], [slot(37, 48)]);
    }

    #[test]
    fn a_scope_that_grants_nothing_stops_its_accounts_and_no_other() {
        let own = BTreeMap::from([(SALES, times(&[0])), (SUPPORT, times(&[0]))]);
        let shared = HashMap::from([(SALES, vec!["waba:1".to_owned()])]);
        let joined = join(&own, &shared, &HashMap::from([("waba:1".to_owned(), Vec::new())]));
        assert_eq!(joined.get(&SALES), None);
        assert_eq!(joined[&SUPPORT], [slot(0, 20)]);
    }
}
