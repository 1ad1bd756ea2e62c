//! A data directory whose log disk fails on request, or whose disk is small. For tests of programs that use this crate.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Hook, Op};
use crate::sync::lock;

/// An operation of the log that can fail on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskOp {
    /// A write of a log file.
    Write,
    /// A sync of a log file.
    Sync,
}

/// The planned faults of one directory's disk. Clones share the plan.
///
/// Writes and syncs of log files are counted from 1. The chosen one does not happen and returns EIO. After that the log
/// lets nothing reach its disk.
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
    state: Arc<Mutex<FaultPlan>>,
}

#[derive(Debug, Default)]
struct FaultPlan {
    done: u64,
    fail_at: Option<u64>,
    failed: Option<DiskOp>,
    free_bytes: Option<u64>,
}

impl DiskFaults {
    /// A plan without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the `number`-th write or sync from now on fail; 1 is the next one. Replaces an earlier call.
    pub fn fail_after(&self, number: u64) {
        let mut state = self.lock();
        state.fail_at = Some(state.done.saturating_add(number));
    }

    /// Sets the free bytes of the disk for log and snapshots together; `None` means the real free space. Every write uses
    /// some of them, and removing a file frees its bytes.
    pub fn leave_free(&self, bytes: Option<u64>) {
        self.lock().free_bytes = bytes;
    }

    /// The number of writes and syncs that have begun.
    pub fn operations(&self) -> u64 {
        self.lock().done
    }

    /// The operation that failed, once it did.
    pub fn failed(&self) -> Option<DiskOp> {
        self.lock().failed
    }

    /// The same disk for the snapshot files: it can be full, but has no other faults.
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

    fn lock(&self) -> MutexGuard<'_, FaultPlan> {
        lock(&self.state)
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
            // The list of log files is written anew.
            Op::Rename if self.lock().free_bytes == Some(0) => return Err(io::ErrorKind::StorageFull.into()),
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

    /// The log removes what it wrote of a record that does not fit.
    fn room(&self, _: &Path, bytes: usize) -> usize {
        let fits = self.lock().free_bytes.is_none_or(|free| free >= bytes as u64);
        if fits { self.take(bytes) } else { 0 }
    }

    fn free_bytes(&self) -> Option<u64> {
        self.lock().free_bytes
    }
}
