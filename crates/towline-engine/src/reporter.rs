//! Reports to Raft: lost messages, and the outcome of every snapshot.
//!
//! After a leader has sent a snapshot to a peer, Raft sends that peer only heartbeats until it hears the outcome. There is no
//! timer: a follower whose outcome is never reported stays latched for ever. So every snapshot needs exactly one report,
//! and the report must reach the attempt that it belongs to. Three types ensure this:
//!
//! * [`SnapshotTicket`]: the obligation to report. [`finish`](SnapshotTicket::finish) and [`fail`](SnapshotTicket::fail)
//!   consume the ticket and report. Dropping it, on any path, reports a failure.
//! * [`Reporter`]: where workers post reports. [`Mailbox`] implements it with one cell for each (group, peer). Its size is
//!   bounded by the number of peers, so it never overflows, blocks, or drops an outcome.
//! * [`SnapshotAttempt`]: the attempt that a report belongs to. A report of any attempt but the live one is stale.
//!
//! **One owner.** Only the core knows which attempt is live. On its order the shard arms the attempt in the mailbox and makes
//! its ticket, or disarms it.
//!
//! **One way.** Every report goes through the reporter and the mailbox to the core. The core ends the attempt and reports the
//! outcome to Raft in one step.
//!
//! **One watchdog.** No type can prevent a leaked ticket. So at each tick the core asks for every live attempt: does a transfer
//! hold its ticket, or does its outcome wait in the mailbox? If neither, the watchdog reports the attempt as
//! [`Lost`](SnapshotFailure::Lost).
//!
//! A test that observes or loses reports puts its own [`Reporter`] in front of the node's (`NodeBuilder::reporter`).

mod mailbox;

use std::fmt;
use std::sync::Arc;

use towline_metrics::labels::ReportKind;

pub use self::mailbox::{Mailbox, Report, ReportCounter};
use crate::ids::{GroupId, NodeId};
use crate::message::LostEntries;
use crate::transport::NackCause;

/// Takes reports from any thread. No call blocks on the shard, allocates without bound, fails or panics.
pub trait Reporter: Send + Sync + 'static {
    /// Reports that messages to `peer` were lost. Raft then probes the peer instead of streaming to it.
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause);

    /// Reports the outcome of a snapshot. If `attempt` is not live, the report is only counted, as stale.
    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus);
}

/// The groups that an unreachable report concerns.
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
    Nack(NackCause),
    /// The link died, or did not take a batch in time.
    LinkLost,
    /// The lane could not connect.
    ConnectFailed,
    /// There is no address, or no transport for it.
    NoRoute,
    /// The peer refused messages of this group because it lost entries that it had acknowledged.
    EntriesLost(LostEntries),
}

/// The outcome of a snapshot. Raft ignores the cause of a failure; the wait before the next attempt depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotStatus {
    /// The snapshot is durable, verified and accepted by the peer's Raft, or the peer had it already.
    Finish,
    /// The peer does not have the snapshot.
    Failure(SnapshotFailure),
}

impl SnapshotStatus {
    pub(crate) fn kind(self) -> ReportKind {
        match self {
            Self::Finish => ReportKind::SnapshotFinish,
            Self::Failure(_) => ReportKind::SnapshotFailure,
        }
    }
}

/// Names one attempt to send a snapshot.
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
    /// The number of the attempt, over all groups of this node.
    pub number: u64,
}

/// Why an attempt failed, for counters and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotFailure {
    /// The ticket was dropped, for example by a cancelled task, a panic, or a shutdown.
    Abandoned,
    /// There is no address, or no transport for it.
    NoRoute,
    /// The transfer broke.
    Transfer,
    /// The receiver refused the snapshot, or stopped the transfer with a reason.
    Refused {
        /// Whether only an operator can remove the reason. The next attempt then waits much longer.
        lasting: bool,
    },
    /// The receiver got other bytes than were offered. It keeps none of them.
    Corrupt,
    /// There was no progress within the bound.
    Timeout,
    /// The sender could not read the file.
    Storage,
    /// The transfer pinned more of the log than its bound allows.
    PinTooLarge,
    /// The ticket or the report was lost. The watchdog reports this.
    Lost,
}

/// The obligation to report the outcome of a snapshot.
#[must_use = "a dropped ticket reports the snapshot as failed"]
pub struct SnapshotTicket {
    attempt: SnapshotAttempt,
    reporter: Option<Arc<dyn Reporter>>,
}

impl SnapshotTicket {
    /// Creates the ticket of `attempt`, which reports to `reporter`.
    pub fn new(attempt: SnapshotAttempt, reporter: Arc<dyn Reporter>) -> Self {
        Self { attempt, reporter: Some(reporter) }
    }

    /// The attempt.
    pub fn attempt(&self) -> SnapshotAttempt {
        self.attempt
    }

    /// Reports that the peer has the snapshot: durable, verified and accepted by Raft.
    pub fn finish(mut self) {
        self.settle(SnapshotStatus::Finish);
    }

    /// Reports that the peer does not have the snapshot.
    pub fn fail(mut self, cause: SnapshotFailure) {
        self.settle(SnapshotStatus::Failure(cause));
    }

    fn settle(&mut self, status: SnapshotStatus) {
        if let Some(reporter) = self.reporter.take() {
            // The report comes first: a subscriber of the log may panic.
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
