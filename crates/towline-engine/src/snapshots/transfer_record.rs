//! The record of one transfer: on every exit it writes one log line and counts the bytes once.

use std::time::Instant;

use towline_metrics::ByteTally;
use towline_metrics::labels::{Direction, SnapshotOutcome};

use crate::ids::{GroupId, NodeId};

/// The record of a transfer. Dropping it writes the log line and counts the bytes. Without [`end`](Self::end) the transfer
/// was cancelled, or failed by a panic.
pub(super) struct TransferRecord {
    direction: Direction,
    subject: Subject,
    /// The offset at which the transfer began, known once the receiver has answered.
    pub(super) offset: u64,
    started: Instant,
    tally: ByteTally,
    outcome: SnapshotOutcome,
    cause: String,
}

/// The snapshot, group and peer of a transfer.
pub(super) struct Subject {
    pub(super) group: GroupId,
    pub(super) peer: NodeId,
    pub(super) index: u64,
    pub(super) attempt: u64,
    pub(super) total: u64,
}

impl TransferRecord {
    pub(super) fn open(direction: Direction, subject: Subject, tally: ByteTally) -> Self {
        let (outcome, cause) = (SnapshotOutcome::Cancelled, String::new());
        Self { direction, subject, offset: 0, started: Instant::now(), tally, outcome, cause }
    }

    /// Adds moved payload bytes.
    pub(super) fn add(&self, bytes: u64) {
        self.tally.add(bytes);
    }

    pub(super) fn end(mut self, outcome: SnapshotOutcome, cause: impl Into<String>) {
        self.outcome = outcome;
        self.cause = cause.into();
    }

    /// Sets the cause for a drop without [`end`](Self::end).
    pub(super) fn cancelled_by(&mut self, cause: &str) {
        self.cause = cause.into();
    }
}

impl Drop for TransferRecord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = SnapshotOutcome::Failed;
            self.cause = "it panicked".into();
        }
        let payload_bytes = self.tally.settle(self.outcome);
        let seconds = self.started.elapsed().as_secs_f64();
        let Subject { group, peer, index, attempt, total } = self.subject;
        tracing::info!(
            %group, %peer, index, attempt, direction = self.direction.as_str(), offset = self.offset, payload_bytes, total,
            seconds, outcome = self.outcome.as_str(), cause = %self.cause, "snapshot transfer ended"
        );
    }
}
