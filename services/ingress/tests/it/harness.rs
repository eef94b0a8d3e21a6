//! An ingress on a free port with an embedded queue in a temporary folder.

use domain::wire::{Frame, WebhookBatch, WebhookFrame};
use domain::{Secret, Source, SystemClock};
use ingress::{Deps, Ingress};
use queue::topics::WEBHOOKS;
use queue::{Queue, QueueOptions, QueueUrl};
use runtime::blobs::Blobs;
use runtime::config::{BlobsPlace, Tuning};
use runtime::http_server::{Limits, Server};
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) const SECRET: &str = "an-app-secret-for-tests";
pub(crate) const OLD_SECRET: &str = "the-secret-before-this-one";
pub(crate) const VERIFY_TOKEN: &str = "a-verify-token";

pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    pub(crate) intake: TaskTracker,
    pub(crate) blobs: Blobs,
    _folder: tempfile::TempDir,
}

pub(crate) fn source() -> Source {
    Source {
        name: "meta".parse().unwrap(),
        kind: "meta".into(),
        secrets: vec![Secret::new(SECRET), Secret::new(OLD_SECRET)],
        verify_token: Some(Secret::new(VERIFY_TOKEN)),
        max_body: 4_000_000,
        crm_alias: true,
    }
}

pub(crate) async fn start(tuning: Tuning) -> Harness {
    let folder = tempfile::tempdir().unwrap();
    let options = QueueOptions {
        url: QueueUrl::Embedded(folder.path().join("queue.db")),
        prefix: String::new(),
        role: "ingress".into(),
        instance: "test".into(),
        timing: queue::Timing::default(),
    };
    let queue = Queue::open(options).await.unwrap();
    let metrics = Metrics::new();
    let (stop, intake) = (CancellationToken::new(), TaskTracker::new());
    let blobs = Blobs::open(&BlobsPlace::Folder(folder.path().join("media"))).unwrap();
    let deps = Deps {
        sources: Arc::new([source()]),
        publisher: queue.publisher(),
        blobs: blobs.clone(),
        clock: Arc::new(SystemClock::default()),
        metrics: metrics.clone(),
        instance: "test".into(),
        tuning,
    };
    let ingress = Ingress::start(deps, &stop, &intake).unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default(), metrics.clone()).unwrap();
    let address = server.local_addr();
    let serving = stop.clone();
    tokio::spawn(async move {
        let handler = move |request| {
            let ingress = ingress.clone();
            async move { ingress.handle(request).await }
        };
        server.serve(handler, serving, Duration::from_secs(5)).await
    });
    Harness { address, queue, metrics, stop, intake, blobs, _folder: folder }
}

/// What came back: status, head and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Harness {
    /// Sends these bytes and reads the answer to its end.
    pub(crate) async fn raw(&self, request: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        // The server may refuse, or close before it has read everything; what it said before counts.
        let _ = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(request).await?;
            stream.read_to_end(&mut bytes).await
        }
        .await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.raw(format!("GET {target} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").as_bytes()).await
    }

    pub(crate) async fn post(&self, path: &str, signature: Option<&str>, body: &[u8]) -> Answer {
        let signature = signature.map(|value| format!("x-hub-signature-256: {value}\r\n")).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {length}\r\n{signature}\r\n"
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.raw(&request).await
    }

    /// A signed webhook of the trace `traceparent`.
    pub(crate) async fn traced(&self, traceparent: &str, body: &[u8]) -> Answer {
        let signature = format!("{}\r\ntraceparent: {traceparent}", providers::meta::sign(SECRET, body));
        self.post("/webhooks/meta", Some(&signature), body).await
    }

    pub(crate) async fn signed(&self, body: &[u8]) -> Answer {
        let signature = providers::meta::sign(SECRET, body);
        self.post("/webhooks/meta", Some(&signature), body).await
    }

    /// The webhooks on the queue so far, and in how many messages they came; waits for `count` of them.
    pub(crate) async fn kept(&self, count: usize) -> (Vec<WebhookFrame>, usize) {
        let mut consumer = self.queue.consume(&WEBHOOKS, None, 1000).await;
        let (mut webhooks, mut messages) = (Vec::new(), 0);
        while webhooks.len() < count {
            let delivery = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await.unwrap().unwrap();
            let WebhookBatch(frames) = delivery.item.as_ref().unwrap().clone();
            let of_batch = frames.into_iter().filter_map(|frame| match frame {
                Frame::Webhook(webhook) => Some(webhook),
                Frame::Beat(_) => None,
            });
            let before = webhooks.len();
            webhooks.extend(of_batch);
            messages += usize::from(webhooks.len() > before);
            consumer.settle_all(vec![delivery]).await;
        }
        consumer.close(Vec::new()).await;
        (webhooks, messages)
    }
}
