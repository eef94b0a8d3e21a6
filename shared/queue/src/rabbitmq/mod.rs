//! RabbitMQ, 3.10 to 4.x. Two connections, one for publishing and one for consuming, because a broker under a memory or
//! disk alarm stops reading from whoever publishes, acknowledgements included. Each has a supervisor ([`link`]) that
//! knows one cure for everything: drop it all, wait, build it all again. lapin's own recovery stays off.

mod channel;
mod consuming;
mod headers;
mod link;
mod publishing;
mod socket;
mod topology;

pub(crate) use publishing::Slot;

use crate::delivery::{Consumer, consumer};
use crate::health::{HealthBoard, QueueHealth};
use crate::message::Head;
use crate::stats::{Counters, QueueStats};
use crate::topics::{Target, Topic};
use crate::{Depth, OpenError, PublishError, QueueError, QueueOptions};
use bytes::Bytes;
use domain::AccountName;
use domain::wire::Wire;
use lapin::uri::AMQPUri;
use link::Link;
use publishing::Publishing;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use topology::Topology;

/// Longest wait for a channel, a declaration, a cancellation: anything that is not a publish.
const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// Heartbeat we ask for, in seconds. Silence is noticed sooner, by the pings of [`link`].
const HEARTBEAT: u16 = 10;

/// Longest frame we ask for, in bytes. lapin keeps room for 32 frames in each direction of each connection, which with the
/// broker's own 128 KB is 16 MB for our two connections. Longer bodies travel in several frames; the headers of a message
/// must fit one.
const FRAME_MAX: u32 = 32 * 1024;

/// This process' RabbitMQ.
#[derive(Debug)]
pub(crate) struct RabbitMq {
    publishing: Arc<Publishing>,
    consuming: Arc<Link>,
    topology: Arc<Topology>,
    health: Arc<HealthBoard>,
    counters: Arc<Counters>,
    closing: CancellationToken,
    consumers: TaskTracker,
}

/// Reads a URL without connecting.
pub(crate) fn check_url(url: &str) -> Result<AMQPUri, OpenError> {
    url.parse::<AMQPUri>().map_err(OpenError::BadUrl)
}

/// What the URL leaves open is asked for as suits us.
fn with_defaults(mut uri: AMQPUri) -> AMQPUri {
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    uri
}

impl RabbitMq {
    pub(crate) fn open(url: &str, options: QueueOptions) -> Result<Arc<Self>, OpenError> {
        let uri = with_defaults(check_url(url)?);
        let name = format!("roost/{}/{}", options.role, options.instance);
        let health = Arc::new(HealthBoard::new());
        let counters = Arc::new(Counters::default());
        let topology = Arc::new(Topology::new(options.prefix));
        let (closing, timing) = (CancellationToken::new(), options.timing);
        let publishing = Publishing::open(&uri, &name, topology.clone(), health.clone(), counters.clone(), timing);
        let consuming = Link::open(link::Settings {
            uri,
            name: format!("{name} consuming"),
            part: "consuming",
            health: health.clone(),
            lanes: 0,
            timing,
        });
        let consumers = TaskTracker::new();
        Ok(Arc::new(Self { publishing, consuming, topology, health, counters, closing, consumers }))
    }

    pub(crate) fn consume<T: Wire>(
        &self,
        topic: &Topic<T>,
        account: Option<&AccountName>,
        prefetch: u16,
    ) -> Consumer<T> {
        let target = topic.target(account);
        let counters = self.counters.of(&target.queue);
        let (consumer, desk) = consumer(target, prefetch, counters);
        let worker = consuming::Worker::new(
            desk,
            self.consuming.clone(),
            self.publishing.clone(),
            self.topology.clone(),
            self.health.clone(),
            self.closing.clone(),
        );
        self.consumers.spawn(worker.run());
        consumer
    }

    pub(crate) fn health(&self) -> watch::Receiver<QueueHealth> {
        self.health.subscribe()
    }

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats {
            topics: self.counters.snapshot(),
            publishing: self.publishing.link().stats(),
            consuming: self.consuming.stats(),
        }
    }

    /// When a publish that begins now must be confirmed.
    pub(crate) fn publish_deadline(&self) -> Instant {
        self.publishing.timing().publish_deadline()
    }

    pub(crate) async fn slot(&self, deadline: Instant) -> Result<Slot, PublishError> {
        self.publishing.slot(deadline).await
    }

    pub(crate) async fn publish(
        &self,
        target: Target,
        head: Head,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        self.publishing.publish(target, head, body, deadline).await
    }

    /// Asked over the consuming connection, which an alarm leaves alone.
    pub(crate) async fn depth(&self, target: Target) -> Result<Depth, QueueError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let connection = self.consuming.connection(deadline).await.map_err(QueueError::Down)?;
        self.topology.depth(&connection, &target, deadline).await
    }

    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.closing.cancel();
        self.consumers.close();
        let _ = tokio::time::timeout_at(deadline, self.consumers.wait()).await;
        self.publishing.close(deadline).await;
        self.consuming.close(deadline).await;
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.closing.cancel();
        self.publishing.link().abandon();
        self.consuming.abandon();
    }
}

/// A short text about a lapin error; never holds the URL.
fn words(error: &lapin::Error) -> String {
    struct Short<'a>(&'a lapin::Error);
    impl fmt::Display for Short<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0.kind() {
                lapin::ErrorKind::ProtocolError(error) => write!(f, "{}", error.get_message()),
                _ => write!(f, "{}", self.0),
            }
        }
    }
    Short(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_short_unless_the_url_says_otherwise() {
        let frame_max = |url| with_defaults(check_url(url).unwrap()).query.frame_max;
        assert_eq!(frame_max("amqp://guest:guest@mq:5672/%2f"), Some(32 * 1024));
        assert_eq!(frame_max("amqp://guest:guest@mq:5672/%2f?heartbeat=5"), Some(32 * 1024));
        assert_eq!(frame_max("amqp://guest:guest@mq:5672/%2f?frame_max=131072"), Some(128 * 1024));
    }
}
