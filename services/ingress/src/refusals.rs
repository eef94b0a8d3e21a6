//! How many requests were refused, by source and reason. The refused bytes are never kept.

use domain::wire::Refusals;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Counts since the last beat that was confirmed.
#[derive(Debug, Default)]
pub(crate) struct RefusalCounts(Mutex<HashMap<(String, &'static str), u32>>);

impl RefusalCounts {
    pub(crate) fn add(&self, source: &str, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((source.to_owned(), reason)).or_default();
        *count = count.saturating_add(1);
    }

    /// What has been counted, without forgetting it.
    pub(crate) fn snapshot(&self) -> Vec<Refusals> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = counts.iter().map(|((source, reason), count)| Refusals {
            source: source.clone(),
            reason: (*reason).to_owned(),
            count: *count,
        });
        refusals.collect()
    }

    /// Forgets what a confirmed beat has told.
    pub(crate) fn forget(&self, told: &[Refusals]) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for refusal in told {
            counts.retain(|(source, reason), count| {
                if *source == refusal.source && *reason == refusal.reason {
                    *count = count.saturating_sub(refusal.count);
                }
                *count > 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_told_is_forgotten() {
        let counts = RefusalCounts::default();
        counts.add("meta", "bad_signature");
        counts.add("meta", "bad_signature");
        let told = counts.snapshot();
        counts.add("meta", "bad_signature");
        counts.forget(&told);
        assert_eq!(counts.snapshot(), [Refusals { source: "meta".into(), reason: "bad_signature".into(), count: 1 }]);
    }
}
