//! The phone's requests.

use super::{ThreadKey, events, page, shown};
use crate::control::pairs;
use crate::fault::Fault;
use crate::inbound::CustomerMessage;
use crate::options::Customer;
use crate::script::{Script, When};
use crate::server::{Answer, same_origin, text_answer};
use crate::{Shared, locked};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::collections::HashMap;
use std::sync::Arc;

/// The most a form may hold: 4096 characters, percent-encoded, and some.
const MAX_FORM: usize = 64 << 10;
/// Only our own files, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Answers everything that is neither the Graph API nor the control.
pub(crate) async fn handle(shared: &Arc<Shared>, segments: &[&str], request: Request<Incoming>) -> Answer {
    let mut answer = act(shared, segments, request).await;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn act(shared: &Arc<Shared>, segments: &[&str], request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    match (&method, segments) {
        (&Method::GET, [""]) => {
            let query = pairs(request.uri().query().unwrap_or_default());
            let Some(key) = key(shared, &query) else { return no_account() };
            let Some(phone) = &shared.phone else { return not_found() };
            shown(shared, &key);
            let accounts = locked(&shared.accounts).clone();
            let notice = query.get("notice").and_then(|notice| notice_words(notice));
            let html = page::whole(phone, &accounts, &key, notice);
            text_answer(StatusCode::OK, "text/html; charset=utf-8", html)
        }
        (&Method::GET, ["phone", "events"]) => {
            let query = pairs(request.uri().query().unwrap_or_default());
            match key(shared, &query) {
                Some(key) => events::open(shared, key),
                None => no_account(),
            }
        }
        (&Method::GET, ["phone.css"]) => {
            text_answer(StatusCode::OK, "text/css; charset=utf-8", include_str!("phone.css"))
        }
        (&Method::GET, ["phone.js"]) => {
            text_answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("phone.js"))
        }
        (&Method::GET, ["phone.svg" | "favicon.ico"]) => {
            text_answer(StatusCode::OK, "image/svg+xml", include_str!("phone.svg"))
        }
        (&Method::POST, ["phone", action]) => {
            if !same_origin(&request) {
                return text_answer(StatusCode::FORBIDDEN, "text/plain", "this page is not ours");
            }
            let live = request.headers().contains_key("x-live");
            let form = match Limited::new(request.into_body(), MAX_FORM).collect().await {
                Ok(body) => pairs(&String::from_utf8_lossy(&body.to_bytes())),
                Err(_) => return text_answer(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too long"),
            };
            submit(shared, action, &form, live)
        }
        _ => not_found(),
    }
}

fn submit(shared: &Arc<Shared>, action: &str, form: &HashMap<String, String>, live: bool) -> Answer {
    let Some(key) = key(shared, form) else { return no_account() };
    let Some(phone) = &shared.phone else { return not_found() };
    let field = |name: &str| form.get(name).map_or("", |text| text.trim());
    match action {
        "write" => {
            let text = field("text");
            if !text.is_empty() {
                let name = {
                    let state = locked(&phone.state);
                    let known = state.customers.iter().find(|customer| customer.number == key.customer);
                    known.map_or_else(|| key.customer.clone(), |customer| customer.name.clone())
                };
                let mut message = CustomerMessage::text(key.customer.clone(), name, text);
                if crate::message::is_bsuid(&key.customer) {
                    message.bsuid = Some(std::mem::take(&mut message.from));
                }
                message.account = Some(key.account.clone());
                shared.customer_sends(message);
            }
            back(&key, None, live)
        }
        "seen" => {
            shown(shared, &key);
            back(&key, None, live)
        }
        "customer" => {
            let number: String = field("number").chars().filter(char::is_ascii_digit).collect();
            let name: String = field("name").chars().take(60).collect();
            if !(7..=15).contains(&number.len()) || name.is_empty() {
                return back(&key, Some("bad-number"), live);
            }
            {
                let mut state = locked(&phone.state);
                match state.customers.iter_mut().find(|customer| customer.number == number) {
                    Some(known) => known.name = name,
                    None => state.customers.push(Customer { number: number.clone(), name, ideas: Vec::new() }),
                }
            }
            back(&ThreadKey { customer: number, ..key }, None, live)
        }
        "trouble" => match trouble(field("fault")) {
            Some(fault) => {
                let when = When { account: Some(key.account.clone()), ..When::to(key.customer.clone()) };
                locked(&shared.scripts).add(Script::once(when, fault));
                phone.hood(super::Tone::Bad, "Trouble arranged for the next answer".into());
                back(&key, Some("trouble"), live)
            }
            None => not_found(),
        },
        _ => not_found(),
    }
}

/// Which thread a request speaks of: the first customer and business unless it says otherwise.
fn key(shared: &Shared, fields: &HashMap<String, String>) -> Option<ThreadKey> {
    let phone = shared.phone.as_ref()?;
    let (_, account) = shared
        .account(fields.get("account").map(String::as_str).filter(|id| !id.is_empty()))
        .or_else(|| shared.account(None))?;
    let state = locked(&phone.state);
    let wanted = fields.get("as").filter(|number| !number.is_empty());
    let known = wanted.and_then(|number| state.customers.iter().find(|customer| customer.number == *number));
    let customer = known.or_else(|| state.customers.first())?;
    Some(ThreadKey { account: account.phone_number_id, customer: customer.number.clone() })
}

fn trouble(name: &str) -> Option<Fault> {
    Some(match name {
        "429" => Fault::throttled("5"),
        "500" => Fault::http(500),
        "hang_after" => Fault::HangAfter,
        "hang_before" => Fault::HangBefore,
        "cut_after" => Fault::CutAfter { reset: true },
        "slow" => Fault::Slow { ms: 4_000 },
        code => {
            let known = page::TROUBLES.iter().any(|(value, _)| *value == code);
            Fault::error(code.parse().ok().filter(|_| known)?)
        }
    })
}

fn notice_words(notice: &str) -> Option<&'static str> {
    match notice {
        "trouble" => Some("Arranged: answer this customer from the inbox and watch."),
        "bad-number" => Some("A number has 7 to 15 digits, and a person has a name."),
        _ => None,
    }
}

/// Back to the page, or nothing for a script that is already there.
fn back(key: &ThreadKey, notice: Option<&str>, live: bool) -> Answer {
    if live {
        return text_answer(StatusCode::NO_CONTENT, "text/plain", "");
    }
    let notice = notice.map_or_else(String::new, |notice| format!("&notice={notice}"));
    let mut answer = text_answer(StatusCode::SEE_OTHER, "text/plain", "");
    let place = format!("/?as={}&account={}{notice}", key.customer, key.account);
    if let Ok(place) = HeaderValue::from_str(&place) {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    answer
}

fn not_found() -> Answer {
    text_answer(StatusCode::NOT_FOUND, "text/plain", "not found")
}

fn no_account() -> Answer {
    text_answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no account or no customer is configured")
}
