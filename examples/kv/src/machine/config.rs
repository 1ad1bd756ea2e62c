//! The settings of the store.

use serde::{Deserialize, Serialize};
use towline::ByteSize;

/// The least that fjall accepts for its open files.
pub(crate) const FILES_MIN: usize = 10;
/// The least that fjall accepts for its journals.
pub(crate) const JOURNAL_BYTES_MIN: ByteSize = ByteSize::mib(64);

/// Memory, files and threads of the store. The defaults suit three nodes on one laptop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// Bytes of cached blocks. Default 16 MiB.
    pub(crate) cache_bytes: ByteSize,
    /// Bytes of changes in memory before a thread writes them to a file. Default 32 MiB. The next changes gather meanwhile.
    pub(crate) memtable_bytes: ByteSize,
    /// Bytes of all journals before fjall flushes memtables. Default 64 MiB, which is also the least.
    pub(crate) journal_bytes_max: ByteSize,
    /// Threads that flush and compact. Default 1.
    pub(crate) worker_threads: usize,
    /// Table files kept open. Default 256; fewer if the limit of file descriptors is too low.
    pub(crate) files_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cache_bytes: ByteSize::mib(16),
            memtable_bytes: ByteSize::mib(32),
            journal_bytes_max: JOURNAL_BYTES_MIN,
            worker_threads: 1,
            files_max: 256,
        }
    }
}
