//! Settings of a data directory.

use serde::{Deserialize, Serialize};
use towline_engine::units::ByteSize;

/// Settings of a [`DataDir`](crate::DataDir).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DataDirConfig {
    /// The log.
    pub log: LogConfig,
    /// The snapshot files.
    pub snapshots: SnapshotConfig,
}

/// Settings of the log. Read with serde, a missing field keeps its default and an unknown one is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LogConfig {
    /// Bytes after which a log file is closed. Smaller files return space sooner, but the log changes files more often.
    /// Opening the log reads every file whole. Default: 64 MiB.
    pub file_bytes: ByteSize,
    /// Total bytes of log files above which a purge removes the space of truncated entries; at least
    /// [`file_bytes`](Self::file_bytes). In the long run the log takes about this much disk, and opening it reads as much.
    /// Default: 1 GiB.
    pub purge_bytes: ByteSize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { file_bytes: ByteSize::mib(64), purge_bytes: ByteSize::gib(1) }
    }
}

/// Settings of the snapshot files. They bound the partial files that broken transfers leave, and reserve disk space for the
/// log. [`SnapshotStore::retain`](towline_engine::snapshot_store::SnapshotStore::retain) bounds the complete files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotConfig {
    /// Partial files kept for each group; the oldest is removed first. Leaders rarely offer any but the newest snapshot, so
    /// a few are enough. Default: 2.
    pub partials_max: usize,
    /// Bytes of partial files kept for each group; the oldest file is removed first. A transfer that breaks beyond this size
    /// starts again at byte 0. Set it to the size of the largest snapshot that is worth resuming. Default: 16 GiB.
    pub partial_bytes_max: ByteSize,
    /// Free bytes of the file system that snapshots never use. They belong to the log: a log that finds the disk full
    /// waits. A snapshot of known length that does not fit is refused before its first byte. Any other snapshot fails
    /// while it is written; each sync checks the space for the next 96 MiB. This does not bound the log, so watch the disk
    /// as well. On a disk of a few GiB use less, but at least what the log grows by until an operator makes room. Zero
    /// disables the check, for file systems that report no free space. Default: 512 MiB.
    pub disk_reserve_bytes: ByteSize,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { partials_max: 2, partial_bytes_max: ByteSize::gib(16), disk_reserve_bytes: ByteSize::mib(512) }
    }
}
