//! The Graph API: `POST /v{N}/{phone_number_id}/messages`, with whatever is to go wrong.

use crate::fault::{Fault, code_words};
use crate::ledger::{OpenCall, Sent};
use crate::line::Line;
use crate::message::{Wanted, is_bsuid, read};
use crate::options::AccountOptions;
use crate::server::{Answer, Cut, json_answer, text_answer};
use crate::status::{Course, Receipt, StatusPlan, follow};
use crate::{Shared, locked};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most a request may hold.
const MAX_REQUEST: usize = 1 << 20;
/// From the provider to the customer's phone.
const ON_THE_AIR: Duration = Duration::from_millis(350);

/// Answers one request to the messages endpoint, or ends its connection.
pub(crate) async fn messages(
    shared: &Arc<Shared>,
    line: &Line,
    phone_number_id: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Cut> {
    let arrived = Instant::now();
    let body = match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(refuse(shared, 100, Some("the body is too large or was cut off"))),
    };
    let found = {
        let accounts = locked(&shared.accounts);
        let at = accounts.iter().position(|account| account.phone_number_id == phone_number_id);
        at.and_then(|at| Some((at, accounts.get(at)?.clone())))
    };
    let Some((at, account)) = found else {
        return Ok(refuse(shared, 33, Some("no such phone number id")));
    };
    if bearer(headers) != Some(account.access_token.expose()) {
        return Ok(refuse(shared, 190, None));
    }
    match read(phone_number_id, &body) {
        Err((code, details)) => Ok(refuse(shared, code, Some(&details))),
        Ok(Wanted::Read { wamid, typing }) => {
            shared.ledger.note_marked_read();
            if let Some(phone) = &shared.phone {
                phone.business_read(&wamid, typing);
            }
            wait(shared.latency()).await;
            Ok(json_answer(StatusCode::OK, &json!({"success": true})))
        }
        Ok(Wanted::Message { sent, input, template, misaddressed }) => {
            let call = Request { shared, line, at, account, sent, input, template, misaddressed };
            call.run(arrived).await
        }
    }
}

/// `GET /v{N}/{media_id}`: there is no media here yet, so the answer is Meta's for an id it does not know.
pub(crate) fn media(shared: &Shared) -> Answer {
    let mut answer = refuse(shared, 100, Some("Object with this ID does not exist"));
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

struct Request<'a> {
    shared: &'a Arc<Shared>,
    line: &'a Line,
    at: usize,
    account: AccountOptions,
    sent: Sent,
    input: String,
    template: bool,
    misaddressed: bool,
}

