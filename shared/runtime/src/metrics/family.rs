//! Counters, gauges and histograms with labels, cheap enough for the hot path.
//!
//! The OpenTelemetry API builds and hashes a set of attributes at every `add`. Here a counter is an atomic number that is
//! looked up by its label values without an allocation (or kept, as a [`Tally`]), and the exporter reads it when asked.

use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter};
use opentelemetry::{Key, KeyValue};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Boundaries for times, in seconds: those of the semantic conventions, with two more below for acknowledgements in
/// memory and three above for lags.
const SECONDS: [f64; 19] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0,
];
/// Boundaries for how many items a batch has.
const ITEMS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Most series of one name. A provider that makes up a new code for every answer must not fill the memory: what comes after
/// is counted under the word "other".
const MOST_SERIES: usize = 1_000;
const OTHER: &str = "other";

/// Label values and what belongs to them, in order of the values.
#[derive(Debug)]
struct Series<T> {
    labels: &'static [&'static str],
    entries: RwLock<Vec<(Vec<String>, Arc<T>)>>,
}

impl<T> Series<T> {
    fn new(labels: &'static [&'static str]) -> Self {
        Self { labels, entries: RwLock::default() }
    }

    /// What belongs to these values; made by `make` when they are new.
    fn get(&self, values: &[&str], make: impl FnOnce(Vec<KeyValue>) -> T) -> Arc<T> {
        let order = |(known, _): &(Vec<String>, Arc<T>)| known.iter().map(String::as_str).cmp(values.iter().copied());
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            if let Ok(at) = entries.binary_search_by(order)
                && let Some((_, found)) = entries.get(at)
            {
                return found.clone();
            }
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let others = vec![OTHER; values.len()];
        if entries.len() >= MOST_SERIES && values != others {
            drop(entries);
            return self.get(&others, make);
        }
        match entries.binary_search_by(order) {
            Ok(at) => entries.get(at).map(|(_, found)| found.clone()).unwrap_or_else(|| Arc::new(make(Vec::new()))),
            Err(at) => {
                let made = Arc::new(make(self.attributes(values)));
                entries.insert(at, (values.iter().map(|value| (*value).to_owned()).collect(), made.clone()));
                made
            }
        }
    }

    fn forget(&self, unwanted: impl Fn(&[String]) -> bool) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).retain(|(values, _)| !unwanted(values));
    }

    fn attributes(&self, values: &[&str]) -> Vec<KeyValue> {
        let pair =
            |(label, value): (&&'static str, &&str)| KeyValue::new(Key::from_static_str(label), (*value).to_owned());
        self.labels.iter().zip(values).map(pair).collect()
    }

    fn each(&self, mut act: impl FnMut(&T)) {
        for (_, entry) in self.entries.read().unwrap_or_else(PoisonError::into_inner).iter() {
            act(entry);
        }
    }
}

#[derive(Debug)]
struct Point {
    attributes: Vec<KeyValue>,
    bits: AtomicU64,
}

impl Point {
    fn new(attributes: Vec<KeyValue>) -> Self {
        Self { attributes, bits: AtomicU64::new(0) }
    }
}

/// One counter with its labels settled: adding is one atomic operation.
#[derive(Clone, Debug)]
pub struct Tally(Arc<Point>);

impl Tally {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.bits.fetch_add(n, Relaxed);
    }
}

/// A counter with labels.
#[derive(Clone, Debug)]
pub(super) struct Counter(Arc<Series<Point>>);

impl Counter {
    pub(super) fn new(meter: &Meter, name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        let series = Arc::new(Series::new(labels));
        let read = series.clone();
        meter
            .u64_observable_counter(name)
            .with_description(help)
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                read.each(|point: &Point| observer.observe(point.bits.load(Relaxed), &point.attributes));
            })
            .build();
        Self(series)
    }

    pub(super) fn with(&self, values: &[&str]) -> Tally {
        Tally(self.0.get(values, Point::new))
    }

    pub(super) fn add(&self, values: &[&str], n: u64) {
        self.with(values).add(n);
    }
}

/// A value with labels that goes up and down.
#[derive(Clone, Debug)]
pub(super) struct Gauge(Arc<Series<Point>>);

impl Gauge {
    pub(super) fn new(
        meter: &Meter,
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        let series = Arc::new(Series::new(labels));
        let read = series.clone();
        meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(help)
            .with_callback(move |observer: &dyn AsyncInstrument<f64>| {
                read.each(|point: &Point| {
                    observer.observe(f64::from_bits(point.bits.load(Relaxed)), &point.attributes);
                });
            })
            .build();
        Self(series)
    }

    pub(super) fn set(&self, values: &[&str], value: f64) {
        self.0.get(values, Point::new).bits.store(value.to_bits(), Relaxed);
    }

    /// Stops showing the series whose label values are `unwanted`.
    pub(super) fn forget(&self, unwanted: impl Fn(&[String]) -> bool) {
        self.0.forget(unwanted);
    }
}

/// A distribution with labels.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    histogram: Histogram<f64>,
    series: Arc<Series<Vec<KeyValue>>>,
}

impl Distribution {
    /// Of times, in seconds.
    pub(super) fn of_seconds(
        meter: &Meter,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(meter, name, "s", &SECONDS, labels, help)
    }

    /// Of numbers of items.
    pub(super) fn of_items(meter: &Meter, name: &'static str, help: &'static str) -> Self {
        Self::new(meter, name, "", &ITEMS, &[], help)
    }

    fn new(
        meter: &Meter,
        name: &'static str,
        unit: &'static str,
        boundaries: &[f64],
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        let histogram = meter
            .f64_histogram(name)
            .with_unit(unit)
            .with_boundaries(boundaries.to_vec())
            .with_description(help)
            .build();
        Self { histogram, series: Arc::new(Series::new(labels)) }
    }

    pub(super) fn seconds(&self, values: &[&str], time: Duration) {
        self.record(values, time.as_secs_f64());
    }

    pub(super) fn items(&self, count: usize) {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        self.record(&[], count as f64);
    }

    fn record(&self, values: &[&str], value: f64) {
        if values.is_empty() {
            self.histogram.record(value, &[]);
        } else {
            let attributes = self.series.get(values, |attributes| attributes);
            self.histogram.record(value, &attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_label_values_do_not_fill_the_memory() {
        let series = Series::new(&["code"]);
        for n in 0..5_000u64 {
            series.get(&[&n.to_string()], Point::new).bits.fetch_add(1, Relaxed);
        }
        let (mut known, mut counted) = (0, 0);
        series.each(|point: &Point| {
            known += 1;
            counted += point.bits.load(Relaxed);
        });
        assert_eq!((known, counted), (MOST_SERIES + 1, 5_000));
    }
}
