//! A receiver whose disk is slow says so, or its sender takes it for one that stands still.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::transport::{ProgressCell, TransferPhase, TransferProgress};

/// What part of the time that a sender waits for progress a write may take before the sender is told of it. The word must
/// reach it in the rest.
const NOTICED_AFTER: u32 = 4;

/// Watches the writes of one transfer, whose thread can say nothing while it waits for one. Ends when it is dropped.
///
/// Only a write that takes long is told of. A sender that was told waits for as long as a phase may take, also if its
/// connection stands still just then; one told of each chunk would never wait for less.
pub(super) struct StoreWatch {
    /// When the write that is under way began.
    since: Arc<Mutex<Option<Instant>>>,
    watcher: AbortHandle,
}

impl StoreWatch {
    /// `silence_max`: how long a sender waits for progress.
    pub(super) fn new(runtime: &Handle, progress: ProgressCell, silence_max: Duration) -> Self {
        let since: Arc<Mutex<Option<Instant>>> = Arc::default();
        let (watched, noticed_after) = (since.clone(), silence_max / NOTICED_AFTER);
        let watcher = runtime.spawn(async move {
            loop {
                tokio::time::sleep(noticed_after / 2).await;
                // Held until it is told, so that whoever ends the write has the last word.
                let since = lock(&watched);
                if since.is_some_and(|since| since.elapsed() >= noticed_after) {
                    // It acknowledges nothing.
                    progress.advance(TransferProgress { acked: 0, phase: TransferPhase::Storing });
                }
            }
        });
        Self { since, watcher: watcher.abort_handle() }
    }

    /// Writes. Once it has returned nobody says of this write that it is under way.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn a_write_that_takes_long_is_told_of_in_time_and_acknowledges_nothing() {
        let (watch, cell) = watch();
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now().phase, TransferPhase::Receiving, "nothing is written");
        watch.set(Some(Instant::now()));
        pass(SILENCE_MAX / 2).await;
        assert_eq!(cell.now(), TransferProgress { acked: 5, phase: TransferPhase::Storing });
    }

    /// Or a connection that stands still after any chunk would be waited for as a phase is.
    #[tokio::test(start_paused = true)]
    async fn writes_that_do_not_take_long_are_not_told_of_however_many_they_are() {
        let (watch, cell) = watch();
        for _ in 0..100 {
            watch.set(Some(Instant::now()));
            pass(SILENCE_MAX / 5).await;
            watch.set(None);
            assert_eq!(cell.now().phase, TransferPhase::Receiving);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_has_ended_is_not_told_of_any_more() {
        let (watch, cell) = watch();
        watch.set(Some(Instant::now()));
        pass(SILENCE_MAX).await;
        watch.during(|| ());
        cell.advance(TransferProgress { acked: 6, phase: TransferPhase::Receiving });
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now(), TransferProgress { acked: 6, phase: TransferPhase::Receiving });
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_transfer() {
        let (watch, cell) = watch();
        watch.set(Some(Instant::now()));
        drop(watch);
        pass(SILENCE_MAX).await;
        assert_eq!(cell.now().phase, TransferPhase::Receiving);
    }
}
