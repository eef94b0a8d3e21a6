//! Log lines: JSON for machines, something readable on a terminal.

use crate::config::{Log, LogFormat};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

/// What is quieter than our own code unless a directive names it: the drivers tell every reconnect and every slow statement
/// in their own words, and we say the same once in ours.
const QUIETER: [&str; 5] = ["lapin=off", "sqlx=warn", "hyper=warn", "reqwest=warn", "rustls=warn"];

/// Logging was set up before, by a test or by another part of the process.
#[derive(Debug, thiserror::Error)]
#[error("logging could not be set up: {0}")]
pub struct LogError(String);

/// Starts logging to standard error, for the rest of the process. From then on a panic is a log line too.
/// # Errors
/// When it was started before.
pub fn init(log: &Log) -> Result<(), LogError> {
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    // Without a word about a line that cannot be written: it would go to the same place, and there it ends the process.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.level))
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let started = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| LogError(error.to_string()))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Tells where a panic was. Its words are told only where they stand in the code: formatted ones may hold what was being
/// worked on, and that may be a customer's message.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let words = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(words withheld)");
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        tracing::error!(panic.place = place, panic.trace = %trace, "Panic at {place}: {words}");
    } else {
        tracing::error!(panic.place = place, "Panic at {place}: {words}");
    }
}

/// Whether the text is a level or a list of directives.
pub(crate) fn is_filter(level: &str) -> bool {
    !level.trim().is_empty()
        && level.parse::<EnvFilter>().is_ok()
        && level.split(',').all(|part| part.parse::<Directive>().is_ok())
}

fn filter(level: &str) -> EnvFilter {
    let named = |target: &str| level.split(',').any(|part| part.trim().split('=').next() == Some(target));
    let quieter = QUIETER.iter().filter(|directive| !named(directive.split('=').next().unwrap_or_default()));
    quieter.filter_map(|directive| directive.parse().ok()).fold(EnvFilter::new(level), EnvFilter::add_directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_quiet_unless_asked_for() {
        assert!(filter("info").to_string().contains("lapin=off"));
        let asked = filter("info,lapin=debug").to_string();
        assert!(asked.contains("lapin=debug") && !asked.contains("lapin=off"), "{asked}");
    }

    #[test]
    fn a_level_is_a_filter_and_rubbish_is_not() {
        for good in ["info", "debug", "info,sender=debug", "warn,sqlx=info"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "=", "info,sender=verbose"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
