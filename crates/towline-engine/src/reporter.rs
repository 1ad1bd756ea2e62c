//! Telling Raft the truth about the wire.
//!
//! A leader that sent a snapshot to a peer sends it nothing but heartbeats until somebody reports how the snapshot
//! ended; there is no timer. So a report must never be forgotten, never be lost, and never be applied to another
//! attempt than its own. Three types see to that:
//!
//! * [`SnapshotTicket`]: the obligation to report. It is consumed by [`finish`](SnapshotTicket::finish) or
//!   [`fail`](SnapshotTicket::fail); dropping it on any path reports a failure.
//! * [`Reporter`]: where workers post. [`Mailbox`] implements it with one cell a (group, peer): bounded by the number
//!   of peers, so it cannot overflow and never has to block or to drop the outcome of a snapshot.
//! * [`RaftReports`]: what Raft is told, whoever found it out: the mailbox, or the watchdog. The raft crate's node
//!   implements it; a test that counts places a [`RaftDoor`] before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use towline_metrics::labels::{ReportKind, ReportOutcome};

use crate::ids::{GroupId, NodeId};

/// The post side. No call blocks on the shard, allocates without bound, fails or panics; any thread may call.
pub trait Reporter: Send + Sync + 'static {
    /// Messages to `peer` were lost. Raft then stops streaming to it and probes, which saves a window of useless sends.
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause);

    /// How a snapshot ended. Counted as stale, and nothing else, unless `attempt` is the live one.
    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus);
}

/// The loop side: reports that passed the fence. Implemented by the raft crate's node and by recording doubles.
pub trait RaftReports {
    /// Messages to the peer were lost.
    fn report_unreachable(&mut self, peer: NodeId);
    /// The snapshot to the peer ended.
    fn report_snapshot(&mut self, peer: NodeId, status: SnapshotStatus);
}

/// Stands between a group and its Raft in tests: sees each snapshot that Raft emits, in any term and whatever becomes of it,
/// and each report on its last step, which it passes on as it pleases.
pub trait RaftDoor: Send {
    /// Raft emitted a `MsgSnapshot`.
    fn emitted(&mut self, peer: NodeId, term: u64, index: u64);

    /// A report on its way to Raft.
    fn unreachable(&mut self, peer: NodeId, raft: &mut dyn RaftReports) {
        raft.report_unreachable(peer);
    }

    /// A report on its way to Raft.
    fn snapshot(&mut self, peer: NodeId, status: SnapshotStatus, raft: &mut dyn RaftReports) {
        raft.report_snapshot(peer, status);
    }
}

/// Whom an unreachable report concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One group: its queue was full, or the peer refused its messages.
    Group(GroupId),
    /// Every group that replicates to the peer: the link died.
    Node,
}

/// Why messages were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnreachableCause {
    /// The append queue to the peer was full.
    QueueFull,
    /// The peer refused messages of this group.
    Nack,
    /// The link died or could not take a batch in time.
    LinkLost,
    /// No link could be made.
    ConnectFailed,
    /// No address, or no transport for it.
    NoRoute,
}

/// How a snapshot ended. Raft itself knows no causes; how soon it is tried again depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotStatus {
    /// Durable, verified and taken by the peer's Raft, or the peer had it already.
    Finish,
    /// Anything else.
    Failure(SnapshotFailure),
}

/// Names one attempt to send a snapshot; a report counts for this one and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotAttempt {
    /// The group.
    pub group: GroupId,
    /// The receiver.
    pub peer: NodeId,
    /// The leader's term.
    pub term: u64,
    /// The snapshot's index.
    pub index: u64,
    /// Counts up with each attempt of this node, whatever the group.
    pub number: u64,
}

/// Why a snapshot failed, for counters and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotFailure {
    /// The ticket was dropped: a cancelled task, a panic, a queue that went away, a shutdown.
    Abandoned,
    /// No address, or no transport for it.
    NoRoute,
    /// The transfer broke.
    Transfer,
    /// The receiver said no, or gave up, with a reason.
    Refused {
        /// Whether the reason does not pass by itself: the next attempt then waits much longer.
        lasting: bool,
    },
    /// The receiver found that the bytes are not those that were offered, and keeps none of them.
    Corrupt,
    /// No progress within the bound.
    Timeout,
    /// The file could not be read.
    Storage,
    /// The log grew too much while the transfer kept it from being truncated.
    PinTooLarge,
    /// Nobody reported: Raft waited for a snapshot that no attempt stood for. Synthesized by the watchdog.
    Lost,
}

