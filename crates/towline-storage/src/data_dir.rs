//! The directory of a node.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fs4::fs_std::FileExt;
use towline_engine::identity::{IdentityError, IdentityStore};
use towline_engine::log_store::LogError;
use towline_engine::snapshot_store::SnapshotStoreError;
use towline_engine::units::ByteSize;

use crate::disk::Disk;
use crate::snapshot_files::FileOps;
use crate::{IdentityFile, RaftLog, SnapshotFiles};

const LOCK_FILE: &str = "LOCK";
/// What a directory has that is or was a node's.
const PARTS: [&str; 5] = ["identity", "peers", LOG_DIR, LOG_FILES_FILE, SNAPSHOT_DIR];
const LOG_DIR: &str = "log";
const LOG_FILES_FILE: &str = "log-files";
const SNAPSHOT_DIR: &str = "snapshots";

/// Settings of a [`DataDir`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DataDirConfig {
    /// The log.
    pub log: LogConfig,
    /// The snapshot files.
    pub snapshots: SnapshotConfig,
}

/// Settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// A log file is closed once it has this many bytes. Smaller files give space back sooner and cost more file
    /// changes. Every file is read whole when the log is opened. Default: 64 MiB.
    pub file_bytes: ByteSize,
    /// Space of forgotten entries is given back once the files take more than this many bytes; at least
    /// [`file_bytes`](Self::file_bytes). The log takes about so much disk in the long run, and opening it reads so
    /// much. Default: 1 GiB.
    pub purge_bytes: ByteSize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { file_bytes: ByteSize::mib(64), purge_bytes: ByteSize::gib(1) }
    }
}

/// Settings of the snapshot files. They bound what broken transfers leave behind for a resume, and keep the last of the
/// disk for the log; complete files are kept as
/// [`SnapshotStore::retain`](towline_engine::snapshot_store::SnapshotStore::retain) says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotConfig {
    /// Partial files kept for each group; the oldest goes first. Leaders seldom offer more than the newest snapshot, so
    /// more than a few serve nobody. Default: 2.
    pub partials_max: usize,
    /// Bytes of partial files kept for each group; the oldest goes first. A transfer that breaks past this many bytes
    /// begins anew. Set it to the size of the largest snapshot you would rather keep than send again. Default: 16 GiB.
    pub partial_bytes_max: ByteSize,
    /// Bytes of the file system that snapshots never take: the log lies beside them, and a log that finds the disk full
    /// ends the node. A snapshot that does not fit above them is refused before its first byte if its length is known,
    /// and given up while it is written otherwise; that is looked at with each sync, and for the 96 MiB ahead that the next may be away. A node that
    /// makes no snapshots keeps its log, which grows: watch the disk all the same. Lower it on a disk of less than a few
    /// GiB, to no less than the log grows by until somebody makes room. Zero: nothing is kept, and the file system is not
    /// asked, for those that do not tell. Default: 256 MiB.
    pub disk_reserve_bytes: ByteSize,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { partials_max: 2, partial_bytes_max: ByteSize::gib(16), disk_reserve_bytes: ByteSize::mib(256) }
    }
}

/// The directory a node keeps its log, snapshots and identity in, locked for this process.
///
/// ```text
/// LOCK         held while any part is in use
/// founding     there if the directory was made for a new node
/// identity     who this directory belongs to
/// peers        the incarnations of the nodes it has met
/// log/         the entries and states of all groups
/// log-files    which files `log/` must have, and how long they are at least
/// snapshots/   complete snapshots, and those that are being written
/// ```
///
/// It stays locked until it and everything taken out of it is dropped.
#[derive(Debug)]
pub struct DataDir {
    log: Arc<RaftLog>,
    identity: Arc<IdentityFile>,
    snapshots: Arc<SnapshotFiles>,
    path: PathBuf,
}

