//! A message's head as AMQP properties, and back. Only our own headers are written: a copy that carried `x-death` along
//! would be dropped by the broker as a loop.

use super::topology::{Topology, short};
use crate::dead::{BrokerDeath, DeadHead, NO_MESSAGE_ID};
use crate::message::{Envelope, Head, now};
use domain::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

const PERSISTENT: u8 = 2;

const ATTEMPT: &str = "roost-attempt";
const COUNT: &str = "roost-count";
const PUBLISHED_AT: &str = "roost-published-at";
const TRACEPARENT: &str = "traceparent";
const ORIGIN: &str = "roost-origin";
const REASON_CODE: &str = "roost-reason-code";
const REASON: &str = "roost-reason";
const DIED_AT: &str = "roost-died-at";
const BROKER_REASON: &str = "roost-broker-reason";
const BROKER_QUEUE: &str = "roost-broker-queue";
const BROKER_COUNT: &str = "roost-broker-count";

/// Longest reason that travels, in bytes: all headers must fit one frame.
const LONGEST_REASON: usize = 4_000;

/// The properties a message is published with.
pub(super) fn write(head: &Head, family: &str, app: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut put = |name: &str, value: AMQPValue| {
        headers.insert(short(name), value);
    };
    let text = |value: &str| AMQPValue::LongString(cut(value).into());
    put(ATTEMPT, AMQPValue::LongLongInt(i64::from(head.envelope.attempt)));
    put(COUNT, AMQPValue::LongLongInt(i64::from(head.envelope.count)));
    put(PUBLISHED_AT, AMQPValue::LongLongInt(head.published_at.micros()));
    if let Some(traceparent) = &head.envelope.traceparent {
        put(TRACEPARENT, text(traceparent));
    }
    if let Some(dead) = &head.dead {
        put(ORIGIN, text(&dead.origin));
        put(REASON_CODE, text(&dead.reason_code));
        put(REASON, text(&dead.reason));
        put(DIED_AT, AMQPValue::LongLongInt(dead.died_at.micros()));
        if let Some(broker) = &dead.by_broker {
            put(BROKER_REASON, text(&broker.reason));
            put(BROKER_QUEUE, text(&broker.queue));
            put(BROKER_COUNT, AMQPValue::LongLongInt(i64::try_from(broker.count).unwrap_or(i64::MAX)));
        }
    }
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&head.envelope.message_id.to_string()))
        .with_content_type(short("application/octet-stream"))
        .with_type(short(&format!("{family}/1")))
        .with_timestamp(u64::try_from(head.published_at.micros() / 1_000_000).unwrap_or(0))
        .with_app_id(short(app))
        .with_headers(headers)
}

/// Reads what a delivery says of itself. Nothing here can fail: what is missing or odd gets the value of a new message.
pub(super) fn read(properties: &BasicProperties, routing_key: &str, topology: &Topology) -> Head {
    let none = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&none);
    let published_at = match number(headers, PUBLISHED_AT) {
        Some(micros) => Timestamp::from_micros(micros),
        None => match properties.timestamp() {
            Some(seconds) => Timestamp::from_seconds(i64::try_from(*seconds).unwrap_or(0)),
            None => now(),
        },
    };
    let small = |name| number(headers, name).and_then(|value| u32::try_from(value).ok());
    let envelope = Envelope {
        message_id: properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()).unwrap_or(NO_MESSAGE_ID),
        attempt: small(ATTEMPT).unwrap_or(1),
        count: small(COUNT).unwrap_or(1),
        traceparent: string(headers, TRACEPARENT),
    };
    let dead = died_here(headers).or_else(|| died_at_the_broker(headers, routing_key, topology));
    Head { envelope, published_at, dead }
}

/// Set aside by one of our consumers.
fn died_here(headers: &FieldTable) -> Option<DeadHead> {
    let by_broker = string(headers, BROKER_REASON).map(|reason| BrokerDeath {
        reason,
        queue: string(headers, BROKER_QUEUE).unwrap_or_default(),
        count: number(headers, BROKER_COUNT).and_then(|count| u64::try_from(count).ok()).unwrap_or(1),
    });
    Some(DeadHead {
        origin: string(headers, ORIGIN)?,
        reason_code: string(headers, REASON_CODE).unwrap_or_default(),
        reason: string(headers, REASON).unwrap_or_default(),
        died_at: number(headers, DIED_AT).map_or_else(now, Timestamp::from_micros),
        by_broker,
    })
}

/// Set aside by the broker, which notes it in `x-death`, the latest death first.
fn died_at_the_broker(headers: &FieldTable, routing_key: &str, topology: &Topology) -> Option<DeadHead> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
    let reason = string(death, "reason").unwrap_or_else(|| "rejected".into());
    let queue = string(death, "queue").unwrap_or_else(|| routing_key.to_owned());
    let count = number(death, "count").and_then(|count| u64::try_from(count).ok()).unwrap_or(1);
    let died_at = match death.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => Timestamp::from_seconds(i64::try_from(*seconds).unwrap_or(0)),
        _ => now(),
    };
    Some(DeadHead {
        origin: topology.without_prefix(&queue).to_owned(),
        reason: format!("set aside by the broker: {reason}"),
        reason_code: reason.clone(),
        died_at,
        by_broker: Some(BrokerDeath { reason, queue, count }),
    })
}

fn string(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Erlang writes a number in the smallest type that fits.
fn number(table: &FieldTable, name: &str) -> Option<i64> {
    Some(match table.inner().get(name)? {
        AMQPValue::ShortShortInt(value) => i64::from(*value),
        AMQPValue::ShortShortUInt(value) => i64::from(*value),
        AMQPValue::ShortInt(value) => i64::from(*value),
        AMQPValue::ShortUInt(value) => i64::from(*value),
        AMQPValue::LongInt(value) => i64::from(*value),
        AMQPValue::LongUInt(value) => i64::from(*value),
        AMQPValue::LongLongInt(value) => *value,
        _ => return None,
    })
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_the_journey() {
        let topology = Topology::new("t1.".into());
        let head = Head::new(Envelope::holding(7).traced(Some("00-1-2-01".into()))).again(true);
        assert_eq!(read(&write(&head, "roost.webhooks", "roost"), "t1.roost.webhooks", &topology), head);
        let dead = head.died("roost.webhooks", "undecodable".into(), "cut short".into());
        assert_eq!(read(&write(&dead, "roost.dead", "roost"), "t1.roost.webhooks", &topology), dead);
    }

    #[test]
    fn a_message_without_our_headers_is_a_new_one() {
        let head = read(&BasicProperties::default(), "roost.webhooks", &Topology::new(String::new()));
        assert_eq!((head.envelope.attempt, head.envelope.count, head.dead), (1, 1, None));
    }

    #[test]
    fn a_death_at_the_broker_names_origin_and_reason() {
        let mut death = FieldTable::default();
        death.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
        death.insert("queue".into(), AMQPValue::LongString("t1.roost.results".into()));
        death.insert("count".into(), AMQPValue::LongLongInt(1));
        death.insert("time".into(), AMQPValue::Timestamp(1_795_339_800));
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
        let properties = BasicProperties::default().with_headers(headers);
        let dead = read(&properties, "t1.roost.results", &Topology::new("t1.".into())).dead.unwrap();
        assert_eq!((dead.origin.as_str(), dead.reason_code.as_str()), ("roost.results", "delivery_limit"));
        assert_eq!(dead.died_at, Timestamp::from_seconds(1_795_339_800));
        assert_eq!(dead.by_broker.unwrap().queue, "t1.roost.results");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(3_000)).len(), LONGEST_REASON);
    }
}
