//! Signing in by password or by the one-time link, and signing out.

use super::throttle;
use super::{By, session};
use crate::Shared;
use crate::form::Fields;
use crate::guard::{Caller, Context, read_body, with_cookie, without_session};
use crate::pages::{self, Frame, LoginPage};
use crate::problem::Problem;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Redirect, Response};
use domain::{Secret, UserId};
use http::{HeaderMap, StatusCode};
use runtime::password;
use serde_json::json;
use std::sync::{Arc, OnceLock, PoisonError};
use store::audit::{self, Actor, Entry};
use subtle::ConstantTimeEq;

/// Longest password that is looked at, in bytes.
const PASSWORD_MOST: usize = 1024;

fn login_page(
    context: &Context,
    status: StatusCode,
    error: Option<&'static str>,
    email: &str,
    next: &str,
) -> Result<Response, Problem> {
    let w = context.look.language.words();
    let frame = Frame::of(context.look, None, context.now, w.sign_in);
    let page =
        LoginPage { w, frame, csrf: String::new(), error, email: email.to_owned(), next: safe_next(next).to_owned() };
    let mut response = pages::page(&page)?;
    *response.status_mut() = status;
    Ok(response)
}

/// Only a path of ours: never another site, however it is written.
fn safe_next(next: &str) -> &str {
    let ours = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains(['\\', '\r', '\n', '\t'])
        && next.len() <= 1000;
    let plain = next.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    if ours && plain && !next.starts_with("/login") { next } else { "/inbox" }
}

/// `GET /login`
pub(crate) async fn page(context: Context, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = Fields::of(query.unwrap_or_default().as_bytes());
    let next = query.get("next").unwrap_or("/inbox");
    if context.who.is_some() {
        return Ok(Redirect::to(safe_next(next)).into_response());
    }
    login_page(&context, StatusCode::OK, None, "", next)
}

/// `POST /login`
pub(crate) async fn sign_in(
    State(shared): State<Arc<Shared>>,
    context: Context,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let fields = Fields::of(&read_body(body).await?);
    let email = fields.get("email").unwrap_or_default().trim().to_lowercase();
    let next = fields.get("next").unwrap_or("/inbox");
    let w = context.look.language.words();
    // Counted before the password is looked at, by address and by e-mail, and given back on success.
    let ip = context.ip_text().unwrap_or_default();
    let by_ip = shared.quotas.logins_per_ip.take(&ip, context.now);
    let by_email = shared.quotas.logins_per_email.take(&email, context.now);
    if let Some(wait) = by_ip.err().max(by_email.err()) {
        let mut response = login_page(&context, StatusCode::TOO_MANY_REQUESTS, Some(w.slow_down), &email, next)?;
        Problem::too_many("too_fast", "", throttle::seconds(wait)).add_headers(&mut response);
        return Ok(response);
    }
    let presented = fields.get("password").unwrap_or_default();
    let user = check_password(&shared, &email, presented).await?;
    let Some(user) = user else {
        let mut tx = shared.deps.store.begin().await?;
        let target = known_id(&shared, &email).await?.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        trail(&mut tx, &context, Actor::default(), "login.failed", &target).await?;
        tx.commit().await?;
        return login_page(&context, StatusCode::UNAUTHORIZED, Some(w.bad_login), &email, next);
    };
    shared.quotas.logins_per_ip.give_back(&ip);
    shared.quotas.logins_per_email.give_back(&email);
    begin_session(&shared, &context, &headers, user, "login", safe_next(next)).await
}

async fn known_id(shared: &Shared, email: &str) -> Result<Option<UserId>, Problem> {
    Ok(shared.people().await?.users.iter().find(|user| user.email == email).map(|user| user.id))
}

