//! Reads one table key by key. What was asked for is what is known: every other key is a spelling mistake, and the nearest
//! known one is suggested.

use super::document::{Entry, Table, Value};
use super::error::why_unread;
use super::{ConfigError, Env, env::is_service_link};
use domain::Secret;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

/// What all tables of one configuration share while it is read.
pub(super) struct Reading<'a> {
    /// The file's name as the person gave it; `None` when there is no file.
    pub(super) file: Option<String>,
    /// The environment.
    pub(super) env: &'a Env,
    problems: RefCell<Vec<String>>,
    /// Names of variables that are settings, or that a secret reference names.
    known_variables: RefCell<BTreeSet<String>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(file: Option<String>, env: &'a Env) -> Self {
        Self { file, env, problems: RefCell::default(), known_variables: RefCell::default() }
    }

    /// Notes a problem; reading goes on, so that a person sees all of them at once.
    pub(super) fn problem(&self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&sentence) {
            problems.push(sentence);
        }
    }

    /// Where `line` is, as the start of a sentence: `roost.toml line 12: `.
    pub(super) fn at(&self, line: usize) -> String {
        match &self.file {
            Some(file) if line > 0 => format!("{file} line {line}: "),
            Some(file) => format!("{file}: "),
            None => String::new(),
        }
    }

    fn knows_variable(&self, name: &str) {
        self.known_variables.borrow_mut().insert(name.to_owned());
    }

    /// Complains of `ROOST_` variables nobody asked for.
    pub(super) fn check_variables(&self) {
        let known = self.known_variables.borrow().clone();
        for (name, value) in self.env.iter() {
            let reserved = matches!(name, "ROOST_CONFIG" | "ROOST_NOW" | "ROOST_LOG") || name.starts_with("ROOST_TEST");
            if !name.starts_with("ROOST_") || reserved || known.contains(name) || is_service_link(name, value) {
                continue;
            }
            let hint = match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => {
                    "settings from the environment are called ROOST_<TABLE>_<KEY>, such as ROOST_HTTP_LISTEN.".into()
                }
            };
            self.problem(format!("The environment variable {name} is not a setting; {hint}"));
        }
    }

    /// Everything noted, as an error if there is anything.
    pub(super) fn outcome(self) -> Result<(), ConfigError> {
        let problems = self.problems.into_inner();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::new(problems)) }
    }

    /// The secret behind `env:NAME` or `file:/path`.
    fn resolve(&self, reference: &str) -> Result<Secret, String> {
        let value = if let Some(name) = reference.strip_prefix("env:") {
            self.knows_variable(name);
            self.env
                .get(name)
                .map(str::to_owned)
                .ok_or_else(|| format!("the environment variable {name} is not set: set it"))?
        } else if let Some(path) = reference.strip_prefix("file:") {
            let text = std::fs::read_to_string(Path::new(path))
                .map_err(|error| format!("{path} cannot be read: {}", why_unread(&error)))?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        } else {
            return Err("it must be a reference, env:NAME or file:/path, not the secret itself".into());
        };
        if value.is_empty() { Err(format!("{reference} is empty")) } else { Ok(Secret::new(value)) }
    }
}

