//! What only shows when the parts of a configuration are held against each other.

use super::{Config, ConfigError, QueuePlace, StorePlace, reader::Reading};
use std::collections::BTreeSet;

/// How the process was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `roost up`: every role in this process.
    Up,
    /// `roost ingress`, `roost ingest sender`, …: other processes do the rest.
    Roles,
}

impl Config {
    /// Whether this configuration can carry the roles it was started for.
    /// # Errors
    /// Single roles need a broker and a database server: files belong to one process.
    pub fn fits(&self, mode: Mode) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if mode == Mode::Roles {
            if let StorePlace::Sqlite(path) = &self.store.place {
                problems.push(format!(
                    "The store is the SQLite file {}, which belongs to one process: set [store] url to a postgres:// address, or run `roost up`.",
                    path.display()
                ));
            }
            if let QueuePlace::Embedded(_) = &self.queue.place {
                problems.push(
                    "The queue is embedded, which belongs to one process: set [queue] url to an amqp:// address, or run `roost up`.".into(),
                );
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::new(problems)) }
    }
}

/// Names that must be unique, and names that must exist.
pub(super) fn check(config: &Config, reading: &Reading<'_>) {
    let at = reading.at(0);
    twice(config.sources.iter().map(|source| source.name.as_str()), |name| {
        reading.problem(format!("{at}[[sources]] {name} is there twice: give each source a name of its own."));
    });
    twice(config.accounts.iter().map(|account| account.name.as_str()), |name| {
        reading.problem(format!("{at}[[accounts]] {name} is there twice: give each account a name of its own."));
    });
    let ids = config
        .accounts
        .iter()
        .map(|account| format!("{} {}", account.channel, account.external_id))
        .collect::<Vec<_>>();
    twice(ids.iter().map(String::as_str), |id| {
        reading.problem(format!("{at}two [[accounts]] are the same {id}: a number can be an account once."));
    });
    twice(config.users.iter().map(|user| user.email.as_str()), |email| {
        reading.problem(format!("{at}[[users]] {email} is there twice."));
    });
    twice(config.api_tokens.iter().map(|token| token.name.as_str()), |name| {
        reading.problem(format!("{at}[[api_tokens]] {name} is there twice: give each token a name of its own."));
    });
    check_alias(config, reading);
}

/// An account needs its source. `sources` are the names in the file, those of sources with mistakes of their own included,
/// so that one mistake is not told twice.
pub(super) fn check_account_sources(config: &Config, sources: &BTreeSet<String>, reading: &Reading<'_>) {
    let at = reading.at(0);
    for account in &config.accounts {
        match config.source(account.source.as_str()) {
            Some(source) if source.kind == "meta" => {}
            Some(source) => reading.problem(format!(
                "{at}[[accounts]] {} is on {}, but its source {} is of kind {}: it needs one of kind meta.",
                account.name, account.channel, source.name, source.kind
            )),
            None if sources.contains(account.source.as_str()) => {}
            None => {
                let hint = match super::reader::nearest(account.source.as_str(), sources.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "add one, or change `source`.".into(),
                };
                reading.problem(format!(
                    "{at}[[accounts]] {} names the source {}, but no [[sources]] entry has that name; {hint}",
                    account.name, account.source
                ));
            }
        }
    }
}

/// The CRM's old address belongs to the only `meta` source, or to the one that says so.
fn check_alias(config: &Config, reading: &Reading<'_>) {
    let at = reading.at(0);
    let meta = config.sources.iter().filter(|source| source.kind == "meta").collect::<Vec<_>>();
    let names = meta.iter().map(|source| &source.name).collect::<BTreeSet<_>>().len();
    let claims = meta.iter().filter(|source| source.crm_alias).count();
    // One that is there twice was told already.
    if names == meta.len() && names > 1 && claims != 1 {
        reading.problem(format!(
            "{at}there are {names} [[sources]] of kind meta and {claims} with `crm_alias = true`: let exactly one have it, it gets what arrives at /api/webhooks/whatsapp."
        ));
    }
}

fn twice<'n>(names: impl Iterator<Item = &'n str>, mut complain: impl FnMut(&str)) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            complain(name);
        }
    }
}
