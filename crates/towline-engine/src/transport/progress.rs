//! What one side of a transport counts and the other waits for.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Bytes of one link that were taken so far, by flow control or by its peer. Clones are the same count.
#[derive(Debug, Clone, Default)]
pub struct BytesTaken(Arc<AtomicU64>);

impl BytesTaken {
    /// Counts `bytes` more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far the receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferProgress {
    /// Bytes it has written.
    pub acked: u64,
    /// What it is doing.
    pub phase: TransferPhase,
}

/// What the receiver of a snapshot is doing; each phase has a bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TransferPhase {
    Receiving,
    /// Bytes still come, and it waits for its disk to take those it has: told only of a write that takes long. Then it is
    /// receiving again.
    Storing,
    Verifying,
    Syncing,
    Stepping,
}

/// How often a receiver tells its sender how far it is, at least. The sender of a snapshot has no more bytes under way than
/// are acknowledged in time, so over a fast link a transport tells sooner, see [`SnapshotSink::progress`](super::SnapshotSink::progress).
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes a receiver acknowledges at once at most, unless its sender does not read.
pub const ACKED_BYTES_MAX: u64 = 1 << 20;

/// A [`TransferProgress`] that one side keeps current and another reads, while the transfer itself is busy.
#[derive(Debug, Clone)]
pub struct ProgressCell {
    shared: Arc<Progressing>,
}

#[derive(Debug)]
struct Progressing {
    acked: AtomicU64,
    phase: AtomicU8,
    closed: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl ProgressCell {
    /// Receiving, with `acked` bytes.
    pub fn new(acked: u64) -> Self {
        let (acked, phase) = (AtomicU64::new(acked), AtomicU8::new(0));
        Self {
            shared: Arc::new(Progressing {
                acked,
                phase,
                closed: AtomicBool::new(false),
                waiting: Mutex::default(),
            }),
        }
    }

    /// Says how far it is. Progress never goes back: lower values are ignored. Only between receiving and storing it goes
    /// both ways.
    pub fn advance(&self, to: TransferProgress) {
        let Progressing { acked, phase, .. } = &*self.shared;
        acked.fetch_max(to.acked, Ordering::Relaxed);
        let (next, comes_to_an_end) = (to.phase as u8, TransferPhase::Verifying as u8);
        let takes = |now| (next > now || now < comes_to_an_end).then_some(next);
        let _ = phase.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes);
        self.wake();
    }

    /// Says that the transfer is over and nothing more will be told. A transport must say it when the stream ends, so that a
    /// sender that waits for an acknowledgement sends on, and gets the error.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the transfer is over.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// After the change: every later look sees it.
    fn wake(&self) {
        let waiting =
            std::mem::take(&mut *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until it is further than `seen`, or closed, and says how far it is. Cancel-safe.
    pub async fn moved(&self, seen: TransferProgress) -> TransferProgress {
        poll_fn(|cx| {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, which `advance` takes after the change.
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

    /// How far it is.
    pub fn now(&self) -> TransferProgress {
        let Progressing { acked, phase, .. } = &*self.shared;
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
