//! Metrics of each Raft group.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::handles::{PerLabel, Registrar, float};
use crate::labels::{self, GroupRole, ProposalOutcome, ReadOutcome};
use crate::names;

/// Handles for one Raft group on this node. Cloning shares them.
///
/// From [`NodeMetrics::group`](crate::NodeMetrics::group). Keep it; asking for it again takes a lock.
#[derive(Clone, Debug)]
pub struct GroupMetrics {
    handles: Arc<Handles>,
}

#[derive(Debug)]
struct Handles {
    term: Gauge,
    role: Gauge,
    commit: Gauge,
    applied: Gauge,
    last_index: Gauge,
    leader_changes: Counter,
    unreadable: Counter,
    campaigns: Counter,
    proposals: PerLabel<ProposalOutcome, Counter>,
    proposal_bytes: Counter,
    reads: PerLabel<ReadOutcome, Counter>,
    proposal_seconds: Histogram,
    commit_seconds: Histogram,
    apply_seconds: Histogram,
    apply_batch_entries: Histogram,
    read_seconds: Histogram,
}

impl GroupMetrics {
    pub(crate) fn register(node: &Registrar<'_>, group: &str) -> Self {
        let group = node.with(labels::GROUP, group.to_owned());
        let handles = Handles {
            term: group.gauge(names::GROUP_TERM),
            role: group.gauge(names::GROUP_ROLE),
            commit: group.gauge(names::GROUP_COMMIT_INDEX),
            applied: group.gauge(names::GROUP_APPLIED_INDEX),
            last_index: group.gauge(names::GROUP_LAST_INDEX),
            leader_changes: group.counter(names::GROUP_LEADER_CHANGES),
            unreadable: group.counter(names::GROUP_UNREADABLE),
            campaigns: group.counter(names::CAMPAIGNS),
            proposals: group.per(labels::OUTCOME, |outcome| outcome.counter(names::PROPOSALS)),
            proposal_bytes: group.counter(names::PROPOSAL_PAYLOAD_BYTES),
            reads: group.per(labels::OUTCOME, |outcome| outcome.counter(names::READS)),
            proposal_seconds: group.histogram(names::PROPOSAL_SECONDS),
            commit_seconds: group.histogram(names::COMMIT_SECONDS),
            apply_seconds: group.histogram(names::APPLY_SECONDS),
            apply_batch_entries: group.histogram(names::APPLY_BATCH_ENTRIES),
            read_seconds: group.histogram(names::READ_SECONDS),
        };
        Self { handles: Arc::new(handles) }
    }

    /// Sets the term.
    pub fn term(&self, term: u64) {
        self.handles.term.set(float(term));
    }

    /// Sets the role.
    pub fn role(&self, role: GroupRole) {
        self.handles.role.set(role.code());
    }

    /// Sets the commit index.
    pub fn commit(&self, index: u64) {
        self.handles.commit.set(float(index));
    }

    /// Sets the applied index.
    pub fn applied(&self, index: u64) {
        self.handles.applied.set(float(index));
    }

    /// Sets the last index of the log.
    pub fn last_index(&self, index: u64) {
        self.handles.last_index.set(float(index));
    }

    /// Counts one change of leader that this node saw.
    pub fn leader_changed(&self) {
        self.handles.leader_changes.increment(1);
    }

    /// Counts one log position where several reads in a row failed.
    pub fn unreadable(&self) {
        self.handles.unreadable.increment(1);
    }

    /// Counts one election that this node started.
    pub fn campaigned(&self) {
        self.handles.campaigns.increment(1);
    }

    /// Adds ended proposals.
    pub fn proposals(&self, outcome: ProposalOutcome, n: u64) {
        self.handles.proposals.add(outcome, n);
    }

    /// Adds payload bytes of proposals handed to Raft.
    pub fn proposal_bytes(&self, bytes: u64) {
        self.handles.proposal_bytes.increment(bytes);
    }

    /// Records the time from accepting one proposal to answering it.
    pub fn proposal_time(&self, elapsed: Duration) {
        self.handles.proposal_seconds.record(elapsed.as_secs_f64());
    }

    /// Records the time from handing one proposal to Raft to its commit.
    pub fn commit_time(&self, elapsed: Duration) {
        self.handles.commit_seconds.record(elapsed.as_secs_f64());
    }

    /// Records one batch of the state machine: its time and its number of entries.
    pub fn apply(&self, elapsed: Duration, entries: u64) {
        self.handles.apply_seconds.record(elapsed.as_secs_f64());
        self.handles.apply_batch_entries.record(float(entries));
    }

    /// Counts one read that got its view, and records its time.
    pub fn read_served(&self, elapsed: Duration) {
        self.handles.reads.add(ReadOutcome::Served, 1);
        self.handles.read_seconds.record(elapsed.as_secs_f64());
    }

    /// Counts one read that ended with an error.
    pub fn read_failed(&self) {
        self.handles.reads.add(ReadOutcome::Failed, 1);
    }
}
