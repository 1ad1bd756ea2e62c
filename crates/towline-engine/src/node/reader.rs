//! The log reader: one thread that reads cold entries for followers which lag, and gives space back now and then.
//! Both take the disk's time, which neither the shard nor the writer has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inbox::{Control, ShardEvent, ShardSender};
use super::waiter::{Answer, answer};
use crate::cause::{chain, panic_text};
use crate::core::Fetch;
use crate::ids::GroupId;
use crate::log_store::LogStore;

/// How often the store is asked to give space back, also while fetches and compactions keep the thread busy.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// Payload bytes one fetch brings: several append messages, so that a follower far behind is not fed one disk read a
/// message. At most a few fetches a peer are under way, which bounds their memory.
const FETCH_BYTES_MAX: usize = 4 << 20;

enum Work {
    Fetch { group: GroupId, generation: u64, fetch: Fetch },
    Compact { group: GroupId, through: u64 },
    Barrier(Answer<()>),
    Stop,
}

/// The way to the reader.
#[derive(Clone)]
pub(crate) struct LogReader {
    work: Sender<Work>,
}

impl LogReader {
    /// Starts the thread.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (work, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("towline-read".into())
            .spawn(move || Reader { store, shard, purge_interval: PURGE_INTERVAL }.run(&queue))?;
        Ok((Self { work }, thread))
    }

    pub(crate) fn fetch(&self, group: GroupId, generation: u64, fetch: Fetch) {
        let _ = self.work.send(Work::Fetch { group, generation, fetch });
    }

    /// Lets the store forget entries that the group has forgotten.
    pub(crate) fn compact(&self, group: GroupId, through: u64) {
        let _ = self.work.send(Work::Compact { group, through });
    }

    /// Returns when everything queued before is done, or the reader has ended.
    pub(crate) async fn barrier(&self) {
        let (done, passed) = answer();
        let _ = self.work.send(Work::Barrier(done));
        let _ = passed.await;
    }

    pub(crate) fn stop(&self) {
        let _ = self.work.send(Work::Stop);
    }
}

struct Reader {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    purge_interval: Duration,
}

impl Reader {
    fn run(self, queue: &Receiver<Work>) {
        let mut purge_at = Instant::now() + self.purge_interval;
        loop {
            let work = queue.recv_timeout(purge_at.saturating_duration_since(Instant::now()));
            match work {
                Ok(Work::Fetch { group, generation, fetch }) => self.fetch(group, generation, &fetch),
                Ok(Work::Compact { group, through }) => self.compact(group, through),
                Ok(Work::Barrier(done)) => done.send(()),
                Ok(Work::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // After every task: a queue that is never empty must not keep the store from giving space back.
            if Instant::now() >= purge_at {
                self.purge();
                purge_at = Instant::now() + self.purge_interval;
            }
        }
    }

    fn fetch(&self, group: GroupId, generation: u64, fetch: &Fetch) {
        let (low, high) = (fetch.low, fetch.high);
        let fetched = contained(|| {
            let mut entries = Vec::new();
            self.store.entries(group, low..high, FETCH_BYTES_MAX, &mut entries).map(|()| entries)
        });
        // The group tells the operator, once, if it fails again and again.
        let entries = fetched.inspect_err(|error| {
            tracing::debug!(%group, error, low, high, "entries could not be read");
        });
        self.shard.post(ShardEvent::Fetched { group, generation, low, entries });
    }

    fn compact(&self, group: GroupId, through: u64) {
        // The next compaction includes what this one did not remove.
        if let Err(error) = contained(|| self.store.compact(group, through)) {
            tracing::warn!(%group, error, through, "the log could not be compacted");
        }
    }

    fn purge(&self) {
        match contained(|| self.store.purge()) {
            Ok(groups) => {
                for group in groups {
                    self.shard.post(ShardEvent::Control(Control::ForceCompaction { group }));
                }
            }
            // The next append finds a poisoned store and stops the node; a purge alone does not.
            Err(error) => tracing::error!(error, "the log could not give space back"),
        }
    }
}

/// Runs a call of the log store. A panic ends that call and not the thread: later fetches, compactions and purges
/// depend on it.
fn contained<T, E: std::error::Error>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(panic) => {
            let cause = format!("the log store panicked: {}", panic_text(panic.as_ref()));
            std::mem::forget(panic); // its drop may panic again
            Err(cause)
        }
    }
}

#[cfg(test)]
mod tests;
