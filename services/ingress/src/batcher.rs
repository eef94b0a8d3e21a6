//! Group commit. One queue message a webhook would cap intake at what the broker can confirm; here a batch takes a free
//! slot (a channel with no outstanding publish) with everything that is waiting by then, and all of its requests are
//! answered at its confirm. No timer: when nothing else waits, a request goes out alone.

use bytes::{Bytes, BytesMut};
use domain::wire::{Body, Frame, WebhookBatch};
use queue::topics::WEBHOOKS;
use queue::{Envelope, PublishError, Publisher};
use runtime::metrics::Metrics;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// When a batch closes, and how many may wait for one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most frames in a batch.
    pub(crate) frames: usize,
    /// Most bytes in a batch, below one AMQP frame; a larger body goes alone.
    pub(crate) bytes: usize,
    /// Requests that may wait for a slot. Beyond it the answer is 503 at once: pressure ends at the door.
    pub(crate) waiting: usize,
}

/// Why a webhook was not kept. Its provider is told 503 and tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotKept {
    #[error("too much is waiting already")]
    Full,
    #[error("the queue is away")]
    Down,
    #[error("the queue refused it")]
    Refused,
    #[error("the queue did not confirm in time")]
    Unconfirmed,
    #[error("its body could not be stored")]
    Unstored,
    #[error("this process is stopping")]
    Stopping,
}

impl NotKept {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            NotKept::Full => "full",
            NotKept::Down => "queue_down",
            NotKept::Refused => "queue_refused",
            NotKept::Unconfirmed => "unconfirmed",
            NotKept::Unstored => "unstored",
            NotKept::Stopping => "stopping",
        }
    }
}

impl From<&PublishError> for NotKept {
    fn from(error: &PublishError) -> Self {
        match error {
            PublishError::Down(_) | PublishError::Blocked(_) => NotKept::Down,
            PublishError::Timeout | PublishError::Lost(_) => NotKept::Unconfirmed,
            PublishError::Returned(_) | PublishError::Refused(_) => NotKept::Refused,
            PublishError::Closed => NotKept::Stopping,
        }
    }
}

/// A frame and the request that waits for it.
pub(crate) struct Pending {
    frame: Frame,
    confirmed: oneshot::Sender<Result<(), NotKept>>,
}

impl Pending {
    pub(crate) fn new(frame: Frame) -> (Self, oneshot::Receiver<Result<(), NotKept>>) {
        let (confirmed, waiting) = oneshot::channel();
        (Self { frame, confirmed }, waiting)
    }

    fn size(&self) -> usize {
        match &self.frame {
            Frame::Webhook(webhook) => match &webhook.body {
                Body::Inline(body) => body.len() + 256,
                Body::Stored(_) => 512,
            },
            Frame::Beat(_) => 1024,
        }
    }
}

/// The way into the batcher.
#[derive(Clone)]
pub(crate) struct Handoff(mpsc::Sender<Pending>);

impl Handoff {
    /// Hands a frame over, or says at once that there is no room.
    pub(crate) fn offer(&self, pending: Pending) -> Result<(), NotKept> {
        self.0.try_send(pending).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotKept::Full,
            mpsc::error::TrySendError::Closed(_) => NotKept::Stopping,
        })
    }
}

/// Starts the batcher. It ends once `stop` is cancelled and what was handed over before has been published.
pub(crate) fn start(
    publisher: Publisher,
    metrics: Metrics,
    limits: Limits,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> Handoff {
    let (sender, waiting) = mpsc::channel(limits.waiting);
    tasks.spawn(gather(waiting, publisher, metrics, limits, stop, tasks.clone()));
    Handoff(sender)
}

async fn gather(
    mut waiting: mpsc::Receiver<Pending>,
    publisher: Publisher,
    metrics: Metrics,
    limits: Limits,
    stop: CancellationToken,
    publishes: TaskTracker,
) {
    let mut carried: Option<Pending> = None;
    loop {
        let first = match carried.take() {
            Some(pending) => pending,
            None => tokio::select! {
                biased;
                next = waiting.recv() => match next { Some(pending) => pending, None => return },
                () = stop.cancelled() => {
                    // Nothing new comes in; what was handed over before is still published.
                    waiting.close();
                    match waiting.recv().await { Some(pending) => pending, None => return }
                }
            },
        };
        let slot = match publisher.slot().await {
            Ok(slot) => slot,
            Err(error) => {
                refuse_all(first, &mut waiting, NotKept::from(&error));
                continue;
            }
        };
        let (batch, next) = fill(first, &mut waiting, limits);
        carried = next;
        metrics.webhook_batch(batch.len());
        publishes.spawn(async move {
            let envelope = Envelope {
                message_id: Uuid::now_v7(),
                attempt: 1,
                count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
                // Of many requests: each frame has its own.
                traceparent: None,
            };
            let body = encode(&batch);
            let outcome = slot.publish(&WEBHOOKS, None, envelope, body).await;
            if let Err(error) = &outcome {
                tracing::debug!(%error, frames = batch.len(), "A batch was not confirmed; its providers try again");
            }
            let answer = outcome.as_ref().map(|_| ()).map_err(NotKept::from);
            for pending in batch {
                // A request that gave up waiting has dropped its end: its provider tries again.
                let _ = pending.confirmed.send(answer);
            }
        });
    }
}

/// Everything that waits by now, up to the limits, and the one that no longer fitted.
fn fill(first: Pending, waiting: &mut mpsc::Receiver<Pending>, limits: Limits) -> (Vec<Pending>, Option<Pending>) {
    let mut bytes = first.size();
    let mut batch = vec![first];
    while batch.len() < limits.frames {
        let Ok(pending) = waiting.try_recv() else { break };
        // A request that timed out meanwhile has been told 503: its provider will come again.
        if pending.confirmed.is_closed() {
            continue;
        }
        if bytes + pending.size() > limits.bytes {
            return (batch, Some(pending));
        }
        bytes += pending.size();
        batch.push(pending);
    }
    (batch, None)
}

/// The queue is away: everybody who waits is told so now rather than at their deadline.
fn refuse_all(first: Pending, waiting: &mut mpsc::Receiver<Pending>, reason: NotKept) {
    let _ = first.confirmed.send(Err(reason));
    while let Ok(pending) = waiting.try_recv() {
        let _ = pending.confirmed.send(Err(reason));
    }
}

fn encode(batch: &[Pending]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(batch.iter().map(Pending::size).sum::<usize>() + 16);
    for pending in batch {
        WebhookBatch::append(&mut buffer, &pending.frame);
    }
    buffer.freeze()
}
