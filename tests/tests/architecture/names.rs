//! Names of tests, settings and acceptance lines in the papers, and whether the code has them.

use std::collections::BTreeSet;

/// From so many words a name is a sentence, and only a test or a question of the audit is called by a sentence.
const A_SENTENCE: usize = 5;

/// What the code has.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Functions, and what is named in a table.
    functions: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Known {
    pub(crate) fn of<'a>(sources: impl Iterator<Item = &'a str>) -> Self {
        let mut known = Self::default();
        for source in sources {
            let mut before = "";
            for word in source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()) {
                // `fn a_test()`, `name: "question_of_the_audit"`
                if before == "fn" || before == "name" {
                    known.functions.insert(word.to_owned());
                }
                if word.contains('_') {
                    known.words.insert(word.to_owned());
                }
                before = word;
            }
        }
        known
    }

    /// Whether a name as the papers write it is one of the code's: `AC-7` a test's, a sentence a test's or
    /// the audit's, also when cut off with `…`, and a shorter one of anything.
    pub(crate) fn has(&self, name: &str) -> bool {
        if let Some(number) = name.strip_prefix("AC-") {
            return self.functions.iter().any(|function| {
                let parts: Vec<&str> = function.split('_').collect();
                parts.first() == Some(&"ac") && parts.contains(&number)
            });
        }
        if let Some(begin) = name.strip_suffix('…') {
            return self.functions.iter().any(|function| function.starts_with(begin));
        }
        let names = if name.split('_').count() >= A_SENTENCE { &self.functions } else { &self.words };
        names.contains(name)
    }
}

/// The names in a paper: words with underscores in backquotes, and acceptance lines.
pub(crate) fn named(markdown: &str) -> Vec<&str> {
    let quoted = markdown.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|name| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '…';
        name.contains('_') && name.chars().all(plain)
    });
    let lines = markdown.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| {
        word.strip_prefix("AC-").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    quoted.chain(lines).collect()
}

/// Whether such a name can only be a test's: an acceptance line or a sentence.
pub(crate) fn is_of_a_test(name: &str) -> bool {
    name.starts_with("AC-") || name.ends_with('…') || name.split('_').count() >= A_SENTENCE
}

/// The pieces of a paper that each say one thing: lines, cells of a table, and what stands between two dots.
pub(crate) fn items(markdown: &str) -> Vec<&str> {
    markdown.lines().flat_map(|line| line.split(" | ")).flat_map(|cell| cell.split(" · ")).collect()
}

#[test]
fn a_paper_falls_into_items_and_only_sentences_are_tests() {
    let row = "| 1 | kept | AC-1 in [`a.rs`](a.rs) · `lease_ms`, `a_lease_that_…` in [`b.rs`](b.rs) |\nnext";
    let items = items(row);
    assert_eq!(items[2..], ["AC-1 in [`a.rs`](a.rs)", "`lease_ms`, `a_lease_that_…` in [`b.rs`](b.rs) |", "next"]);
    let tests: Vec<&str> = named(row).into_iter().filter(|name| is_of_a_test(name)).collect();
    assert_eq!(tests, ["a_lease_that_…", "AC-1"]);
}

#[test]
fn names_are_found_and_held_against_the_code() {
    let known = Known::of(
        ["fn ac_7_early_receipts_wait() { lease_ms }", "async fn a_lease_that_ran_out_is_unknown("].into_iter(),
    );
    let paper = "AC-7, AC-70 `lease_ms` `a_lease_that_…` `a_lease_that_ran_out` `roost.lease` `lease_s` [`x.rs`](x.rs)";
    let found = named(paper);
    assert_eq!(found, ["lease_ms", "a_lease_that_…", "a_lease_that_ran_out", "lease_s", "AC-7", "AC-70"]);
    let there: Vec<bool> = found.iter().map(|name| known.has(name)).collect();
    assert_eq!(there, [true, true, false, false, true, false]);
}
