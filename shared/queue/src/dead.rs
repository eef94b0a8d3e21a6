//! What could not be processed: its bytes, where it comes from, why.

use crate::message::{Envelope, Head};
use bytes::{BufMut, Bytes, BytesMut};
use domain::Timestamp;
use domain::wire::{Undecodable, Wire};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A dead letter as ingest reads it from [`topics::DEAD`](crate::topics::DEAD).
#[derive(Clone, Debug, PartialEq)]
pub struct Dead {
    /// The queue it died in, without prefix: `roost.webhooks`.
    pub origin: String,
    /// Why, in one word: what the consumer said, or `delivery_limit`, `maxlen`, `expired`, `rejected` when the broker
    /// set it aside by itself.
    pub reason_code: String,
    /// Why, in words.
    pub reason: String,
    /// When.
    pub died_at: Timestamp,
    /// What the broker noted when it set the message aside by itself (`x-death`).
    pub by_broker: Option<BrokerDeath>,
    /// Its envelope when it died.
    pub envelope: Envelope,
    /// When it was first published.
    pub published_at: Timestamp,
    /// The bytes it carried, untouched.
    pub body: Bytes,
}

/// What the broker notes when it sets a message aside by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerDeath {
    /// The broker's word: `delivery_limit`, `maxlen`, `expired`, `rejected`.
    pub reason: String,
    /// The broker's name of the queue, with prefix.
    pub queue: String,
    /// How often it died there.
    pub count: u64,
}

/// What a dead letter carries beside its envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadHead {
    pub(crate) origin: String,
    pub(crate) reason_code: String,
    pub(crate) reason: String,
    pub(crate) died_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by_broker: Option<BrokerDeath>,
}

/// Version byte of the framing: `1`, u32 length of the head, head as JSON, body.
const FRAMING: u8 = 1;

impl Dead {
    /// A delivery from the dead letters, as what it is. One without the headers we or the broker write was put there
    /// by hand; it is kept like the others.
    pub(crate) fn delivered(head: &Head, body: Bytes) -> Self {
        let dead = head.dead.clone().unwrap_or_else(|| DeadHead {
            origin: "unknown".into(),
            reason_code: "unknown".into(),
            reason: "published to the dead letters without origin and reason".into(),
            died_at: head.published_at,
            by_broker: None,
        });
        Self {
            origin: dead.origin,
            reason_code: dead.reason_code,
            reason: dead.reason,
            died_at: dead.died_at,
            by_broker: dead.by_broker,
            envelope: head.envelope.clone(),
            published_at: head.published_at,
            body,
        }
    }
}

impl Wire for Dead {
    fn to_bytes(&self) -> Bytes {
        let head = Head {
            envelope: self.envelope.clone(),
            published_at: self.published_at,
            dead: Some(DeadHead {
                origin: self.origin.clone(),
                reason_code: self.reason_code.clone(),
                reason: self.reason.clone(),
                died_at: self.died_at,
                by_broker: self.by_broker.clone(),
            }),
        };
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(5 + head.len() + self.body.len());
        bytes.put_u8(FRAMING);
        bytes.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&head);
        bytes.put_slice(&self.body);
        bytes.freeze()
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, Undecodable> {
        let cut = || Undecodable("cut short".into());
        let (version, rest) = bytes.split_first().ok_or_else(cut)?;
        if *version != FRAMING {
            return Err(Undecodable(format!("framing version {version}, this binary reads {FRAMING}")));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let head = rest.get(..length).ok_or_else(cut)?;
        let head: Head = serde_json::from_slice(head).map_err(|error| Undecodable(error.to_string()))?;
        Ok(Self::delivered(&head, bytes.slice(5 + length..)))
    }

    fn count(&self) -> usize {
        usize::try_from(self.envelope.count).unwrap_or(usize::MAX)
    }
}

/// The id of a message that came without one.
pub(crate) const NO_MESSAGE_ID: Uuid = Uuid::nil();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_survives_the_journey() {
        let dead = Dead {
            origin: "roost.webhooks".into(),
            reason_code: "undecodable".into(),
            reason: "cut short".into(),
            died_at: Timestamp::from_seconds(1_795_339_800),
            by_broker: Some(BrokerDeath { reason: "delivery_limit".into(), queue: "roost.webhooks".into(), count: 1 }),
            envelope: Envelope::holding(3),
            published_at: Timestamp::from_seconds(1_795_339_700),
            body: Bytes::from_static(b"\x00\xffraw"),
        };
        let bytes = dead.to_bytes();
        assert_eq!(Dead::from_bytes(&bytes).unwrap(), dead);
        for cut in [0, 1, 4, 20] {
            assert!(Dead::from_bytes(&bytes.slice(..cut)).is_err(), "{cut}");
        }
    }
}
