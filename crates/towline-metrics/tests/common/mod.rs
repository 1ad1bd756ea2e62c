//! A recorder that remembers everything, for tests.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use towline_metrics::names::Kind;

/// Name, then labels in the order they were given: `name{a=x,b=y}`.
pub(crate) type Series = String;

#[derive(Debug, Clone, Default)]
pub(crate) struct Recorded {
    pub(crate) kinds: BTreeMap<Series, (Kind, String, Vec<String>)>,
    pub(crate) values: BTreeMap<Series, f64>,
    pub(crate) samples: BTreeMap<Series, Vec<f64>>,
    pub(crate) described: BTreeMap<String, (Kind, Option<Unit>, String)>,
    pub(crate) registrations: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    recorded: Arc<Mutex<Recorded>>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn shared(&self) -> towline_metrics::SharedRecorder {
        Arc::new(self.clone())
    }

    pub(crate) fn recorded(&self) -> Recorded {
        self.recorded.lock().unwrap().clone()
    }

    /// The value of a counter or gauge that must exist.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let recorded = self.recorded();
        *recorded.values.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", recorded.values.keys()))
    }

    /// The samples of a histogram that must exist.
    pub(crate) fn samples(&self, series: &str) -> Vec<f64> {
        let recorded = self.recorded();
        recorded.samples.get(series).unwrap_or_else(|| panic!("no {series}")).clone()
    }

    fn register(&self, kind: Kind, key: &Key) -> Arc<Handle> {
        let labels: Vec<_> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
        let names = key.labels().map(|l| l.key().to_owned()).collect();
        let series = format!("{}{{{}}}", key.name(), labels.join(","));
        let mut recorded = self.recorded.lock().unwrap();
        recorded.registrations += 1;
        recorded.kinds.insert(series.clone(), (kind, key.name().to_owned(), names));
        match kind {
            Kind::Histogram => drop(recorded.samples.entry(series.clone()).or_default()),
            _ => drop(recorded.values.entry(series.clone()).or_default()),
        }
        Arc::new(Handle { series, memory: self.clone() })
    }

    fn describe(&self, kind: Kind, name: KeyName, unit: Option<Unit>, text: SharedString) {
        let row = (kind, unit, text.to_string());
        self.recorded.lock().unwrap().described.insert(name.as_str().to_owned(), row);
    }
}

impl Recorder for Memory {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(Kind::Counter, key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(Kind::Gauge, key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(Kind::Histogram, key, unit, description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register(Kind::Counter, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register(Kind::Gauge, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.register(Kind::Histogram, key))
    }
}

struct Handle {
    series: Series,
    memory: Memory,
}

impl Handle {
    fn update(&self, f: impl FnOnce(&mut f64)) {
        f(self.memory.recorded.lock().unwrap().values.entry(self.series.clone()).or_default());
    }
}

impl CounterFn for Handle {
    fn increment(&self, value: u64) {
        self.update(|v| *v += value as f64);
    }

    fn absolute(&self, value: u64) {
        self.update(|v| *v = v.max(value as f64));
    }
}

impl GaugeFn for Handle {
    fn increment(&self, value: f64) {
        self.update(|v| *v += value);
    }

    fn decrement(&self, value: f64) {
        self.update(|v| *v -= value);
    }

    fn set(&self, value: f64) {
        self.update(|v| *v = value);
    }
}

impl HistogramFn for Handle {
    fn record(&self, value: f64) {
        self.memory.recorded.lock().unwrap().samples.entry(self.series.clone()).or_default().push(value);
    }
}
