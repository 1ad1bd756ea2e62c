//! Byte totals that are recorded exactly once.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::labels::SnapshotOutcome;

/// Receives the total of an ended transfer: its outcome and the payload bytes moved.
/// Called once, on the thread that finishes or drops the transfer, so it must not block or panic.
pub trait RecordTotal: FnOnce(SnapshotOutcome, u64) + Send + 'static {}

impl<F: FnOnce(SnapshotOutcome, u64) + Send + 'static> RecordTotal for F {}

/// The obligation to record one total: [`finish`](Self::finish) it with an outcome, or its drop records
/// [`SnapshotOutcome::Cancelled`]. Either way the total is recorded exactly once.
#[must_use = "dropping it records the transfer as cancelled"]
pub struct ByteTally {
    // Relaxed: the number orders no other memory.
    bytes: AtomicU64,
    record: Option<Box<dyn FnOnce(SnapshotOutcome, u64) + Send>>,
}

impl ByteTally {
    /// A tally of zero bytes that will go to `record`.
    pub fn new(record: impl RecordTotal) -> Self {
        Self { bytes: AtomicU64::new(0), record: Some(Box::new(record)) }
    }

    /// Adds moved bytes.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes added so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Records the total with `outcome` and returns it.
    pub fn finish(mut self, outcome: SnapshotOutcome) -> u64 {
        self.settle(outcome)
    }

    /// Like [`finish`](Self::finish), for an owner that cannot move the tally out, such as a type that implements `Drop`. A
    /// second call records nothing.
    pub fn settle(&mut self, outcome: SnapshotOutcome) -> u64 {
        let total = self.bytes();
        if let Some(record) = self.record.take() {
            record(outcome, total);
        }
        total
    }
}

impl Drop for ByteTally {
    fn drop(&mut self) {
        self.settle(SnapshotOutcome::Cancelled);
    }
}

impl fmt::Debug for ByteTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteTally").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}