/// The obligation to report how a snapshot ended.
#[must_use = "a dropped ticket reports the snapshot as failed"]
pub struct SnapshotTicket {
    attempt: SnapshotAttempt,
    reporter: Option<Arc<dyn Reporter>>,
}

impl SnapshotTicket {
    /// The obligation for `attempt`, owed to `reporter`.
    pub fn new(attempt: SnapshotAttempt, reporter: Arc<dyn Reporter>) -> Self {
        Self { attempt, reporter: Some(reporter) }
    }

    /// Which attempt it is for.
    pub fn attempt(&self) -> SnapshotAttempt {
        self.attempt
    }

    /// The peer has it: durable, verified, taken by Raft.
    pub fn finish(mut self) {
        self.settle(SnapshotStatus::Finish);
    }

    /// The peer does not have it.
    pub fn fail(mut self, cause: SnapshotFailure) {
        self.settle(SnapshotStatus::Failure(cause));
    }

    fn settle(&mut self, status: SnapshotStatus) {
        if let Some(reporter) = self.reporter.take() {
            let SnapshotAttempt { group, peer, term, index, number } = self.attempt;
            tracing::debug!(%group, %peer, term, index, attempt = number, ?status, "snapshot attempt ended");
            reporter.report_snapshot(self.attempt, status);
        }
    }
}

impl Drop for SnapshotTicket {
    fn drop(&mut self) {
        self.settle(SnapshotStatus::Failure(SnapshotFailure::Abandoned));
    }
}

impl std::fmt::Debug for SnapshotTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotTicket").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// A report the shard drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Messages of `group` to `peer` were lost.
    Unreachable {
        /// The group.
        group: GroupId,
        /// The peer.
        peer: NodeId,
        /// The first cause since the last drain.
        cause: UnreachableCause,
    },
    /// A snapshot ended.
    Snapshot {
        /// The live attempt.
        attempt: SnapshotAttempt,
        /// How.
        status: SnapshotStatus,
    },
}

/// What became of a posted report; counted by kind.
pub trait ReportCounter: Send + Sync + 'static {
    /// `n` reports about `peer` had this outcome.
    fn count(&self, peer: NodeId, kind: ReportKind, outcome: ReportOutcome);
}

/// The [`Reporter`] of a node: one cell for each (group, peer) that the core registered, and one wake-up.
pub struct Mailbox {
    cells: Mutex<Cells>,
    wake: Waker,
    counter: Arc<dyn ReportCounter>,
}

#[derive(Default)]
struct Cells {
    closed: bool,
    by_peer: BTreeMap<(NodeId, GroupId), Cell>,
    /// Whether any cell holds something: spares an idle shard the walk over all of them.
    dirty: bool,
}

#[derive(Default)]
struct Cell {
    unreachable: Option<UnreachableCause>,
    armed: Option<SnapshotAttempt>,
    ended: Option<SnapshotStatus>,
}

impl Mailbox {
    /// An empty mailbox that calls `wake` when something is posted.
    pub fn new(wake: Waker, counter: Arc<dyn ReportCounter>) -> Self {
        Self { cells: Mutex::default(), wake, counter }
    }

