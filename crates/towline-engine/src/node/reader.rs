//! The log reader: one thread that reads cold entries for lagging followers, and compacts and purges the log. These block on
//! the disk, which the shard and the log writer must not.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inbox::{Control, ShardEvent, ShardSender};
use super::waiter::{Answer, answer};
use crate::cause::{catch, chain};
use crate::core::Fetch;
use crate::ids::GroupId;
use crate::log_store::LogStore;

/// The interval of purges, also while other tasks keep the thread busy.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// The most payload bytes of one fetch. It holds several append messages, so a follower far behind does not cost a disk read
/// for each message.
const FETCH_BYTES_MAX: usize = 4 << 20;

enum ReaderTask {
    Fetch { group: GroupId, generation: u64, fetch: Fetch },
    Compact { group: GroupId, through: u64 },
    Barrier(Answer<()>),
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

/// A handle to the log reader.
#[derive(Clone)]
pub(crate) struct LogReader {
    tasks: Sender<ReaderTask>,
}

impl LogReader {
    /// Starts the thread.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (tasks, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("towline-read".into())
            .spawn(move || ReaderThread { store, shard, purge_interval: PURGE_INTERVAL }.run(&queue))?;
        Ok((Self { tasks }, thread))
    }

    pub(crate) fn fetch(&self, group: GroupId, generation: u64, fetch: Fetch) {
        let _ = self.tasks.send(ReaderTask::Fetch { group, generation, fetch });
    }

    /// Removes the group's entries up to `through` from the store.
    pub(crate) fn compact(&self, group: GroupId, through: u64) {
        let _ = self.tasks.send(ReaderTask::Compact { group, through });
    }

    /// Returns when all earlier tasks are done, or the reader has ended.
    pub(crate) async fn barrier(&self) {
        let (done, passed) = answer();
        let _ = self.tasks.send(ReaderTask::Barrier(done));
        let _ = passed.await;
    }

    /// Runs a call that waits for the disk. It must not panic.
    pub(crate) fn run(&self, call: impl FnOnce() + Send + 'static) {
        let _ = self.tasks.send(ReaderTask::Run(Box::new(call)));
    }

    /// Ends the thread after the tasks that are queued.
    pub(crate) fn stop(&self) {
        let _ = self.tasks.send(ReaderTask::Stop);
    }
}

struct ReaderThread {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    purge_interval: Duration,
}

impl ReaderThread {
    fn run(self, queue: &Receiver<ReaderTask>) {
        let mut purge_at = Instant::now() + self.purge_interval;
        loop {
            let work = queue.recv_timeout(purge_at.saturating_duration_since(Instant::now()));
            match work {
                Ok(ReaderTask::Fetch { group, generation, fetch }) => self.fetch(group, generation, &fetch),
                Ok(ReaderTask::Compact { group, through }) => self.compact(group, through),
                Ok(ReaderTask::Barrier(done)) => done.send(()),
                Ok(ReaderTask::Run(call)) => call(),
                Ok(ReaderTask::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Checked after every task, because the queue may never be empty.
            if Instant::now() >= purge_at {
                self.purge();
                purge_at = Instant::now() + self.purge_interval;
            }
        }
    }

    fn fetch(&self, group: GroupId, generation: u64, fetch: &Fetch) {
        let (low, high) = (fetch.low, fetch.high);
        let fetched = caught(|| {
            let mut entries = Vec::new();
            self.store.entries(group, low..high, FETCH_BYTES_MAX, &mut entries).map(|()| entries)
        });
        // The core logs repeated failures once.
        let entries = fetched.inspect_err(|error| {
            tracing::debug!(%group, error, low, high, "entries could not be read");
        });
        self.shard.post(ShardEvent::Fetched { group, generation, low, entries });
    }

    fn compact(&self, group: GroupId, through: u64) {
        // The next compaction covers these entries too.
        if let Err(error) = caught(|| self.store.compact(group, through)) {
            tracing::warn!(%group, error, through, "the log could not be compacted");
        }
    }

    fn purge(&self) {
        match caught(|| self.store.purge()) {
            Ok(groups) => {
                for group in groups {
                    self.shard.post(ShardEvent::Control(Control::ForceCompaction { group }));
                }
            }
            // A poisoned store shows at the next append.
            Err(error) => tracing::error!(error, "the log could not give space back"),
        }
    }
}

/// Calls the log store. A panic ends the call and not the thread, which later tasks need.
fn caught<T, E: std::error::Error>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    catch(call).map_err(|panic| format!("the log store panicked: {panic}"))?.map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests;
