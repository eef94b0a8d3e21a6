//! Reads tables and columns out of migrations, as far as comparing two folders needs.

use std::collections::{BTreeMap, BTreeSet};

use crate::files::files_of;

#[derive(Debug, Default)]
pub(crate) struct Schema {
    /// Names without the folder, in order.
    pub(crate) files: Vec<String>,
    /// Columns by table, after all migrations.
    pub(crate) tables: BTreeMap<String, BTreeSet<String>>,
}

/// The schema that the files of `folder` lead to, applied in the order of their names.
pub(crate) fn read(folder: &str) -> Schema {
    let mut schema = Schema::default();
    for file in files_of(folder, &["sql"]) {
        schema.files.push(file.name.rsplit('/').next().unwrap_or_default().to_owned());
        for statement in statements(&file.text) {
            let words: Vec<&str> = statement.iter().map(String::as_str).collect();
            schema.apply(&words).unwrap_or_else(|why| panic!("{}: {why}: {}", file.name, words.join(" ")));
        }
    }
    schema
}

impl Schema {
    fn apply(&mut self, words: &[&str]) -> Result<(), &'static str> {
        match words {
            ["create", "table", "if", "not", "exists", name, rest @ ..] | ["create", "table", name, rest @ ..] => {
                let body = inside(rest).ok_or("a table without columns in brackets")?;
                let columns = split_at_commas(body).into_iter().filter_map(column_of).map(str::to_owned).collect();
                self.tables.insert((*name).to_owned(), columns);
            }
            ["drop", "table", "if", "exists", name, ..] | ["drop", "table", name, ..] => {
                self.tables.remove(*name);
            }
            ["alter", "table", "if", "exists", name, rest @ ..]
            | ["alter", "table", "only", name, rest @ ..]
            | ["alter", "table", name, rest @ ..] => {
                for action in split_at_commas(rest) {
                    self.alter(name, action)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn alter(&mut self, table: &str, action: &[&str]) -> Result<(), &'static str> {
        if let ["rename", "to", new] = action {
            let columns = self.tables.remove(table).ok_or("renames a table that is not there")?;
            self.tables.insert((*new).to_owned(), columns);
            return Ok(());
        }
        let columns = self.tables.get_mut(table).ok_or("alters a table that is not there")?;
        match action {
            ["add", "column", "if", "not", "exists", name, ..] | ["add", "column", name, ..] => {
                columns.insert((*name).to_owned());
            }
            ["add", rest @ ..] => columns.extend(column_of(rest).map(str::to_owned)),
            ["drop", "constraint", ..] => {}
            ["drop", "column", "if", "exists", name, ..] | ["drop", "column", name, ..] | ["drop", name] => {
                columns.remove(*name).then_some(()).ok_or("drops a column that is not there")?;
            }
            ["rename", "column", old, "to", new] | ["rename", old, "to", new] => {
                columns.remove(*old).then_some(()).ok_or("renames a column that is not there")?;
                columns.insert((*new).to_owned());
            }
            _ => {}
        }
        Ok(())
    }
}

/// The name of the column that a part of CREATE TABLE defines; none when it is a constraint.
fn column_of<'a>(part: &[&'a str]) -> Option<&'a str> {
    let first = *part.first()?;
    (!["constraint", "primary", "foreign", "unique", "check", "exclude", "like"].contains(&first)).then_some(first)
}

/// What is between the first bracket and the one that closes it.
fn inside<'a, 'b>(words: &'a [&'b str]) -> Option<&'a [&'b str]> {
    let rest = words.strip_prefix(&["("])?;
    let mut depth = 1;
    for (at, word) in rest.iter().enumerate() {
        match *word {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&rest[..at]);
        }
    }
    None
}

fn split_at_commas<'a, 'b>(words: &'a [&'b str]) -> Vec<&'a [&'b str]> {
    let mut depth = 0;
    words
        .split(|word| {
            match *word {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            depth == 0 && *word == ","
        })
        .collect()
}

/// Statements as lower-case words and single signs; comments are gone, texts are `''`.
fn statements(sql: &str) -> Vec<Vec<String>> {
    let mut statements = vec![Vec::new()];
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (None, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            '\'' => (Some("''".to_owned()), 1 + rest[1..].find('\'').map_or(rest.len() - 1, |end| end + 1)),
            '"' => {
                let end = rest[1..].find('"').map_or(rest.len() - 1, |end| end + 1);
                (Some(rest[1..end].to_owned()), end + 1)
            }
            '$' if dollar_quote(rest).is_some() => (Some("''".to_owned()), dollar_quote(rest).unwrap_or(1)),
            _ if first.is_alphabetic() || first == '_' => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Some(rest[..end].to_lowercase()), end)
            }
            _ if first.is_whitespace() => (None, first.len_utf8()),
            _ => (Some(first.to_string()), first.len_utf8()),
        };
        rest = &rest[length..];
        let Some(word) = word else { continue };
        let current = statements.last_mut().expect("there is always one");
        // SQLite's triggers hold statements of their own, up to END.
        let in_trigger =
            current.iter().take(3).any(|word| word == "trigger") && current.last().is_none_or(|last| last != "end");
        if word == ";" && !in_trigger {
            statements.push(Vec::new());
        } else {
            current.push(word);
        }
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

/// The length of PostgreSQL's `$tag$ … $tag$` at the start of `sql`.
fn dollar_quote(sql: &str) -> Option<usize> {
    let tag_end = sql[1..].find('$')? + 2;
    let tag = &sql[..tag_end];
    let name = &tag[1..tag_end - 1];
    if !name.chars().all(|c| c.is_alphanumeric() || c == '_') || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(tag_end + sql[tag_end..].find(tag)? + tag_end)
}

#[test]
fn reads_what_migrations_write() {
    let sql = r#"
        -- a table; with a comment (and, commas
        CREATE TABLE IF NOT EXISTS "messages" (
          id bigint PRIMARY KEY, body text CHECK (body IN ('a, (b', 'it''s; c')), /* gone; */ old text,
          CONSTRAINT x UNIQUE (id, body), PRIMARY KEY (id)) STRICT;
        CREATE FUNCTION f() RETURNS trigger AS $body$ BEGIN; CREATE TABLE no (no int); END $body$ LANGUAGE plpgsql;
        CREATE TRIGGER t AFTER INSERT ON messages BEGIN UPDATE messages SET body = ''; DROP TABLE messages; END;
        ALTER TABLE messages ADD COLUMN sent_at timestamptz, ADD CONSTRAINT y CHECK (id > 0), DROP COLUMN old;
        ALTER TABLE messages RENAME COLUMN body TO text;
        CREATE TABLE t2 (a int); ALTER TABLE t2 RENAME TO t3; CREATE TABLE t4 (a int); DROP TABLE t4;
    "#;
    let mut schema = Schema::default();
    for statement in statements(sql) {
        schema.apply(&statement.iter().map(String::as_str).collect::<Vec<_>>()).expect("readable");
    }
    let found: Vec<_> = schema
        .tables
        .iter()
        .map(|(t, c)| format!("{t}: {}", c.iter().cloned().collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(found, ["messages: id sent_at text", "t3: a"]);
}
