//! A configuration file as read, with the line of every entry, so that a complaint can point at it.

use super::ConfigError;
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// One entry and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Line in the file, from 1.
    pub(super) line: usize,
    /// What stands there.
    pub(super) value: Value,
}

/// What an entry can be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Entry>),
    Table(Table),
    /// A date or time: no setting is one.
    Other,
}

/// Entries by key.
pub(super) type Table = BTreeMap<String, Entry>;

impl Value {
    /// What it is, for "must be text, not a list".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other => "a date",
        }
    }
}

/// Reads the text of a file called `name`.
/// # Errors
/// When it is not TOML: names the line.
pub(super) fn parse(name: &str, text: &str) -> Result<Table, ConfigError> {
    match DeTable::parse(text) {
        Ok(table) => Ok(convert_table(text, table.get_ref())),
        Err(error) => {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            Err(ConfigError::one(format!("{name} line {line}: this is not TOML: {what}.")))
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn convert_table(text: &str, table: &DeTable<'_>) -> Table {
    let entry = |key: &toml::Spanned<std::borrow::Cow<'_, str>>, value: &toml::Spanned<DeValue<'_>>| Entry {
        line: line_of(text, key.span().start),
        value: convert(text, value.get_ref()),
    };
    table.iter().map(|(key, value)| (key.get_ref().to_string(), entry(key, value))).collect()
}

fn convert(text: &str, value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(string) => Value::Text(string.to_string()),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Value::Other, Value::Integer)
        }
        DeValue::Float(float) => float.as_str().parse().map_or(Value::Other, Value::Float),
        DeValue::Boolean(bool) => Value::Bool(*bool),
        DeValue::Datetime(_) => Value::Other,
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Entry { line: line_of(text, item.span().start), value: convert(text, item.get_ref()) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(text, table)),
    }
}
