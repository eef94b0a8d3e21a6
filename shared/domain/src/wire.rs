//! What travels between the roles. What travels outlives the code that wrote it: every type carries a version, unknown
//! members are ignored, and `tests/fixtures` keeps one sample per version shipped.

use crate::outbound::ThrottleScope;
use crate::{AccountId, AttemptOutcome, ConversationId, MessageId, SourceName, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// Something that can be put on a queue.
pub trait Wire: Sized + Send + 'static {
    /// The bytes to publish.
    fn to_bytes(&self) -> Bytes;
    /// Reads what was published.
    /// # Errors
    /// When the bytes are not of this type; the delivery is then dead-lettered, never dropped.
    fn from_bytes(bytes: &Bytes) -> Result<Self, Undecodable>;
    /// How many things it holds, so that depth can be told in webhooks rather than in batches.
    fn count(&self) -> usize {
        1
    }
}

/// Bytes that are not what the topic carries.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("undecodable: {0}")]
pub struct Undecodable(pub String);

/// Many webhooks in one queue message: what one confirm covers.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookBatch(pub Vec<Frame>);

/// One thing ingress says.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// A webhook that was verified.
    Webhook(WebhookFrame),
    /// A sign of life with what was refused since the last one.
    Beat(Beat),
}

/// A webhook as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookFrame {
    /// What is known of it beside its bytes.
    pub head: WebhookHead,
    /// The raw body.
    pub body: Body,
}

/// What is known of a webhook beside its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookHead {
    /// Who signed it.
    pub source: SourceName,
    /// When ingress had all of it.
    pub received_at: Timestamp,
    /// uuid v7 given by ingress; a redelivered frame keeps it.
    pub request_id: Uuid,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The headers the provider's parser needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Whether a person asked for it to be processed again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replay: bool,
}

/// A webhook's bytes, or where they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// The bytes.
    Inline(Bytes),
    /// Key in the object store, for bodies over 1 MiB.
    Stored(String),
}

/// A sign of life of an ingress process, every 15 s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// The process.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When the beat was published.
    pub at: Timestamp,
    /// Refusals since the last confirmed beat.
    #[serde(default)]
    pub refused: Vec<Refusals>,
}

/// How many requests of a source were refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// The source's name.
    pub source: String,
    /// `bad_signature`, `too_large`, …
    pub reason: String,
    /// How many.
    pub count: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FrameHead {
    Webhook(WebhookHead),
    Stored { head: WebhookHead, key: String },
    Beat(Beat),
}

/// Version byte of the framing: `1 { u32 head length, head as JSON, u32 body length, body }*`, lengths little-endian.
const FRAMING: u8 = 1;

impl WebhookBatch {
    /// Appends one frame to a batch under construction; starts the batch when `buffer` is empty.
    pub fn append(buffer: &mut BytesMut, frame: &Frame) {
        if buffer.is_empty() {
            buffer.put_u8(FRAMING);
        }
        let (head, body): (FrameHead, &[u8]) = match frame {
            Frame::Webhook(WebhookFrame { head, body: Body::Inline(bytes) }) => {
                (FrameHead::Webhook(head.clone()), bytes)
            }
            Frame::Webhook(WebhookFrame { head, body: Body::Stored(key) }) => {
                (FrameHead::Stored { head: head.clone(), key: key.clone() }, &[])
            }
            Frame::Beat(beat) => (FrameHead::Beat(beat.clone()), &[]),
        };
        let head = to_json(&head);
        buffer.reserve(8 + head.len() + body.len());
        buffer.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
        buffer.put_slice(&head);
        buffer.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
        buffer.put_slice(body);
    }
}

impl Wire for WebhookBatch {
    fn to_bytes(&self) -> Bytes {
        let mut buffer = BytesMut::new();
        buffer.put_u8(FRAMING);
        for frame in &self.0 {
            WebhookBatch::append(&mut buffer, frame);
        }
        buffer.freeze()
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, Undecodable> {
        let mut rest = bytes.clone();
        let version = take(&mut rest, 1)?;
        if version.first() != Some(&FRAMING) {
            return Err(Undecodable(format!("framing version {:?}, this binary reads {FRAMING}", version.first())));
        }
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let head = take_prefixed(&mut rest)?;
            let body = take_prefixed(&mut rest)?;
            frames.push(match from_json::<FrameHead>(&head)? {
                FrameHead::Webhook(head) => Frame::Webhook(WebhookFrame { head, body: Body::Inline(body) }),
                FrameHead::Stored { head, key } => Frame::Webhook(WebhookFrame { head, body: Body::Stored(key) }),
                FrameHead::Beat(beat) => Frame::Beat(beat),
            });
        }
        Ok(Self(frames))
    }

