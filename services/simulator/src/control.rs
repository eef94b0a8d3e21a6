//! The simulator's control for other processes: JSON under `/_sim/`.
//!
//! | request | does | answers |
//! |---|---|---|
//! | `GET stats` | | [`Stats`](crate::Stats) |
//! | `GET calls?after=&limit=&account=&recipient=` | | [`Call`](crate::Call)s |
//! | `GET order?recipient=&account=` | | accepted texts |
//! | `GET accepted-twice`, `GET overlaps` | | what must not be |
//! | `GET acknowledged`, `GET abandoned` | | what receivers have, and what was given up |
//! | `POST script` ([`Script`]) · `DELETE script` | adds · clears | |
//! | `POST faults` ([`FaultMix`]) · `POST faults/{name}` | deals out at random | |
//! | `POST statuses` ([`StatusPlan`]) | | |
//! | `POST latency` `{"ms"}` · `POST rate` `{"account","per_second","enforce"}` | | |
//! | `POST connections` `{"fault","times"}` · `POST down` `{"ms"}` | | |
//! | `POST webhook-urls` `["http://…"]` | | |
//! | `POST customer-writes` `{"from","name","text","account"?,"wait"?}` | a customer writes | its wamid; with `wait` how it fared |
//! | `POST customer-sends` ([`CustomerMessage`]) · `POST batch` ([`BatchItem`]s in changes in entries) | | ids |
//! | `POST repeat` `{"wamid","times"}` · `POST forge` `{"how"}` · `POST handshake` `{"verify_token"}` | | |
//! | `POST load` ([`LoadPlan`]) · `GET load` · `DELETE load` | starts, reports, ends | [`LoadReport`](crate::LoadReport) |
//! | `POST settled` `{"within_ms"}` | waits for open webhooks | `{"settled"}` |
//! | `POST reset` | as started | |

use crate::fault::FaultMix;
use crate::inbound::{BatchItem, CustomerMessage};
use crate::load::{Load, LoadPlan};
use crate::postman::{Delivery, Forgery};
use crate::script::Script;
use crate::server::{Answer, ConnectionFault, json_answer, same_origin};
use crate::status::StatusPlan;
use crate::{Shared, locked};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The most a request may hold: hand-made bodies of several megabytes are a test of their own.
const MAX_REQUEST: usize = 8 << 20;

/// A request that cannot be done: status and reason.
type Refused = (StatusCode, String);

/// Answers a request to `/_sim/<segments>`.
pub(crate) async fn handle(shared: &Arc<Shared>, segments: &[&str], request: Request<Incoming>) -> Answer {
    if !same_origin(&request) {
        return json_answer(StatusCode::FORBIDDEN, &json!({"error": "this page is not ours"}));
    }
    match act(shared, segments, request).await {
        Ok(json) => json_answer(StatusCode::OK, &json),
        Err((status, error)) => json_answer(status, &json!({"error": error})),
    }
}

async fn act(shared: &Arc<Shared>, segments: &[&str], request: Request<Incoming>) -> Result<Value, Refused> {
    let method = request.method().clone();
    let query = pairs(request.uri().query().unwrap_or_default());
    let body = match Limited::new(request.into_body(), MAX_REQUEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err((StatusCode::PAYLOAD_TOO_LARGE, error.to_string())),
    };
    match (&method, segments) {
        (&Method::GET, _) => look(shared, segments, &query),
        (&Method::DELETE, ["script"]) => {
            locked(&shared.scripts).clear();
            done()
        }
        (&Method::DELETE, ["load"]) => {
            let running = locked(&shared.load).take();
            match running {
                Some(load) => to_json(&load.stop().await),
                None => Err(not_found()),
            }
        }
        (&Method::POST, ["script"]) => {
            let script: Script = read(&body)?;
            locked(&shared.scripts).add(script);
            done()
        }
        (&Method::POST, ["faults"]) => {
            let mix: FaultMix = read(&body)?;
            *locked(&shared.mix) = mix;
            done()
        }
        (&Method::POST, ["faults", name]) => {
            *locked(&shared.mix) = FaultMix::named(name).ok_or_else(not_found)?;
            done()
        }
        (&Method::POST, ["statuses"]) => {
            let plan: StatusPlan = read(&body)?;
            *locked(&shared.statuses) = plan;
            done()
        }
        (&Method::POST, ["latency"]) => {
            let Millis { ms } = read(&body)?;
            shared.set_latency(Duration::from_millis(ms));
            done()
        }
        (&Method::POST, ["rate"]) => {
            let rate: Rate = read(&body)?;
            if shared.set_rate(&rate.account, rate.per_second, rate.enforce) { done() } else { Err(not_found()) }
        }
        (&Method::POST, ["connections"]) => {
            let Spoil { fault, times } = read(&body)?;
            locked(&shared.connection_faults).extend(std::iter::repeat_n(fault, times.min(100_000)));
            done()
        }
        (&Method::POST, ["down"]) => {
            let Millis { ms } = read(&body)?;
            // After this answer is out, or its own connection would be cut as well.
            let shared = Arc::clone(shared);
            shared.runtime.clone().spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                shared.down.send_replace(Duration::from_millis(ms));
            });
            done()
        }
        (&Method::POST, ["webhook-urls"]) => {
            let urls: Vec<String> = read(&body)?;
            shared.postman.set_urls(&urls).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
            done()
        }
        (&Method::POST, ["reset"]) => {
            shared.reset();
            done()
        }
        (&Method::POST, ["settled"]) => {
            let Within { within_ms } = read(&body)?;
            Ok(json!({"settled": shared.postman.settled(Duration::from_millis(within_ms)).await}))
        }
        (&Method::POST, _) => write(shared, segments, &body).await,
        _ => Err(not_found()),
    }
}

