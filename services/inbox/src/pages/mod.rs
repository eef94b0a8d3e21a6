//! The page: server-rendered, working by links and forms alone; the script only makes it live.

mod assets;
mod bubble;
mod context;
mod forms;
mod inbox;
mod look;
mod part;
#[cfg(test)]
mod samples;
mod time;
mod words;

pub(crate) use look::Look;

use crate::Shared;
use crate::auth::login;
use crate::problem::Problem;
use askama::Template;
use axum::Router;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
pub(crate) use context::{Frame, LoginPage};
use std::sync::Arc;

/// Every route that people's browsers use.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(async || Redirect::to("/inbox")))
        .route("/login", get(login::page).post(login::sign_in))
        .route("/login/once/{secret}", get(login::once))
        .route("/logout", post(login::sign_out))
        .route("/inbox", get(inbox::list))
        .route("/inbox/{id}", get(inbox::open))
        .route("/inbox/{id}/part", get(part::part))
        .route("/inbox/{id}/older", get(part::older))
        .route("/inbox/{id}/send", post(forms::send))
        .route("/inbox/{id}/messages/{message}/{decision}", post(forms::decide))
        .route("/inbox/{id}/note", post(forms::note))
        .route("/inbox/{id}/assign", post(forms::assign))
        .route("/inbox/{id}/close", post(forms::close))
        .route("/inbox/{id}/reopen", post(forms::reopen))
        .route("/assets/{name}", get(assets::serve))
}

/// Renders a page or a part of one.
pub(crate) fn render(template: &impl Template) -> Result<String, Problem> {
    template.render().map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        Problem::internal()
    })
}

/// A page as a response.
pub(crate) fn page(template: &impl Template) -> Result<Response, Problem> {
    Ok(Html(render(template)?).into_response())
}

/// A refusal as a page.
pub(crate) fn refusal(problem: &Problem, look: Look, request_id: &str) -> Response {
    let body = context::RefusalPage::of(problem, look, request_id).render();
    let mut response = Html(body.unwrap_or_else(|_| problem.detail.clone())).into_response();
    *response.status_mut() = problem.status;
    problem.add_headers(&mut response);
    response
}
