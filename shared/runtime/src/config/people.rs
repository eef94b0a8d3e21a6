//! `[[users]]` and `[[api_tokens]]`: who may ask for anything.

use super::reader::TableReader;
use crate::password;
use domain::{Role, Secret};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Somebody who may open the page.
#[derive(Clone, Debug)]
pub struct User {
    /// By which they sign in; lower case.
    pub email: String,
    /// How others see them; the e-mail unless said otherwise.
    pub name: String,
    /// argon2id, in the PHC text form.
    pub password_hash: Secret,
    /// What they may do.
    pub role: Role,
}

/// A program that may use the API.
#[derive(Clone)]
pub struct ApiToken {
    /// How the audit trail calls it.
    pub name: String,
    /// SHA-256 of the token. A token is 32 random bytes, so that a slow hash would add nothing.
    pub sha256: [u8; 32],
    /// What it may do.
    pub role: Role,
}

/// The name only: a hash in a log would invite guessing.
impl std::fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiToken").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

impl ApiToken {
    /// Whether `presented` is this token. Takes the same time whatever is presented.
    pub fn is(&self, presented: &str) -> bool {
        token_digest(presented).ct_eq(&self.sha256).into()
    }
}

/// What the configuration keeps of a token.
pub fn token_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

pub(super) fn read_user(table: TableReader<'_, '_>) -> Option<User> {
    let email = table.needed_text("email", "is what the person signs in with").map(|email| email.trim().to_lowercase());
    if let Some(email) = email.as_deref()
        && !email.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
    {
        table.wrong("email", "must be an e-mail address");
    }
    let name = table.text("name").filter(|name| !name.trim().is_empty());
    if !table.has("password_hash") {
        table.missing(
            "password_hash",
            "is a reference to what `roost user hash` prints, such as \"env:OPS_PASSWORD_HASH\"",
        );
    }
    let password_hash = table.secret("password_hash").filter(|hash| {
        let usable = password::is_hash(hash.expose());
        if !usable {
            table.wrong("password_hash", "must be an argon2id hash as `roost user hash` prints it, not the password");
        }
        usable
    });
    let role = read_role(&table);
    table.finish();
    let email = email?;
    Some(User { name: name.unwrap_or_else(|| email.clone()), email, password_hash: password_hash?, role })
}

pub(super) fn read_token(table: TableReader<'_, '_>) -> Option<ApiToken> {
    let name = table.needed_text("name", "is how the audit trail calls the program");
    if !table.has("sha256") {
        table.missing("sha256", "is a reference to the token's SHA-256 in hex, such as \"env:CRM_TOKEN_SHA256\"");
    }
    let sha256 = table.secret("sha256").and_then(|text| {
        let mut digest = [0u8; 32];
        let read = hex::decode_to_slice(text.expose().trim(), &mut digest);
        if read.is_err() {
            table.wrong(
                "sha256",
                "must be a SHA-256 in hex, 64 characters, not the token: printf %s \"$TOKEN\" | sha256sum",
            );
        }
        read.ok().map(|()| digest)
    });
    let role = read_role(&table);
    table.finish();
    Some(ApiToken { name: name?, sha256: sha256?, role })
}

fn read_role(table: &TableReader<'_, '_>) -> Role {
    let word = table.choice("role", &["viewer", "agent", "operator", "admin"]);
    word.and_then(Role::parse).unwrap_or(Role::Agent)
}
