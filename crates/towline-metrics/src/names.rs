//! Every metric name, with its kind, unit, labels and description.
//!
//! Names follow Prometheus: prefix `towline_`, base units, `_total` on counters. Every metric carries the
//! label `node`; [`Metric::labels`] lists the ones it carries besides.

use metrics::{KeyName, Recorder, Unit};

use crate::labels;

/// What sort of metric a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Only ever grows, from zero at each start of the process.
    Counter,
    /// The present value.
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
    /// One sentence for whoever reads the scrape.
    pub description: &'static str,
}

/// Tells `recorder` the kind, unit and description of every metric of Towline.
///
/// [`NodeMetrics::new`](crate::NodeMetrics::new) does this for its recorder; repeating it does no harm.
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
        "Raft messages the link's flow control took; not proof of delivery.";
    MESSAGES_RECEIVED = "towline_messages_received_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Raft messages received, before any check.";
    MESSAGES_SUPERSEDED = "towline_received_superseded_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Received messages whose place a newer one of the same kind took before the shard looked.";
    PAYLOAD_SENT_BYTES = "towline_payload_sent_bytes_total", Counter, Bytes, [PEER, TRANSPORT, LANE],
        "Payload bytes of the messages sent, without framing.";
    PAYLOAD_RECEIVED_BYTES = "towline_payload_received_bytes_total", Counter, Bytes, [PEER, TRANSPORT, LANE],
        "Payload bytes of the messages received, without framing.";
    BATCHES_SENT = "towline_batches_sent_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Batches of messages the link's flow control took.";
    MESSAGES_DROPPED = "towline_messages_dropped_total", Counter, Count, [PEER, TRANSPORT, LANE, REASON],
        "Outgoing messages dropped before the peer could have them, by reason.";
    QUEUE_MESSAGES = "towline_queue_messages", Gauge, Count, [PEER, TRANSPORT, LANE],
        "Messages waiting in the lane's queue.";
    QUEUE_BYTES = "towline_queue_bytes", Gauge, Bytes, [PEER, TRANSPORT, LANE],
        "Bytes waiting in the lane's queue.";
    QUEUE_AGE_SECONDS = "towline_queue_age_seconds", Gauge, Seconds, [PEER, TRANSPORT, LANE],
        "Age of the oldest message in the lane's queue.";
    LINK_CONNECTS = "towline_link_connects_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Links established, handshake included.";
    LINK_CONNECT_FAILURES = "towline_link_connect_failures_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Attempts to establish a link that failed.";
    LINKS_CLOSED = "towline_links_closed_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Established links that ended, for any cause.";
    NACKS_RECEIVED = "towline_nacks_received_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Refusals of messages of one group, received from the peer.";
    NACKS_SENT = "towline_nacks_sent_total", Counter, Count, [PEER, TRANSPORT, LANE],
        "Refusals of messages of one group, sent to the peer.";
    NACKS_DROPPED = "towline_nacks_dropped_total", Counter, Count, [PEER, TRANSPORT, LANE, REASON],
        "Refusals of messages of one group that the peer was not told, by reason.";

    REPORTS = "towline_reports_total", Counter, Count, [PEER, KIND, OUTCOME],
        "Reports about a peer meant for Raft, by what became of them.";
    SNAPSHOT_PAYLOAD_BYTES = "towline_snapshot_payload_bytes_total", Counter, Bytes,
        [PEER, TRANSPORT, DIRECTION, OUTCOME],
        "Snapshot payload bytes moved, recorded when the transfer ends, whatever its end.";
    SNAPSHOT_TRANSFERS = "towline_snapshot_transfers_total", Counter, Count,
        [PEER, TRANSPORT, DIRECTION, OUTCOME],
        "Snapshot transfers ended, by outcome.";

    GROUP_TERM = "towline_group_term", Gauge, Count, [GROUP],
        "The group's term on this node.";
    GROUP_ROLE = "towline_group_role", Gauge, Count, [GROUP],
        "0 follower, 1 candidate, 2 leader, 3 pre-candidate, 4 quarantined.";
    GROUP_COMMIT_INDEX = "towline_group_commit_index", Gauge, Count, [GROUP],
        "Highest index known to be committed.";
    GROUP_APPLIED_INDEX = "towline_group_applied_index", Gauge, Count, [GROUP],
        "Highest index the state machine has applied.";
    GROUP_LAST_INDEX = "towline_group_last_index", Gauge, Count, [GROUP],
        "Last index of the log.";
    GROUP_LEADER_CHANGES = "towline_group_leader_changes_total", Counter, Count, [GROUP],
        "Times this node saw the group's leader change.";
    GROUP_UNREADABLE = "towline_group_unreadable_total", Counter, Count, [GROUP],
        "Places of the log that could not be read several times in a row.";
    CAMPAIGNS = "towline_campaigns_total", Counter, Count, [GROUP],
        "Elections this node started.";
    PROPOSALS = "towline_proposals_total", Counter, Count, [GROUP, OUTCOME],
        "Proposals made on this node that ended, by outcome.";
    PROPOSAL_PAYLOAD_BYTES = "towline_proposal_payload_bytes_total", Counter, Bytes, [GROUP],
        "Payload bytes of the proposals handed to Raft.";
    READS = "towline_reads_total", Counter, Count, [GROUP, OUTCOME],
        "Reads on this node that ended, by outcome.";
    PROPOSAL_SECONDS = "towline_proposal_seconds", Histogram, Seconds, [GROUP],
        "From accepting a proposal to its answer.";
    COMMIT_SECONDS = "towline_commit_seconds", Histogram, Seconds, [GROUP],
        "From handing a proposal to Raft to its commit.";
    APPLY_SECONDS = "towline_apply_seconds", Histogram, Seconds, [GROUP],
        "Time the state machine took for one batch.";
    APPLY_BATCH_ENTRIES = "towline_apply_batch_entries", Histogram, Count, [GROUP],
        "Entries in one batch handed to the state machine.";
    READ_SECONDS = "towline_read_seconds", Histogram, Seconds, [GROUP],
        "From asking for a read to its view, for reads that were served.";

    INBOUND_REJECTS = "towline_inbound_rejects_total", Counter, Count, [CAUSE],
        "Things that came in from the network and were refused, by cause.";
    LOG_WRITES = "towline_log_writes_total", Counter, Count, [],
        "Durable log writes.";
    LOG_WRITE_SECONDS = "towline_log_write_seconds", Histogram, Seconds, [],
        "Time of one durable log write, sync included.";
    LOG_WRITE_BYTES = "towline_log_write_bytes", Histogram, Bytes, [],
        "Bytes in one durable log write.";
    LOG_WRITE_BATCHES = "towline_log_write_batches", Histogram, Count, [],
        "Group batches merged into one durable log write.";
    LOG_POISONED = "towline_log_poisoned_total", Counter, Count, [],
        "Failed log writes after which the log takes no more.";
    SHARD_TURNS = "towline_shard_turns_total", Counter, Count, [],
        "Turns of the shard loop.";
    SHARD_TURN_SECONDS = "towline_shard_turn_seconds", Histogram, Seconds, [],
        "Time of one turn of the shard loop, waiting excluded.";
    TICKS_SKIPPED = "towline_ticks_skipped_total", Counter, Count, [],
        "Ticks that were due while the shard loop was busy, and were not replayed.";
    REPORTS_AFTER_CLOSE = "towline_reports_after_close_total", Counter, Count, [],
        "Reports posted after the node had closed its mailbox.";
    METRICS_OVERFLOW = "towline_metrics_overflow_total", Counter, Count, [TABLE],
        "Handles asked for beyond the bound of their table; they share one series.";
}
