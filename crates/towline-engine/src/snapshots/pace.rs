//! How fast a transfer goes: not above the rate limit, and not below "some progress".

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::TransferSettings;
use crate::flow::Window;
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

/// Bytes of one transfer under way at first, and never fewer: a second at 1 Mbit/s.
const UNDER_WAY_MIN: u64 = 128 << 10;

/// Bytes of one transfer under way at most.
const UNDER_WAY_MAX: u64 = 16 << 20;

/// Bounds the bytes of one transfer that are under way by what its receiver acknowledges within a quarter of the time after
/// which it would count as stalled. Chunks are so large that at least two are under way.
pub(super) struct Room {
    window: Window,
    begun: Instant,
    cell: ProgressCell,
    seen: TransferProgress,
    /// What was acknowledged before the first byte.
    offset: u64,
    chunk_bytes_max: usize,
    /// For the thread that reads them.
    chunk_bytes: Arc<AtomicUsize>,
}

impl Room {
    pub(super) fn new(settings: &TransferSettings, cell: ProgressCell) -> Self {
        let delay_max = settings.progress_timeout.as_millis() as u64 / 4;
        let mut room = Self {
            window: Window::new(UNDER_WAY_MIN, UNDER_WAY_MAX, delay_max),
            begun: Instant::now(),
            seen: cell.now(),
            offset: cell.now().acked,
            cell,
            chunk_bytes_max: settings.chunk_bytes,
            chunk_bytes: Arc::default(),
        };
        room.size_chunks();
        room
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// How large chunks should be at the moment.
    pub(super) fn chunk_bytes(&self) -> Arc<AtomicUsize> {
        self.chunk_bytes.clone()
    }

    /// Only powers of two: parts of a file that begin where its checksums do are read once.
    fn size_chunks(&mut self) {
        let half = usize::try_from(self.window.limit() / 2).unwrap_or(usize::MAX);
        let bytes = 1_usize << half.max(1).ilog2();
        self.chunk_bytes.store(bytes.min(self.chunk_bytes_max), Ordering::Relaxed);
    }

    /// A chunk is sent.
    pub(super) fn take(&mut self, bytes: usize) {
        self.window.sent(bytes as u64, self.now_ms());
    }

    /// Waits until another chunk may be sent, or the transfer is over: to send then gives the error. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        self.look();
        while self.window.room() == 0 && !self.cell.is_closed() {
            self.cell.moved(self.seen).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let seen = self.cell.now();
        if seen.acked != self.seen.acked {
            self.window.acked(seen.acked.saturating_sub(self.offset), self.now_ms());
            self.size_chunks();
        }
        self.seen = seen;
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

/// Looks at the progress so many times within the time allowed while chunks are due, whatever the phase: one that has ended
/// meanwhile must not be waited for. So a stall is found at most a tenth late.
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
            TransferPhase::Storing
            | TransferPhase::Verifying
            | TransferPhase::Syncing
            | TransferPhase::Stepping => self.phase_max,
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
            let look = self.silence_max.min(patience) / LOOKS;
            let until = (self.since + patience).min(Instant::now() + look);
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

    /// How long two tasks take together that take ten times 100 kB each of one rate.
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
    async fn all_who_share_a_rate_go_at_that_rate_together() {
        let (last, late) = (Duration::from_millis(1_900), Duration::from_millis(50));
        let waited = both(1_000_000).await;
        assert!(waited >= last && waited <= last + late, "the last of 20 went after {waited:?}");
        assert_eq!(both(0).await, Duration::ZERO, "no limit");
    }

    /// What was not used is gone: after a pause no burst goes above the rate.
    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_made_up_for() {
        let rate = RateLimit::new(1_000_000);
        rate.take(100_000).await;
        sleep(Duration::from_secs(60)).await; // not synchronisation: the clock is the test's own
        let begun = Instant::now();
        for _ in 0..3 {
            rate.take(100_000).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }

    /// How long a transfer is waited for that does nothing but what `receiver` says.
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
    async fn a_receiver_has_the_time_of_what_it_says_that_it_does() {
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

    /// It was looked at ten times a phase, whose end was so seen half a minute late.
    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_has_stored_has_no_more_time_than_any_other() {
        let stored = Duration::from_secs(40);
        let waited = patience(async |says| {
            says(0, TransferPhase::Storing);
            sleep(stored).await; // not synchronisation: the clock is the test's own
            says(1, TransferPhase::Receiving);
        });
        assert_about(waited.await, stored + SILENCE_MAX);
    }
}
