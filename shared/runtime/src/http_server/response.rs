//! A response's body, which notes when it is done, and the responses the server gives by itself.

use super::connection::{Connection, Phase};
use bytes::Bytes;
use http::header::{CONNECTION, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Any error a body can have.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A handler's body, or one of our own words.
#[derive(Debug)]
pub(super) struct ResponseBody<B> {
    content: Content<B>,
    connection: Arc<Connection>,
}

#[derive(Debug)]
enum Content<B> {
    Handlers(B),
    Ours(Full<Bytes>),
}

impl<B> ResponseBody<B> {
    pub(super) fn new(content: B, connection: Arc<Connection>) -> Self {
        Self { content: Content::Handlers(content), connection }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.content {
            Content::Handlers(body) => Pin::new(body).poll_frame(cx),
            Content::Ours(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Handlers(body) => body.is_end_stream(),
            Content::Ours(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Handlers(body) => body.size_hint(),
            Content::Ours(body) => body.size_hint(),
        }
    }
}

impl<B> Drop for ResponseBody<B> {
    fn drop(&mut self) {
        self.connection.enter(Phase::Idle);
    }
}

/// "Try again in a second": too much at once.
pub(super) fn busy<B>(connection: Arc<Connection>) -> Response<ResponseBody<B>> {
    let mut response = ours(StatusCode::SERVICE_UNAVAILABLE, "busy\n", connection);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The handler did not answer in time.
pub(super) fn late<B>(connection: Arc<Connection>) -> Response<ResponseBody<B>> {
    let mut response = ours(StatusCode::SERVICE_UNAVAILABLE, "timed out\n", connection);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The handler panicked.
pub(super) fn broken<B>(connection: Arc<Connection>) -> Response<ResponseBody<B>> {
    ours(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n", connection)
}

fn ours<B>(status: StatusCode, words: &'static str, connection: Arc<Connection>) -> Response<ResponseBody<B>> {
    let content = Content::Ours(Full::new(Bytes::from_static(words.as_bytes())));
    let mut response = Response::new(ResponseBody { content, connection });
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