    fn count(&self) -> usize {
        self.0.len()
    }
}

fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, Undecodable> {
    if rest.len() < length {
        return Err(Undecodable(format!("cut short: {length} bytes announced, {} left", rest.len())));
    }
    Ok(rest.split_to(length))
}

fn take_prefixed(rest: &mut Bytes) -> Result<Bytes, Undecodable> {
    let prefix = take(rest, 4)?;
    let length = prefix.iter().rev().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    take(rest, length)
}

/// JSON of one of our own types. They hold only maps with string keys and finite numbers, so this cannot fail; were it to,
/// the reader refuses the empty bytes and the delivery becomes a dead letter with that reason.
fn to_json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    serde_json::from_slice(bytes).map_err(|error| Undecodable(error.to_string()))
}

macro_rules! json_wire {
    ($name:ident) => {
        impl Wire for $name {
            fn to_bytes(&self) -> Bytes {
                to_json(self)
            }
            fn from_bytes(bytes: &Bytes) -> Result<Self, Undecodable> {
                from_json(bytes)
            }
            fn count(&self) -> usize {
                self.items.len()
            }
        }
    };
}

/// References to rows of `sends` that are due, for one account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SendRefs {
    /// Which messages.
    pub items: Vec<SendRef>,
}

/// One reference. The row is the truth; a reference that no longer fits it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SendRef {
    /// Which message.
    pub message: MessageId,
    /// Which generation of it.
    pub generation: i16,
}

/// What became of attempts to send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SendResults {
    /// Each attempt on its own.
    pub items: Vec<SendEvent>,
}

/// One thing a sender or the keeper says of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendEvent {
    /// The sender has an answer, or knows that none will come.
    Finished(Box<AttemptReport>),
    /// The keeper saw a lease run out. Applies only while the row is IN_FLIGHT under this very token.
    LeaseExpired {
        /// Which message.
        message: MessageId,
        /// Its account.
        account: AccountId,
        /// Which generation.
        generation: i16,
        /// Which attempt.
        attempt: i16,
        /// The lease's token.
        lease_token: String,
        /// When the keeper saw it.
        at: Timestamp,
    },
}

/// How one attempt went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// Which message.
    pub message: MessageId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Its account.
    pub account: AccountId,
    /// Which generation.
    pub generation: i16,
    /// Which attempt, from 1.
    pub attempt: i16,
    /// Which process made it.
    pub worker: String,
    /// When the call began.
    pub started_at: Timestamp,
    /// When its answer was there.
    pub finished_at: Timestamp,
    /// The verdict.
    pub outcome: AttemptOutcome,
    /// The provider's id, when it took the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_message_id: Option<String>,
    /// HTTP status, when there was a reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// Provider's code, or ours (`unreachable`, `timeout`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Provider's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The provider's wish for the next attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Whose limit a throttling reply spoke of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_scope: Option<ThrottleScope>,
    /// After so many attempts the message fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after: Option<u32>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

json_wire!(SendRefs);
json_wire!(SendResults);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(body: &[u8]) -> Frame {
        Frame::Webhook(WebhookFrame {
            head: WebhookHead {
                source: "meta".parse().unwrap(),
                received_at: Timestamp::from_seconds(1_795_339_800),
                request_id: Uuid::nil(),
                traceparent: None,
                headers: vec![("content-type".into(), "application/json".into())],
                replay: false,
            },
            body: Body::Inline(Bytes::copy_from_slice(body)),
        })
    }

    proptest! {
        #[test]
        fn a_batch_survives_the_journey_byte_for_byte(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let batch = WebhookBatch(bodies.iter().map(|body| frame(body)).collect());
            prop_assert_eq!(WebhookBatch::from_bytes(&batch.to_bytes()).unwrap(), batch);
        }

        #[test]
        fn rubbish_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = WebhookBatch::from_bytes(&Bytes::from(bytes));
        }

        #[test]
        fn a_cut_batch_is_refused(cut in 1usize..40) {
            let bytes = WebhookBatch(vec![frame(b"{\"object\":\"page\"}")]).to_bytes();
            let short = bytes.slice(..bytes.len() - cut.min(bytes.len() - 2));
            prop_assert!(WebhookBatch::from_bytes(&short).is_err());
        }
    }

    #[test]
    fn a_stored_body_travels_by_reference() {
        let Frame::Webhook(mut webhook) = frame(b"") else { unreachable!() };
        webhook.body = Body::Stored("raw/abc".into());
        let batch = WebhookBatch(vec![Frame::Webhook(webhook)]);
        assert_eq!(WebhookBatch::from_bytes(&batch.to_bytes()).unwrap(), batch);
    }
}