/// Who the e-mail and the password belong to. Takes as long for an unknown e-mail as for a wrong password.
async fn check_password(shared: &Arc<Shared>, email: &str, presented: &str) -> Result<Option<UserId>, Problem> {
    static NOBODY: OnceLock<Option<String>> = OnceLock::new();
    let id = known_id(shared, email).await?;
    let hash = shared.deps.users.iter().find(|user| user.email == email).map(|user| user.password_hash.clone());
    let presented = Secret::new(presented.get(..PASSWORD_MOST).unwrap_or(presented));
    let _permit = shared.checking.acquire().await.map_err(|_| Problem::internal())?;
    let checked = tokio::task::spawn_blocking(move || match hash {
        Some(hash) => password::verify(presented.expose(), hash.expose()),
        None => {
            let nobody = NOBODY.get_or_init(|| password::hash("nobody's password").ok());
            let _ = nobody.as_deref().map(|hash| password::verify(presented.expose(), hash));
            false
        }
    });
    let right = checked.await.map_err(|_| Problem::internal())?;
    Ok(id.filter(|_| right))
}

/// `GET /login/once/{secret}`: the link that `roost up` prints. It works once.
pub(crate) async fn once(
    State(shared): State<Arc<Shared>>,
    context: Context,
    headers: HeaderMap,
    Path(secret): Path<String>,
) -> Result<Response, Problem> {
    let w = context.look.language.words();
    let owner = shared.people().await?.owner;
    let used = {
        let mut expected = shared.login_once.lock().unwrap_or_else(PoisonError::into_inner);
        let right =
            expected.as_deref().is_some_and(|expected| bool::from(expected.as_bytes().ct_eq(secret.as_bytes())));
        if right && owner.is_some() { expected.take() } else { None }
    };
    match (used, owner) {
        (Some(_), Some(owner)) => begin_session(&shared, &context, &headers, owner, "login.link", "/inbox").await,
        _ => {
            let ip = context.ip_text().unwrap_or_default();
            if let Err(wait) = shared.quotas.logins_per_ip.take(&ip, context.now) {
                return Err(Problem::too_many("too_fast", w.slow_down, throttle::seconds(wait)));
            }
            login_page(&context, StatusCode::UNAUTHORIZED, Some(w.link_used), "", "/inbox")
        }
    }
}

/// A new session with a new token; one the browser had before ends.
async fn begin_session(
    shared: &Arc<Shared>,
    context: &Context,
    headers: &HeaderMap,
    user: UserId,
    action: &str,
    next: &str,
) -> Result<Response, Problem> {
    let secure = session::is_secure(headers);
    let token = session::random_token();
    let mut tx = shared.deps.store.begin().await?;
    if let Some(old) = session::presented(headers, secure) {
        store::session::revoke(&mut tx, &session::digest(&old), context.now).await?;
    }
    store::session::create(&mut tx, &session::digest(&token), user, context.now, context.now + session::LASTS).await?;
    trail(&mut tx, context, Actor { user: Some(user), token: None }, action, &user.to_string()).await?;
    tx.commit().await?;
    Ok(with_cookie(Redirect::to(next).into_response(), session::set(&token, secure)))
}

/// `POST /logout`
pub(crate) async fn sign_out(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let By::Session { user, sha256, .. } = &caller.who.by {
        let mut tx = shared.deps.store.begin().await?;
        store::session::revoke(&mut tx, sha256, caller.now()).await?;
        trail(&mut tx, &caller.context, caller.who.actor(), "logout", &user.to_string()).await?;
        tx.commit().await?;
    }
    Ok(without_session(Redirect::to("/login").into_response(), session::is_secure(&headers)))
}

async fn trail(tx: &mut store::Tx, context: &Context, actor: Actor, action: &str, target: &str) -> Result<(), Problem> {
    let ip = context.ip_text();
    let entry = Entry {
        actor,
        action,
        target_type: "user",
        target_id: target,
        detail: json!({}),
        request_id: Some(&context.request_id),
        ip: ip.as_deref(),
    };
    Ok(audit::record(tx, &entry, context.now).await?)
}

#[cfg(test)]
mod tests {
    use super::safe_next;

    #[test]
    fn after_signing_in_nobody_lands_on_another_site() {
        assert_eq!(safe_next("/inbox/7?view=mine"), "/inbox/7?view=mine");
        for elsewhere in [
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "javascript:alert(1)",
            "",
            "/login?next=/login",
            "/a\r\nSet-Cookie: x=1",
            "/\t/evil.example",
            "/ü",
        ] {
            assert_eq!(safe_next(elsewhere), "/inbox", "{elsewhere:?}");
        }
    }
}
