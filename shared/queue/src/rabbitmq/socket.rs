//! The TCP socket under a connection, kept so that it can be cut. lapin offers no way to give a connection up: dropped,
//! it waits for the broker's goodbye, and each one that waits for a silent broker would keep a thread for ever.

use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for TCP and TLS, as a share of the time for the whole handshake.
const TCP_SHARE: f64 = 0.8;

/// Cuts the connection when dropped, or before.
#[derive(Debug, Default)]
pub(super) struct Lifeline(Arc<Mutex<Option<TcpStream>>>);

impl Lifeline {
    /// Cuts the connection now.
    pub(super) fn cut(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Fails when it is closed already, which is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Connects within `deadline`; afterwards nothing of a failed attempt remains.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    deadline: Duration,
) -> Result<(Connection, Lifeline), String> {
    let lifeline = Lifeline::default();
    let kept = lifeline.0.clone();
    let runtime = lapin::runtime::default_runtime().map_err(|error| super::words(&error))?;
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let tls = OwnedTLSConfig::default();
            let connecting = uri.connect_with_config_async(tls.as_ref(), &runtime);
            let stream = timeout(deadline.mul_f64(TCP_SHARE), connecting)
                .await
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no TCP connection in time"))??;
            let socket = match &stream {
                AsyncTcpStream::Plain(stream) => Some(stream.get_ref().as_fd()),
                AsyncTcpStream::Rustls(stream) => Some(stream.get_ref().0.get_ref().as_fd()),
                _ => None,
            };
            if let Some(socket) = socket {
                let socket = TcpStream::from(socket.try_clone_to_owned()?);
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
            }
            Ok(stream)
        },
        properties,
    );
    match timeout(deadline, connecting).await {
        Ok(Ok(connection)) => Ok((connection, lifeline)),
        Ok(Err(error)) => Err(super::words(&error)),
        Err(_) => Err(format!("no answer within {} ms", deadline.as_millis())),
    }
}
