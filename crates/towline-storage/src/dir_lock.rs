//! The lock on a data directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fs4::fs_std::FileExt;

use crate::sync::lock;

const LOCK_FILE: &str = "LOCK";

/// The lock files that this process has locked. The system does not say which process holds a lock.
static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Keeps a directory locked until it is dropped. The system releases the lock when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
    /// Its entry in [`HELD`].
    held: PathBuf,
}

/// Why a directory could not be locked.
pub(crate) enum LockFailure {
    InThisProcess,
    InAnotherProcess,
    Io(io::Error),
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, LockFailure> {
        let name = dir.join(LOCK_FILE);
        let file = File::options().write(true).create(true).truncate(false).open(&name);
        let file = file.map_err(LockFailure::Io)?;
        let held = fs::canonicalize(name).map_err(LockFailure::Io)?;
        let mut all = lock(&HELD);
        match FileExt::try_lock_exclusive(&file).map_err(LockFailure::Io)? {
            true => {
                all.insert(held.clone());
                Ok(Self { file, held })
            }
            false if all.contains(&held) => Err(LockFailure::InThisProcess),
            false => Err(LockFailure::InAnotherProcess),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        let mut all = lock(&HELD);
        all.remove(&self.held);
        // Under the mutex: a lock that is held and not listed would look like another process.
        let _ = FileExt::unlock(&self.file);
    }
}
