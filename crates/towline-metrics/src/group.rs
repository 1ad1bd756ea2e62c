//! Metrics of each Raft group.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::handles::{PerLabel, Registrar, float, handles};
use crate::labels::{self, GroupRole, ProposalOutcome, ReadOutcome, WaitKind};

/// Handles for one Raft group on this node. Cloning shares them.
///
/// From [`NodeMetrics::group`](crate::NodeMetrics::group). Keep it; asking for it again takes a lock.
#[derive(Clone, Debug)]
pub struct GroupMetrics {
    handles: Arc<GroupHandles>,
}

handles! {
    struct GroupHandles for GroupMetrics {
        /// Sets the term.
        set term: Gauge = GROUP_TERM;
        only role: Gauge = GROUP_ROLE;
        /// Sets the commit index.
        set commit: Gauge = GROUP_COMMIT_INDEX;
        /// Sets the applied index.
        set applied: Gauge = GROUP_APPLIED_INDEX;
        /// Sets the last index of the log.
        set last_index: Gauge = GROUP_LAST_INDEX;
        only write_age: Gauge = GROUP_WRITE_AGE_SECONDS;
        only apply_age: Gauge = GROUP_APPLY_AGE_SECONDS;
        only waiting: PerLabel<WaitKind, Gauge> = GROUP_WAITING;
        /// Counts one change of leader that this node saw.
        count leader_changed: Counter = GROUP_LEADER_CHANGES;
        /// Counts one log position where several reads in a row failed.
        count unreadable: Counter = GROUP_UNREADABLE;
        /// Counts one snapshot that was not begun for lack of room.
        count snapshot_without_room: Counter = GROUP_SNAPSHOTS_WITHOUT_ROOM;
        /// Counts one election that this node started.
        count campaigned: Counter = CAMPAIGNS;
        only proposals: PerLabel<ProposalOutcome, Counter> = PROPOSALS;
        /// Adds payload bytes of proposals handed to Raft.
        add proposal_bytes: Counter = PROPOSAL_PAYLOAD_BYTES;
        only reads: PerLabel<ReadOutcome, Counter> = READS;
        /// Records the time from accepting one proposal to answering it.
        time proposal_time: Histogram = PROPOSAL_SECONDS;
        /// Records the time from handing one proposal to Raft to its commit.
        time commit_time: Histogram = COMMIT_SECONDS;
        only apply_time: Histogram = APPLY_SECONDS;
        only apply_batch_entries: Histogram = APPLY_BATCH_ENTRIES;
        only read_time: Histogram = READ_SECONDS;
    }
}

impl GroupMetrics {
    pub(crate) fn register(node: &Registrar<'_>, group: &str) -> Self {
        let group = node.with(labels::GROUP, group.to_owned());
        Self { handles: Arc::new(GroupHandles::register(&group)) }
    }

    /// Sets the role.
    pub fn role(&self, role: GroupRole) {
        self.handles.role.set(role.code());
    }

    /// Sets the age of the oldest write that is not durable, and of the oldest committed entry that is not applied.
    pub fn ages(&self, write: Duration, apply: Duration) {
        self.handles.write_age.set(write.as_secs_f64());
        self.handles.apply_age.set(apply.as_secs_f64());
    }

    /// Sets the gauges of these causes to 1, and all others to 0.
    pub fn waiting(&self, kinds: &[WaitKind]) {
        for kind in WaitKind::ALL {
            if let Some(gauge) = self.handles.waiting.of(*kind) {
                gauge.set(u32::from(kinds.contains(kind)));
            }
        }
    }

    /// Adds ended proposals.
    pub fn proposals(&self, outcome: ProposalOutcome, n: u64) {
        self.handles.proposals.add(outcome, n);
    }

    /// Records one batch of the state machine: its time and its number of entries.
    pub fn apply(&self, elapsed: Duration, entries: u64) {
        self.handles.apply_time.record(elapsed.as_secs_f64());
        self.handles.apply_batch_entries.record(float(entries));
    }

    /// Counts one read that got its view, and records its time.
    pub fn read_served(&self, elapsed: Duration) {
        self.handles.reads.add(ReadOutcome::Served, 1);
        self.handles.read_time.record(elapsed.as_secs_f64());
    }

    /// Counts one read that ended with an error.
    pub fn read_failed(&self) {
        self.handles.reads.add(ReadOutcome::Failed, 1);
    }
}
