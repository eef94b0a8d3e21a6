//! Passwords of people: argon2id, in the PHC text form (`$argon2id$v=19$m=…`).

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};

/// A hash could not be made: the system has no randomness to give, or the password is absurdly long.
#[derive(Debug, thiserror::Error)]
#[error("the password could not be hashed: {0}")]
pub struct HashError(String);

/// Makes what `[[users]] password_hash` refers to. Takes some 20 ms and 19 MiB on purpose: call it off the async threads.
/// # Errors
/// When the system gives no random salt.
pub fn hash(password: &str) -> Result<String, HashError> {
    let hash: PasswordHash =
        Argon2::default().hash_password(password.as_bytes()).map_err(|error| HashError(error.to_string()))?;
    Ok(hash.to_string())
}

/// Whether `password` is the one behind `hash`; `false` also for a hash that is none. As slow as [`hash`].
pub fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Whether the text is an argon2id hash at all.
pub fn is_hash(text: &str) -> bool {
    PasswordHash::new(text).is_ok_and(|hash| hash.algorithm.as_str() == "argon2id" && hash.hash.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_opens_its_own_hash_only() {
        let made = hash("correct horse").unwrap();
        assert!(is_hash(&made) && made.starts_with("$argon2id$"));
        assert!(verify("correct horse", &made));
        assert!(!verify("battery staple", &made));
        assert!(!verify("correct horse", "not a hash"));
    }

    #[test]
    fn the_same_password_has_another_hash_each_time() {
        assert_ne!(hash("x").unwrap(), hash("x").unwrap());
    }
}
