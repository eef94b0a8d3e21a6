//! A clock that goes on while the machine is suspended. The provider cannot be fenced, so a sender that was stopped for
//! longer than its lease must find out by itself, right before it writes a request.

use std::time::Duration;

/// A moment on the clock that counts suspension (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Boottime(Duration);

impl Boottime {
    /// This moment.
    pub(crate) fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }
}

/// How long a claim is ours, counted from before the database was asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    ends: Boottime,
}

impl Lease {
    /// A lease asked for at `asked`.
    pub(crate) fn from(asked: Boottime, lasts: Duration) -> Self {
        Self { ends: Boottime(asked.0.saturating_add(lasts)) }
    }

    /// Whether a call that may take `timeout` ends within it.
    pub(crate) fn covers(self, timeout: Duration) -> bool {
        Boottime::now().0.saturating_add(timeout) <= self.ends.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_begins_only_if_its_timeout_fits_into_what_is_left() {
        let now = Boottime::now();
        let lease = Lease::from(now, Duration::from_secs(20));
        assert!(lease.covers(Duration::from_secs(10)));
        assert!(!lease.covers(Duration::from_secs(21)));
        let stopped = Boottime(now.0.saturating_sub(Duration::from_secs(11)));
        assert!(!Lease::from(stopped, Duration::from_secs(20)).covers(Duration::from_secs(10)), "asked 11 s ago");
    }

    #[test]
    fn the_clock_moves_on() {
        assert!(Boottime::now() >= Boottime::now() || Boottime::now() > Boottime(Duration::ZERO));
    }
}
