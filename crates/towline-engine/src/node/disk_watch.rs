//! Watches the free space of the disk that holds the log, and tells the shard when it becomes low and when there is room.
//!
//! The log writer looks after each append. A thread looks too: an idle node and one whose write is held must notice.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use towline_metrics::NodeMetrics;

use super::inbox::{ShardEvent, ShardSender};
use crate::cause::catch;
use crate::log_store::{DiskSpace, LogStore};

/// How often the thread looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// A handle to the watch. The last drop of a handle ends the thread too.
#[derive(Clone)]
pub(crate) struct DiskWatch {
    looker: Arc<Looker>,
    stop: Sender<()>,
}

impl DiskWatch {
    /// Looks once, then starts the thread. So the shard knows of a low disk before a group starts.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
        metrics: NodeMetrics,
        disk_low: u64,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let looker = Arc::new(Looker { store, shard, metrics, disk_low, low: Mutex::new(false) });
        looker.look();
        let (stop, stopped) = channel();
        let watched = looker.clone();
        let thread =
            std::thread::Builder::new().name("towline-disk".into()).spawn(move || watched.run(&stopped))?;
        Ok((Self { looker, stop }, thread))
    }

    /// Looks now, unless the thread is looking: its call may hang, and the caller has durable writes to report.
    pub(crate) fn look(&self) {
        self.looker.look();
    }

    pub(crate) fn stop(&self) {
        let _ = self.stop.send(());
    }
}

struct Looker {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    metrics: NodeMetrics,
    /// Bytes beside the reserve of the store; zero: the disk never counts as low.
    disk_low: u64,
    /// Whether the disk was low at the last look.
    low: Mutex<bool>,
}

impl Looker {
    fn run(&self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
            self.look();
        }
    }

    fn look(&self) {
        // Held during the call: two looks at a time could report a change in the wrong order.
        let Ok(mut was_low) = self.low.try_lock() else { return };
        // After an error the last answer stays: it says nothing about the space.
        let Ok(Ok(Some(DiskSpace { free, reserve }))) = catch(|| self.store.space()) else { return };
        let low = is_low(*was_low, free, reserve, self.disk_low);
        self.metrics.disk(free, low);
        if low == *was_low {
            return;
        }
        *was_low = low;
        self.shard.post(ShardEvent::DiskLow(low));
        drop(was_low);
        let disk_low = self.disk_low;
        let _span = tracing::info_span!(parent: None, "disk", node = self.metrics.node()).entered();
        if low {
            tracing::warn!(
                free,
                reserve,
                disk_low,
                "the disk of the log is low: this node takes no more commands"
            );
        } else {
            tracing::info!(free, reserve, disk_low, "the disk of the log has room again");
        }
    }
}

/// Whether the disk is low. It stays so until a quarter more is free than at its beginning, so that no group goes back and
/// forth at the limit.
fn is_low(was_low: bool, free: u64, reserve: u64, disk_low: u64) -> bool {
    let begins = reserve.saturating_add(disk_low);
    let ends = begins.saturating_add(begins / 4);
    disk_low > 0 && free < if was_low { ends } else { begins }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_disk_has_room_again_once_a_quarter_more_is_free() {
        let (reserve, disk_low) = (60, 40);
        for (was_low, free, low) in
            [(false, 100, false), (false, 99, true), (true, 124, true), (true, 125, false)]
        {
            assert_eq!(is_low(was_low, free, reserve, disk_low), low, "{free} free, low before: {was_low}");
        }
        assert!(!is_low(false, 0, reserve, 0), "zero disables it");
    }
}
