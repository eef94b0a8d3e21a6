//! What became of calls, to the results queue: many reports in one message, published with a confirm, and only then are the
//! references acknowledged. Reports that cannot be published are kept, and nothing new is claimed meanwhile.

use crate::Shared;
use crate::desk::Taken;
use domain::wire::{AttemptReport, SendEvent, SendResults};
use queue::topics::RESULTS;
use runtime::reconnect::Reconnect;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

/// A call that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How.
    pub(crate) report: AttemptReport,
    /// The reference it came by.
    pub(crate) taken: Taken,
}

/// Where calls leave their reports. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    outgoing: mpsc::UnboundedSender<Finished>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    stuck: AtomicBool,
    waiting: AtomicUsize,
}

impl Reports {
    /// The calls' side, and the publisher's.
    pub(crate) fn channel() -> (Self, Outgoing) {
        let (outgoing, incoming) = mpsc::unbounded_channel();
        let state = Arc::new(State::default());
        (Self { outgoing, state: state.clone() }, Outgoing { incoming, state })
    }

    /// Leaves a report. It cannot get lost while this process lives.
    pub(crate) fn leave(&self, finished: Finished) {
        self.state.waiting.fetch_add(1, Ordering::Relaxed);
        // The publisher ends after the last of these handles.
        let _ = self.outgoing.send(finished);
    }

    /// Whether new claims must wait: reports cannot be published, or pile up.
    pub(crate) fn is_stuck(&self, most_waiting: usize) -> bool {
        self.state.stuck.load(Ordering::Relaxed) || self.state.waiting.load(Ordering::Relaxed) > most_waiting
    }
}

/// Reports on their way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    incoming: mpsc::UnboundedReceiver<Finished>,
    state: Arc<State>,
}

/// Publishes until the last handle to leave reports is gone and everything is published.
pub(crate) async fn run(shared: Arc<Shared>, mut outgoing: Outgoing) {
    let (most, linger) = (shared.deps.tuning.report_batch, shared.deps.tuning.sender_linger);
    while let Some(first) = outgoing.incoming.recv().await {
        let mut batch = vec![first];
        let until = Instant::now() + linger;
        while batch.len() < most {
            match timeout_at(until, outgoing.incoming.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        let (reports, taken): (Vec<SendEvent>, Vec<Taken>) =
            batch.into_iter().map(|finished| (SendEvent::Finished(Box::new(finished.report)), finished.taken)).unzip();
        publish(&shared, &outgoing.state, SendResults { items: reports }).await;
        outgoing.state.waiting.fetch_sub(taken.len(), Ordering::Relaxed);
        taken.into_iter().for_each(Taken::done);
    }
}

/// Publishes until it is confirmed. Published twice it changes nothing.
async fn publish(shared: &Shared, state: &State, results: SendResults) {
    let publisher = shared.deps.queue.publisher();
    let mut waits = Reconnect::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        match publisher.publish(&RESULTS, None, &results).await {
            Ok(()) => {
                if state.stuck.swap(false, Ordering::Relaxed) {
                    info!("Results can be published again");
                    shared.needs.results.ready();
                }
                return;
            }
            Err(error) => {
                if !state.stuck.swap(true, Ordering::Relaxed) {
                    warn!(%error, "Results cannot be published; nothing new is claimed until they can");
                    shared.needs.results.not_ready("results cannot be published");
                }
                tokio::time::sleep(waits.next_wait()).await;
            }
        }
    }
}
