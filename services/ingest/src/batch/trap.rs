//! Items that make us panic, for tests: bugs that nobody knows yet.

use super::Work;

/// In an item's text: the transaction that writes it panics.
pub(crate) const IN_A_TRANSACTION: &str = "a trap in the transaction";
/// In an item's text: whatever has it in hands panics, outside of any transaction.
pub(crate) const OUTSIDE: &str = "a trap outside";

pub(crate) fn in_a_transaction<'a>(work: impl IntoIterator<Item = &'a Work>) {
    step(work, IN_A_TRANSACTION);
}

pub(crate) fn outside<'a>(work: impl IntoIterator<Item = &'a Work>) {
    step(work, OUTSIDE);
}

fn step<'a>(work: impl IntoIterator<Item = &'a Work>, on: &str) {
    for work in work {
        assert!(!work.raw.as_deref().unwrap_or_default().contains(on), "{on}");
    }
}
