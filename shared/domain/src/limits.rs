//! Rate slots. A scope's calls stand `1 / (0.96 · rate)` apart; a slot is usable from its start for 20 ms, then lost. So no
//! sliding second holds more than the rate, whatever the number of replicas, and 96 % of it stays usable.

use crate::Timestamp;
use std::time::Duration;

/// Share of the rate that is handed out: the rest pays for the 20 ms in which a slot may be used late.
pub const USABLE_SHARE: f64 = 0.96;
/// How long after its start a slot may still be used.
pub const SLOT_TOLERANCE: Duration = Duration::from_millis(20);
/// How far ahead a replica takes slots.
pub const SLOT_HORIZON: Duration = Duration::from_millis(100);
/// Lowest rate a limit may learn: one call a second is the circuit breaker's probe.
pub const PROBE_RATE: f64 = 1.0;

/// The distance between two slots of a scope with `rate` calls a second.
pub fn slot_spacing(rate: f64) -> Duration {
    Duration::from_secs_f64(1.0 / (USABLE_SHARE * rate.clamp(0.001, 100_000.0)))
}

/// Slots of one scope, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// When the first one starts.
    pub first: Timestamp,
    /// How many there are.
    pub count: u32,
    /// When the scope's next one may start: what is kept as its `tat`.
    pub tat: Timestamp,
}

/// Up to `wanted` slots of a scope with `rate` calls a second whose next one may start at `tat`: those that start at
/// `from` or later and before `until`.
pub fn slots(tat: Timestamp, rate: f64, wanted: u32, from: Timestamp, until: Timestamp) -> Slots {
    let spacing = slot_spacing(rate);
    let first = tat.max(from);
    if first >= until {
        return Slots { first, count: 0, tat };
    }
    let room = until.since(first).as_secs_f64() / spacing.as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and `as` saturates")]
    let count = wanted.min(room.ceil() as u32);
    Slots { first, count, tat: if count == 0 { tat } else { first + spacing * count } }
}

/// The rate after a throttling reply: 30 % less, never below the probe.
pub fn slowed(rate: f64) -> f64 {
    (rate * 0.7).max(PROBE_RATE.min(rate))
}

/// The rate after `accepted` accepted calls: raised by 2 % of the configured rate for each full second's worth.
pub fn raised(rate: f64, configured: f64, accepted: u32) -> f64 {
    (rate + 0.02 * configured * f64::from(accepted) / rate.max(PROBE_RATE)).min(configured)
}

/// When the next message to one recipient may go, by the provider's pair rule: one per `interval` with a burst of
/// `burst` that is paid back afterwards. `tat` is the theoretical arrival time kept on the conversation.
/// Returns the earliest instant and the new `tat` if it is used.
pub fn pair_slot(tat: Option<Timestamp>, now: Timestamp, interval: Duration, burst: u32) -> (Timestamp, Timestamp) {
    let base = tat.map_or(now, |tat| tat.max(now));
    let tolerance = interval * burst.saturating_sub(1);
    let earliest = (base - tolerance).max(now);
    (earliest, base + interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_slots_never_exceeds_the_rate() {
        for rate in [1.0, 5.0, 80.0, 999.0, 1000.0, 10_000.0] {
            let spacing = slot_spacing(rate).as_secs_f64();
            // Worst case: the first used at the end of its tolerance, the last at its start.
            let in_a_second = 1.0 + ((1.0 + SLOT_TOLERANCE.as_secs_f64()) / spacing).floor();
            assert!(in_a_second <= rate + 1.0, "{rate}: {in_a_second}");
        }
    }

    #[test]
    fn slots_taken_in_turns_stand_as_far_apart_as_slots_taken_at_once() {
        let now = Timestamp::from_seconds(1_795_339_800);
        for rate in [1.0, 7.0, 80.0, 1000.0, 10_000.0] {
            let (mut tat, mut starts) = (Timestamp::EPOCH, Vec::new());
            for turn in 0u32..60 {
                let from = now + SLOT_HORIZON * turn / 3;
                let taken = slots(tat, rate, 1 + turn % 5, from, from + SLOT_HORIZON);
                starts.extend((0..taken.count).map(|n| taken.first + slot_spacing(rate) * n));
                tat = taken.tat;
            }
            assert!(!starts.is_empty(), "{rate}");
            let apart = slot_spacing(rate) - Duration::from_micros(1);
            assert!(starts.windows(2).all(|pair| pair[1].since(pair[0]) >= apart), "{rate}: {starts:?}");
        }
    }

    #[test]
    fn a_pair_gets_its_burst_and_then_one_per_interval() {
        let now = Timestamp::from_seconds(1_795_339_800);
        let interval = Duration::from_secs(6);
        let mut tat = None;
        for _ in 0..45 {
            let (at, next) = pair_slot(tat, now, interval, 45);
            assert_eq!(at, now);
            tat = Some(next);
        }
        assert_eq!(pair_slot(tat, now, interval, 45).0, now + interval);
    }

    #[test]
    fn a_learnt_rate_moves_between_probe_and_configured() {
        let mut rate = 80.0;
        for _ in 0..50 {
            rate = slowed(rate);
        }
        assert!((rate - PROBE_RATE).abs() < 1e-9);
        for _ in 0..10_000 {
            rate = raised(rate, 80.0, 1);
        }
        assert!((rate - 80.0).abs() < 1e-9);
    }
}