impl Request<'_> {
    async fn run(self, arrived: Instant) -> Result<Answer, Cut> {
        let opened = self.shared.ledger.open(&self.sent, &self.account, arrived);
        let (fault, plan) = self.decide(opened.over_rate, opened.over_pair);
        let mut call = opened.call;
        call.judged(&fault.name(), fault.is_ambiguous());
        tracing::debug!(call.seq = call.seq, verdict = %fault.name(), "Call {} gets {}", call.seq, fault.name());

        let latency = self.shared.latency();
        let answer_in =
            latency + if let Fault::Slow { ms } = fault { Duration::from_millis(ms) } else { Duration::ZERO };
        let mut wamid = None;
        if takes(&fault) {
            let id = self.shared.new_wamid();
            call.accept(self.sent.ours.as_ref(), &id);
            let early = self.after_acceptance(&id, &fault, plan, answer_in);
            wamid = Some(id);
            if let Some(early) = early {
                wait(early).await;
            }
        }
        wait(answer_in).await;
        self.end(call, fault, wamid).await
    }

    /// A script decides first, then an enforced limit, then chance.
    fn decide(&self, over_rate: bool, over_pair: bool) -> (Fault, Option<StatusPlan>) {
        if let Some(scripted) = locked(&self.shared.scripts).take(&self.sent) {
            return scripted;
        }
        if over_rate && self.account.enforce_rate {
            return (Fault::error(130_429), None);
        }
        if over_pair && self.account.pair.is_some_and(|pair| pair.enforce) {
            return (Fault::error(131_056), None);
        }
        let mix = locked(&self.shared.mix);
        (mix.draw(&mut locked(&self.shared.rng)).unwrap_or(Fault::Accept), None)
    }

    /// Starts what follows an acceptance; how long the answer has to wait for an early status.
    fn after_acceptance(
        &self,
        wamid: &str,
        fault: &Fault,
        plan: Option<StatusPlan>,
        answer_in: Duration,
    ) -> Option<Duration> {
        if self.misaddressed {
            self.shared.ledger.note_misaddressed();
            return None;
        }
        if fault.drops_message() {
            return None;
        }
        let course = {
            let plan = plan.unwrap_or_else(|| locked(&self.shared.statuses).clone());
            plan.draw(&mut locked(&self.shared.rng))
        };
        let early = course.early_ms.map(Duration::from_millis);
        taken(self.shared, self.at, &self.sent, wamid, course, answer_in + early.unwrap_or_default());
        early
    }

    async fn end(&self, call: OpenCall, fault: Fault, wamid: Option<String>) -> Result<Answer, Cut> {
        let good = |wamid: Option<&str>, word: Option<&str>| self.accepted(wamid.unwrap_or_default(), word);
        let answer = match fault {
            Fault::Accept | Fault::Slow { .. } | Fault::Dropped => {
                let word = self.template.then_some("accepted");
                json_answer(StatusCode::OK, &good(wamid.as_deref(), word))
            }
            Fault::Held => json_answer(StatusCode::OK, &good(wamid.as_deref(), Some("held_for_quality_assessment"))),
            Fault::Paused => json_answer(StatusCode::OK, &good(wamid.as_deref(), Some("paused"))),
            Fault::Error { code, status, subcode, is_transient, retry_after } => {
                let (usual, title) = code_words(code);
                let json = error_json(self.shared, code, title, title, subcode, is_transient);
                with_retry_after(json_answer(status_code(status.unwrap_or(usual)), &json), retry_after.as_deref())
            }
            Fault::Http { status, body, retry_after } => {
                with_retry_after(text_answer(status_code(status), "text/plain", body), retry_after.as_deref())
            }
            Fault::Html { status, .. } => text_answer(status_code(status), "text/html; charset=utf-8", GATEWAY_PAGE),
            Fault::Garbage { .. } => text_answer(StatusCode::OK, "application/json", "{\"messages\":[{\"id\":\"wam"),
            Fault::Empty { .. } => text_answer(StatusCode::OK, "application/json", ""),
            Fault::NoId { .. } => {
                json_answer(StatusCode::OK, &json!({"messaging_product": "whatsapp", "contacts": [], "messages": [{}]}))
            }
            Fault::HangBefore | Fault::HangAfter => {
                // The caller's patience ends first: hyper drops this future when the caller hangs up.
                self.shared.stop.cancelled().await;
                call.cut(None);
                return Err(Cut);
            }
            Fault::AcceptLate { ms } => {
                self.accept_later(call.seq, Duration::from_millis(ms));
                self.shared.stop.cancelled().await;
                call.cut(None);
                return Err(Cut);
            }
            Fault::CutBefore { reset } | Fault::CutAfter { reset } => {
                if reset {
                    self.line.reset_on_close();
                }
                call.cut(None);
                return Err(Cut);
            }
            Fault::HalfAnswer { .. } => {
                let id = wamid.unwrap_or_else(|| self.shared.new_wamid());
                let body = self.accepted(&id, None).to_string();
                let half = body.get(..body.len() / 2).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{half}",
                    body.len()
                );
                let written = self.line.write_raw(head.as_bytes()).await;
                call.cut(written.is_ok().then_some(200));
                return Err(Cut);
            }
        };
        call.answered(answer.status().as_u16());
        Ok(answer)
    }

    fn accept_later(&self, seq: u64, after: Duration) {
        let shared = Arc::clone(self.shared);
        let (at, sent) = (self.at, self.sent.clone());
        shared.runtime.clone().spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = shared.stop.cancelled() => return,
            }
            let wamid = shared.new_wamid();
            shared.ledger.accept(seq, sent.ours.as_ref(), &wamid);
            let course = locked(&shared.statuses).clone().draw(&mut locked(&shared.rng));
            taken(&shared, at, &sent, &wamid, course, Duration::ZERO);
        });
    }

    fn accepted(&self, wamid: &str, message_status: Option<&str>) -> Value {
        let mut contact = json!({"input": self.input});
        let key = if is_bsuid(&self.sent.recipient) { "user_id" } else { "wa_id" };
        contact[key] = self.sent.recipient.as_str().into();
        let mut message = json!({"id": wamid});
        if let Some(status) = message_status {
            message["message_status"] = status.into();
        }
        json!({"messaging_product": "whatsapp", "contacts": [contact], "messages": [message]})
    }
}

