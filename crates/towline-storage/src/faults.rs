//! For tests of whoever builds on this crate: a data directory whose log disk fails on request, or whose disk is small.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Hook, Op};

/// What the log does to its disk that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskOp {
    /// Bytes go to a file of the log.
    Write,
    /// A file of the log is made durable.
    Sync,
}

/// The faults of one directory's disk. Clones are the same plan.
///
/// Writes and syncs of the log's files are counted from 1. The one that was chosen is not done and answers EIO; by the
/// rules of the log nothing reaches its disk after it.
///
/// ```
/// use towline_storage::faults::{DiskFaults, DiskOp};
/// use towline_storage::{DataDir, DataDirConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = tempfile::tempdir()?;
/// let faults = DiskFaults::new();
/// let dir = DataDir::open_with_faults(path.path(), DataDirConfig::default(), &faults)?;
/// faults.fail_after(2);
/// # let mut batch = towline_engine::log_store::LogBatch::default();
/// # batch.merge(towline_engine::log_store::GroupWrite {
/// #     hard_state: Some(Default::default()),
/// #     ..towline_engine::log_store::GroupWrite::new(towline_engine::ids::GroupId::DEFAULT)
/// # });
/// # let log: std::sync::Arc<dyn towline_engine::log_store::LogStore> = dir.log();
/// assert!(log.append(&mut batch).is_err()); // one write, then its sync
/// assert_eq!(faults.failed(), Some(DiskOp::Sync));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct DiskFaults {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    done: u64,
    fail_at: Option<u64>,
    failed: Option<DiskOp>,
    free_bytes: Option<u64>,
}

impl DiskFaults {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the `number`-th write or sync from now on fail; 1 is the next one. It replaces what was planned before.
    pub fn fail_after(&self, number: u64) {
        let mut state = self.lock();
        state.fail_at = Some(state.done.saturating_add(number));
    }

    /// Leaves so many bytes of the disk to log and snapshots together, from now on; `None`: what there really is. Every
    /// write takes its bytes from them, and a file that is removed gives its own back.
    pub fn leave_free(&self, bytes: Option<u64>) {
        self.lock().free_bytes = bytes;
    }

    /// How many writes and syncs have begun.
    pub fn operations(&self) -> u64 {
        self.lock().done
    }

    /// What was made to fail, once it has been.
    pub fn failed(&self) -> Option<DiskOp> {
        self.lock().failed
    }

    /// The same disk, as the snapshot files see it: it may be full, and nothing else.
    pub(crate) fn for_snapshots(&self) -> SnapshotDisk {
        SnapshotDisk(self.clone())
    }

    fn take(&self, bytes: usize) -> usize {
        let mut state = self.lock();
        let Some(free) = &mut state.free_bytes else { return bytes };
        let fits = usize::try_from(*free).map_or(bytes, |free| free.min(bytes));
        *free -= fits as u64;
        fits
    }

    fn give_back(&self, removed: &Path) {
        let bytes = fs::metadata(removed).map_or(0, |file| file.len());
        if let Some(free) = &mut self.lock().free_bytes {
            *free = free.saturating_add(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`DiskFaults::for_snapshots`].
pub(crate) struct SnapshotDisk(DiskFaults);

impl Hook for SnapshotDisk {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        if op == Op::Delete {
            self.0.give_back(path);
        }
        Ok(())
    }

    fn after(&self, _: Op, _: &Path) {}

    fn room(&self, _: &Path, bytes: usize) -> usize {
        self.0.take(bytes)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.0.lock().free_bytes
    }
}

impl Hook for DiskFaults {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        const EIO: i32 = 5;
        let op = match op {
            Op::Write => DiskOp::Write,
            Op::Sync => DiskOp::Sync,
            Op::Delete => {
                self.give_back(path);
                return Ok(());
            }
            Op::Create | Op::Rename | Op::Truncate => return Ok(()),
        };
        let mut state = self.lock();
        state.done += 1;
        if state.fail_at != Some(state.done) {
            return Ok(());
        }
        state.failed = Some(op);
        Err(io::Error::from_raw_os_error(EIO))
    }

    fn after(&self, _: Op, _: &Path) {}

    fn room(&self, _: &Path, bytes: usize) -> usize {
        self.take(bytes)
    }
}