fn look(shared: &Shared, segments: &[&str], query: &HashMap<String, String>) -> Result<Value, Refused> {
    let number = |key: &str, default: u64| query.get(key).and_then(|text| text.parse().ok()).unwrap_or(default);
    match segments {
        ["stats"] => to_json(&shared.stats()),
        ["calls"] => {
            let limit = usize::try_from(number("limit", 1_000)).unwrap_or(usize::MAX);
            let (account, recipient) = (query.get("account"), query.get("recipient"));
            to_json(&shared.ledger.calls(number("after", 0), limit, |call| {
                account.is_none_or(|account| call.account == *account)
                    && recipient.is_none_or(|recipient| call.recipient == *recipient)
            }))
        }
        ["order"] => {
            let recipient = query.get("recipient").ok_or((StatusCode::BAD_REQUEST, "recipient is missing".into()))?;
            to_json(&shared.ledger.order(query.get("account").map(String::as_str), recipient))
        }
        ["accepted-twice"] => to_json(&shared.ledger.accepted_twice()),
        ["overlaps"] => to_json(&shared.ledger.overlaps()),
        ["acknowledged"] => to_json(&shared.postman.acknowledged()),
        ["abandoned"] => to_json(&shared.postman.abandoned()),
        ["load"] => match locked(&shared.load).as_ref() {
            Some(load) => to_json(&load.report()),
            None => Err(not_found()),
        },
        _ => Err(not_found()),
    }
}

/// What customers do.
async fn write(shared: &Arc<Shared>, segments: &[&str], body: &[u8]) -> Result<Value, Refused> {
    match segments {
        ["customer-writes"] => {
            let writes: Writes = read(body)?;
            let mut message = CustomerMessage::text(writes.from, writes.name, writes.text);
            message.account = writes.account;
            let delivery = shared.customer_sends(message);
            let wamid = delivery.wamid().to_owned();
            if !writes.wait {
                return Ok(json!({"wamid": wamid}));
            }
            Ok(json!({"wamid": wamid, "posted": delivery.done().await}))
        }
        ["customer-sends"] => {
            let message: CustomerMessage = read(body)?;
            ids(&shared.customer_sends(message))
        }
        ["batch"] => {
            let entries: Vec<Vec<Vec<BatchItem>>> = read(body)?;
            ids(&shared.post_batch(&entries))
        }
        ["repeat"] => {
            let Repeat { wamid, times } = read(body)?;
            for _ in 0..times.min(10_000) {
                shared.repeat(&wamid).ok_or_else(not_found)?;
            }
            done()
        }
        ["forge"] => {
            let Forge { how, message } = read(body)?;
            let message = message.unwrap_or_else(|| CustomerMessage::text("971500000999", "Forger", "forged"));
            Ok(json!({"status": shared.forge(how, &message).await}))
        }
        ["handshake"] => {
            let Handshake { verify_token } = read(body)?;
            to_json(&shared.handshake(&verify_token).await)
        }
        ["load"] => {
            let plan: LoadPlan = read(body)?;
            let load = Load::start(shared, plan);
            let before = locked(&shared.load).replace(load);
            if let Some(before) = before {
                before.stop().await;
            }
            done()
        }
        _ => Err(not_found()),
    }
}

#[derive(Deserialize)]
struct Millis {
    ms: u64,
}

#[derive(Deserialize)]
struct Within {
    within_ms: u64,
}

#[derive(Deserialize)]
struct Rate {
    account: String,
    per_second: f64,
    #[serde(default)]
    enforce: bool,
}

#[derive(Deserialize)]
struct Spoil {
    fault: ConnectionFault,
    times: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Writes {
    from: String,
    name: String,
    text: String,
    #[serde(default)]
    account: Option<String>,
    /// Answers only when the webhook was acknowledged or given up.
    #[serde(default)]
    wait: bool,
}

#[derive(Deserialize)]
struct Repeat {
    wamid: String,
    times: u32,
}

#[derive(Deserialize)]
struct Forge {
    how: Forgery,
    #[serde(default)]
    message: Option<CustomerMessage>,
}

#[derive(Deserialize)]
struct Handshake {
    verify_token: String,
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

fn to_json(value: &impl serde::Serialize) -> Result<Value, Refused> {
    serde_json::to_value(value).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn ids(delivery: &Delivery) -> Result<Value, Refused> {
    to_json(&json!({"items": delivery.items()}))
}

#[expect(clippy::unnecessary_wraps, reason = "every arm of the match answers alike")]
fn done() -> Result<Value, Refused> {
    Ok(json!({"ok": true}))
}

fn not_found() -> Refused {
    (StatusCode::NOT_FOUND, "there is nothing here".into())
}

/// Reads `a=1&b=two` with `+` and `%XX` undone: queries and form bodies.
pub(crate) fn pairs(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = bytes.get(at..at + 2).and_then(|hex| std::str::from_utf8(hex).ok());
                match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(decoded) => {
                        out.push(decoded);
                        at += 2;
                    }
                    None => out.push(byte),
                }
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let read = pairs("text=%D9%85+b%2Bc%26&as=1&empty=&odd=%zz&flag");
        let of = |key: &str| read.get(key).map(String::as_str);
        assert_eq!(of("text"), Some("م b+c&"));
        assert_eq!((of("as"), of("empty"), of("odd"), of("flag")), (Some("1"), Some(""), Some("%zz"), Some("")));
    }
}
