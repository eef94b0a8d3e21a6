//! Medians over rounds. A single short run says little; what is stated is the median with the least and the greatest.

use crate::cpu::Usage;
use std::fmt;
use std::time::Duration;

/// One run of one design.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// Requests, rows or sends.
    pub(crate) items: u64,
    /// In this time.
    pub(crate) took: Duration,
    /// With this much processor time.
    pub(crate) usage: Usage,
    /// Median latency, in milliseconds.
    pub(crate) p50_ms: Option<f64>,
    /// 99th percentile of the latency, in milliseconds.
    pub(crate) p99_ms: Option<f64>,
    /// Resident memory of the process under test at the end, in megabytes.
    pub(crate) resident_mb: Option<f64>,
}

impl Run {
    /// Items a second.
    pub(crate) fn rate(&self) -> f64 {
        self.items as f64 / self.took.as_secs_f64()
    }

    /// Microseconds of processor time an item costs in the processes under test.
    pub(crate) fn ours_us(&self) -> f64 {
        self.per_item(self.usage.ours)
    }

    /// The same in the broker.
    pub(crate) fn broker_us(&self) -> f64 {
        self.per_item(self.usage.broker)
    }

    /// The same in PostgreSQL.
    pub(crate) fn database_us(&self) -> f64 {
        self.per_item(self.usage.database)
    }

    fn per_item(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.items.max(1) as f64
    }
}

/// A median with the least and the greatest of what it is the median of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    /// The one in the middle; of an even number the mean of the two.
    pub(crate) median: f64,
    /// The least.
    pub(crate) least: f64,
    /// The greatest.
    pub(crate) greatest: f64,
}

impl Median {
    /// Of these values; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*below, *above), least, greatest })
    }
}

/// `0.41 (0.39–0.44)`, with as many digits as say something; a single value stands alone.
impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&number(self.median))?;
        if self.least < self.greatest {
            write!(f, " ({}–{})", number(self.least), number(self.greatest))?;
        }
        Ok(())
    }
}

/// Three significant digits, with commas between thousands.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1000.0 => return thousands(value),
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    let step = if value.abs() >= 10_000.0 { 100.0 } else { 10.0 };
    let whole = format!("{:.0}", (value / step).round() * step);
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The runs of one design over the rounds, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Vec<Run>);

impl Runs {
    /// Adds the run of another round.
    pub(crate) fn add(&mut self, run: Run) {
        self.0.push(run);
    }

    /// Median of something a run has.
    pub(crate) fn median(&self, of: impl Fn(&Run) -> f64) -> Option<Median> {
        Median::of(self.0.iter().map(of))
    }

    /// Median of something a run may have.
    pub(crate) fn median_of_some(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<Median> {
        Median::of(self.0.iter().filter_map(of))
    }

    /// Median of the ratios to `other`, each inside one round: the two ran one after the other.
    pub(crate) fn ratio(&self, other: &Runs, of: impl Fn(&Run) -> f64) -> Option<Median> {
        Median::of(self.0.iter().zip(&other.0).map(|(this, that)| of(this) / of(that)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_names_its_spread() {
        let median = Median::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((median.median, median.least, median.greatest), (2.0, 1.0, 3.0));
        assert_eq!(Median::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Median::of([]), None);
        assert_eq!(median.to_string(), "2.00 (1.00–3.00)");
    }

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        let shown: Vec<String> =
            [0.4137, 16.04, 237.9, 1584.0, 43_712.0, 1_234_567.0].into_iter().map(number).collect();
        assert_eq!(shown, ["0.41", "16.0", "238", "1,580", "43,700", "1,234,600"]);
    }

    #[test]
    fn a_ratio_is_taken_inside_each_round() {
        let runs = |items: [u64; 3]| {
            let mut runs = Runs::default();
            items.into_iter().for_each(|items| runs.add(Run { items, took: Duration::from_secs(1), ..Run::default() }));
            runs
        };
        let ratio = runs([40, 90, 50]).ratio(&runs([100, 100, 100]), Run::rate).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.greatest), (0.5, 0.4, 0.9));
    }
}
