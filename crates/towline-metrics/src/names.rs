//! Every metric name, with its kind, unit, labels and description.
//!
//! Names follow Prometheus: prefix `towline_`, base units, `_total` on counters. Every metric carries the
//! label `node`; [`Metric::labels`] lists the ones it carries besides.

use metrics::{KeyName, Recorder, Unit};

use crate::labels;

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Only grows; starts at zero with the process.
    Counter,
    /// The current value.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One row of [`ALL`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// The name, one of the constants of this module.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// The labels it carries besides `node`, in order.
    pub labels: &'static [&'static str],
    /// The help text of the scrape, one or two sentences.
    pub description: &'static str,
}

/// Describes every metric of Towline to `recorder`: kind, unit and help text.
///
/// [`NodeMetrics::new`](crate::NodeMetrics::new) calls this for its recorder. Further calls change nothing.
pub fn describe(recorder: &dyn Recorder) {
    for metric in ALL {
        let name = KeyName::from_const_str(metric.name);
        let (unit, description) = (Some(metric.unit), metric.description.into());
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, unit, description),
            Kind::Gauge => recorder.describe_gauge(name, unit, description),
            Kind::Histogram => recorder.describe_histogram(name, unit, description),
        }
    }
}

// A constant and its row come from one entry, so neither can exist without the other.
macro_rules! metrics_table {
    ($($name:ident = $value:literal, $kind:ident, $unit:ident, [$($label:ident),*], $description:literal;)+) => {
        $(#[doc = $description] pub const $name: &str = $value;)+

        /// Every metric, once.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            unit: Unit::$unit,
            labels: &[$(labels::$label),*],
            description: $description,
        },)+];
    };
}

