//! The mailbox that passes reports from workers to the shard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use towline_metrics::labels::{ReportKind, ReportOutcome};

use super::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};
use crate::ids::{GroupId, NodeId};

/// The [`Reporter`] of a node: one cell for each registered (group, peer), and one waker.
///
/// A cell holds at most two reports: one about lost messages, and the outcome of the live attempt. A second report of the same
/// kind is counted as coalesced. So the memory does not grow with the number of posts, and no report replaces an outcome. A
/// post holds the lock for a walk over the groups of a peer, a drain for a walk over all cells. No foreign code runs
/// under the lock.
///
/// The shard owns the mailbox: it [arms](Self::arm) and [disarms](Self::disarm) attempts as the core orders, and
/// [drains](Self::drain) the reports. Workers post through [`Reporter`]. Every report is counted once: by the shard if it gets
/// the report, otherwise here.
///
/// ```
/// use std::sync::Arc;
/// use std::task::Waker;
///
/// use towline_engine::ids::{GroupId, NodeId};
/// use towline_engine::reporter::{Mailbox, Report, SnapshotAttempt, SnapshotFailure, SnapshotStatus, SnapshotTicket};
///
/// let mailbox = Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(())));
/// let peer = NodeId::new(2).unwrap();
/// let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer, term: 1, index: 10, number: 1 };
/// mailbox.register(attempt.group, attempt.peer);
/// mailbox.arm(attempt);
///
/// let ticket = SnapshotTicket::new(attempt, mailbox.clone());
/// drop(ticket); // as when its task is cancelled or panics
///
/// let mut reports = Vec::new();
/// mailbox.drain(&mut reports);
/// let status = SnapshotStatus::Failure(SnapshotFailure::Abandoned);
/// assert_eq!(reports, [Report::Snapshot { attempt, status }]);
/// ```
pub struct Mailbox {
    cells: Mutex<Cells>,
    wake: Waker,
    counter: Arc<dyn ReportCounter>,
}

/// A report from a [`Mailbox`] to the shard.
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
    /// An attempt has an outcome.
    Snapshot {
        /// The attempt, which was live at the post.
        attempt: SnapshotAttempt,
        /// Its outcome.
        status: SnapshotStatus,
    },
}

/// Counts reports by their outcome. Called without a lock, on the posting thread.
pub trait ReportCounter: Send + Sync + 'static {
    /// Counts `n` reports of this kind about `peer`.
    fn count(&self, peer: NodeId, kind: ReportKind, outcome: ReportOutcome, n: u64);
}

/// Counts nothing: for groups that are driven by hand.
impl ReportCounter for () {
    fn count(&self, _: NodeId, _: ReportKind, _: ReportOutcome, _: u64) {}
}

#[derive(Default)]
struct Cells {
    closed: bool,
    by_peer: BTreeMap<(NodeId, GroupId), Cell>,
    /// Whether any cell holds a report. An idle shard need not visit all cells.
    dirty: bool,
}

#[derive(Default)]
struct Cell {
    unreachable: Option<UnreachableCause>,
    snapshot: CellAttempt,
}

/// The attempt of a cell.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum CellAttempt {
    /// No attempt is live.
    #[default]
    Free,
    /// The attempt is live and has no outcome yet.
    Armed(SnapshotAttempt),
    /// The outcome waits for the shard.
    Ended(SnapshotAttempt, SnapshotStatus),
}

/// The result of a post: whether a cell stored the report, and how many reports were dropped.
type PostResult = (bool, ReportOutcome, u64);

impl Mailbox {
    /// Creates an empty mailbox, which calls `wake` after every stored report.
    pub fn new(wake: Waker, counter: Arc<dyn ReportCounter>) -> Self {
        Self { cells: Mutex::default(), wake, counter }
    }

    // Every intermediate state is valid, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the mailbox accept reports about `peer` in `group`.
    pub fn register(&self, group: GroupId, peer: NodeId) {
        self.lock().by_peer.entry((peer, group)).or_default();
    }

    /// Removes a peer of a group. Undrained reports about it are counted as stale.
    pub fn forget(&self, group: GroupId, peer: NodeId) {
        let cell = self.lock().by_peer.remove(&(peer, group));
        self.count_unread(peer, cell.unwrap_or_default(), ReportOutcome::Stale);
    }

    /// Makes `attempt` the live one of its peer, and registers the peer. An undrained outcome of an earlier attempt is counted
    /// as stale: the core arms a new attempt only after it has settled the earlier one.
    pub fn arm(&self, attempt: SnapshotAttempt) {
        let before = {
            let mut cells = self.lock();
            let cell = cells.by_peer.entry((attempt.peer, attempt.group)).or_default();
            std::mem::replace(&mut cell.snapshot, CellAttempt::Armed(attempt))
        };
        self.count_unread(attempt.peer, Cell::with(before), ReportOutcome::Stale);
    }