/// Not even a tick of the timer when there is nothing to wait for: benches ask for a provider without latency.
async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Everybody who cares learns that a message was taken: the status webhooks and the customer's phone.
fn taken(shared: &Arc<Shared>, at: usize, sent: &Sent, wamid: &str, course: Course, answer_in: Duration) {
    let receipt = Receipt {
        account: at,
        recipient: sent.recipient.clone(),
        wamid: wamid.to_owned(),
        correlation: sent.correlation.clone(),
    };
    if shared.phone.is_some() {
        let (shared, receipt, by_phone) = (Arc::clone(shared), receipt.clone(), course.by_phone);
        let (kind, text) = (sent.kind.clone(), sent.text.clone());
        // The way to the phone takes its time, too: people are to see one tick before two.
        let arrives = tokio::time::Instant::now() + answer_in + ON_THE_AIR;
        shared.runtime.clone().spawn(async move {
            tokio::time::sleep_until(arrives).await;
            if let Some(phone) = &shared.phone {
                phone.business_wrote(&shared, &receipt, &kind, &text, by_phone);
            }
        });
    }
    follow(shared, receipt, course, answer_in);
}

/// Whether a fault takes the message before it goes wrong.
fn takes(fault: &Fault) -> bool {
    match fault {
        Fault::Accept
        | Fault::Slow { .. }
        | Fault::HangAfter
        | Fault::CutAfter { .. }
        | Fault::Held
        | Fault::Paused
        | Fault::Dropped => true,
        Fault::Garbage { accepted }
        | Fault::Empty { accepted }
        | Fault::NoId { accepted }
        | Fault::HalfAnswer { accepted }
        | Fault::Html { accepted, .. } => *accepted,
        Fault::Error { .. }
        | Fault::Http { .. }
        | Fault::HangBefore
        | Fault::AcceptLate { .. }
        | Fault::CutBefore { .. } => false,
    }
}

const GATEWAY_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Error</title></head>\
<body><h1>Sorry, something went wrong.</h1><p>We're working on getting this fixed as soon as we can.</p></body></html>\n";

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn with_retry_after(mut answer: Answer, retry_after: Option<&str>) -> Answer {
    if let Some(value) = retry_after.and_then(|text| HeaderValue::from_str(text).ok()) {
        answer.headers_mut().insert(header::RETRY_AFTER, value);
    }
    answer
}

/// Refuses a request that never became a call in the log.
fn refuse(shared: &Shared, code: i64, details: Option<&str>) -> Answer {
    shared.ledger.note_refused();
    let (status, title) = code_words(code);
    json_answer(status_code(status), &error_json(shared, code, title, details.unwrap_or(title), None, None))
}

fn error_json(
    shared: &Shared,
    code: i64,
    title: &str,
    details: &str,
    subcode: Option<i64>,
    is_transient: Option<bool>,
) -> Value {
    let mut error = json!({
        "message": format!("(#{code}) {title}"),
        "type": "OAuthException",
        "code": code,
        "error_data": {"messaging_product": "whatsapp", "details": details},
        "fbtrace_id": format!("A{}", shared.new_wamid().rsplit('.').next().unwrap_or_default()),
    });
    if let Some(subcode) = subcode {
        error["error_subcode"] = subcode.into();
    }
    if let Some(transient) = is_transient {
        error["is_transient"] = transient.into();
    }
    json!({"error": error})
}
