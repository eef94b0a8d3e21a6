//! The table: on the terminal, and in its place in `docs/performance.md`.

use crate::stats::{Median, Runs, number};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::PathBuf;

/// What a figure is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Target::AtLeast(least) => format!("≥ {least}"),
            Target::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// One figure beside its target.
#[derive(Clone, Debug)]
struct Figure {
    what: String,
    value: Option<Median>,
    target: Target,
}

/// One of the three parts of the table.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// Names its place in the document.
    name: &'static str,
    /// What was run, with which parameters.
    parameters: Vec<String>,
    designs: Table,
    figures: Vec<Figure>,
}

impl Section {
    /// An empty section; `head` are the columns of its table of designs.
    pub(crate) fn new(name: &'static str, head: &[&str]) -> Self {
        Self { name, parameters: Vec::new(), designs: Table::new(head), figures: Vec::new() }
    }

    /// Says how it was run.
    pub(crate) fn parameter(&mut self, text: impl Into<String>) {
        self.parameters.push(text.into());
    }

    /// A row of the table of designs.
    pub(crate) fn design(&mut self, cells: Vec<String>) {
        self.designs.rows.push(cells);
    }

    /// A figure with its target; `None`: it could not be measured, which is said.
    pub(crate) fn figure(&mut self, what: impl Into<String>, value: Option<Median>, target: Target) {
        self.figures.push(Figure { what: what.into(), value, target });
    }

    /// The section in Markdown, which reads well on a terminal too.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for parameter in &self.parameters {
            let _ = writeln!(text, "{parameter}");
        }
        let _ = writeln!(text, "\n{}", self.designs.render());
        let mut figures = Table::new(&["figure", "measured", "target", ""]);
        for figure in &self.figures {
            let (value, verdict) = match figure.value {
                Some(value) if figure.target.is_met(value.median) => (value.to_string(), "reached"),
                Some(value) => (value.to_string(), "**missed**"),
                None => ("not measured".to_owned(), ""),
            };
            figures.rows.push(vec![figure.what.clone(), value, figure.target.text(), verdict.to_owned()]);
        }
        let _ = write!(text, "{}", figures.render());
        for sentence in self.misses() {
            let _ = write!(text, "\n{sentence}\n");
        }
        text
    }

    /// A sentence for every target that was missed.
    fn misses(&self) -> Vec<String> {
        let missed = self.figures.iter().filter_map(|figure| {
            let value = figure.value.filter(|value| !figure.target.is_met(value.median))?;
            Some(format!("Missed: {}: {} where {} is the target.", figure.what, value, figure.target.text()))
        });
        missed.collect()
    }
}

/// Columns of text.
#[derive(Clone, Debug)]
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|cell| (*cell).to_owned()).collect(), rows: Vec::new() }
    }

    fn render(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = widths.iter().enumerate().map(|(column, width)| {
                let cell = row.get(column).map_or("", String::as_str);
                // The first column is words, the others are numbers.
                if column == 0 { format!(" {cell:<width$} ") } else { format!(" {cell:>width$} ") }
            });
            format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
        };
        let rule = widths.iter().enumerate().map(|(column, width)| {
            let dashes = "-".repeat(width + 1);
            if column == 0 { format!("{dashes}-") } else { format!("{dashes}:") }
        });
        let mut text = line(&self.head);
        let _ = writeln!(text, "|{}|", rule.collect::<Vec<_>>().join("|"));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text
    }
}

/// A median as a cell; `–` where there is none.
pub(crate) fn cell(median: Option<Median>) -> String {
    median.map_or_else(|| "–".to_owned(), |median| median.to_string())
}

/// The median alone, for columns whose spread says little more.
pub(crate) fn short(median: Option<Median>) -> String {
    median.map_or_else(|| "–".to_owned(), |median| number(median.median))
}

/// Median and 99th percentile of the latency, in milliseconds.
pub(crate) fn latency(runs: &Runs) -> String {
    format!("{} / {}", short(runs.median_of_some(|run| run.p50_ms)), short(runs.median_of_some(|run| run.p99_ms)))
}

/// The document, in the sources this program was built from.
fn document() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md"))
}

/// Puts `body` between the marks of `name` in the document.
pub(crate) fn write(name: &str, body: &str) -> Result<PathBuf> {
    let path = document();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let replaced = replace(&text, name, body).with_context(|| format!("{} has no marks for {name}", path.display()))?;
    std::fs::write(&path, replaced)?;
    Ok(path)
}

/// Writes a section to its place in the document.
pub(crate) fn write_section(section: &Section) -> Result<PathBuf> {
    write(section.name, &section.render())
}

fn replace(text: &str, name: &str, body: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench {name} -->"), format!("<!-- /bench {name} -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n{end}{after}", body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_replaced_between_its_marks_and_nowhere_else() {
        let text = "a\n<!-- bench x -->\nold\n<!-- /bench x -->\nb\n";
        assert_eq!(replace(text, "x", "new\n").unwrap(), "a\n<!-- bench x -->\nnew\n<!-- /bench x -->\nb\n");
        assert_eq!(replace(text, "y", "new"), None);
    }

    #[test]
    fn a_missed_target_is_said_in_a_sentence() {
        let mut section = Section::new("x", &["design", "a second"]);
        section.design(vec!["Roost".into(), "10".into()]);
        section.figure("Roost ÷ plain", Median::of([1.5]), Target::AtLeast(2.0));
        section.figure("memory, MB", Median::of([20.0]), Target::AtMost(32.0));
        section.figure("the other", None, Target::AtMost(1.0));
        let text = section.render();
        assert!(text.contains("Missed: Roost ÷ plain: 1.50 where ≥ 2 is the target."), "{text}");
        assert_eq!((text.matches("reached").count(), text.matches("not measured").count()), (1, 1), "{text}");
    }
}
