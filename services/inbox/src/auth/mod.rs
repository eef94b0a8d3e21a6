//! Who asks: a browser with a session, or a program with a bearer token; and that an unsafe request of a browser comes from
//! our own page.

pub(crate) mod csrf;
pub(crate) mod login;
pub(crate) mod session;
pub(crate) mod throttle;

use crate::Shared;
use crate::problem::Problem;
use domain::{Role, TokenId, UserId};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use runtime::config::ApiToken;
use std::sync::Arc;
use store::audit::Actor;
use store::session::SessionUser;

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) by: By,
}

/// How they proved it.
#[derive(Clone, Debug)]
pub(crate) enum By {
    /// A signed-in browser.
    Session {
        user: UserId,
        /// SHA-256 of the session's token: its key in the database.
        sha256: [u8; 32],
        /// What the browser's forms must repeat.
        csrf: String,
    },
    /// A program.
    Token(TokenId),
}

impl Who {
    /// The person; `None` for a program.
    pub(crate) fn user(&self) -> Option<UserId> {
        match &self.by {
            By::Session { user, .. } => Some(*user),
            By::Token(_) => None,
        }
    }

    /// For the audit trail.
    pub(crate) fn actor(&self) -> Actor {
        match &self.by {
            By::Session { user, .. } => Actor { user: Some(*user), token: None },
            By::Token(token) => Actor { user: None, token: Some(*token) },
        }
    }

    /// What the browser's forms must repeat; empty for a program, which needs none.
    pub(crate) fn csrf(&self) -> &str {
        match &self.by {
            By::Session { csrf, .. } => csrf,
            By::Token(_) => "",
        }
    }

    /// Under which name requests are counted.
    pub(crate) fn quota_key(&self) -> String {
        match &self.by {
            By::Session { user, .. } => format!("user:{user}"),
            By::Token(token) => format!("token:{token}"),
        }
    }

    /// Refuses those who may not do what `role` may.
    pub(crate) fn needs(&self, role: Role) -> Result<(), Problem> {
        if self.role.may(role) {
            return Ok(());
        }
        let detail = format!("Your role ({}) may not do this; it takes the role {role}.", self.role);
        Err(Problem::forbidden("role_too_low", detail))
    }
}

/// Finds out who asks. `None`: nobody who says who they are.
pub(crate) async fn identify(shared: &Arc<Shared>, headers: &HeaderMap) -> Result<Option<Who>, Problem> {
    if let Some(presented) = bearer(headers)? {
        let people = shared.people().await?;
        // Every token is compared, so that the time tells nothing.
        let mut found: Option<(&ApiToken, TokenId)> = None;
        for (token, id) in &people.tokens {
            if token.is(presented) {
                found = Some((token, *id));
            }
        }
        let Some((token, id)) = found else {
            return Err(Problem::unauthenticated("bad_token", "The bearer token is not one of ours."));
        };
        shared.token_seen(id).await;
        return Ok(Some(Who { name: token.name.clone(), role: token.role, by: By::Token(id) }));
    }
    let Some(token) = session::presented(headers, session::is_secure(headers)) else { return Ok(None) };
    shared.people().await?;
    let sha256 = session::digest(&token);
    let mut tx = shared.deps.store.read().await?;
    let user = store::session::find(&mut tx, &sha256, shared.deps.clock.now()).await?;
    Ok(user.map(|SessionUser { user_id, name, role, .. }| Who {
        name,
        role,
        by: By::Session { user: user_id, sha256, csrf: csrf::token_for(&token) },
    }))
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let unusable = || Problem::unauthenticated("bad_token", "The Authorization header must be `Bearer <token>`.");
    let (scheme, token) = value.to_str().map_err(|_| unusable())?.split_once(' ').ok_or_else(unusable)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(unusable());
    }
    Ok(Some(token.trim()))
}
