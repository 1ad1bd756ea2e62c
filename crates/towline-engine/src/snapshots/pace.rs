//! The pace of a transfer: the rate limit, the bytes under way, and the stall watch.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::TransferSettings;
use crate::flow::Window;
use crate::sync::lock;
use crate::transport::{ProgressCell, TransferPhase, TransferProgress};

/// A rate limit that all transfers of a node share.
pub(super) struct RateLimit {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// Zero means no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::default() }
    }

    /// Waits until `bytes` may be sent.
    pub(super) async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let start = {
            let mut free_at = lock(&self.free_at);
            let start = free_at.unwrap_or_else(Instant::now).max(Instant::now());
            *free_at = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

/// The least bytes of one transfer under way, and the initial bound: a second at 1 Mbit/s.
const UNDER_WAY_MIN: u64 = 128 << 10;

/// The most bytes of one transfer under way.
const UNDER_WAY_MAX: u64 = 16 << 20;

/// Bounds the bytes of one transfer under way to what its receiver acknowledges within a quarter of the progress timeout. At
/// least two chunks fit.
pub(super) struct TransferWindow {
    window: Window,
    begun: Instant,
    cell: ProgressCell,
    seen: TransferProgress,
    /// The acknowledged bytes at the start.
    offset: u64,
    chunk_bytes_max: usize,
    /// Shared with the thread that reads the chunks.
    chunk_bytes: Arc<AtomicUsize>,
}

impl TransferWindow {
    pub(super) fn new(settings: &TransferSettings, cell: ProgressCell) -> Self {
        let delay_max = settings.progress_timeout.as_millis() as u64 / 4;
        let mut window = Self {
            window: Window::new(UNDER_WAY_MIN, UNDER_WAY_MAX, delay_max),
            begun: Instant::now(),
            seen: cell.now(),
            offset: cell.now().acked,
            cell,
            chunk_bytes_max: settings.chunk_bytes,
            chunk_bytes: Arc::default(),
        };
        window.size_chunks();
        window
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// The present chunk size.
    pub(super) fn chunk_bytes(&self) -> Arc<AtomicUsize> {
        self.chunk_bytes.clone()
    }

    /// Uses powers of two, so that chunks begin where the checksums of the file do.
    fn size_chunks(&mut self) {
        let half = usize::try_from(self.window.limit() / 2).unwrap_or(usize::MAX);
        let bytes = 1_usize << half.max(1).ilog2();
        self.chunk_bytes.store(bytes.min(self.chunk_bytes_max), Ordering::Relaxed);
    }

    /// Counts a sent chunk.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.window.sent(bytes as u64, self.now_ms());
    }

    /// Waits until another chunk may be sent, or the transfer has ended: the next send then returns the error. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        self.update();
        while self.window.room() == 0 && !self.cell.is_closed() {
            self.cell.moved(self.seen).await;
            self.update();
        }
    }

    fn update(&mut self) {
        let seen = self.cell.now();
        if seen.acked != self.seen.acked {
            self.window.acked(seen.acked.saturating_sub(self.offset), self.now_ms());
            self.size_chunks();
        }
        self.seen = seen;
    }
}

/// A transfer made no progress within its timeout.
#[derive(Debug)]
pub(super) struct Stalled {
    pub(super) at: TransferProgress,
    pub(super) waited: Duration,
}

/// Watches one transfer for progress: bytes that flow control took, acknowledged bytes, or a new phase.
pub(super) struct StallWatch {
    /// The timeout while the receiver is in phase `Receiving`.
    silence_max: Duration,
    phase_max: Duration,
    cell: ProgressCell,
    seen: TransferProgress,
    since: Instant,
}

/// Progress checks within `silence_max`, in every phase, because a phase may end meanwhile. A stall is found at most a tenth
/// late.
const CHECKS: u32 = 10;