    // A poisoned lock is not a reason to lose a report: every state between two statements here is a valid one.
    fn lock(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on reports about `peer` in `group` are taken.
    pub fn register(&self, group: GroupId, peer: NodeId) {
        self.lock().by_peer.entry((peer, group)).or_default();
    }

    /// Forgets a peer of a group. What was posted about it and not drained is counted as stale.
    pub fn forget(&self, group: GroupId, peer: NodeId) {
        let cell = self.lock().by_peer.remove(&(peer, group));
        self.count_unread(peer, cell.unwrap_or_default(), ReportOutcome::Stale);
    }

    /// Makes `attempt` the live one of its peer. The outcome of an earlier attempt that was not drained is counted as stale:
    /// the core arms a new attempt only when it has settled the one before.
    pub fn arm(&self, attempt: SnapshotAttempt) {
        let unread = {
            let mut cells = self.lock();
            let cell = cells.by_peer.entry((attempt.peer, attempt.group)).or_default();
            cell.armed = Some(attempt);
            cell.ended.take()
        };
        self.count_unread(attempt.peer, Cell { ended: unread, ..Cell::default() }, ReportOutcome::Stale);
    }

    /// From now on no report about snapshots to this peer is live. One that was not drained is counted as stale.
    pub fn disarm(&self, group: GroupId, peer: NodeId) {
        let unread = self.lock().by_peer.get_mut(&(peer, group)).and_then(|cell| {
            cell.armed = None;
            cell.ended.take()
        });
        self.count_unread(peer, Cell { ended: unread, ..Cell::default() }, ReportOutcome::Stale);
    }

    /// Whether the outcome of an attempt waits to be drained.
    pub fn has_outcome(&self, attempt: SnapshotAttempt) -> bool {
        let cells = self.lock();
        let cell = cells.by_peer.get(&(attempt.peer, attempt.group));
        cell.is_some_and(|cell| cell.armed == Some(attempt) && cell.ended.is_some())
    }

    /// Moves everything posted since the last call into `out`. A snapshot that ended is no longer armed.
    pub fn drain(&self, out: &mut Vec<Report>) {
        let mut cells = self.lock();
        if !std::mem::take(&mut cells.dirty) {
            return;
        }
        for (&(peer, group), cell) in &mut cells.by_peer {
            if let Some(cause) = cell.unreachable.take() {
                out.push(Report::Unreachable { group, peer, cause });
            }
            if let Some(status) = cell.ended.take()
                && let Some(attempt) = cell.armed.take()
            {
                out.push(Report::Snapshot { attempt, status });
            }
        }
    }

    /// From now on every post is counted and dropped, and so is what was not drained.
    pub fn close(&self) {
        let left = {
            let mut cells = self.lock();
            (cells.closed, cells.dirty) = (true, false);
            std::mem::take(&mut cells.by_peer)
        };
        for ((peer, _), cell) in left {
            self.count_unread(peer, cell, ReportOutcome::AfterClose);
        }
    }

    fn count_unread(&self, peer: NodeId, cell: Cell, outcome: ReportOutcome) {
        if cell.unreachable.is_some() {
            self.counter.count(peer, ReportKind::Unreachable, outcome);
        }
        if let Some(status) = cell.ended {
            self.counter.count(peer, status.kind(), outcome);
        }
    }
}

impl SnapshotStatus {
    /// For counters.
    pub(crate) fn kind(self) -> ReportKind {
        match self {
            Self::Finish => ReportKind::SnapshotFinish,
            Self::Failure(_) => ReportKind::SnapshotFailure,
        }
    }
}

impl Reporter for Mailbox {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        let outcome = self.lock().post_unreachable(peer, scope, cause);
        match outcome {
            None => self.wake.wake_by_ref(),
            Some(outcome) => self.counter.count(peer, ReportKind::Unreachable, outcome),
        }
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        let outcome = self.lock().post_snapshot(attempt, status);
        match outcome {
            None => self.wake.wake_by_ref(),
            Some(outcome) => self.counter.count(attempt.peer, status.kind(), outcome),
        }
    }
}

impl Cells {
    /// `None` if the report was stored, else what became of it.
    fn post_unreachable(
        &mut self,
        peer: NodeId,
        scope: Scope,
        cause: UnreachableCause,
    ) -> Option<ReportOutcome> {
        if self.closed {
            return Some(ReportOutcome::AfterClose);
        }
        let (low, high) = match scope {
            Scope::Group(group) => (group, group),
            Scope::Node => (GroupId::new(0), GroupId::new(u64::MAX)),
        };
        let mut outcome = Some(ReportOutcome::UnknownPeer);
        for cell in self.by_peer.range_mut((peer, low)..=(peer, high)).map(|(_, cell)| cell) {
            match cell.unreachable {
                Some(_) => outcome = outcome.and(Some(ReportOutcome::Coalesced)),
                None => {
                    cell.unreachable = Some(cause);
                    outcome = None;
                }
            }
        }
        self.dirty |= outcome.is_none();
        outcome
    }

    fn post_snapshot(&mut self, attempt: SnapshotAttempt, status: SnapshotStatus) -> Option<ReportOutcome> {
        if self.closed {
            return Some(ReportOutcome::AfterClose);
        }
        let Some(cell) = self.by_peer.get_mut(&(attempt.peer, attempt.group)) else {
            return Some(ReportOutcome::UnknownPeer);
        };
        if cell.armed != Some(attempt) {
            return Some(ReportOutcome::Stale);
        }
        if cell.ended.is_some() {
            return Some(ReportOutcome::Coalesced);
        }
        cell.ended = Some(status);
        self.dirty = true;
        None
    }
}

#[cfg(test)]
mod tests;