metrics_table! {
    MESSAGES_SENT = "towline_messages_sent_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Raft messages that the link's flow control accepted. This does not prove delivery.";
    MESSAGES_RECEIVED = "towline_messages_received_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Raft messages received, counted before any check.";
    MESSAGES_SUPERSEDED = "towline_received_superseded_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Received messages that a newer one of the same kind replaced before the shard read them.";
    PAYLOAD_SENT_BYTES = "towline_payload_sent_bytes_total", Counter, Bytes, [PEER, TRANSPORT, LANE],
        "Payload bytes of the messages sent, without framing.";
    PAYLOAD_RECEIVED_BYTES = "towline_payload_received_bytes_total", Counter, Bytes, [PEER, TRANSPORT, LANE],
        "Payload bytes of the messages received, without framing.";
    BATCHES_SENT = "towline_batches_sent_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Batches of messages that the link's flow control accepted.";
    MESSAGES_DROPPED = "towline_messages_dropped_total", Counter, Count, [PEER, TRANSPORT, LANE, REASON],
        "Outgoing messages dropped before they could reach the peer, by reason.";
    QUEUE_MESSAGES = "towline_queue_messages", Gauge, Count, [PEER, TRANSPORT, LANE],
        "Messages waiting in the lane's queue.";
    QUEUE_BYTES = "towline_queue_bytes", Gauge, Bytes, [PEER, TRANSPORT, LANE],
        "Bytes waiting in the lane's queue.";
    QUEUE_AGE_SECONDS = "towline_queue_age_seconds", Gauge, Seconds, [PEER, TRANSPORT, LANE],
        "Age of the oldest message in the lane's queue.";
    LINK_CONNECTS = "towline_link_connects_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Links established, handshake included.";
    LINK_CONNECT_FAILURES = "towline_link_connect_failures_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Failed attempts to establish a link.";
    LINKS_CLOSED = "towline_links_closed_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Established links that ended, for any cause.";
    NACKS_RECEIVED = "towline_nacks_received_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Nacks received from the peer. A nack refuses messages of one group.";
    NACKS_SENT = "towline_nacks_sent_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Nacks sent to the peer. A nack refuses messages of one group.";
    NACKS_DROPPED = "towline_nacks_dropped_total", Counter, Count, [PEER, TRANSPORT, LANE, REASON],
        "Nacks that were not sent to the peer, by reason.";

    REPORTS = "towline_reports_total", Counter, Count, [PEER, KIND, OUTCOME],
        "Reports about a peer to Raft, by outcome.";
    SNAPSHOT_PAYLOAD_BYTES = "towline_snapshot_payload_bytes_total", Counter, Bytes,
        [PEER, TRANSPORT, DIRECTION, OUTCOME],
        "Snapshot payload bytes moved, added when a transfer ends with any outcome.";
    SNAPSHOT_TRANSFERS = "towline_snapshot_transfers_total", Counter, Count,
        [PEER, TRANSPORT, DIRECTION, OUTCOME],
        "Snapshot transfers ended, by outcome.";

    GROUP_TERM = "towline_group_term", Gauge, Count, [GROUP],
        "The group's term on this node.";
    GROUP_ROLE = "towline_group_role", Gauge, Count, [GROUP],
        "0 follower, 1 candidate, 2 leader, 3 pre-candidate, 4 quarantined, 5 stopped.";
    GROUP_COMMIT_INDEX = "towline_group_commit_index", Gauge, Count, [GROUP],
        "Highest index known to be committed.";
    GROUP_APPLIED_INDEX = "towline_group_applied_index", Gauge, Count, [GROUP],
        "Highest index the state machine has applied.";
    GROUP_LAST_INDEX = "towline_group_last_index", Gauge, Count, [GROUP],
        "Last index of the log.";
    GROUP_WRITE_AGE_SECONDS = "towline_group_write_age_seconds", Gauge, Seconds, [GROUP],
        "Age of the group's oldest log write that is not durable; 0 if none is under way.";
    GROUP_APPLY_AGE_SECONDS = "towline_group_apply_age_seconds", Gauge, Seconds, [GROUP],
        "Time since the oldest committed entry that is not applied was given to the state machine; 0 if none waits.";
    GROUP_WAITING = "towline_group_waiting", Gauge, Count, [GROUP, CAUSE],
        "1 for each cause that the group waits for, on this node or, where it leads, on a peer; else 0.";
    GROUP_LEADER_CHANGES = "towline_group_leader_changes_total", Counter, Count, [GROUP],
        "Times this node saw the group's leader change.";
    GROUP_UNREADABLE = "towline_group_unreadable_total", Counter, Count, [GROUP],
        "Log positions where several reads in a row failed.";
    GROUP_SNAPSHOTS_WITHOUT_ROOM = "towline_group_snapshots_without_room_total", Counter, Count, [GROUP],
        "Snapshots of this node that were not begun because the disk has no room for them.";
    CAMPAIGNS = "towline_campaigns_total", Counter, Count, [GROUP],
        "Elections that this node started.";
    PROPOSALS = "towline_proposals_total", Counter, Count, [GROUP, OUTCOME],
        "Ended proposals of this node, by outcome.";
    PROPOSAL_PAYLOAD_BYTES = "towline_proposal_payload_bytes_total", Counter, Bytes, [GROUP],
        "Payload bytes of the proposals handed to Raft.";
    READS = "towline_reads_total", Counter, Count, [GROUP, OUTCOME],
        "Ended reads of this node, by outcome.";
    PROPOSAL_SECONDS = "towline_proposal_seconds", Histogram, Seconds, [GROUP],
        "Time from accepting a proposal to answering it.";
    COMMIT_SECONDS = "towline_commit_seconds", Histogram, Seconds, [GROUP],
        "Time from handing a proposal to Raft to its commit.";
    APPLY_SECONDS = "towline_apply_seconds", Histogram, Seconds, [GROUP],
        "Time that the state machine took to apply one batch.";
    APPLY_BATCH_ENTRIES = "towline_apply_batch_entries", Histogram, Count, [GROUP],
        "Entries in one batch handed to the state machine.";
    READ_SECONDS = "towline_read_seconds", Histogram, Seconds, [GROUP],
        "Time from a read request to its view, for served reads.";

    INBOUND_REJECTS = "towline_inbound_rejects_total", Counter, Count, [CAUSE],
        "Refused messages, hellos and connections from the network, by cause.";
    LOG_WRITES = "towline_log_writes_total", Counter, Count, [],
        "Durable log writes.";
    LOG_WRITE_SECONDS = "towline_log_write_seconds", Histogram, Seconds, [],
        "Time of one durable log write, sync included.";
    LOG_WRITE_BYTES = "towline_log_write_bytes", Histogram, Bytes, [],
        "Bytes in one durable log write.";
    LOG_WRITE_BATCHES = "towline_log_write_batches", Histogram, Count, [],
        "Group batches merged into one durable log write.";
    LOG_POISONED = "towline_log_poisoned_total", Counter, Count, [],
        "Failed log writes that poisoned the log.";
    DISK_FREE_BYTES = "towline_disk_free_bytes", Gauge, Bytes, [],
        "Free bytes of the disk that holds the log.";
    DISK_LOW = "towline_disk_low", Gauge, Count, [],
        "1 while the disk that holds the log is low and this node takes no commands; else 0.";
    DISK_LOOKS_FAILED = "towline_disk_looks_failed_total", Counter, Count, [],
        "Failed reads of the free space of the disk that holds the log.";
    SHARD_TURNS = "towline_shard_turns_total", Counter, Count, [],
        "Turns of the shard loop.";
    SHARD_TURN_SECONDS = "towline_shard_turn_seconds", Histogram, Seconds, [],
        "Time of one turn of the shard loop, waiting excluded.";
    TICKS_SKIPPED = "towline_ticks_skipped_total", Counter, Count, [],
        "Ticks skipped because the shard loop was busy. Skipped ticks are not replayed.";
    REPORTS_AFTER_CLOSE = "towline_reports_after_close_total", Counter, Count, [],
        "Reports posted after the node closed its mailbox.";
    METRICS_OVERFLOW = "towline_metrics_overflow_total", Counter, Count, [TABLE],
        "Handles requested beyond the bound of their table. They share one series.";
}