    /// Ends the live attempt to this peer. An undrained outcome is counted as stale.
    pub fn disarm(&self, group: GroupId, peer: NodeId) {
        let before =
            self.lock().by_peer.get_mut(&(peer, group)).map(|cell| std::mem::take(&mut cell.snapshot));
        self.count_unread(peer, Cell::with(before.unwrap_or_default()), ReportOutcome::Stale);
    }

    /// Whether the outcome of an attempt waits to be drained.
    pub fn has_outcome(&self, attempt: SnapshotAttempt) -> bool {
        let cells = self.lock();
        let cell = cells.by_peer.get(&(attempt.peer, attempt.group));
        cell.is_some_and(|cell| matches!(cell.snapshot, CellAttempt::Ended(ended, _) if ended == attempt))
    }

    /// Moves all reports to `out`, at most two a cell, by peer and then by group. A drained outcome ends its attempt here.
    pub fn drain(&self, out: &mut Vec<Report>) {
        let mut cells = self.lock();
        if !std::mem::take(&mut cells.dirty) {
            return;
        }
        for (&(peer, group), cell) in &mut cells.by_peer {
            if let Some(cause) = cell.unreachable.take() {
                out.push(Report::Unreachable { group, peer, cause });
            }
            if let CellAttempt::Ended(attempt, status) = cell.snapshot {
                cell.snapshot = CellAttempt::Free;
                out.push(Report::Snapshot { attempt, status });
            }
        }
    }

    /// Drops undrained and all later reports. They are counted.
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
            self.counter.count(peer, ReportKind::Unreachable, outcome, 1);
        }
        if let CellAttempt::Ended(_, status) = cell.snapshot {
            self.counter.count(peer, status.kind(), outcome, 1);
        }
    }

    /// Counts and wakes. Called without the lock, because counter and waker are foreign code.
    fn settle(&self, peer: NodeId, kind: ReportKind, (is_stored, outcome, dropped): PostResult) {
        if dropped > 0 {
            self.counter.count(peer, kind, outcome, dropped);
        }
        if is_stored {
            self.wake.wake_by_ref();
        }
    }
}

impl Reporter for Mailbox {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        let posted = self.lock().post_unreachable(peer, scope, cause);
        self.settle(peer, ReportKind::Unreachable, posted);
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        let posted = self.lock().post_snapshot(attempt, status);
        self.settle(attempt.peer, status.kind(), posted);
    }
}

impl Cells {
    fn post_unreachable(&mut self, peer: NodeId, scope: Scope, cause: UnreachableCause) -> PostResult {
        if self.closed {
            return (false, ReportOutcome::AfterClose, 1);
        }
        let groups = match scope {
            Scope::Group(group) => group..=group,
            Scope::Node => GroupId::new(0)..=GroupId::new(u64::MAX),
        };
        let (mut stored, mut coalesced) = (false, 0);
        for (_, cell) in self.by_peer.range_mut((peer, *groups.start())..=(peer, *groups.end())) {
            match cell.unreachable {
                Some(_) => coalesced += 1,
                None => (cell.unreachable, stored) = (Some(cause), true),
            }
        }
        self.dirty |= stored;
        match (stored, coalesced) {
            (false, 0) => (false, ReportOutcome::UnknownPeer, 1),
            _ => (stored, ReportOutcome::Coalesced, coalesced),
        }
    }

    fn post_snapshot(&mut self, attempt: SnapshotAttempt, status: SnapshotStatus) -> PostResult {
        if self.closed {
            return (false, ReportOutcome::AfterClose, 1);
        }
        let Some(cell) = self.by_peer.get_mut(&(attempt.peer, attempt.group)) else {
            return (false, ReportOutcome::UnknownPeer, 1);
        };
        match cell.snapshot {
            CellAttempt::Armed(live) if live == attempt => {
                cell.snapshot = CellAttempt::Ended(attempt, status);
                self.dirty = true;
                (true, ReportOutcome::Coalesced, 0)
            }
            CellAttempt::Ended(live, _) if live == attempt => (false, ReportOutcome::Coalesced, 1),
            _ => (false, ReportOutcome::Stale, 1),
        }
    }
}

impl Cell {
    fn with(snapshot: CellAttempt) -> Self {
        Self { unreachable: None, snapshot }
    }
}

#[cfg(test)]
mod tests;
