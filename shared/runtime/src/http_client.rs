//! Calls to providers over HTTP. The one question that matters when a call fails is whether the request can have arrived:
//! only a "no" that is certain may be tried again without evidence.

use crate::config::Tuning;
use domain::{Clock, HttpCall, Reply, SystemClock, Timestamp};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Method, Response};
use std::error::Error as StdError;
use std::time::{Duration, UNIX_EPOCH};

/// Most bytes of a reply that are kept; providers answer in a few hundred.
pub const REPLY_LIMIT: usize = 64 * 1024;

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nothing has left us: no address, no connection, no TLS, or a call that was never one. Safe to try again.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request may have arrived: no answer in time, a connection that broke, an answer that was cut.
    #[error("sent, but no complete answer: {0}")]
    AfterSend(String),
}

/// How the client is set up.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Longest wait for a connection, TLS included. Shorter than any call's timeout, so that a provider that cannot be
    /// reached is told from one that does not answer.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Shorter than providers keep theirs: a request written to a connection the
    /// other side has just closed has an unknown outcome.
    pub idle_timeout: Duration,
    /// Unused connections kept for one host.
    pub idle_per_host: usize,
}

impl HttpOptions {
    /// What the tuning asks for.
    pub fn of(tuning: &Tuning) -> Self {
        Self {
            connect_timeout: tuning.connect_timeout.min(tuning.call_timeout / 2),
            idle_timeout: Duration::from_secs(20),
            idle_per_host: tuning.sender_concurrency,
        }
    }
}

/// The client. Cheap to clone; all clones share connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot start: {0}")]
pub struct HttpSetupError(String);

impl Http {
    /// A client without redirects (a token goes to the host it is for, and nowhere else) and without proxies.
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(options: &HttpOptions) -> Result<Self, HttpSetupError> {
        crate::tls::install_provider();
        let client = match builder(options).build() {
            Ok(client) => client,
            Err(error) => {
                // Without the system's certificates https cannot work, but a simulator over plain http can.
                tracing::warn!(
                    error = chain(&error),
                    "The system's certificates cannot be read: calls over https will fail. Install ca-certificates"
                );
                builder(options).tls_certs_only([]).build().map_err(|error| HttpSetupError(chain(&error)))?
            }
        };
        Ok(Self { client })
    }

    /// Makes one call and waits for the complete answer, at most `timeout` all in all. Never tries twice.
    /// # Errors
    /// See [`TransportError`]. Its words hold no URL and no secret.
    pub async fn call(&self, call: &HttpCall, timeout: Duration) -> Result<Reply, TransportError> {
        let method = Method::from_bytes(call.method.as_bytes())
            .map_err(|_| TransportError::NotSent(format!("{:?} is not a method", call.method)))?;
        let mut request = self.client.request(method, &call.url).timeout(timeout);
        if let Some(bearer) = &call.bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose()))
                .map_err(|_| TransportError::NotSent("the access token holds characters no header can carry".into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some((content_type, body)) = &call.body {
            request = request.header(CONTENT_TYPE, *content_type).body(body.clone());
        }
        let response = request.send().await.map_err(|error| judge(&error, timeout))?;
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers(), SystemClock::default().now());
        let body = read_reply(response).await.map_err(|error| judge(&error, timeout))?;
        Ok(Reply { status, retry_after, body })
    }
}

fn builder(options: &HttpOptions) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("roost/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(options.idle_timeout)
        .pool_max_idle_per_host(options.idle_per_host)
}

async fn read_reply(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() < REPLY_LIMIT {
        let Some(piece) = response.chunk().await? else { break };
        let room = REPLY_LIMIT - body.len();
        body.extend_from_slice(piece.get(..room).unwrap_or(&piece));
    }
    Ok(body)
}

/// Certain that nothing left: the call could not be built, or there never was a connection. Everything else may have
/// arrived, a timeout included.
fn judge(error: &reqwest::Error, timeout: Duration) -> TransportError {
    if error.is_builder() || error.is_connect() {
        let what = if error.is_timeout() { "no connection in time".to_owned() } else { chain(error) };
        TransportError::NotSent(what)
    } else if error.is_timeout() {
        TransportError::AfterSend(format!("no answer within {} ms", timeout.as_millis()))
    } else {
        TransportError::AfterSend(chain(error))
    }
}

/// The causes of an error, outermost first, without the URL that reqwest would put in front.
fn chain(error: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        // A cause that is an error of reqwest's would print its URL again.
        if !error.is::<reqwest::Error>() {
            words.push(error.to_string());
        }
        cause = error.source();
    }
    // Many causes repeat the ones below them in their own words.
    let mut told: Vec<String> = Vec::new();
    for word in words {
        match told.last() {
            Some(last) if last.contains(&word) => {}
            _ => told.push(word),
        }
    }
    if told.is_empty() { "the call could not be built".into() } else { told.join(": ") }
}

/// `Retry-After` as a wait: seconds, or a date, which is measured against the provider's own clock where it tells it.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let seconds = |text: &str| {
        let time = httpdate::parse_http_date(text).ok()?;
        i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok().map(Timestamp::from_seconds)
    };
    let theirs = headers.get(DATE).and_then(|date| seconds(date.to_str().ok()?));
    Some(seconds(text)?.since(theirs.unwrap_or(now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::seconds("120", None, Some(120))]
    #[case::zero("0", None, Some(0))]
    #[case::spaces(" 7 ", None, Some(7))]
    #[case::date_by_their_clock("Wed, 21 Oct 2026 07:28:00 GMT", Some("Wed, 21 Oct 2026 07:27:30 GMT"), Some(30))]
    #[case::date_by_our_clock("Wed, 21 Oct 2026 07:28:00 GMT", None, Some(60))]
    #[case::date_gone_by("Wed, 21 Oct 2026 07:28:00 GMT", Some("Wed, 21 Oct 2026 08:00:00 GMT"), Some(0))]
    #[case::fraction("1.5", None, None)]
    #[case::negative("-5", None, None)]
    #[case::rubbish("soon", None, None)]
    fn retry_after_is_read_in_both_forms(#[case] value: &str, #[case] date: Option<&str>, #[case] want: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).unwrap());
        }
        let now: Timestamp = "2026-10-21T07:27:00Z".parse().unwrap();
        assert_eq!(retry_after(&headers, now), want.map(Duration::from_secs));
    }

    #[test]
    fn no_header_no_wait() {
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::EPOCH), None);
    }
}
