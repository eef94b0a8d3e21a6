//! Which failures of a call mean "nothing left us", and which mean "who knows". Against real sockets.

use bytes::Bytes;
use domain::{HttpCall, Secret};
use runtime::http_client::{Http, HttpOptions, REPLY_LIMIT, TransportError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TOKEN: &str = "EAAG-canary-token";
const TIMEOUT: Duration = Duration::from_millis(1_500);

fn http() -> Http {
    let options = HttpOptions {
        connect_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(5),
        idle_per_host: 8,
    };
    Http::new(&options).unwrap()
}

fn post(url: String) -> HttpCall {
    HttpCall {
        method: "POST",
        url,
        bearer: Some(Secret::new(TOKEN)),
        body: Some(("application/json", b"{\"text\":\"canary\"}".to_vec())),
    }
}

/// A provider that does the same to every connection: reads the request, writes `words`, then closes or waits.
async fn provider(words: impl Into<Bytes>, then_close: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let (words, count) = (words.into(), requests.clone());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            read_request(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&words).await;
            if !then_close {
                kept.push(stream);
            }
        }
    });
    (address, requests)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0u8; 4096];
    while !text.windows(6).any(|six| six == b"canary") || !text.ends_with(b"}") {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&piece[..count]),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn quiet(error: &TransportError) {
    let text = format!("{error} {error:?}");
    for canary in [TOKEN, "canary", "secret-path", "127.0.0.1"] {
        assert!(!text.contains(canary), "{text}");
    }
}

#[tokio::test]
async fn an_answer_is_handed_over_whatever_its_status() {
    let words = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 17\r\ncontent-length: 4\r\n\r\nslow";
    let (address, _) = provider(words, false).await;
    let reply = http().call(&post(format!("http://{address}/v25.0/1/messages")), TIMEOUT).await.unwrap();
    assert_eq!((reply.status, reply.retry_after, reply.body), (429, Some(Duration::from_secs(17)), b"slow".to_vec()));
}

#[tokio::test]
async fn the_request_carries_token_type_and_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v25.0/1/messages", listener.local_addr().unwrap());
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let text = read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        text
    });
    http().call(&post(url), TIMEOUT).await.unwrap();
    let text = seen.await.unwrap().to_lowercase();
    assert!(text.starts_with("post /v25.0/1/messages http/1.1"), "{text}");
    for header in ["authorization: bearer eaag-canary-token", "content-type: application/json", "user-agent: roost/"] {
        assert!(text.contains(header), "no {header} in {text}");
    }
    assert!(text.ends_with("{\"text\":\"canary\"}"), "{text}");
}

#[tokio::test]
async fn a_refused_port_means_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    quiet(&error);
    assert!(matches!(&error, TransportError::NotSent(why) if why.contains("refused")), "{error}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_means_not_sent() {
    // A label may have 63 characters: no resolver needs to be asked to know that this one does not exist.
    let url = format!("http://{}/", "x".repeat(64));
    let error = http().call(&post(url), TIMEOUT).await.unwrap_err();
    assert!(matches!(error, TransportError::NotSent(_)), "{error}");
}

#[tokio::test]
async fn tls_that_does_not_come_about_means_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = http().call(&post(format!("https://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    quiet(&error);
    assert!(matches!(error, TransportError::NotSent(_)), "{error}");
}

#[tokio::test]
async fn tls_that_hangs_means_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = http().call(&post(format!("https://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    assert_eq!(error, TransportError::NotSent("no connection in time".into()));
    drop(listener);
}

#[tokio::test]
async fn what_is_no_call_means_not_sent() {
    let mut token = post("http://127.0.0.1:1/".into());
    token.bearer = Some(Secret::new("with\nnewline"));
    for call in [post("not a url".into()), post("ftp://127.0.0.1/".into()), token] {
        let error = http().call(&call, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, TransportError::NotSent(_)), "{error}");
    }
}

#[tokio::test]
async fn a_connection_closed_without_an_answer_may_have_arrived() {
    let (address, requests) = provider("", true).await;
    let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    quiet(&error);
    assert!(matches!(error, TransportError::AfterSend(_)), "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 1, "it was tried again");
}

#[tokio::test]
async fn a_reset_may_have_arrived() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Closing with unread bytes is a reset.
        let mut one = [0u8; 1];
        let _ = stream.read(&mut one).await;
    });
    let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    quiet(&error);
    assert!(matches!(error, TransportError::AfterSend(_)), "{error}");
}

#[tokio::test]
async fn no_answer_in_time_may_have_arrived() {
    let (address, _) = provider("", false).await;
    let timeout = Duration::from_millis(700);
    let error = http().call(&post(format!("http://{address}/secret-path")), timeout).await.unwrap_err();
    assert_eq!(error, TransportError::AfterSend("no answer within 700 ms".into()));
}

#[tokio::test]
async fn half_an_answer_may_have_arrived() {
    for words in ["HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"messages\""] {
        let (address, _) = provider(words, true).await;
        let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
        quiet(&error);
        assert!(matches!(error, TransportError::AfterSend(_)), "{words}: {error}");
    }
}

#[tokio::test]
async fn an_answer_that_stops_half_way_may_have_arrived() {
    let (address, _) = provider("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"messages\"", false).await;
    let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    assert_eq!(error, TransportError::AfterSend("no answer within 1500 ms".into()));
}

#[tokio::test]
async fn garbage_instead_of_http_may_have_arrived() {
    let (address, _) = provider("%%% 200 garbage\r\n\r\n", true).await;
    let error = http().call(&post(format!("http://{address}/secret-path")), TIMEOUT).await.unwrap_err();
    assert!(matches!(error, TransportError::AfterSend(_)), "{error}");
}

#[tokio::test]
async fn a_long_answer_is_cut() {
    let body = "x".repeat(3 * REPLY_LIMIT);
    let (address, _) =
        provider(format!("HTTP/1.1 500 Oh\r\ncontent-length: {}\r\n\r\n{body}", body.len()), false).await;
    let reply = http().call(&post(format!("http://{address}/")), TIMEOUT).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (500, REPLY_LIMIT));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_nobody_follows_it_with_the_token() {
    let (elsewhere, followed) = provider("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let words =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\r\n");
    let (address, _) = provider(words, false).await;
    let reply = http().call(&post(format!("http://{address}/")), TIMEOUT).await.unwrap();
    assert_eq!(reply.status, 307);
    assert_eq!(followed.load(Ordering::SeqCst), 0);
}
