//! Makes handles. Labels are assembled once, when a handle is made.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};

use crate::labels::Closed;

static METADATA: Metadata<'static> = Metadata::new("towline", Level::INFO, Some(module_path!()));

/// Registers metrics that share a set of labels.
pub(crate) struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    labels: Vec<Label>,
    gauges: bool,
}

impl<'a> Registrar<'a> {
    pub(crate) fn new(recorder: &'a dyn Recorder) -> Self {
        Self { recorder, labels: Vec::new(), gauges: true }
    }

    /// The same with one more label.
    pub(crate) fn with(&self, label: &'static str, value: impl Into<SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(label, value));
        Self { recorder: self.recorder, labels, gauges: self.gauges }
    }

    /// The same, but gauges do nothing. Several owners can add to one counter. A gauge with several owners would
    /// show the value of the last one.
    pub(crate) fn without_gauges(self) -> Self {
        Self { gauges: false, ..self }
    }

    pub(crate) fn counter(&self, name: &'static str) -> Counter {
        self.recorder.register_counter(&self.key(name), &METADATA)
    }

    pub(crate) fn gauge(&self, name: &'static str) -> Gauge {
        if self.gauges { self.recorder.register_gauge(&self.key(name), &METADATA) } else { Gauge::noop() }
    }

    pub(crate) fn histogram(&self, name: &'static str) -> Histogram {
        self.recorder.register_histogram(&self.key(name), &METADATA)
    }

    /// One handle per value of a closed label.
    pub(crate) fn per<L: Closed, H>(
        &self,
        label: &'static str,
        make: impl Fn(&Registrar<'a>) -> H,
    ) -> PerLabel<L, H> {
        let handles = L::VALUES.iter().map(|value| make(&self.with(label, value.value()))).collect();
        PerLabel { handles, label: PhantomData }
    }

    fn key(&self, name: &'static str) -> Key {
        Key::from_parts(name, self.labels.clone())
    }
}

/// A handle for each value of the label `L`.
#[derive(Debug)]
pub(crate) struct PerLabel<L, H> {
    handles: Box<[H]>,
    label: PhantomData<fn(L)>,
}

impl<L: Closed, H> PerLabel<L, H> {
    /// Always `Some`: the table is built from the same list that gives the positions.
    pub(crate) fn of(&self, value: L) -> Option<&H> {
        self.handles.get(value.position())
    }
}

impl<L: Closed> PerLabel<L, Counter> {
    pub(crate) fn add(&self, value: L, n: u64) {
        if let Some(counter) = self.of(value) {
            counter.increment(n);
        }
    }
}

/// Gauges and histograms hold `f64`: values above 2^53 lose their last digits, which a graph does not show.
pub(crate) fn float(n: u64) -> f64 {
    n as f64
}
