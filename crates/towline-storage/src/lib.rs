//! Storage of a Towline node: the log and the snapshots of all its groups, its identity, and a lock on the directory.
//!
//! [`DataDir::open`] locks a directory and opens [`RaftLog`], a [`LogStore`](towline_engine::log_store::LogStore) on
//! raft-engine, [`SnapshotFiles`], a [`SnapshotStore`](towline_engine::snapshot_store::SnapshotStore), and
//! [`IdentityFile`], an [`IdentityStore`](towline_engine::identity::IdentityStore).
//!
//! ```
//! use towline_engine::ids::GroupId;
//! use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
//! use towline_engine::message::Entry;
//! use towline_storage::DataDir;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = tempfile::tempdir()?;
//! let dir = DataDir::open(path.path())?;
//! let log = dir.log();
//! let mut batch = LogBatch::default();
//! batch.merge(GroupWrite {
//!     entries: vec![Entry { index: 1, term: 1, data: "hello".into(), ..Entry::default() }],
//!     ..GroupWrite::new(GroupId::DEFAULT)
//! });
//! log.append(&mut batch)?; // durable now
//! assert_eq!(log.recover(GroupId::DEFAULT)?.last_index, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! * When [`append`](towline_engine::log_store::LogStore::append) returns, the batch is durable, atomically for all its
//!   groups: one record, one fsync.
//! * A write that finds the disk full waits until there is room, and an existing log opens without a free byte: see
//!   [`RaftLog`].
//! * Any other failed write, and every failed fsync, poisons the log. The log writes nothing more and retries nothing. Every later write
//!   returns [`Poisoned`](towline_engine::log_store::LogError::Poisoned) with the first cause.
//! * [`DataDir::open`] checks every checksum. It cuts off a write that a crash interrupted. Other damage, or a missing file,
//!   is an error that names file and offset.
//! * A snapshot is visible once its file, its name and its directory are synced. Every read checks the bytes. A failed write
//!   affects only its snapshot. Snapshots leave [`disk_reserve_bytes`](SnapshotConfig::disk_reserve_bytes) to the log.
//!
//! # Assumptions about the disk
//! A completed fsync survives a power loss, a rename is atomic, and a write never changes synced bytes beside it. Damage to
//! the very last record looks like a torn write, and is cut off like one.
//!
//! # Limits
//! This crate neither makes nor transfers snapshots, and it encrypts nothing. One process at a time uses a directory.
//!
//! # Features
//! * `faults` (off): `DataDir::open_with_faults`, a disk that fails or is small on request. For tests only.

mod codec;
mod config;
mod data_dir;
mod descriptors;
mod dir_lock;
mod disk;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
#[cfg(test)]
mod fixtures;
mod format;
mod identity_file;
mod log_bridge;
mod log_manifest;
mod purges;
mod raft_log;
mod reader;
mod record;
mod replace;
mod scan;
mod snapshot_files;
mod sync;

pub use config::{DataDirConfig, LogConfig, SnapshotConfig};
pub use data_dir::{DataDir, DataDirError};
pub use identity_file::IdentityFile;
pub use raft_log::RaftLog;
pub use snapshot_files::{SNAPSHOT_CHUNK_BYTES, SnapshotFiles, SnapshotPartials};
