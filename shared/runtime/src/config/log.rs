//! `[log]`: how loud, and in which form.

use super::reader::TableReader;

/// In which form log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// The form.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as `info,sender=debug`. `ROOST_LOG` goes before it.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".into() }
    }
}

pub(super) fn read(table: TableReader<'_, '_>) -> Log {
    let mut log = Log::default();
    if let Some(word) = table.choice("format", &["auto", "json", "pretty"]) {
        log.format = match word {
            "json" => LogFormat::Json,
            "pretty" => LogFormat::Pretty,
            _ => LogFormat::Auto,
        };
    }
    if let Some(level) = table.text("level") {
        if crate::telemetry::is_filter(&level) {
            log.level = level;
        } else {
            table.wrong("level", format!("must be error, warn, info, debug or trace, or directives such as \"info,sender=debug\", not {level:?}"));
        }
    }
    if let Some(level) = table.reading.env.get("ROOST_LOG") {
        if crate::telemetry::is_filter(level) {
            log.level = level.to_owned();
        } else {
            table.reading.problem(format!("The environment variable ROOST_LOG must be a level such as info or directives such as info,sender=debug, not {level:?}."));
        }
    }
    table.finish();
    log
}
