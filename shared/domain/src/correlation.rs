//! What we give a provider so that its later word finds our message again.

use crate::MessageId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Ten random characters written by the first migration: whose messages these are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeploymentId(String);

/// A deployment id that is not ten lower-case letters or digits.
#[derive(Debug, thiserror::Error)]
#[error("a deployment id has ten characters of a-z and 0-9")]
pub struct BadDeploymentId;

impl DeploymentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeploymentId {
    type Err = BadDeploymentId;
    fn from_str(text: &str) -> Result<Self, BadDeploymentId> {
        let valid = text.len() == 10 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if valid { Ok(Self(text.to_owned())) } else { Err(BadDeploymentId) }
    }
}

/// `r1.<deployment>.<message id>.<generation>.<attempt>`: goes out as `biz_opaque_callback_data` or `metadata`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Correlation {
    /// Whose message it is; another deployment's correlation settles nothing here.
    pub deployment: DeploymentId,
    /// Which message.
    pub message: MessageId,
    /// Which generation: a person's retry opens a new one.
    pub generation: i16,
    /// Which attempt within the generation, from 1.
    pub attempt: i16,
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r1.{}.{}.{}.{}", self.deployment.0, self.message, self.generation, self.attempt)
    }
}

/// A string that is not one of our correlations. Ordinary: other tools write their own.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a correlation of ours")]
pub struct NotOurs;

impl FromStr for Correlation {
    type Err = NotOurs;
    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(NotOurs);
        if next()? != "r1" {
            return Err(NotOurs);
        }
        let correlation = Correlation {
            deployment: next()?.parse().map_err(|_| NotOurs)?,
            message: next()?.parse().map_err(|_| NotOurs)?,
            generation: next()?.parse().map_err(|_| NotOurs)?,
            attempt: next()?.parse().map_err(|_| NotOurs)?,
        };
        // Only the canonical text is ours: no signs, leading zeros or trailing parts.
        if correlation.to_string() == text { Ok(correlation) } else { Err(NotOurs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_we_write_we_read(id in 1..i64::MAX, generation in 0..i16::MAX, attempt in 1..i16::MAX) {
            let ours = Correlation { deployment: "abcdefghi0".parse().unwrap(), message: MessageId::new(id), generation, attempt };
            prop_assert_eq!(ours.to_string().parse::<Correlation>().unwrap(), ours);
        }

        #[test]
        fn what_others_write_is_not_ours(text in ".*") {
            if let Ok(read) = text.parse::<Correlation>() { prop_assert_eq!(read.to_string(), text); }
        }
    }
}