impl DataDir {
    /// Opens the directory at `path`, which is made if it is missing, with default settings.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        Self::open_with(path, DataDirConfig::default())
    }

    /// Opens the directory at `path`, which is made if it is missing.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open_with(path: &Path, config: DataDirConfig) -> Result<Self, DataDirError> {
        Self::open_on(path, config, false, Disk::new(), FileOps::default())
    }

    /// Makes the directory of a new node at `path` and opens it, with default settings. This is the explicit act that
    /// lets [`Start::auto`](towline_engine::node::Start::auto) found groups here; [`open`](Self::open) it from the
    /// second start on. The directory may be there already, without the files of a node.
    ///
    /// # Errors
    /// [`DataDirError::NotNew`] if a node's files are there; see [`DataDirError`] for the others. After an interruption, call
    /// `create` again; `NotNew` then means that the directory can be opened. Do not call `create` at every start: on an
    /// emptied disk it would found the node a second time.
    pub fn create(path: &Path) -> Result<Self, DataDirError> {
        Self::create_with(path, DataDirConfig::default())
    }

    /// Makes the directory of a new node, as [`create`](Self::create) does.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn create_with(path: &Path, config: DataDirConfig) -> Result<Self, DataDirError> {
        Self::open_on(path, config, true, Disk::new(), FileOps::default())
    }

    /// Opens the directory at `path` on a disk that fails, or is full, as planned, for tests.
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
        let lock = Arc::new(DirLock::take(path)?);
        let identity = IdentityFile::new(path, Some(lock.clone()));
        if is_new {
            if let Some(part) = PARTS.into_iter().find(|part| path.join(part).exists()) {
                return Err(DataDirError::NotNew { path: path.into(), part });
            }
            identity.allow_founding().map_err(DataDirError::Identity)?;
        }
        // Damage shows now, not when a peer calls.
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

    /// Who this directory belongs to.
    pub fn identity(&self) -> Arc<IdentityFile> {
        self.identity.clone()
    }

    /// The snapshot files of all groups.
    pub fn snapshots(&self) -> Arc<SnapshotFiles> {
        self.snapshots.clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A data directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// Another process has it open. A process that was killed leaves no lock behind.
    #[error("data directory {} is locked by another process; stop that process first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// This process has it open already.
    #[error(
        "data directory {} is open in this process already; shut down the node that uses it, and drop what was taken \
         out of it",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// [`DataDir::create`] found a node's files. Nothing was changed. Open the directory with [`DataDir::open`].
    #[error(
        "data directory {} is not new: it has `{part}`; open it as that of an existing node, or name another directory",
        path.display()
    )]
    NotNew {
        /// The directory.
        path: PathBuf,
        /// The first file or directory of a node there.
        part: &'static str,
    },
    /// It could not be made or read.
    #[error("data directory {}: {during} failed", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was being done.
        during: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The log could not be opened.
    #[error("the log of the data directory cannot be opened")]
    Log(#[source] LogError),
    /// The directory of the snapshot files could not be read. A damaged file in it is no reason: it is named once
    /// somebody asks for it.
    #[error("the snapshots of the data directory cannot be opened")]
    Snapshots(#[source] SnapshotStoreError),
    /// The identity could not be read.
    #[error("the identity of the data directory cannot be read")]
    Identity(#[source] IdentityError),
}

/// The lock files that this process has locked: the system does not say who holds a lock.
static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Keeps the directory locked; the system lets go of it when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
    /// Its entry in [`HELD`].
    held: PathBuf,
}

impl DirLock {
    fn take(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.into(), during: "lock", source };
        let name = path.join(LOCK_FILE);
        let file = File::options().write(true).create(true).truncate(false).open(&name).map_err(failed)?;
        let held = fs::canonicalize(name).map_err(failed)?;
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        match FileExt::try_lock_exclusive(&file).map_err(failed)? {
            true => {
                all.insert(held.clone());
                Ok(Self { file, held })
            }
            false if all.contains(&held) => Err(DataDirError::InUse { path: path.into() }),
            false => Err(DataDirError::Locked { path: path.into() }),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.held);
        // Under the mutex: a lock that is held and not listed would look like another process.
        let _ = FileExt::unlock(&self.file);
    }
}

/// Makes a directory that survives a power loss, with those above it.
fn make_dir(path: &Path) -> Result<(), DataDirError> {
    let failed = |source| DataDirError::Io { path: path.into(), during: "creation", source };
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(failed)?,
    }
    File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
}

impl From<DataDir> for towline_engine::storage::Storage {
    fn from(dir: DataDir) -> Self {
        Self { log: dir.log(), snapshots: dir.snapshots(), identity: dir.identity() }
    }
}
