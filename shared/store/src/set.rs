//! Statements about a set of rows, in the words of both databases: PostgreSQL opens arrays with `unnest`, SQLite one JSON
//! text with `json_each`. The set is the last parameter, so that every one before it has the same number on both.

use domain::MessageId;

/// One statement in the words of both databases, for where they must differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both {
    pub(crate) postgres: &'static str,
    pub(crate) sqlite: &'static str,
}

/// A statement whose only difference is how the set of ids is opened: `{ids}` stands between `$head` and `$tail`.
/// The ids are the parameter `$n`, written as a literal such as `"$2"`.
macro_rules! with_ids {
    ($head:expr, $n:literal, $tail:expr) => {
        $crate::set::Both {
            postgres: concat!($head, "(SELECT unnest(", $n, "::bigint[]))", $tail),
            sqlite: concat!($head, "(SELECT value FROM json_each(", $n, "))", $tail),
        }
    };
}
pub(crate) use with_ids;

/// The numbers behind message ids, as PostgreSQL takes them.
pub(crate) fn numbers(ids: &[MessageId]) -> Vec<i64> {
    ids.iter().map(|id| id.get()).collect()
}
