//! What exists on the broker: the only place that declares anything. Declaring is idempotent, and whoever comes first
//! does it, publisher or consumer. What correctness needs is an argument of the queue, so that it does not depend on
//! somebody importing policies; what operators tune (length limits, expiry, leader placement) is left to policies.
//!
//! | | |
//! |---|---|
//! | exchange `roost`, direct | every publish goes through it, the routing key is the queue's name |
//! | exchange `roost.dead`, fanout | the dead letters; the routing key still names the origin |
//! | work queues | quorum, delivery limit 20, then at-least-once into `roost.dead`; a full queue refuses publishes |
//! | `roost.outbound.<account>` | alike without dead letters: it carries references to rows |
//! | `roost.dead` | quorum, without a delivery limit in effect and without dead letters of its own |

use super::channel::OwnChannel;
use super::link::Alive;
use super::{STEP_DEADLINE, words};
use crate::topics::{Kind, Target};
use crate::{DELIVERY_LIMIT, Depth, QueueError};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{ErrorKind, ExchangeKind};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

const EXCHANGE: &str = "roost";
const DEAD_EXCHANGE: &str = "roost.dead";

/// RabbitMQ 4 gives every quorum queue a limit of 20 unless it is told another, and drops what exceeds it. The dead
/// letters must never be dropped; 3.10 does not know "unlimited", so this stands for it.
const NO_DELIVERY_LIMIT: i32 = i32::MAX;

/// What carries a prefix belongs to a test and vanishes by itself.
const TEST_QUEUES_EXPIRE: Duration = Duration::from_secs(30 * 60);

/// Names and declarations.
#[derive(Debug)]
pub(super) struct Topology {
    prefix: String,
}

impl Topology {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// The broker's name of a queue.
    pub(super) fn queue(&self, target: &Target) -> ShortString {
        self.short(&target.queue)
    }

    /// Where a publish to a queue goes.
    pub(super) fn exchange(&self, target: &Target) -> ShortString {
        self.short(if target.kind == Kind::Dead { DEAD_EXCHANGE } else { EXCHANGE })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A queue's name without the prefix.
    pub(super) fn without_prefix<'a>(&self, queue: &'a str) -> &'a str {
        queue.strip_prefix(self.prefix.as_str()).unwrap_or(queue)
    }

    fn short(&self, name: &str) -> ShortString {
        short(&format!("{}{name}", self.prefix))
    }

    /// Makes sure that `target`, and the dead letters behind it, exist as we need them.
    /// # Errors
    /// A sentence. A queue that exists with other arguments is one: it would lose messages where ours does not.
    pub(super) async fn declare(&self, alive: &Alive, target: &Target, deadline: Instant) -> Result<(), String> {
        let dead = crate::topics::DEAD.target(None);
        match target.kind {
            Kind::Elsewhere => self.declare_exchange(alive, EXCHANGE, ExchangeKind::Direct, deadline).await,
            Kind::Dead => self.declare_dead(alive, &dead, deadline).await,
            Kind::References => {
                self.declare_exchange(alive, EXCHANGE, ExchangeKind::Direct, deadline).await?;
                self.declare_queue(alive, target, EXCHANGE, deadline).await
            }
            Kind::Work => {
                self.declare_dead(alive, &dead, deadline).await?;
                self.declare_exchange(alive, EXCHANGE, ExchangeKind::Direct, deadline).await?;
                self.declare_queue(alive, target, EXCHANGE, deadline).await
            }
        }
    }

    async fn declare_dead(&self, alive: &Alive, dead: &Target, deadline: Instant) -> Result<(), String> {
        self.declare_exchange(alive, DEAD_EXCHANGE, ExchangeKind::Fanout, deadline).await?;
        self.declare_queue(alive, dead, DEAD_EXCHANGE, deadline).await
    }

    async fn declare_exchange(
        &self,
        alive: &Alive,
        name: &str,
        kind: ExchangeKind,
        deadline: Instant,
    ) -> Result<(), String> {
        let options =
            ExchangeDeclareOptions { durable: true, auto_delete: !self.prefix.is_empty(), ..Default::default() };
        let channel = alive.channel(deadline).await?;
        let declaring = channel.exchange_declare(self.short(name), kind, options, FieldTable::default());
        settle_declaration(name, timeout_at(deadline, declaring).await, &channel).await
    }

    async fn declare_queue(
        &self,
        alive: &Alive,
        target: &Target,
        exchange: &str,
        deadline: Instant,
    ) -> Result<(), String> {
        let name = self.queue(target);
        let channel = alive.channel(deadline).await?;
        let declaring = async {
            channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), self.arguments(target)).await?;
            let (exchange, none) = (self.short(exchange), FieldTable::default());
            channel.queue_bind(name.clone(), exchange, name.clone(), QueueBindOptions::default(), none).await
        };
        settle_declaration(name.as_str(), timeout_at(deadline, declaring).await, &channel).await
    }

    fn arguments(&self, target: &Target) -> FieldTable {
        let text = |value: &str| AMQPValue::LongString(value.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let limit = if target.kind == Kind::Dead {
            NO_DELIVERY_LIMIT
        } else {
            i32::try_from(DELIVERY_LIMIT).unwrap_or(i32::MAX)
        };
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
        if target.kind == Kind::Work {
            arguments.insert("x-dead-letter-exchange".into(), text(self.short(DEAD_EXCHANGE).as_str()));
            arguments.insert("x-dead-letter-routing-key".into(), text(self.queue(target).as_str()));
            arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        }
        if !self.prefix.is_empty() {
            let expires = i32::try_from(TEST_QUEUES_EXPIRE.as_millis()).unwrap_or(i32::MAX);
            arguments.insert("x-expires".into(), AMQPValue::LongInt(expires));
        }
        arguments
    }

    /// How much waits in a queue. A missing one holds nothing.
    pub(super) async fn depth(&self, alive: &Alive, target: &Target, deadline: Instant) -> Result<Depth, QueueError> {
        let channel = alive.channel(deadline).await.map_err(QueueError::Down)?;
        let options = QueueDeclareOptions::durable().passive();
        match timeout_at(deadline, channel.queue_declare(self.queue(target), options, FieldTable::default())).await {
            Ok(Ok(queue)) => {
                goodbye(&channel).await;
                Ok(Depth { ready: u64::from(queue.message_count()), consumers: queue.consumer_count() })
            }
            Ok(Err(error)) if is(&error, &AMQPSoftError::NOTFOUND) => Ok(Depth::default()),
            Ok(Err(error)) if error.is_amqp_soft_error() => Err(QueueError::Refused(words(&error))),
            Ok(Err(error)) => Err(QueueError::Down(words(&error))),
            Err(_) => Err(QueueError::Timeout),
        }
    }
}

