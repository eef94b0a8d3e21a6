//! Times on the page: written in UTC by the server, put into the reader's own zone by the script.

use super::words::Words;
use domain::Timestamp;
use std::time::Duration;

/// An instant as a page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeView {
    /// RFC 3339, for `datetime`.
    pub(crate) iso: String,
    /// `09:30`.
    pub(crate) clock: String,
    /// `22 Nov 2026, 09:30 UTC`.
    pub(crate) full: String,
    /// `22 Nov`.
    pub(crate) day: String,
}

impl TimeView {
    pub(crate) fn of(at: Timestamp, w: &Words) -> Self {
        let iso = at.to_string();
        let part = |from: usize, to: usize| iso.get(from..to).unwrap_or_default().to_owned();
        let month = part(5, 7).parse::<usize>().ok().and_then(|month| w.months.get(month.checked_sub(1)?));
        let day = format!("{} {}", part(8, 10).trim_start_matches('0'), month.copied().unwrap_or_default());
        let clock = part(11, 16);
        let full = format!("{day} {}, {clock} UTC", part(0, 4));
        Self { clock, full, day, iso }
    }

    /// The day it falls on in UTC, for comparing.
    pub(crate) fn date(&self) -> &str {
        self.iso.get(..10).unwrap_or_default()
    }
}

/// `3 h 12 min`; never nothing.
pub(crate) fn duration(left: Duration, w: &Words) -> String {
    let minutes = left.as_secs().div_ceil(60);
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{} {}", minutes.max(1), w.minutes),
        (hours, 0) => format!("{hours} {}", w.hours),
        (hours, minutes) => format!("{hours} {} {minutes} {}", w.hours, w.minutes),
    }
}

/// What a day is called: today, yesterday, or its date.
pub(crate) fn day_name(at: &TimeView, now: Timestamp, w: &Words) -> String {
    let today = TimeView::of(now, w);
    let yesterday = TimeView::of(now - Duration::from_secs(24 * 3600), w);
    if at.date() == today.date() {
        w.today.to_owned()
    } else if at.date() == yesterday.date() {
        w.yesterday.to_owned()
    } else {
        format!("{} {}", at.day, at.iso.get(..4).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::words::EN;
    use super::*;

    #[test]
    fn times_and_durations_read_as_people_write_them() {
        let at: Timestamp = "2026-11-02T09:05:07.5Z".parse().unwrap();
        let view = TimeView::of(at, &EN);
        assert_eq!(
            (view.clock.as_str(), view.day.as_str(), view.full.as_str()),
            ("09:05", "2 Nov", "2 Nov 2026, 09:05 UTC")
        );
        assert_eq!(duration(Duration::from_secs(3 * 3600 + 12 * 60), &EN), "3 h 12 min");
        assert_eq!(duration(Duration::from_secs(1), &EN), "1 min");
        assert_eq!(duration(Duration::from_secs(24 * 3600), &EN), "24 h");
        assert_eq!(day_name(&view, at, &EN), "Today");
        assert_eq!(day_name(&view, at + Duration::from_secs(20 * 3600), &EN), "Yesterday");
        assert_eq!(day_name(&view, at + Duration::from_secs(90 * 3600), &EN), "2 Nov 2026");
    }

    #[test]
    fn absurd_times_are_shown_without_a_panic() {
        for at in [Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX), Timestamp::EPOCH] {
            assert!(!TimeView::of(at, &EN).iso.is_empty());
        }
    }
}