/// One table being read.
pub(super) struct TableReader<'r, 'e> {
    pub(super) reading: &'r Reading<'e>,
    /// How sentences call it: `[http]`, `[[accounts]] sales`, or `the top level`.
    pub(super) label: String,
    /// Start of the variables that override its keys; `None` for entries of lists, which have no names of their own.
    variables: Option<String>,
    table: Table,
    /// Line of its heading.
    pub(super) line: usize,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'r, 'e> TableReader<'r, 'e> {
    /// A table that exists once. `name` is empty for the top level.
    pub(super) fn single(reading: &'r Reading<'e>, name: &str, table: Table, line: usize) -> Self {
        let (label, variables) = match name {
            "" => ("the top level".to_owned(), "ROOST".to_owned()),
            name => (format!("[{name}]"), format!("ROOST_{}", name.to_ascii_uppercase())),
        };
        Self { reading, label, variables: Some(variables), table, line, asked: RefCell::default() }
    }

    /// Entry `index` of a list of tables; it is called by the value of `named_by`, or by its position.
    pub(super) fn listed(
        reading: &'r Reading<'e>,
        list: &str,
        index: usize,
        table: Table,
        line: usize,
        named_by: &str,
    ) -> Self {
        let label = match table.get(named_by) {
            Some(Entry { value: Value::Text(name), .. }) => format!("[[{list}]] {name}"),
            _ => format!("[[{list}]] number {}", index + 1),
        };
        Self { reading, label, variables: None, table, line, asked: RefCell::default() }
    }

    /// Notes that this entry of the table is wrong.
    pub(super) fn wrong(&self, key: &str, what: impl AsRef<str>) {
        let overridden = self.variable(key).filter(|name| self.reading.env.get(name).is_some());
        match (overridden, self.table.get(key)) {
            (Some(name), _) => self.reading.problem(format!("The environment variable {name} {}.", what.as_ref())),
            (None, Some(entry)) => {
                let at = self.reading.at(entry.line);
                self.reading.problem(ended(format!("{at}`{key}` in {} {}", self.label, what.as_ref())));
            }
            (None, None) => self.missing(key, what),
        }
    }

    /// Notes that an entry is needed and not there.
    pub(super) fn missing(&self, key: &str, what: impl AsRef<str>) {
        let at = self.reading.at(self.line);
        self.reading.problem(format!("{at}{} needs `{key}`: it {}.", self.label, what.as_ref()));
    }

    /// Notes a problem of the table as a whole.
    pub(super) fn complain(&self, what: impl AsRef<str>) {
        let at = self.reading.at(self.line);
        self.reading.problem(format!("{at}{} {}.", self.label, what.as_ref()));
    }

    fn variable(&self, key: &str) -> Option<String> {
        self.variables.as_ref().map(|start| format!("{start}_{}", key.to_ascii_uppercase()))
    }

    /// The entry, or its override. An override is always text; the getters read numbers out of it.
    fn get(&self, key: &'static str) -> Option<Value> {
        self.asked.borrow_mut().insert(key);
        if let Some(name) = self.variable(key) {
            self.reading.knows_variable(&name);
            if let Some(value) = self.reading.env.get(&name) {
                return Some(Value::Text(value.to_owned()));
            }
        }
        self.table.get(key).map(|entry| entry.value.clone())
    }

    fn overridden(&self, key: &str) -> bool {
        self.variable(key).is_some_and(|name| self.reading.env.get(&name).is_some())
    }

    /// Whether the key is there, in the file or in the environment.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// Whether the key is there and holds an empty list.
    pub(super) fn is_empty_list(&self, key: &'static str) -> bool {
        matches!(self.get(key), Some(Value::List(entries)) if entries.is_empty())
    }

    /// Text.
    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            other => {
                self.wrong(key, format!("must be text in quotes, not {}", other.kind()));
                None
            }
        }
    }

    /// Text that may not be left out. `what` says what it is: "is the id Meta shows beside the number".
    pub(super) fn needed_text(&self, key: &'static str, what: &str) -> Option<String> {
        match self.has(key) {
            true => self.text(key).filter(|text| {
                if text.trim().is_empty() {
                    self.wrong(key, format!("is empty: it {what}"));
                }
                !text.trim().is_empty()
            }),
            false => {
                self.missing(key, what);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice(&self, key: &'static str, words: &[&'static str]) -> Option<&'static str> {
        let text = self.text(key)?;
        let found = words.iter().find(|word| **word == text).copied();
        if found.is_none() {
            let hint = match nearest(&text, words.iter().copied()) {
                Some(near) => format!("; did you mean {near:?}?"),
                None => String::new(),
            };
            let words = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
            self.wrong(key, format!("must be {words}, not {text:?}{hint}"));
        }
        found
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &'static str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(flag) => Some(flag),
            Value::Text(text) if self.overridden(key) && (text == "true" || text == "false") => Some(text == "true"),
            other => {
                self.wrong(key, format!("must be true or false, not {}", other.kind()));
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn whole(&self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.get(key)? {
            Value::Integer(number) => u64::try_from(number).ok(),
            Value::Text(text) if self.overridden(key) => text.parse().ok(),
            _ => None,
        };
        let within = number.filter(|number| bounds.contains(number));
        if within.is_none() {
            self.wrong(key, format!("must be a whole number from {} to {}", bounds.start(), bounds.end()));
        }
        within
    }

    /// A number within bounds.
    pub(super) fn number(&self, key: &'static str, bounds: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.get(key)? {
            #[expect(clippy::cast_precision_loss, reason = "settings are small numbers")]
            Value::Integer(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            Value::Text(text) if self.overridden(key) => text.parse().ok(),
            _ => None,
        };
        let within = number.filter(|number| bounds.contains(number));
        if within.is_none() {
            self.wrong(key, format!("must be a number from {} to {}", bounds.start(), bounds.end()));
        }
        within
    }

    /// A secret by reference.
    pub(super) fn secret(&self, key: &'static str) -> Option<Secret> {
        let reference = self.text(key)?;
        self.resolve(key, &reference)
    }

    /// Text that may be a secret reference, such as a URL that holds a password.
    pub(super) fn text_or_secret(&self, key: &'static str) -> Option<Secret> {
        let text = self.text(key)?;
        if text.starts_with("env:") { self.resolve(key, &text) } else { Some(Secret::new(text)) }
    }

    /// Secrets by reference: a list, or one.
    pub(super) fn secrets(&self, key: &'static str) -> Vec<Secret> {
        let entries = match self.get(key) {
            None => return Vec::new(),
            Some(Value::List(entries)) => entries.into_iter().map(|entry| entry.value).collect(),
            Some(one) => vec![one],
        };
        let mut secrets = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                Value::Text(reference) => secrets.extend(self.resolve(key, &reference)),
                other => self
                    .wrong(key, format!("must be a list of references such as [\"env:NAME\"], not {}", other.kind())),
            }
        }
        secrets
    }

    fn resolve(&self, key: &'static str, reference: &str) -> Option<Secret> {
        match self.reading.resolve(reference) {
            Ok(secret) => Some(secret),
            Err(why) => {
                self.wrong(key, format!("has no value: {why}"));
                None
            }
        }
    }

    /// Every key is known that was asked for; complains of the others.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, entry) in &self.table {
            if asked.contains(key.as_str()) {
                continue;
            }
            let hint = match nearest(key, asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let keys = asked.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                    format!("its keys are {keys}.")
                }
            };
            let at = self.reading.at(entry.line);
            self.reading.problem(format!("{at}`{key}` is not a key of {}; {hint}", self.label));
        }
    }
}

/// With a full stop, unless it is a question.
fn ended(sentence: String) -> String {
    if sentence.ends_with('?') { sentence } else { sentence + "." }
}

/// The known word a person most probably meant.
pub(super) fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    known
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
