//! The log reader: one thread that reads cold entries for followers which lag, and gives space back now and then.
//! Both take the disk's time, which neither the shard nor the writer has.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mail::{Control, ShardEvent, ShardSender};
use crate::core::Fetch;
use crate::ids::GroupId;
use crate::log_store::LogStore;

/// How often the store is asked to give space back.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// Payload bytes one fetch brings: several append messages, so that a follower far behind is not fed one disk read a
/// message. At most a few fetches a peer are under way, which bounds their memory.
const FETCH_BYTES_MAX: usize = 4 << 20;

enum Work {
    Fetch { group: GroupId, life: u64, fetch: Fetch },
    Compact { group: GroupId, through: u64 },
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
            .spawn(move || run(&*store, &shard, &queue))?;
        Ok((Self { work }, thread))
    }

    pub(crate) fn fetch(&self, group: GroupId, life: u64, fetch: Fetch) {
        let _ = self.work.send(Work::Fetch { group, life, fetch });
    }

    /// Lets the store forget entries that the group has forgotten.
    pub(crate) fn compact(&self, group: GroupId, through: u64) {
        let _ = self.work.send(Work::Compact { group, through });
    }

    pub(crate) fn stop(&self) {
        let _ = self.work.send(Work::Stop);
    }
}

fn run(store: &dyn LogStore, shard: &ShardSender, queue: &Receiver<Work>) {
    let mut purge_at = Instant::now() + PURGE_INTERVAL;
    loop {
        match queue.recv_timeout(purge_at.saturating_duration_since(Instant::now())) {
            Ok(Work::Fetch { group, life, fetch }) => {
                let mut entries = Vec::new();
                if let Err(error) = store.entries(group, fetch.low..fetch.high, FETCH_BYTES_MAX, &mut entries)
                {
                    tracing::warn!(%group, %error, low = fetch.low, high = fetch.high, "entries could not be read");
                    entries.clear();
                }
                shard.post(ShardEvent::Fetched { group, life, low: fetch.low, entries });
            }
            Ok(Work::Compact { group, through }) => {
                // What was not forgotten now is forgotten with the next compaction.
                if let Err(error) = store.compact(group, through) {
                    tracing::warn!(%group, %error, through, "the log could not be compacted");
                }
            }
            Ok(Work::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                purge_at = Instant::now() + PURGE_INTERVAL;
                match store.purge() {
                    Ok(groups) => {
                        for group in groups {
                            shard.post(ShardEvent::Control(Control::Squeeze { group }));
                        }
                    }
                    // The next append finds a poisoned store and stops the node; a purge alone does not.
                    Err(error) => tracing::error!(%error, "the log could not give space back"),
                }
            }
        }
    }
}
