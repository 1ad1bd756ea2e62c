//! Metrics of each peer and of each lane to a peer.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};

use crate::bytes_io::RecordTotal;
use crate::handles::{PerLabel, Registrar, float};
use crate::labels::{
    self, Direction, DropReason, Lane, NackDropReason, ReportKind, ReportOutcome, SnapshotOutcome,
};
use crate::names;

/// Handles for one peer over one transport. Cloning shares them.
///
/// From [`NodeMetrics::peer`](crate::NodeMetrics::peer). Keep it; asking for it again takes a lock.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    handles: Arc<Handles>,
}

#[derive(Debug)]
struct Handles {
    control: LaneMetrics,
    append: LaneMetrics,
    snapshot: LaneMetrics,
    reports: PerLabel<ReportKind, PerLabel<ReportOutcome, Counter>>,
    snapshot_payload: PerLabel<Direction, PerLabel<SnapshotOutcome, Counter>>,
    snapshot_transfers: PerLabel<Direction, PerLabel<SnapshotOutcome, Counter>>,
}

impl PeerMetrics {
    /// `node` carries the node label; `transport` and `peer` are added here.
    pub(crate) fn register(node: &Registrar<'_>, peer: &str, transport: &'static str) -> Self {
        let peer = node.with(labels::PEER, peer.to_owned());
        // Without the transport's label: the code that posts a report often does not know the transport.
        let reports = peer
            .per(labels::KIND, |kind| kind.per(labels::OUTCOME, |outcome| outcome.counter(names::REPORTS)));
        let link = peer.with(labels::TRANSPORT, transport);
        let lane = |lane: Lane| LaneMetrics::register(&link.with(labels::LANE, lane.as_str()));
        let transfers = |name: &'static str| {
            link.per(labels::DIRECTION, |direction| {
                direction.per(labels::OUTCOME, |outcome| outcome.counter(name))
            })
        };
        let handles = Handles {
            control: lane(Lane::Control),
            append: lane(Lane::Append),
            snapshot: lane(Lane::Snapshot),
            reports,
            snapshot_payload: transfers(names::SNAPSHOT_PAYLOAD_BYTES),
            snapshot_transfers: transfers(names::SNAPSHOT_TRANSFERS),
        };
        Self { handles: Arc::new(handles) }
    }

    /// The handles of one lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> &LaneMetrics {
        match lane {
            Lane::Control => &self.handles.control,
            Lane::Append => &self.handles.append,
            Lane::Snapshot => &self.handles.snapshot,
        }
    }

    /// Counts reports about this peer.
    pub fn reports(&self, kind: ReportKind, outcome: ReportOutcome, n: u64) {
        if let Some(outcomes) = self.handles.reports.of(kind) {
            outcomes.add(outcome, n);
        }
    }

    /// The counter of snapshot payload bytes. [`snapshot_ended`](Self::snapshot_ended) adds to it.
    pub fn snapshot_payload(&self, direction: Direction, outcome: SnapshotOutcome) -> Counter {
        counter_of(&self.handles.snapshot_payload, direction, outcome)
    }

    /// The counter of snapshot transfers. [`snapshot_ended`](Self::snapshot_ended) adds to it.
    pub fn snapshot_transfers(&self, direction: Direction, outcome: SnapshotOutcome) -> Counter {
        counter_of(&self.handles.snapshot_transfers, direction, outcome)
    }

    /// Counts one transfer that ended and the payload bytes it moved. For a transfer that never got a
    /// reader or writer (refused, already had) call this with `bytes` 0.
    pub fn snapshot_ended(&self, direction: Direction, outcome: SnapshotOutcome, bytes: u64) {
        self.snapshot_payload(direction, outcome).increment(bytes);
        self.snapshot_transfers(direction, outcome).increment(1);
    }

    /// [`snapshot_ended`](Self::snapshot_ended) as the callback that a
    /// [`CountingReader`](crate::CountingReader) or [`CountingWriter`](crate::CountingWriter) takes.
    /// Wrap it in a closure of your own to log the total as well.
    #[must_use]
    pub fn snapshot_record(&self, direction: Direction) -> impl RecordTotal + use<> {
        let peer = self.clone();
        move |outcome: SnapshotOutcome, bytes: u64| peer.snapshot_ended(direction, outcome, bytes)
    }
}

fn counter_of<A: labels::Closed, B: labels::Closed>(
    table: &PerLabel<A, PerLabel<B, Counter>>,
    a: A,
    b: B,
) -> Counter {
    table.of(a).and_then(|row| row.of(b)).cloned().unwrap_or_else(Counter::noop)
}

