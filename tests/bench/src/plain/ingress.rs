//! Plain ingress: verify the signature, publish one message per webhook on a shared channel, answer at its confirm.

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

/// Serves on `listen` until it is killed. Without a broker it is the bare ceiling: read the body, answer 200.
pub async fn run(listen: SocketAddr, amqp: Option<&str>, queue: &str, secret: &str) -> Result<()> {
    let channel = match amqp {
        Some(url) => Some(open(url, queue).await?),
        None => None,
    };
    let shared = Arc::new((channel, queue.to_owned(), secret.to_owned()));
    let listener = tokio::net::TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = shared.clone();
                async move {
                    let (channel, queue, secret) = &*shared;
                    Ok::<_, Infallible>(answer(request, channel.as_ref(), queue, secret).await)
                }
            });
            // The client's end of the connection is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn open(url: &str, queue: &str) -> Result<Channel> {
    let connection = Box::leak(Box::new(Connection::connect(url, ConnectionProperties::default()).await?));
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(channel)
}

async fn answer(request: Request<Incoming>, channel: Option<&Channel>, queue: &str, secret: &str) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let Some(channel) = channel else { return status(StatusCode::OK) };
    let signature = head.headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok());
    if !signature.is_some_and(|signature| verified(signature, secret, &body)) {
        return status(StatusCode::UNAUTHORIZED);
    }
    let properties = BasicProperties::default().with_delivery_mode(2);
    let publish = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), &body, properties).await;
    let confirmed = match publish {
        Ok(confirm) => confirm.await.is_ok_and(|confirmation| confirmation.is_ack()),
        Err(_) => false,
    };
    status(if confirmed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

fn verified(signature: &str, secret: &str, body: &[u8]) -> bool {
    use hmac::{KeyInit, Mac};
    let Some(given) = signature.strip_prefix("sha256=").and_then(|hex| hex::decode(hex).ok()) else { return false };
    let Ok(mut mac) = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()) else { return false };
    mac.update(body);
    mac.verify_slice(&given).is_ok()
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
