//! A receiver of webhooks that answers as told and keeps every byte.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use simulator::signature;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::net::TcpListener;

/// One webhook as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) query: String,
    pub(crate) signature: Option<String>,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// All statuses of all changes of all entries: word and id.
    pub(crate) fn statuses(&self) -> Vec<(String, String)> {
        let word =
            |status: &Value| (status["status"].as_str().unwrap().to_owned(), status["id"].as_str().unwrap().to_owned());
        self.values("statuses").iter().map(word).collect()
    }

    pub(crate) fn messages(&self) -> Vec<Value> {
        self.values("messages")
    }

    fn values(&self, key: &str) -> Vec<Value> {
        let json = self.json();
        let changes = json["entry"].as_array().unwrap().iter().flat_map(|entry| entry["changes"].as_array().unwrap());
        changes.flat_map(|change| change["value"][key].as_array().cloned().unwrap_or_default()).collect()
    }
}

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

impl Receiver {
    /// Answers 401 to a wrong signature, then what `answers` says, then 200 for ever.
    pub(crate) async fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            url: format!("http://{}/webhooks/meta", listener.local_addr().unwrap()),
            got: Arc::default(),
            answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
        };
        let shared = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let service = service_fn(move |request| shared.clone().answer(request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        receiver
    }

    async fn answer(
        self,
        request: http::Request<hyper::body::Incoming>,
    ) -> Result<http::Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let given = head.headers.get("x-hub-signature-256").map(|value| value.to_str().unwrap().to_owned());
        let query = head.uri.query().unwrap_or_default().to_owned();
        if head.method == http::Method::GET {
            let echo = query.split('&').find_map(|pair| pair.strip_prefix("hub.challenge=")).unwrap_or_default();
            let echo = Bytes::from(echo.to_owned());
            self.keep(head.method.as_str(), query, given, body);
            return Ok(http::Response::new(Full::new(echo)));
        }
        let right = signature(&domain::Secret::new("simulated-app-secret"), &body);
        let status = if given.as_deref() == Some(right.as_str()) {
            self.answers.lock().unwrap().pop_front().unwrap_or(200)
        } else {
            401
        };
        self.keep(head.method.as_str(), query, given, body);
        let mut response = http::Response::new(Full::new(Bytes::new()));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        Ok(response)
    }

    fn keep(&self, method: &str, query: String, signature: Option<String>, body: Bytes) {
        self.got.lock().unwrap().push(Got { at: Instant::now(), method: method.to_owned(), query, signature, body });
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Words of all statuses, in the order of arrival.
    pub(crate) fn words(&self) -> Vec<String> {
        self.got().iter().flat_map(Got::statuses).map(|(word, _)| word).collect()
    }
}

/// A simulator that posts to a receiver.
pub(crate) async fn wired(answers: &[u16]) -> (simulator::Simulator, Receiver) {
    let receiver = Receiver::start(answers).await;
    let simulator = crate::simulator().await;
    simulator.set_webhook_urls(std::slice::from_ref(&receiver.url)).unwrap();
    (simulator, receiver)
}
