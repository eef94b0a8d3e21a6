//! What is wrong with a configuration, all of it at once.

use std::fmt;

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

/// One sentence a line.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
