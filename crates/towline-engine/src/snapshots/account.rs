//! The books of one transfer: closed on every way out, with one line in the log and one record of the bytes.

use std::time::Instant;

use towline_metrics::ByteTally;
use towline_metrics::labels::{Direction, SnapshotOutcome};

use crate::ids::{GroupId, NodeId};

/// Dropping it closes the books. Without [`end`](Self::end) the transfer was cancelled, or failed by a panic.
pub(super) struct Account {
    direction: Direction,
    group: GroupId,
    peer: NodeId,
    index: u64,
    attempt: u64,
    total: u64,
    /// Where the transfer began, known once the receiver has said so.
    pub(super) offset: u64,
    started: Instant,
    tally: ByteTally,
    outcome: SnapshotOutcome,
    cause: String,
}

/// What a transfer is of.
pub(super) struct Subject {
    pub(super) group: GroupId,
    pub(super) peer: NodeId,
    pub(super) index: u64,
    pub(super) attempt: u64,
    pub(super) total: u64,
}

impl Account {
    pub(super) fn open(direction: Direction, of: Subject, tally: ByteTally) -> Self {
        let Subject { group, peer, index, attempt, total } = of;
        Self {
            direction,
            group,
            peer,
            index,
            attempt,
            total,
            offset: 0,
            started: Instant::now(),
            tally,
            outcome: SnapshotOutcome::Cancelled,
            cause: String::new(),
        }
    }

    /// Payload bytes moved.
    pub(super) fn add(&self, bytes: u64) {
        self.tally.add(bytes);
    }

    pub(super) fn end(mut self, outcome: SnapshotOutcome, cause: impl Into<String>) {
        self.outcome = outcome;
        self.cause = cause.into();
    }

    /// Why it is cancelled, if it is dropped from now on.
    pub(super) fn cancelled_by(&mut self, cause: &str) {
        self.cause = cause.into();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = SnapshotOutcome::Failed;
            self.cause = "it panicked".into();
        }
        let payload_bytes = self.tally.settle(self.outcome);
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::info!(
            group = %self.group, peer = %self.peer, index = self.index, attempt = self.attempt,
            direction = self.direction.as_str(), offset = self.offset, payload_bytes, total = self.total, seconds,
            outcome = self.outcome.as_str(), cause = %self.cause, "snapshot transfer ended"
        );
    }
}
