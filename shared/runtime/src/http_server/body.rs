//! A request's body with its deadlines and its share of the memory built in, whoever reads it.

use super::connection::Connection;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Larger than its limit, announced or found out.
    #[error("the body is too large")]
    TooLarge,
    /// It came too slowly.
    #[error("the body did not arrive in time")]
    TimedOut,
    /// The connection broke, or its framing did.
    #[error("the body broke off")]
    Broken,
    /// Too many bytes are in flight in this process.
    #[error("no room for the body just now")]
    NoRoom,
}

impl BodyError {
    /// The status that fits. None of them makes a provider give up on a webhook but 413, which no retry would change.
    pub fn status(self) -> StatusCode {
        match self {
            BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TimedOut => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken => StatusCode::BAD_REQUEST,
            BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The body of a request. Reading it fails by itself when it comes too slowly or when too many bytes are in flight; its
/// bytes count as in flight until the request is answered.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
    connection: Arc<Connection>,
    at_end: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, connection: Arc<Connection>) -> Self {
        Self { at_end: incoming.is_end_stream(), incoming, connection }
    }

    /// Who sent the request, or the proxy that did.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// The announced length, if there is one.
    pub fn announced(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.at_end {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let fits = this.connection.takes_piece(bytes);
                this.at_end = this.incoming.is_end_stream();
                Poll::Ready(Some(if fits { Ok(frame) } else { Err(BodyError::NoRoom) }))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(BodyError::Broken))),
            Poll::Ready(None) => {
                this.at_end = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                this.connection.waits_for_body();
                this.connection.body_waker.register(cx.waker());
                if this.connection.is_body_late() {
                    return Poll::Ready(Some(Err(BodyError::TimedOut)));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.at_end || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.connection.body_is_done(self.is_end_stream());
    }
}

/// Reads a whole body of at most `max` bytes. A body that came in one piece is not copied.
/// # Errors
/// See [`BodyError`]; an announced length over `max` is refused before anything is read.
pub async fn read_body(mut body: RequestBody, max: usize) -> Result<Bytes, BodyError> {
    let announced = match body.announced() {
        Some(length) => Some(usize::try_from(length).ok().filter(|length| *length <= max).ok_or(BodyError::TooLarge)?),
        None => None,
    };
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(piece) = next_piece(&mut body).await? {
        if first.len() + rest.len() + piece.len() > max {
            return Err(BodyError::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = piece;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(announced.unwrap_or(2 * (first.len() + piece.len())).max(first.len() + piece.len()));
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&piece);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// The next bytes; trailers are skipped. `None` at the end.
async fn next_piece(body: &mut RequestBody) -> Result<Option<Bytes>, BodyError> {
    std::future::poll_fn(|cx| {
        loop {
            if body.is_end_stream() {
                return Poll::Ready(Ok(None));
            }
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
            }
        }
    })
    .await
}
