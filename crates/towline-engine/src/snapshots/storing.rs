//! Reports a slow disk of a receiver, so that its sender does not count the transfer as stalled.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::sync::lock;
use crate::transport::{ProgressCell, TransferPhase, TransferProgress};

/// A write is reported after one part in this many of the sender's progress timeout. The report must arrive in the rest.
const NOTICED_AFTER: u32 = 4;

/// Watches the writes of one transfer, whose thread cannot report while it blocks in a write. A drop ends the watch.
///
/// It reports only slow writes. Reporting `Storing` for every chunk would give every stall the longer phase timeout.
pub(super) struct StoreWatch {
    /// The begin of the present write.
    since: Arc<Mutex<Option<Instant>>>,
    watcher: AbortHandle,
}

impl StoreWatch {
    /// `silence_max` is the sender's progress timeout.
    pub(super) fn new(runtime: &Handle, progress: ProgressCell, silence_max: Duration) -> Self {
        let since: Arc<Mutex<Option<Instant>>> = Arc::default();
        let (watched, noticed_after) = (since.clone(), silence_max / NOTICED_AFTER);
        let watcher = runtime.spawn(async move {
            loop {
                tokio::time::sleep(noticed_after / 2).await;
                // Locked during the report, so that the end of the write is reported after it.
                let since = lock(&watched);
                if since.is_some_and(|since| since.elapsed() >= noticed_after) {
                    progress.advance(TransferProgress { acked: 0, phase: TransferPhase::Storing });
                }
            }
        });
        Self { since, watcher: watcher.abort_handle() }
    }

    /// Runs a write. After its return no report about this write follows.
    pub(super) fn during<T>(&self, write: impl FnOnce() -> T) -> T {
        self.set(Some(Instant::now()));
        let written = write();
        self.set(None);
        written
    }

    fn set(&self, since: Option<Instant>) {
        *lock(&self.since) = since;
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(8);

    async fn pass(time: Duration) {
        tokio::time::sleep(time).await; // not synchronisation: the clock is the test's own
    }

    fn watch() -> (StoreWatch, ProgressCell) {
        let cell = ProgressCell::new(5);
        (StoreWatch::new(&Handle::current(), cell.clone(), SILENCE_MAX), cell)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_is_reported_in_time_and_acknowledges_nothing() {
        let (watch, cell) = watch();
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now().phase, TransferPhase::Receiving, "nothing is written");
        watch.set(Some(Instant::now()));
        pass(SILENCE_MAX / 2).await;
        assert_eq!(cell.now(), TransferProgress { acked: 5, phase: TransferPhase::Storing });
    }

    #[tokio::test(start_paused = true)]
    async fn quick_writes_are_not_reported() {
        let (watch, cell) = watch();
        for _ in 0..100 {
            watch.set(Some(Instant::now()));
            pass(SILENCE_MAX / 5).await;
            watch.set(None);
            assert_eq!(cell.now().phase, TransferPhase::Receiving);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_has_ended_is_not_reported() {
        let (watch, cell) = watch();
        watch.set(Some(Instant::now()));
        pass(SILENCE_MAX).await;
        watch.during(|| ());
        cell.advance(TransferProgress { acked: 6, phase: TransferPhase::Receiving });
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now(), TransferProgress { acked: 6, phase: TransferPhase::Receiving });
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_ends_with_the_transfer() {
        let (watch, cell) = watch();
        watch.set(Some(Instant::now()));
        drop(watch);
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now().phase, TransferPhase::Receiving);
    }
}
