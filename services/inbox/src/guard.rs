//! The outermost layer: every request gets an id, is counted, is somebody's or nobody's, and if it may change something it
//! comes from our own page. Every answer leaves with the same security headers, and every refusal in the form its reader
//! understands.

use crate::auth::{self, By, Who, csrf, session, throttle};
use crate::pages::{self, Look};
use crate::problem::Problem;
use crate::{Peer, Shared};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::{Role, Timestamp};
use futures_util::FutureExt;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// The largest body that is read, in bytes: far above any text, far below what hurts.
pub(crate) const MAX_BODY: usize = 256 * 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What is known of a request before its handler runs.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) request_id: Arc<str>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) who: Option<Arc<Who>>,
    pub(crate) look: Look,
    pub(crate) now: Timestamp,
}

impl Context {
    pub(crate) fn ip_text(&self) -> Option<String> {
        self.ip.map(|ip| ip.to_string())
    }
}

/// What is known of a request whoever sent it.
impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Context>().cloned().ok_or_else(Problem::internal)
    }
}

/// A request whose sender is known; anybody else's is refused.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) who: Arc<Who>,
    pub(crate) context: Context,
}

impl Caller {
    /// Refuses those who may not do what `role` may.
    pub(crate) fn needs(&self, role: Role) -> Result<(), Problem> {
        self.who.needs(role)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.context.now
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let context = Context::from_request_parts(parts, state).await?;
        match &context.who {
            Some(who) => Ok(Caller { who: who.clone(), context }),
            None => Err(Problem::unauthenticated("sign_in", "Sign in, or send a bearer token.")),
        }
    }
}

/// The layer itself.
pub(crate) async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let (path, accepts_html) = (request.uri().path().to_owned(), accepts_html(request.headers()));
    let target = request.uri().path_and_query().map_or_else(|| path.clone(), ToString::to_string);
    let look = Look::of(request.uri().query().unwrap_or_default(), request.headers());
    let secure = session::is_secure(request.headers());
    let mut response = match admit(&shared, request, &request_id, look).await {
        Ok(request) => {
            // A handler that panics is a fault of ours, not the connection's.
            match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                Ok(response) => response,
                Err(_) => {
                    tracing::error!(request.id = %request_id, "A handler panicked on {path}");
                    Problem::internal().into_response()
                }
            }
        }
        Err(problem) => problem.into_response(),
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let is_page = !path.starts_with("/api/") && accepts_html;
        let allow = response.headers_mut().remove(http::header::ALLOW);
        response = match is_page {
            true if problem.status == StatusCode::UNAUTHORIZED => redirect_to_login(&target),
            true => pages::refusal(&problem, look, &request_id),
            false => problem.to_response(&request_id),
        };
        if let Some(allow) = allow {
            response.headers_mut().insert(http::header::ALLOW, allow);
        }
    }
    look.remember(&target, response.headers_mut());
    add_headers(response.headers_mut(), &request_id, secure);
    response
}

/// Lets a request in, with what is known of it, or says why not.
async fn admit(shared: &Arc<Shared>, request: Request, request_id: &Arc<str>, look: Look) -> Result<Request, Problem> {
    let now = shared.deps.clock.now();
    let ip = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let mut who = None;
    if needs_identity(request.uri().path()) {
        if let Some(ip) = ip {
            let wait = shared.quotas.per_ip.take(&ip.to_string(), now);
            wait.map_err(|wait| Problem::too_many("too_fast", "Too many requests.", throttle::seconds(wait)))?;
        }
        who = auth::identify(shared, request.headers()).await?;
        if let Some(who) = &who {
            let wait = shared.quotas.per_caller.take(&who.quota_key(), now);
            wait.map_err(|wait| Problem::too_many("too_fast", "Too many requests.", throttle::seconds(wait)))?;
        }
    }
    let unsafe_by_browser = csrf::is_unsafe(request.method()) && !matches!(&who, Some(Who { by: By::Token(_), .. }));
    let mut request = request;
    if unsafe_by_browser {
        csrf::check_origin(request.headers())?;
        if let Some(who) = &who {
            request = check_csrf(request, who.csrf()).await?;
        }
    }
    let who = who.map(Arc::new);
    request.extensions_mut().insert(Context { request_id: request_id.clone(), ip, who, look, now });
    Ok(request)
}

/// Files that never change need no session and cost no lookup.
fn needs_identity(path: &str) -> bool {
    !path.starts_with("/assets/")
}

/// The token comes in a header (our script) or in a form's field; the form is read here and handed on whole.
async fn check_csrf(request: Request, expected: &str) -> Result<Request, Problem> {
    let in_header = request.headers().get(csrf::HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if in_header.is_some() || !is_form(request.headers()) {
        csrf::check_token(expected, in_header.as_deref())?;
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    csrf::check_token(expected, form_field(&body, csrf::FIELD).as_deref())?;
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

/// One field of a posted form.
fn form_field(body: &[u8], name: &str) -> Option<String> {
    crate::form::pairs(body).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Reads a request's body to its end.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Problem> {
    use http_body_util::{BodyExt, LengthLimitError, Limited};
    use runtime::http_server::BodyError;
    let too_large = || {
        let detail = format!("The body is larger than {MAX_BODY} bytes.");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
            while let Some(error) = cause {
                match error.downcast_ref::<BodyError>() {
                    Some(BodyError::TooLarge) => return Err(too_large()),
                    Some(BodyError::TimedOut) => {
                        let detail = "The body did not arrive in time.";
                        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail));
                    }
                    Some(BodyError::NoRoom) => {
                        return Err(Problem::unavailable("busy", "Too much is arriving at once."));
                    }
                    Some(BodyError::Broken) | None => cause = error.source(),
                }
            }
            Err(Problem::malformed("The body broke off."))
        }
    }
}

/// The client's own id if it is one that is safe to repeat, else a new one that sorts by time.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let theirs = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    theirs.filter(usable).map_or_else(|| uuid::Uuid::now_v7().to_string().into(), Arc::from)
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn redirect_to_login(target: &str) -> Response {
    let next = crate::form::encode(target);
    let location = if target == "/inbox" { "/login".to_owned() } else { format!("/login?next={next}") };
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn add_headers(headers: &mut HeaderMap, request_id: &str, secure: bool) {
    if secure {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
}

/// Cookies of [`session`] that a handler wants set.
pub(crate) fn with_cookie(mut response: Response, cookie: HeaderValue) -> Response {
    response.headers_mut().append(http::header::SET_COOKIE, cookie);
    response
}

/// Ends the browser's session cookie.
pub(crate) fn without_session(response: Response, secure: bool) -> Response {
    with_cookie(response, session::clear(secure))
}
