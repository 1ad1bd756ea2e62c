//! The counters of nodes, for tests.

use super::*;
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use towline_metrics::NodeMetrics;

pub(crate) const BYTES: &str = "towline_snapshot_payload_bytes_total";
pub(crate) const TRANSFERS: &str = "towline_snapshot_transfers_total";
pub(crate) const REPORTS: &str = "towline_reports_total";

/// Records every counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    counters: Arc<Mutex<BTreeMap<String, Arc<Count>>>>,
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Counts {
    /// The sum of all series of `name` that carry all of `labels`, for example `"node=1 direction=sent"`.
    pub(crate) fn sum(&self, name: &str, labels: &str) -> u64 {
        let counters = self.counters.lock().unwrap();
        let matching = counters.iter().filter(|(series, _)| {
            let mut parts = series.split(',');
            parts.next() == Some(name)
                && labels
                    .split(' ')
                    .all(|label| label.is_empty() || series.split(',').any(|part| part == label))
        });
        matching.map(|(_, count)| count.0.load(Ordering::Relaxed)).sum()
    }

    /// For [`Plan::customise`](towline_testkit::cluster::Plan::customise).
    pub(crate) fn on(&self) -> impl Fn(NodeId, NodeBuilder) -> NodeBuilder + Send + Sync + 'static {
        let counts = self.clone();
        move |id, builder| builder.metrics(NodeMetrics::new(id.as_u64(), Some(Arc::new(counts.clone()))))
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels = key.labels().map(|l| format!(",{}={}", l.key(), l.value())).collect::<String>();
        let mut counters = self.counters.lock().unwrap();
        Counter::from_arc(counters.entry(format!("{}{labels}", key.name())).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