impl StallWatch {
    pub(super) fn new(silence_max: Duration, phase_max: Duration, cell: ProgressCell) -> Self {
        let seen = cell.now();
        Self { silence_max, phase_max, cell, seen, since: Instant::now() }
    }

    fn patience(&self) -> Duration {
        match self.seen.phase {
            TransferPhase::Receiving => self.silence_max,
            // Reading or syncing a large file takes longer than a healthy pause between chunks.
            TransferPhase::Storing
            | TransferPhase::Verifying
            | TransferPhase::Syncing
            | TransferPhase::Stepping => self.phase_max,
        }
    }

    /// Restarts the timeout after progress on this side.
    pub(super) fn moved(&mut self) {
        self.since = Instant::now();
    }

    /// Waits for `work`.
    ///
    /// # Errors
    /// [`Stalled`] after the timeout of the phase without progress.
    pub(super) async fn guard<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stalled> {
        let mut work = pin!(work);
        loop {
            let patience = self.patience();
            let check = self.silence_max.min(patience) / CHECKS;
            let until = (self.since + patience).min(Instant::now() + check);
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(10);
    const PHASE_MAX: Duration = Duration::from_secs(300);

    /// The time in which two tasks each take ten times 100 kB from one rate limit.
    async fn both(bytes_per_second: u64) -> Duration {
        let (rate, begun) = (Arc::new(RateLimit::new(bytes_per_second)), Instant::now());
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let rate = rate.clone();
            tasks.spawn(async move {
                for _ in 0..10 {
                    rate.take(100_000).await;
                }
            });
        }
        tasks.join_all().await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_share_a_rate_limit_keep_it_together() {
        let (last, late) = (Duration::from_millis(1_900), Duration::from_millis(50));
        let waited = both(1_000_000).await;
        assert!(waited >= last && waited <= last + late, "the last of 20 went after {waited:?}");
        assert_eq!(both(0).await, Duration::ZERO, "no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_followed_by_a_burst_above_the_rate() {
        let rate = RateLimit::new(1_000_000);
        rate.take(100_000).await;
        sleep(Duration::from_secs(60)).await; // not synchronisation: the clock is the test's own
        let begun = Instant::now();
        for _ in 0..3 {
            rate.take(100_000).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }

    /// The time until a transfer counts as stalled, if the receiver reports only what `receiver` does.
    async fn patience(receiver: impl AsyncFnOnce(&dyn Fn(u64, TransferPhase))) -> Duration {
        let (cell, begun) = (ProgressCell::new(0), Instant::now());
        let mut watch = StallWatch::new(SILENCE_MAX, PHASE_MAX, cell.clone());
        let says = |acked, phase| cell.advance(TransferProgress { acked, phase });
        let receiver = async {
            receiver(&says).await;
            pending::<()>().await;
        };
        watch.guard(receiver).await.expect_err("it never ends");
        begun.elapsed()
    }

    fn assert_about(waited: Duration, time: Duration) {
        assert!(waited >= time && waited <= time + SILENCE_MAX / 5, "{waited:?} where {time:?} is allowed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_depends_on_the_reported_phase() {
        assert_about(patience(async |_| ()).await, SILENCE_MAX);
        for phase in [
            TransferPhase::Storing,
            TransferPhase::Verifying,
            TransferPhase::Syncing,
            TransferPhase::Stepping,
        ] {
            assert_about(patience(async |says| says(0, phase)).await, PHASE_MAX);
        }
    }

    /// The checks were ten in a phase, so its end was noticed half a minute late.
    #[tokio::test(start_paused = true)]
    async fn after_storing_the_timeout_is_short_again() {
        let stored = Duration::from_secs(40);
        let waited = patience(async |says| {
            says(0, TransferPhase::Storing);
            sleep(stored).await; // not synchronisation: the clock is the test's own
            says(1, TransferPhase::Receiving);
        });
        assert_about(waited.await, stored + SILENCE_MAX);
    }
}
