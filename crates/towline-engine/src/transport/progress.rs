//! Counters that one side of a transport updates and the other reads.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// The bytes of one link that flow control or the peer has taken so far. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct BytesTaken(Arc<AtomicU64>);

impl BytesTaken {
    /// Adds `bytes`.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The progress of the receiver of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferProgress {
    /// Bytes that the receiver has written.
    pub acked: u64,
    /// The phase of the receiver.
    pub phase: TransferPhase,
}

/// What the receiver of a snapshot is doing. Each phase has its own timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TransferPhase {
    Receiving,
    /// A write to the disk takes long. The receiver returns to `Receiving` afterwards.
    Storing,
    Verifying,
    Syncing,
    Stepping,
}

/// The longest interval between two progress messages of a receiver. On a fast link a transport sends them more often, because
/// acknowledgements bound the sender's unacknowledged bytes; see [`SnapshotSink::progress`](super::SnapshotSink::progress).
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The most bytes that a receiver acknowledges at once, unless its sender does not read.
pub const ACKED_BYTES_MAX: u64 = 1 << 20;

/// A [`TransferProgress`] that one task updates and another reads. Clones share it.
#[derive(Debug, Clone)]
pub struct ProgressCell {
    shared: Arc<SharedProgress>,
}

#[derive(Debug, Default)]
struct SharedProgress {
    acked: AtomicU64,
    phase: AtomicU8,
    closed: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl ProgressCell {
    /// Creates a cell in phase `Receiving` with `acked` bytes.
    pub fn new(acked: u64) -> Self {
        let shared = SharedProgress { acked: AtomicU64::new(acked), ..SharedProgress::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Updates the progress. Lower values are ignored, but the phases `Receiving` and `Storing` may alternate.
    pub fn advance(&self, to: TransferProgress) {
        let SharedProgress { acked, phase, .. } = &*self.shared;
        acked.fetch_max(to.acked, Ordering::Relaxed);
        let (next, verifying) = (to.phase as u8, TransferPhase::Verifying as u8);
        let takes = |now| (next > now || now < verifying).then_some(next);
        let _ = phase.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes);
        self.wake();
    }

    /// Records the end of the transfer. A transport must call this when the stream ends: a sender that waits for an
    /// acknowledgement then continues, and gets the error.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the transfer has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Wakes all waiters. Called after each change.
    fn wake(&self) {
        let waiting =
            std::mem::take(&mut *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until the progress differs from `seen`, or the transfer has ended. Returns the progress. Cancel-safe.
    pub async fn moved(&self, seen: TransferProgress) -> TransferProgress {
        poll_fn(|cx| {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, which `wake` takes after each change: no change is missed.
            let now = self.now();
            if now != seen || self.is_closed() {
                return Poll::Ready(now);
            }
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// The progress so far.
    pub fn now(&self) -> TransferProgress {
        let SharedProgress { acked, phase, .. } = &*self.shared;
        let phase = match phase.load(Ordering::Relaxed) {
            0 => TransferPhase::Receiving,
            1 => TransferPhase::Storing,
            2 => TransferPhase::Verifying,
            3 => TransferPhase::Syncing,
            _ => TransferPhase::Stepping,
        };
        TransferProgress { acked: acked.load(Ordering::Relaxed), phase }
    }
}
