//! The snapshot worker: one thread that writes snapshots of this node's state and removes unneeded files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::priority::lower_priority;
use crate::cause::{catch, chain};
use crate::ids::GroupId;
use crate::message::LogId;
use crate::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, SnapshotStore, SnapshotStoreError};
use crate::state_machine::SnapshotSource;
use crate::sync::lock;

/// Bytes gathered before they are written to a file.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// An order to make a snapshot.
pub(crate) struct Making {
    pub(crate) generation: u64,
    pub(crate) head: SnapshotHead,
    /// The durable log position of the state machine.
    pub(crate) durable: LogId,
    pub(crate) source: Box<dyn SnapshotSource>,
    /// The snapshot is begun only if the disk has room for this many bytes.
    pub(crate) bytes_expected: u64,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotMade {
    /// It was not begun, because the disk has no room for it.
    NoRoom,
    /// The state machine or the store failed.
    Failed,
}

/// The result of an order.
pub(crate) struct Made {
    pub(crate) group: GroupId,
    pub(crate) generation: u64,
    pub(crate) result: Result<(SnapshotMeta, LogId), NotMade>,
}

enum WorkerOrder {
    Make(Box<Making>),
    Retain { group: GroupId, keep: Vec<ContentId> },
    Unpin { group: GroupId, content: ContentId },
    Stop,
}

/// Complete files that belong to no group yet: between the end of a transfer and the step of Raft that follows.
type Pins = Arc<Mutex<BTreeMap<(GroupId, ContentId), usize>>>;

/// A handle to the worker. The queue is bounded: one order for each group, and one removal for each new snapshot.
#[derive(Clone)]
pub(crate) struct SnapshotWorker {
    orders: Sender<WorkerOrder>,
    pins: Pins,
}

impl SnapshotWorker {
    /// Starts the thread. It calls `made` with the result of every order.
    pub(crate) fn start(
        store: Arc<dyn SnapshotStore>,
        made: impl Fn(Made) + Send + 'static,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (orders, queue) = channel();
        let pins = Pins::default();
        let pinned = pins.clone();
        let thread = std::thread::Builder::new().name("towline-snapshots".into()).spawn(move || {
            lower_priority();
            run(&*store, &pinned, &queue, &made);
        })?;
        Ok((Self { orders, pins }, thread))
    }

    pub(crate) fn make(&self, making: Making) {
        let _ = self.orders.send(WorkerOrder::Make(Box::new(making)));
    }

    /// Removes every file of the group except these and the pinned ones.
    pub(crate) fn retain(&self, group: GroupId, keep: Vec<ContentId>) {
        let _ = self.orders.send(WorkerOrder::Retain { group, keep });
    }

    /// Keeps a file until the pin is dropped. Blocks while files are removed: a file found after this call stays.
    pub(crate) fn pin(&self, group: GroupId, content: ContentId) -> Pin {
        *lock(&self.pins).entry((group, content)).or_default() += 1;
        Pin { worker: self.clone(), group, content }
    }

    pub(crate) fn stop(&self) {
        let _ = self.orders.send(WorkerOrder::Stop);
    }
}

/// See [`SnapshotWorker::pin`].
pub(crate) struct Pin {
    worker: SnapshotWorker,
    group: GroupId,
    content: ContentId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Through the queue: a removal ordered before the group knew the file must still see the pin.
        let _ = self.worker.orders.send(WorkerOrder::Unpin { group: self.group, content: self.content });
    }
}

fn run(store: &dyn SnapshotStore, pins: &Pins, queue: &Receiver<WorkerOrder>, made: &dyn Fn(Made)) {
    while let Ok(order) = queue.recv() {
        match order {
            WorkerOrder::Make(making) => {
                let (group, generation, durable) = (making.head.group, making.generation, making.durable);
                let result = make(store, *making).map(|meta| (meta, durable));
                made(Made { group, generation, result });
            }
            WorkerOrder::Retain { group, keep } => {
                // A store that panics here must not end the worker: the next order tries again.
                let cause = match catch(|| retain(store, pins, group, keep)) {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => chain(&error),
                    Err(panic) => format!("the store panicked: {panic}"),
                };
                tracing::warn!(%group, cause, "old snapshots could not be removed");
            }
            WorkerOrder::Unpin { group, content } => {
                let mut pins = lock(pins);
                if let Some(count) = pins.get_mut(&(group, content)) {
                    *count -= 1;
                    if *count == 0 {
                        pins.remove(&(group, content));
                    }
                }
            }
            WorkerOrder::Stop => return,
        }
    }
}

/// Locks the pins until its end: a new pin could name a file that is being removed.
fn retain(
    store: &dyn SnapshotStore,
    pins: &Pins,
    group: GroupId,
    mut keep: Vec<ContentId>,
) -> Result<(), SnapshotStoreError> {
    let pinned = lock(pins);
    keep.extend(pinned.keys().filter(|(of, _)| *of == group).map(|(_, content)| *content));
    store.retain(group, &keep)
}

/// Checks that a snapshot of this expected length fits.
///
/// # Errors
/// [`NotMade::NoRoom`], after a log line.
pub(crate) fn check_room(
    store: &dyn SnapshotStore,
    group: GroupId,
    index: u64,
    bytes_expected: u64,
) -> Result<(), NotMade> {
    let room = catch(|| store.check_room(bytes_expected));
    if let Ok(Err(error @ SnapshotStoreError::NoRoom { .. })) = room {
        let cause = chain(&error);
        tracing::warn!(%group, index, cause, "a snapshot is not begun: the disk has no room for it");
        return Err(NotMade::NoRoom);
    }
    Ok(())
}

/// Makes a snapshot. A failure is not fatal: the log is kept instead.
fn make(store: &dyn SnapshotStore, making: Making) -> Result<SnapshotMeta, NotMade> {
    let started = Instant::now();
    let Making { head, source, bytes_expected, .. } = making;
    let (group, index) = (head.group, head.at.index);
    // Again: the order may have waited behind other snapshots.
    check_room(store, group, index, bytes_expected)?;
    let cause = match catch(|| write(store, &head, source)) {
        Ok(Ok(meta)) => {
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(%group, index, bytes = meta.length, content = %meta.content, seconds, "snapshot made");
            return Ok(meta);
        }
        Ok(Err(error)) => chain(&error),
        Err(panic) => format!("the state machine or the store panicked: {panic}"),
    };
    tracing::warn!(%group, index, %cause, "a snapshot could not be made");
    Err(NotMade::Failed)
}

fn write(
    store: &dyn SnapshotStore,
    head: &SnapshotHead,
    source: Box<dyn SnapshotSource>,
) -> io::Result<SnapshotMeta> {
    let mut writer =
        io::BufWriter::with_capacity(WRITE_BUFFER_BYTES, store.create(head).map_err(io::Error::other)?);
    source.write_to(&mut writer)?;
    writer.flush()?;
    let mut writer = writer.into_inner().map_err(|error| error.into_error())?;
    writer.verify(None).map_err(io::Error::other)?;
    writer.commit().map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
