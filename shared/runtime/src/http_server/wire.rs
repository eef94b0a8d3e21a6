//! The socket, noting what happens on it.

use super::connection::{Connection, Phase};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Most bytes read and thrown away of a client that still writes after it was answered.
const LINGER_BYTES: usize = 64 << 20;

/// A connection's socket.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// The client has closed its side.
    at_end: bool,
    closing: bool,
    thrown_away: usize,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream, connection, at_end: false, closing: false, thrown_away: 0 }
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Pending => self.connection.write_is_stuck(),
            Poll::Ready(_) => self.connection.write_moves(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(outcome) = &outcome {
            if buffer.filled().len() > before {
                self.connection.bytes_arrived();
            } else if outcome.is_err() || buffer.remaining() > 0 {
                self.at_end = true;
            }
        }
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes our side. A client that is still writing is listened to for a moment: closing a socket with unread bytes
    /// sends a reset, which makes the client forget the answer it has not read yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closing {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.closing = true;
            if this.at_end || !this.connection.wants_lingering() {
                return Poll::Ready(Ok(()));
            }
            this.connection.enter(Phase::Lingering);
        }
        let mut bin = [0u8; 8192];
        while this.thrown_away < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut bin);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => this.thrown_away += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
