//! Metrics of each peer and of each lane to a peer.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};

use crate::handles::{Handle as _, PerLabel, Registrar, handles};
use crate::labels::{
    self, Direction, DropReason, Lane, NackDropReason, ReportKind, ReportOutcome, SnapshotOutcome,
};
use crate::names;
use crate::tally::RecordTotal;

/// Handles for one peer over one transport. Cloning shares them.
///
/// From [`NodeMetrics::peer`](crate::NodeMetrics::peer). Keep it; asking for it again takes a lock.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    handles: Arc<PeerHandles>,
}

#[derive(Debug)]
struct PeerHandles {
    control: LaneMetrics,
    append: LaneMetrics,
    snapshot: LaneMetrics,
    reports: PerLabel<ReportKind, PerLabel<ReportOutcome, Counter>>,
    snapshot_payload: Transfers,
    snapshot_transfers: Transfers,
}

type Transfers = PerLabel<Direction, PerLabel<SnapshotOutcome, Counter>>;

impl PeerMetrics {
    /// `node` carries the node label; `transport` and `peer` are added here.
    pub(crate) fn register(node: &Registrar<'_>, peer: &str, transport: &'static str) -> Self {
        let peer = node.with(labels::PEER, peer.to_owned());
        // Without the transport's label: the code that posts a report often does not know the transport.
        let reports = PerLabel::register(&peer, names::REPORTS);
        let link = peer.with(labels::TRANSPORT, transport);
        let lane = |lane: Lane| LaneMetrics::register(&link.with(labels::LANE, lane.as_str()));
        let handles = PeerHandles {
            control: lane(Lane::Control),
            append: lane(Lane::Append),
            snapshot: lane(Lane::Snapshot),
            reports,
            snapshot_payload: PerLabel::register(&link, names::SNAPSHOT_PAYLOAD_BYTES),
            snapshot_transfers: PerLabel::register(&link, names::SNAPSHOT_TRANSFERS),
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

    /// Counts one ended transfer and its payload bytes; zero for one that moved none (refused, already had).
    pub fn snapshot_ended(&self, direction: Direction, outcome: SnapshotOutcome, bytes: u64) {
        self.snapshot_payload(direction, outcome).increment(bytes);
        self.snapshot_transfers(direction, outcome).increment(1);
    }

    /// [`snapshot_ended`](Self::snapshot_ended) as the callback of a [`ByteTally`](crate::ByteTally).
    #[must_use]
    pub fn snapshot_record(&self, direction: Direction) -> impl RecordTotal + use<> {
        let peer = self.clone();
        move |outcome: SnapshotOutcome, bytes: u64| peer.snapshot_ended(direction, outcome, bytes)
    }
}

fn counter_of(table: &Transfers, direction: Direction, outcome: SnapshotOutcome) -> Counter {
    table.of(direction).and_then(|row| row.of(outcome)).cloned().unwrap_or_else(Counter::noop)
}

handles! {
    /// Handles for one lane to one peer. Counts are added; gauges are set.
    pub struct LaneMetrics {
        /// Adds messages that the link accepted.
        add messages_sent: Counter = MESSAGES_SENT;
        /// Adds received messages, before any check.
        add messages_received: Counter = MESSAGES_RECEIVED;
        /// Adds received messages that newer ones replaced before the shard read them.
        add messages_superseded: Counter = MESSAGES_SUPERSEDED;
        /// Adds payload bytes of messages that the link accepted.
        add payload_bytes_sent: Counter = PAYLOAD_SENT_BYTES;
        /// Adds payload bytes of received messages.
        add payload_bytes_received: Counter = PAYLOAD_RECEIVED_BYTES;
        /// Adds batches that the link accepted.
        add batches_sent: Counter = BATCHES_SENT;
        only dropped: PerLabel<DropReason, Counter> = MESSAGES_DROPPED;
        /// Sets the number of messages waiting.
        set queue_messages: Gauge = QUEUE_MESSAGES;
        /// Sets the number of bytes waiting.
        set queue_bytes: Gauge = QUEUE_BYTES;
        only queue_age: Gauge = QUEUE_AGE_SECONDS;
        /// Counts one established link.
        count connected: Counter = LINK_CONNECTS;
        /// Counts one failed attempt to establish a link.
        count connect_failed: Counter = LINK_CONNECT_FAILURES;
        /// Counts one established link that ended.
        count link_closed: Counter = LINKS_CLOSED;
        /// Adds nacks received.
        add nacks_received: Counter = NACKS_RECEIVED;
        /// Adds nacks sent.
        add nacks_sent: Counter = NACKS_SENT;
        only nacks_dropped: PerLabel<NackDropReason, Counter> = NACKS_DROPPED;
    }
}

impl LaneMetrics {
    /// Adds outgoing messages that were dropped.
    pub fn dropped(&self, reason: DropReason, n: u64) {
        self.dropped.add(reason, n);
    }

    /// Sets the age of the oldest message waiting; zero when none waits.
    pub fn queue_age(&self, age: Duration) {
        self.queue_age.set(age.as_secs_f64());
    }

    /// Adds nacks that were not sent to the peer.
    pub fn nacks_dropped(&self, reason: NackDropReason, n: u64) {
        self.nacks_dropped.add(reason, n);
    }
}
