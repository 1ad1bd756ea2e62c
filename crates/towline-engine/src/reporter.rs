//! Telling Raft the truth about the wire.
//!
//! A leader that sent a snapshot to a peer sends it nothing but heartbeats until it hears how the snapshot ended; there
//! is no timer. So a report must never be forgotten, never be lost, and never be applied to another attempt than its own.
//! Three types see to that:
//!
//! * [`SnapshotTicket`]: the obligation to report. It is consumed by [`finish`](SnapshotTicket::finish) or
//!   [`fail`](SnapshotTicket::fail); dropping it on any path reports a failure.
//! * [`Reporter`]: where workers post. [`Mailbox`] implements it with one cell a (group, peer): bounded by the number
//!   of peers, so it cannot overflow and never has to block or to drop the outcome of a snapshot.
//! * [`SnapshotAttempt`]: what a report is about. A report of another attempt than the live one is stale.
//!
//! **One owner.** The core alone knows which attempt is live, and orders what follows: the shard arms an attempt in the
//! mailbox and makes its ticket, or disarms it. **One way.** Every report goes through the reporter and the mailbox to the
//! core, which ends the attempt and tells Raft in one step. **One watchdog.** A type cannot prevent that a ticket is leaked.
//! So at each tick the core asks about every live attempt: does anybody hold its ticket, or does its outcome wait in the
//! mailbox? If neither, the watchdog reports the attempt as [`Lost`](SnapshotFailure::Lost).
//!
//! A test that wants to see reports, or to lose them, places a [`Reporter`] in front of the node's own
//! (`NodeBuilder::reporter`).

mod mailbox;

use std::fmt;
use std::sync::Arc;

use towline_metrics::labels::ReportKind;

pub use self::mailbox::{Mailbox, Report, ReportCounter};
use crate::ids::{GroupId, NodeId};

/// The post side. No call blocks on the shard, allocates without bound, fails or panics; any thread may call.
pub trait Reporter: Send + Sync + 'static {
    /// Messages to `peer` were lost. Raft then stops streaming to it and probes, which saves a window of useless sends.
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause);

    /// How a snapshot ended. Counted as stale, and nothing else, unless `attempt` is the live one.
    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus);
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

impl SnapshotStatus {
    /// For counters.
    pub(crate) fn kind(self) -> ReportKind {
        match self {
            Self::Finish => ReportKind::SnapshotFinish,
            Self::Failure(_) => ReportKind::SnapshotFailure,
        }
    }
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
    /// Its ticket was leaked, or its report lost. The watchdog reports this in its place.
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
            // Before anything else: who listens to the log is not of this crate and may panic.
            reporter.report_snapshot(self.attempt, status);
            let SnapshotAttempt { group, peer, term, index, number } = self.attempt;
            tracing::debug!(%group, %peer, term, index, attempt = number, ?status, "snapshot attempt ended");
        }
    }
}

impl Drop for SnapshotTicket {
    fn drop(&mut self) {
        self.settle(SnapshotStatus::Failure(SnapshotFailure::Abandoned));
    }
}

impl fmt::Debug for SnapshotTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotTicket").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
