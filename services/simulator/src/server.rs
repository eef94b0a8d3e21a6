//! The listening socket, its connections, and which path goes where.

use crate::line::Line;
use crate::{Shared, control, graph, locked, phone};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// A body that is whole or a stream of events.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// What a handler answers.
pub(crate) type Answer = Response<Body>;

/// The connection ends here, without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
pub(crate) struct Cut;

/// What happens to a connection before anything is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionFault {
    /// Closed at once.
    Close,
    /// Reset at once.
    Reset,
    /// Accepted and never read.
    Silent,
}

/// Serves until stopped. While the provider is down nothing listens, so that callers are refused.
pub(crate) async fn serve(shared: Arc<Shared>, mut listener: TcpListener) {
    let address = shared.address;
    let mut down = shared.down.subscribe();
    loop {
        let until = tokio::select! {
            () = accept(&shared, &listener) => return,
            () = shared.stop.cancelled() => return,
            down_for = async { down.changed().await.map(|()| *down.borrow_and_update()) } => match down_for {
                Ok(down_for) => tokio::time::Instant::now() + down_for,
                Err(_) => return,
            },
        };
        drop(listener);
        locked(&shared.connections).cancel();
        *locked(&shared.connections) = shared.stop.child_token();
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = shared.stop.cancelled() => return,
        }
        listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(%error, "Listening on {address} again failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let end = locked(&shared.connections).clone();
                let shared = Arc::clone(shared);
                shared.tasks.clone().spawn(async move {
                    tokio::select! {
                        () = connection(shared, stream) => {}
                        () = end.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: give the connections a moment to end.
                tracing::warn!(%error, "Accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let line = Line::new(stream);
    let fault = locked(&shared.connection_faults).pop_front();
    match fault {
        Some(ConnectionFault::Close) => return,
        Some(ConnectionFault::Reset) => return line.reset_on_close(),
        Some(ConnectionFault::Silent) => return std::future::pending().await,
        None => {}
    }
    let io = TokioIo::new(line.clone());
    let service = service_fn(move |request| {
        let (shared, line) = (Arc::clone(&shared), line.clone());
        async move { route(&shared, &line, request).await }
    });
    // An error is a caller who went away or a cut of our own; both are in the ledger.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(120))
        .serve_connection(io, service)
        .await;
}

async fn route(shared: &Arc<Shared>, line: &Line, request: Request<Incoming>) -> Result<Answer, Cut> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (request.method(), segments.as_slice()) {
        (&Method::POST, [version, id, "messages"]) if is_version(version) => {
            let (head, body) = request.into_parts();
            graph::messages(shared, line, id, &head.headers, body).await
        }
        (&Method::GET, [version, _]) if is_version(version) => Ok(graph::media(shared)),
        (_, ["_sim", rest @ ..]) => Ok(control::handle(shared, rest, request).await),
        _ => match &shared.phone {
            Some(_) => Ok(phone::handle(shared, &segments, request).await),
            None => Ok(text_answer(StatusCode::NOT_FOUND, "text/plain", "not found")),
        },
    }
}

/// `v25.0`, or just `v25`.
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|number| {
        number.starts_with(|c: char| c.is_ascii_digit()) && number.chars().all(|c| c.is_ascii_digit() || c == '.')
    })
}

pub(crate) fn text_answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(crate) fn json_answer(status: StatusCode, json: &impl Serialize) -> Answer {
    match serde_json::to_vec(json) {
        Ok(body) => text_answer(status, "application/json; charset=UTF-8", body),
        Err(error) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

/// Whether a request may change something: browsers name the page it comes from, and that must be one of ours.
pub(crate) fn same_origin(request: &Request<Incoming>) -> bool {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return true };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://").is_some_and(|origin| origin == host))
}
