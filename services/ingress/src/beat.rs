//! A sign of life every 15 s with what was refused since the last one: how operators see an ingress that has no database.

use crate::Deps;
use crate::batcher::{Handoff, Pending};
use crate::refusals::RefusalCounts;
use domain::wire::{Beat, Frame};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) async fn run(deps: Deps, handoff: Handoff, refusals: Arc<RefusalCounts>, stop: CancellationToken) {
    let started_at = deps.clock.now();
    let mut ticks = tokio::time::interval(deps.tuning.beat_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let refused = refusals.snapshot();
        let beat = Beat {
            instance: deps.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            at: deps.clock.now(),
            refused: refused.clone(),
        };
        let (pending, confirmed) = Pending::new(Frame::Beat(beat));
        // A beat that is not kept tells its counts again with the next one.
        if handoff.offer(pending).is_ok() && matches!(confirmed.await, Ok(Ok(()))) {
            refusals.forget(&refused);
        }
    }
}
