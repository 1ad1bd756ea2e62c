//! How fast a transfer goes: not above the rate limit, and not below "some progress".

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::TransferSettings;
use crate::transport::{ProgressCell, TransferPhase, TransferProgress};

/// A rate shared by all transfers of a node.
pub(super) struct RateLimit {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// Zero means no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::default() }
    }

    /// Waits until `bytes` may go.
    pub(super) async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free_at.unwrap_or_else(Instant::now).max(Instant::now());
            *free_at = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

/// Nothing moved for too long.
#[derive(Debug)]
pub(super) struct Stalled {
    pub(super) at: TransferProgress,
    pub(super) waited: Duration,
}

/// Watches one transfer for progress: bytes taken by flow control, bytes acknowledged, or another phase.
pub(super) struct StallWatch {
    /// While the receiver is in no phase of its own.
    silence_max: Duration,
    phase_max: Duration,
    cell: ProgressCell,
    seen: TransferProgress,
    since: Instant,
}

/// Looks at the progress so many times within the time allowed, so that a stall is found at most a tenth late.
const LOOKS: u32 = 10;

impl StallWatch {
    /// While a receiver decides on an offer.
    pub(super) fn of_offer(settings: &TransferSettings, deciding: ProgressCell) -> Self {
        Self::new(settings.offer_timeout, settings.phase_timeout, deciding)
    }

    /// While it takes what it wanted.
    pub(super) fn of_transfer(settings: &TransferSettings, progress: ProgressCell) -> Self {
        Self::new(settings.progress_timeout, settings.phase_timeout, progress)
    }

    fn new(silence_max: Duration, phase_max: Duration, cell: ProgressCell) -> Self {
        let seen = cell.now();
        Self { silence_max, phase_max, cell, seen, since: Instant::now() }
    }

    fn patience(&self) -> Duration {
        match self.seen.phase {
            TransferPhase::Receiving => self.silence_max,
            // To read, or to sync, a large file takes longer than any healthy pause between chunks.
            TransferPhase::Verifying | TransferPhase::Syncing | TransferPhase::Stepping => self.phase_max,
        }
    }

    /// Something moved on this side.
    pub(super) fn moved(&mut self) {
        self.since = Instant::now();
    }

    /// Waits for `work`, but not for ever.
    ///
    /// # Errors
    /// [`Stalled`] once nothing moved for as long as the phase allows.
    pub(super) async fn guard<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stalled> {
        let mut work = pin!(work);
        loop {
            let patience = self.patience();
            let until = (self.since + patience).min(Instant::now() + patience / LOOKS);
            if let Ok(done) = tokio::time::timeout_at(until, &mut work).await {
                return Ok(done);
            }
            let now = self.cell.now();
            if now != self.seen {
                (self.seen, self.since) = (now, Instant::now());
            } else if self.since.elapsed() >= patience {
                return Err(Stalled { at: now, waited: self.since.elapsed() });
            }
        }
    }
}
