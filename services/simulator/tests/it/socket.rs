//! HTTP as bytes on a socket, so that nothing between the test and the wire repairs what is broken.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Fin,
    /// By a reset.
    Reset,
    /// Not within the time given.
    Open,
}

/// Everything that came back.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: End,
}

impl Raw {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub(crate) fn status(&self) -> u16 {
        let text = self.text();
        text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next()?.to_owned();
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    pub(crate) fn body(&self) -> String {
        self.text().split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body()).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Reads until the connection ends or `within` has passed.
pub(crate) async fn read_to_end(stream: &mut TcpStream, within: Duration) -> Raw {
    let mut bytes = Vec::new();
    let end = match tokio::time::timeout(within, stream.read_to_end(&mut bytes)).await {
        Ok(Ok(_)) => End::Fin,
        Ok(Err(_)) => End::Reset,
        Err(_) => End::Open,
    };
    Raw { bytes, end }
}

/// A request in one write, on a connection that is to end after it.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    // A connection that is reset on arrival may refuse this; the reader then sees it.
    let _ = stream.write_all(request.as_bytes()).await;
    stream
}

/// A call to the messages endpoint with the right token, begun.
pub(crate) async fn begin_send(address: SocketAddr, body: &str) -> TcpStream {
    let headers = format!("authorization: Bearer {}\r\ncontent-type: application/json\r\n", crate::TOKEN);
    request(address, "POST", &format!("/v25.0/{}/messages", crate::NUMBER), &headers, body).await
}

/// The same, with its answer.
pub(crate) async fn send(address: SocketAddr, body: &str) -> Raw {
    read_to_end(&mut begin_send(address, body).await, crate::SOON).await
}

/// A JSON request to the control, with its answer.
pub(crate) async fn control(address: SocketAddr, method: &str, path: &str, body: &str) -> Raw {
    let mut stream = request(address, method, &format!("/_sim/{path}"), "", body).await;
    read_to_end(&mut stream, crate::SOON).await
}
