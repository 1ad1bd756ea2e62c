//! The data directory of a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use towline_engine::identity::{IdentityError, IdentityStore};
use towline_engine::log_store::LogError;
use towline_engine::snapshot_store::SnapshotStoreError;

use crate::config::DataDirConfig;
use crate::dir_lock::{DirLock, LockFailure};
use crate::disk::Disk;
use crate::identity_file::IdentityFile;
use crate::raft_log::RaftLog;
use crate::replace::{parent, sync_dir};
use crate::snapshot_files::{FileOps, SnapshotFiles};

/// Files of a node. A new directory has none of them.
const PARTS: [&str; 5] = ["identity", "peers", LOG_DIR, LOG_FILES_FILE, SNAPSHOT_DIR];
const LOG_DIR: &str = "log";
const LOG_FILES_FILE: &str = "log-files";
const SNAPSHOT_DIR: &str = "snapshots";

/// A directory with the log, the snapshots and the identity of a node, locked for this process.
///
/// ```text
/// LOCK         locked while any part is in use
/// founding     exists if the directory was made for a new node
/// identity     the node's cluster, id and incarnation, and its groups
/// peers        the incarnations of the nodes it has met
/// log/         the entries and states of all groups
/// log-files    the files that `log/` must have, and their minimum lengths
/// snapshots/   complete and partial snapshots
/// ```
///
/// The lock ends when the `DataDir` and all its parts are dropped.
#[derive(Debug)]
pub struct DataDir {
    log: Arc<RaftLog>,
    identity: Arc<IdentityFile>,
    snapshots: Arc<SnapshotFiles>,
    path: PathBuf,
}

impl DataDir {
    /// Opens the directory at `path` with default settings. Makes it if it is missing.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        Self::open_with(path, DataDirConfig::default())
    }

    /// Opens the directory at `path`. Makes it if it is missing.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open_with(path: &Path, config: DataDirConfig) -> Result<Self, DataDirError> {
        Self::open_on(path, config, false, Disk::new(), FileOps::default())
    }

    /// Makes the directory of a new node at `path` and opens it, with default settings. Only in such a directory does
    /// [`Start::auto`](towline_engine::node::Start::auto) found groups. Use [`open`](Self::open) from the second start on.
    /// The directory may exist already, without the files of a node.
    ///
    /// # Errors
    /// [`DataDirError::NotNew`] if it has a node's files; see [`DataDirError`] for the others. After an interruption, call
    /// `create` again; `NotNew` then means that `open` works. Do not call `create` at every start: on an emptied disk it
    /// would found the node a second time.
    pub fn create(path: &Path) -> Result<Self, DataDirError> {
        Self::create_with(path, DataDirConfig::default())
    }

    /// As [`create`](Self::create), with other settings.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn create_with(path: &Path, config: DataDirConfig) -> Result<Self, DataDirError> {
        Self::open_on(path, config, true, Disk::new(), FileOps::default())
    }

    /// Opens the directory at `path` on a disk that fails, or is full, as `faults` says. For tests.
    ///
    /// # Errors
    /// See [`DataDirError`].
    #[cfg(feature = "faults")]
    pub fn open_with_faults(
        path: &Path,
        config: DataDirConfig,
        faults: &crate::faults::DiskFaults,
    ) -> Result<Self, DataDirError> {
        let disk = Disk::with_hook(Some(Arc::new(faults.clone())));
        Self::open_on(path, config, false, disk, FileOps::with_hook(Arc::new(faults.for_snapshots())))
    }

    fn open_on(
        path: &Path,
        config: DataDirConfig,
        is_new: bool,
        disk: Disk,
        ops: FileOps,
    ) -> Result<Self, DataDirError> {
        make_dir(path)?;
        let lock = DirLock::take(path).map_err(|failure| match failure {
            LockFailure::InThisProcess => DataDirError::InUse { path: path.into() },
            LockFailure::InAnotherProcess => DataDirError::Locked { path: path.into() },
            LockFailure::Io(source) => DataDirError::Io { path: path.into(), during: "lock", source },
        })?;
        let lock = Arc::new(lock);
        let identity = IdentityFile::new(path, Some(lock.clone()));
        if is_new {
            if let Some(part) = PARTS.into_iter().find(|part| path.join(part).exists()) {
                return Err(DataDirError::NotNew { path: path.into(), part });
            }
            identity.allow_founding().map_err(DataDirError::Identity)?;
        }
        // Reads both files, so that damage is an error now and not when a peer connects.
        identity.load().map_err(DataDirError::Identity)?;
        identity.seen().map_err(DataDirError::Identity)?;
        let log_dir = path.join(LOG_DIR);
        make_dir(&log_dir)?;
        let log = RaftLog::open(&log_dir, &path.join(LOG_FILES_FILE), &config.log, disk, Some(lock.clone()));
        let log = Arc::new(log.map_err(DataDirError::Log)?);
        let snapshot_dir = path.join(SNAPSHOT_DIR);
        make_dir(&snapshot_dir)?;
        let snapshots = SnapshotFiles::open_with(&snapshot_dir, &config.snapshots, ops, Some(lock));
        let snapshots = Arc::new(snapshots.map_err(DataDirError::Snapshots)?);
        Ok(Self { log, identity: Arc::new(identity), snapshots, path: path.into() })
    }

    /// The log of all groups.
    pub fn log(&self) -> Arc<RaftLog> {
        self.log.clone()
    }

    /// The identity of the node.
    pub fn identity(&self) -> Arc<IdentityFile> {
        self.identity.clone()
    }

    /// The snapshot files of all groups.
    pub fn snapshots(&self) -> Arc<SnapshotFiles> {
        self.snapshots.clone()
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// Another process has it open. A killed process leaves no lock.
    #[error("data directory {} is locked by another process; stop that process first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// This process has it open already.
    #[error(
        "data directory {} is open in this process already; shut down the node that uses it, and drop all parts of it",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// [`DataDir::create`] found a node's files and changed nothing. Use [`DataDir::open`].
    #[error(
        "data directory {} is not new: it has `{part}`; open it as the directory of an existing node, or name another one",
        path.display()
    )]
    NotNew {
        /// The directory.
        path: PathBuf,
        /// The first file or directory of a node that exists.
        part: &'static str,
    },
    /// The directory could not be made or locked.
    #[error("data directory {}: {during} failed", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The failed operation.
        during: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The log could not be opened.
    #[error("the log of the data directory cannot be opened")]
    Log(#[source] LogError),
    /// The directory of the snapshot files could not be read. A damaged file does not cause this error; a read of that file
    /// reports it.
    #[error("the snapshots of the data directory cannot be opened")]
    Snapshots(#[source] SnapshotStoreError),
    /// The identity could not be read.
    #[error("the identity of the data directory cannot be read")]
    Identity(#[source] IdentityError),
}

/// Makes a directory and its parents, durably.
fn make_dir(path: &Path) -> Result<(), DataDirError> {
    let failed = |source| DataDirError::Io { path: path.into(), during: "creation", source };
    if path.is_dir() {
        return Ok(());
    }
    make_dir(parent(path))?;
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(failed)?,
    }
    sync_dir(parent(path)).map_err(failed)
}

impl From<DataDir> for towline_engine::storage::Storage {
    fn from(dir: DataDir) -> Self {
        Self { log: dir.log(), snapshots: dir.snapshots(), identity: dir.identity() }
    }
}
