//! `roost user hash`.

use crate::{Failure, print, tell};
use anyhow::Context as _;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;

/// Shortest password accepted (OWASP ASVS 5.0, 6.2.1: at least 8 characters).
const SHORTEST: usize = 8;

/// Reads one line and prints its argon2id hash.
pub(crate) fn hash() -> Result<ExitCode, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        tell("Type the password and press Enter (it is shown as you type; `roost user hash < file` avoids that):");
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("no password could be read from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.chars().count() < SHORTEST {
        return Err(Failure::Usage(format!("The password needs at least {SHORTEST} characters.")));
    }
    print(&runtime::password::hash(password)?);
    Ok(ExitCode::SUCCESS)
}