/// Handles for one lane to one peer. Counts are added; gauges are set.
#[derive(Debug)]
pub struct LaneMetrics {
    messages_sent: Counter,
    messages_received: Counter,
    messages_superseded: Counter,
    payload_bytes_sent: Counter,
    payload_bytes_received: Counter,
    batches_sent: Counter,
    dropped: PerLabel<DropReason, Counter>,
    queue_messages: Gauge,
    queue_bytes: Gauge,
    queue_age_seconds: Gauge,
    connects: Counter,
    connect_failures: Counter,
    link_closed: Counter,
    nacks_received: Counter,
    nacks_sent: Counter,
    nacks_dropped: PerLabel<NackDropReason, Counter>,
}

impl LaneMetrics {
    fn register(lane: &Registrar<'_>) -> Self {
        Self {
            messages_sent: lane.counter(names::MESSAGES_SENT),
            messages_received: lane.counter(names::MESSAGES_RECEIVED),
            messages_superseded: lane.counter(names::MESSAGES_SUPERSEDED),
            payload_bytes_sent: lane.counter(names::PAYLOAD_SENT_BYTES),
            payload_bytes_received: lane.counter(names::PAYLOAD_RECEIVED_BYTES),
            batches_sent: lane.counter(names::BATCHES_SENT),
            dropped: lane.per(labels::REASON, |reason| reason.counter(names::MESSAGES_DROPPED)),
            queue_messages: lane.gauge(names::QUEUE_MESSAGES),
            queue_bytes: lane.gauge(names::QUEUE_BYTES),
            queue_age_seconds: lane.gauge(names::QUEUE_AGE_SECONDS),
            connects: lane.counter(names::LINK_CONNECTS),
            connect_failures: lane.counter(names::LINK_CONNECT_FAILURES),
            link_closed: lane.counter(names::LINKS_CLOSED),
            nacks_received: lane.counter(names::NACKS_RECEIVED),
            nacks_sent: lane.counter(names::NACKS_SENT),
            nacks_dropped: lane.per(labels::REASON, |reason| reason.counter(names::NACKS_DROPPED)),
        }
    }

    /// Adds messages that the link accepted.
    pub fn messages_sent(&self, n: u64) {
        self.messages_sent.increment(n);
    }

    /// Adds received messages, before any check.
    pub fn messages_received(&self, n: u64) {
        self.messages_received.increment(n);
    }

    /// Adds received messages that newer ones replaced before the shard read them.
    pub fn messages_superseded(&self, n: u64) {
        self.messages_superseded.increment(n);
    }

    /// Adds payload bytes of messages that the link accepted.
    pub fn payload_bytes_sent(&self, bytes: u64) {
        self.payload_bytes_sent.increment(bytes);
    }

    /// Adds payload bytes of received messages.
    pub fn payload_bytes_received(&self, bytes: u64) {
        self.payload_bytes_received.increment(bytes);
    }

    /// Adds batches that the link accepted.
    pub fn batches_sent(&self, n: u64) {
        self.batches_sent.increment(n);
    }

    /// Adds outgoing messages that were dropped.
    pub fn dropped(&self, reason: DropReason, n: u64) {
        self.dropped.add(reason, n);
    }

    /// Sets the number of messages waiting.
    pub fn queue_messages(&self, n: u64) {
        self.queue_messages.set(float(n));
    }

    /// Sets the number of bytes waiting.
    pub fn queue_bytes(&self, bytes: u64) {
        self.queue_bytes.set(float(bytes));
    }

    /// Sets the age of the oldest message waiting; zero when none waits.
    pub fn queue_age(&self, age: Duration) {
        self.queue_age_seconds.set(age.as_secs_f64());
    }

    /// Counts one established link.
    pub fn connected(&self) {
        self.connects.increment(1);
    }

    /// Counts one failed attempt to establish a link.
    pub fn connect_failed(&self) {
        self.connect_failures.increment(1);
    }

    /// Counts one established link that ended.
    pub fn link_closed(&self) {
        self.link_closed.increment(1);
    }

    /// Adds nacks received.
    pub fn nacks_received(&self, n: u64) {
        self.nacks_received.increment(n);
    }

    /// Adds nacks sent.
    pub fn nacks_sent(&self, n: u64) {
        self.nacks_sent.increment(n);
    }

    /// Adds nacks that were not sent to the peer.
    pub fn nacks_dropped(&self, reason: NackDropReason, n: u64) {
        self.nacks_dropped.add(reason, n);
    }
}
