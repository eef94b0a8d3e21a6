//! What is wrong with a configuration, all of it at once.

use std::fmt;
use std::io::{self, ErrorKind};

/// Everything that is wrong with a configuration. Each problem is one sentence that says what to change; none of them
/// contains the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// With which code the process ends: `EX_USAGE` of `sysexits.h`, the code for "you told me something wrong".
    pub const EXIT_CODE: u8 = 64;

    pub(super) fn new(problems: Vec<String>) -> Self {
        Self { problems }
    }

    /// One problem.
    pub fn one(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }

    /// The sentences, in the order of the file.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// Why a file cannot be read, for the person who named it.
pub(super) fn why_unread(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        ErrorKind::IsADirectory => "it is a folder".to_owned(),
        ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

/// One sentence a line.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