/// Judges a declaration, each made on a channel of its own because a refusal closes the channel.
async fn settle_declaration(
    name: &str,
    outcome: Result<lapin::Result<()>, tokio::time::error::Elapsed>,
    channel: &OwnChannel,
) -> Result<(), String> {
    match outcome {
        Ok(Ok(())) => {
            goodbye(channel).await;
            Ok(())
        }
        // A user who may publish or consume but not configure: an operator declares, and `mandatory` tells the truth.
        Ok(Err(error)) if is(&error, &AMQPSoftError::ACCESSREFUSED) => {
            warn!(name, "May not declare {name}; taking it as declared");
            Ok(())
        }
        Ok(Err(error)) => Err(format!("{name} cannot be declared: {}", words(&error))),
        Err(_) => Err(format!("{name} was not declared in time")),
    }
}

async fn goodbye(channel: &OwnChannel) {
    let deadline = Instant::now() + STEP_DEADLINE;
    // A channel that does not close closes with its connection.
    let _ = timeout_at(deadline, channel.close(200, "done".into())).await;
}

/// Whether the broker said this.
pub(super) fn is(error: &lapin::Error, what: &AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == what),
        _ => false,
    }
}

/// A name as AMQP wants it: at most 255 bytes. Ours are far shorter.
pub(super) fn short(text: &str) -> ShortString {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::try_new(text.get(..end).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::{DEAD, OUTBOUND, WEBHOOKS};

    fn argument(topology: &Topology, target: &Target, name: &str) -> Option<String> {
        topology.arguments(target).inner().get(name).map(|value| match value {
            AMQPValue::LongString(text) => text.to_string(),
            AMQPValue::LongInt(number) => number.to_string(),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn what_correctness_needs_is_an_argument_of_the_queue() {
        let topology = Topology::new(String::new());
        let work = WEBHOOKS.target(None);
        for (name, value) in [
            ("x-queue-type", "quorum"),
            ("x-dead-letter-exchange", "roost.dead"),
            ("x-dead-letter-routing-key", "roost.webhooks"),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
            ("x-delivery-limit", "20"),
        ] {
            assert_eq!(argument(&topology, &work, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(argument(&topology, &work, "x-expires"), None);
        let outbound = OUTBOUND.target(Some(&"sales".parse().unwrap()));
        assert_eq!(argument(&topology, &outbound, "x-dead-letter-exchange"), None);
        assert_eq!(argument(&topology, &DEAD.target(None), "x-delivery-limit").as_deref(), Some("2147483647"));
    }

    #[test]
    fn a_test_has_names_of_its_own() {
        let topology = Topology::new("t1.".into());
        assert_eq!(topology.queue(&WEBHOOKS.target(None)).as_str(), "t1.roost.webhooks");
        assert_eq!(topology.without_prefix("t1.roost.webhooks"), "roost.webhooks");
        assert!(short(&"é".repeat(200)).as_str().len() <= 255);
    }
}
