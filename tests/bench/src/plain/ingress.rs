//! Plain ingress: verify the signature, publish one message per webhook, answer at its confirm. One connection, one
//! channel: more of either is slower with this broker and client, and costs more in both.

use crate::preload;
use anyhow::Result;
use bytes::Bytes;
use hmac::{KeyInit, Mac};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

type Signature = hmac::Hmac<sha2::Sha256>;

/// What a request needs.
struct Shared {
    /// Without it this is the ceiling: read the body, answer 200.
    channel: Option<Channel>,
    queue: String,
    secret: String,
}

/// Serves on `listen` until it is killed; without a broker it is the bare ceiling.
pub(crate) async fn run(listen: SocketAddr, amqp: Option<&str>, queue: &str, secret: &str) -> Result<()> {
    let connection = match amqp {
        Some(url) => Some(Connection::connect(url, ConnectionProperties::default()).await?),
        None => None,
    };
    let channel = match &connection {
        Some(connection) => Some(preload::open(connection, queue).await?),
        None => None,
    };
    let shared = Arc::new(Shared { channel, queue: queue.to_owned(), secret: secret.to_owned() });
    let listener = tokio::net::TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(request, &shared).await) }
            });
            // The client's end of the connection is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let Some(channel) = &shared.channel else { return status(StatusCode::OK) };
    let signature = head.headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok());
    if !signature.is_some_and(|signature| verified(signature, &shared.secret, &body)) {
        return status(StatusCode::UNAUTHORIZED);
    }
    let properties = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    let publish = channel.basic_publish("".into(), shared.queue.as_str().into(), options, &body, properties).await;
    let confirmed = match publish {
        Ok(confirm) => confirm.await.is_ok_and(|confirmation| confirmation.is_ack()),
        Err(_) => false,
    };
    status(if confirmed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

fn verified(signature: &str, secret: &str, body: &[u8]) -> bool {
    let Some(given) = signature.strip_prefix("sha256=").and_then(|hex| hex::decode(hex).ok()) else { return false };
    let Ok(mut mac) = Signature::new_from_slice(secret.as_bytes()) else { return false };
    mac.update(body);
    mac.verify_slice(&given).is_ok()
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
