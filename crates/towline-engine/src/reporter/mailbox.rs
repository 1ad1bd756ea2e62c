//! Reports on their way from workers to the shard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use towline_metrics::labels::{ReportKind, ReportOutcome};

use super::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};
use crate::ids::{GroupId, NodeId};

/// The [`Reporter`] of a node: one cell for each (group, peer) that the shard registered, and one wake-up.
///
/// A cell holds at most two reports: that messages were lost, and how the live attempt ended. A second one of the same
/// finds its place taken and is counted as coalesced, so nothing here grows with the number of posts, and the outcome of an
/// attempt gives way to nothing. The one lock is held for a walk over the groups of a peer by a post, and over all cells by a
/// drain; nothing that is not of this module runs under it.
///
/// The shard owns it: it [arms](Self::arm) and [disarms](Self::disarm) attempts as the effects of the core say, and
/// [drains](Self::drain). Workers post through [`Reporter`]. Every report is counted once: here if it ends here, else by
/// the shard.
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
/// drop(ticket); // its holder is gone: cancelled, panicked, forgot
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

/// What the shard gets out of a [`Mailbox`].
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
        /// The attempt that was live when it was posted.
        attempt: SnapshotAttempt,
        /// How.
        status: SnapshotStatus,
    },
}

/// Counts what became of reports. Called without a lock, on the thread that posted.
pub trait ReportCounter: Send + Sync + 'static {
    /// `n` reports of this kind about `peer` had this outcome.
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
    /// Whether any cell holds a report: spares an idle shard the walk over all of them.
    dirty: bool,
}

#[derive(Default)]
struct Cell {
    unreachable: Option<UnreachableCause>,
    snapshot: Slot,
}

/// The place of the one outcome there may be.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// No attempt is live.
    #[default]
    Free,
    /// This one is, and did not end yet.
    Armed(SnapshotAttempt),
    /// It ended, and the shard did not look yet.
    Ended(SnapshotAttempt, SnapshotStatus),
}

/// What became of a post.
enum Posted {
    /// At least one cell took it; so many others had one already.
    Stored { coalesced: u64 },
    /// Nobody took it.
    Ended(ReportOutcome, u64),
}

impl Mailbox {
    /// An empty mailbox, which calls `wake` after every post that was stored.
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

    /// Makes `attempt` the live one of its peer, which is registered by that. The outcome of an earlier attempt that was not
    /// drained is counted as stale: the core arms a new attempt only when it has settled the one before.
    pub fn arm(&self, attempt: SnapshotAttempt) {
        let before = {
            let mut cells = self.lock();
            let cell = cells.by_peer.entry((attempt.peer, attempt.group)).or_default();
            std::mem::replace(&mut cell.snapshot, Slot::Armed(attempt))
        };
        self.count_unread(attempt.peer, Cell::with(before), ReportOutcome::Stale);
    }

    /// From now on no report about snapshots to this peer is live. One that was not drained is counted as stale.
    pub fn disarm(&self, group: GroupId, peer: NodeId) {
        let before =
            self.lock().by_peer.get_mut(&(peer, group)).map(|cell| std::mem::take(&mut cell.snapshot));
        self.count_unread(peer, Cell::with(before.unwrap_or_default()), ReportOutcome::Stale);
    }

    /// Whether the outcome of an attempt waits to be drained.
    pub fn has_outcome(&self, attempt: SnapshotAttempt) -> bool {
        let cells = self.lock();
        let cell = cells.by_peer.get(&(attempt.peer, attempt.group));
        cell.is_some_and(|cell| matches!(cell.snapshot, Slot::Ended(ended, _) if ended == attempt))
    }

    /// Appends everything posted since the last call to `out`, at most two reports a cell, by peer and then by group. An
    /// attempt whose outcome is taken out is not live any more.
    pub fn drain(&self, out: &mut Vec<Report>) {
        let mut cells = self.lock();
        if !std::mem::take(&mut cells.dirty) {
            return;
        }
        for (&(peer, group), cell) in &mut cells.by_peer {
            if let Some(cause) = cell.unreachable.take() {
                out.push(Report::Unreachable { group, peer, cause });
            }
            if let Slot::Ended(attempt, status) = cell.snapshot {
                cell.snapshot = Slot::Free;
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
            self.counter.count(peer, ReportKind::Unreachable, outcome, 1);
        }
        if let Slot::Ended(_, status) = cell.snapshot {
            self.counter.count(peer, status.kind(), outcome, 1);
        }
    }

    /// Without the lock: what counts and what wakes is not this module's.
    fn settle(&self, peer: NodeId, kind: ReportKind, posted: Posted) {
        match posted {
            Posted::Stored { coalesced } => {
                if coalesced > 0 {
                    self.counter.count(peer, kind, ReportOutcome::Coalesced, coalesced);
                }
                self.wake.wake_by_ref();
            }
            Posted::Ended(outcome, n) => self.counter.count(peer, kind, outcome, n),
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
    fn post_unreachable(&mut self, peer: NodeId, scope: Scope, cause: UnreachableCause) -> Posted {
        if self.closed {
            return Posted::Ended(ReportOutcome::AfterClose, 1);
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
            (true, coalesced) => Posted::Stored { coalesced },
            (false, 0) => Posted::Ended(ReportOutcome::UnknownPeer, 1),
            (false, coalesced) => Posted::Ended(ReportOutcome::Coalesced, coalesced),
        }
    }

    fn post_snapshot(&mut self, attempt: SnapshotAttempt, status: SnapshotStatus) -> Posted {
        if self.closed {
            return Posted::Ended(ReportOutcome::AfterClose, 1);
        }
        let Some(cell) = self.by_peer.get_mut(&(attempt.peer, attempt.group)) else {
            return Posted::Ended(ReportOutcome::UnknownPeer, 1);
        };
        match cell.snapshot {
            Slot::Armed(live) if live == attempt => {
                cell.snapshot = Slot::Ended(attempt, status);
                self.dirty = true;
                Posted::Stored { coalesced: 0 }
            }
            Slot::Ended(live, _) if live == attempt => Posted::Ended(ReportOutcome::Coalesced, 1),
            _ => Posted::Ended(ReportOutcome::Stale, 1),
        }
    }
}

impl Cell {
    fn with(snapshot: Slot) -> Self {
        Self { unreachable: None, snapshot }
    }
}

#[cfg(test)]
mod tests;
