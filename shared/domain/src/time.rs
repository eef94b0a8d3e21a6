//! One time type for the whole system: microseconds, UTC, equal and comparable on both databases.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::time::Duration;

/// An instant in UTC with microsecond precision: what `timestamptz` keeps, and what fits an SQLite INTEGER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 2000-01-01T00:00:00Z, before which no provider's clock can honestly be.
const EARLIEST_PLAUSIBLE: Timestamp = Timestamp(946_684_800_000_000);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// From whole seconds since the epoch; saturates at the ends of the range.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Whole milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Reads a provider's unix time, in seconds or milliseconds: WhatsApp sends seconds, Messenger milliseconds, and
    /// both have been seen the other way round, so values of 10^11 and more are taken as milliseconds.
    pub const fn from_provider_unix(value: i64) -> Self {
        if value.saturating_abs() >= 100_000_000_000 {
            Self(value.saturating_mul(1_000))
        } else {
            Self::from_seconds(value)
        }
    }

    /// Whether a provider's time can be believed when it arrived at `received`: not before the year 2000 and not
    /// more than a day ahead of us.
    pub fn plausible_at(self, received: Timestamp) -> bool {
        self >= EARLIEST_PLAUSIBLE && self <= received + Duration::from_secs(86_400)
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn to_jiff(self) -> jiff::Timestamp {
        let clamped = self.0.clamp(jiff::Timestamp::MIN.as_microsecond(), jiff::Timestamp::MAX.as_microsecond());
        jiff::Timestamp::from_microsecond(clamped).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Timestamp;
    fn add(self, rhs: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Timestamp;
    fn sub(self, rhs: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(|t| Timestamp(t.as_microsecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_seconds_and_milliseconds_name_the_same_instant() {
        assert_eq!(Timestamp::from_provider_unix(1_795_339_800), Timestamp::from_provider_unix(1_795_339_800_000));
        assert_eq!(Timestamp::from_provider_unix(1_795_339_800).to_string(), "2026-11-22T09:30:00Z");
    }

    #[test]
    fn text_survives_a_round_trip_to_the_microsecond() {
        let time: Timestamp = "2026-11-22T09:30:00.123456Z".parse().unwrap();
        assert_eq!(serde_json::from_str::<Timestamp>(&serde_json::to_string(&time).unwrap()).unwrap(), time);
    }

    #[test]
    fn absurd_times_neither_panic_nor_pass_for_plausible() {
        let now = Timestamp::from_seconds(1_795_339_800);
        for absurd in [i64::MIN, -1, 0, i64::MAX] {
            let time = Timestamp::from_provider_unix(absurd);
            assert!(!time.plausible_at(now), "{time}");
        }
        assert!((now - Duration::from_secs(3600)).plausible_at(now));
    }
}
