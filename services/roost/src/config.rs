//! `roost config check`, and loading the configuration for every other verb.

use crate::cli::ConfigFile;
use crate::{Failure, print};
use runtime::{Config, Env, Mode};
use std::process::ExitCode;

/// Loads the configuration, or says in sentences what to change.
pub(crate) fn load(file: &ConfigFile, demo: bool) -> Result<Config, Failure> {
    Config::load(file.config.as_deref(), demo, &Env::of_process()).map_err(Failure::usage)
}

/// Says whether the configuration is good, and for what.
pub(crate) fn check(file: &ConfigFile, show: bool) -> Result<ExitCode, Failure> {
    let config = load(file, false)?;
    if show {
        print(config.print().trim_end());
        print("");
    }
    for warning in &config.warnings {
        print(&format!("Warning: {warning}"));
    }
    let name = config.file.as_ref().map_or_else(|| "The defaults".to_owned(), |path| path.display().to_string());
    let fits =
        if config.fits(Mode::Roles).is_ok() { "`roost up` and for single roles" } else { "`roost up` (one process)" };
    let (sources, accounts) = (config.sources.len(), config.accounts.len());
    print(&format!("{name}: good for {fits}; {sources} source(s), {accounts} account(s)."));
    Ok(ExitCode::SUCCESS)
}
