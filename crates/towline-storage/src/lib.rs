//! What a Towline node keeps on disk: the log of all its groups, their snapshots, its identity, and the lock on them.
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
//! # What is promised
//! * A batch is durable and atomic for all groups in it once [`append`](towline_engine::log_store::LogStore::append)
//!   returns: one record, one fsync.
//! * After the first failed write or fsync nothing more is written and nothing is tried again; every later write
//!   answers [`Poisoned`](towline_engine::log_store::LogError::Poisoned) with the first cause.
//! * [`DataDir::open`] checks every checksum. A write that a crash interrupted is cut off. Anything else that is
//!   damaged or missing refuses the start and names file and offset.
//! * A snapshot is visible once its file, its name and its directory are synced. Its bytes are checked whenever they are
//!   read. A failure while one is written concerns that one only; the log goes on. Snapshots leave
//!   [`disk_reserve_bytes`](SnapshotConfig::disk_reserve_bytes) of the disk to the log.
//!
//! # What is assumed of the disk
//! A completed fsync survives a power loss, a rename is atomic, and what was synced is not changed by a later write
//! beside it. Damage to the very last record cannot be told from a torn write, and is cut off like one.
//!
//! # What it does not do
//! It takes no snapshots and moves none, encrypts nothing, and shares a directory with nobody.
//!
//! # Features
//! * `faults` (off): `DataDir::open_with_faults`, a disk that fails or is small on request. For tests only.

mod codec;
mod data_dir;
mod descriptors;
mod disk;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
mod format;
mod identity_file;
mod log_bridge;
mod log_manifest;
mod raft_log;
mod reader;
mod record;
mod replace;
mod scan;
mod snapshot_files;

pub use data_dir::{DataDir, DataDirConfig, DataDirError, LogConfig, SnapshotConfig};
pub use identity_file::IdentityFile;
pub use raft_log::RaftLog;
pub use snapshot_files::{SNAPSHOT_CHUNK_BYTES, SnapshotFiles, SnapshotPartials};
