//! The directory of the snapshot files, with its index in memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use towline_engine::ids::GroupId;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::{ContentId, SnapshotMeta, SnapshotStoreError};

use super::file_ops::FileOps;
use super::index::{Complete, Gone, Index};
use super::layout;
use super::names::Named;
use crate::config::SnapshotConfig;
use crate::dir_lock::DirLock;
use crate::sync::lock;

/// The directory of the snapshot files. Its readers and writers share it.
#[derive(Debug)]
pub(super) struct SnapshotDir {
    path: PathBuf,
    config: SnapshotConfig,
    pub(super) ops: FileOps,
    /// Locked while a name is created, changed or removed. Taken before `index`, which is never locked during disk access.
    naming: Mutex<()>,
    index: Mutex<Index>,
    temporary: AtomicU64,
    _lock: Option<Arc<DirLock>>,
}

impl SnapshotDir {
    /// Opens an existing directory: indexes its files and removes temporary ones.
    pub(super) fn open(
        path: &Path,
        config: &SnapshotConfig,
        ops: FileOps,
        lock: Option<Arc<DirLock>>,
    ) -> Result<Arc<Self>, SnapshotStoreError> {
        let dir = Self {
            path: path.into(),
            config: config.clone(),
            ops,
            naming: Mutex::new(()),
            index: Mutex::default(),
            temporary: AtomicU64::new(0),
            _lock: lock,
        };
        dir.index_files()?;
        Ok(Arc::new(dir))
    }

    pub(super) fn naming(&self) -> MutexGuard<'_, ()> {
        lock(&self.naming)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    pub(super) fn temporary(&self, group: GroupId) -> PathBuf {
        self.file(&Named::Temporary { group, number: self.temporary.fetch_add(1, Ordering::Relaxed) })
    }

    pub(super) fn file(&self, named: &Named) -> PathBuf {
        self.path.join(named.name())
    }

    /// Checks that `wanted_bytes` fit beside the bytes reserved for the log.
    pub(super) fn room_for(&self, wanted_bytes: u64) -> Result<(), SnapshotStoreError> {
        let reserve_bytes = self.config.disk_reserve_bytes.as_u64();
        // A complete body may use a little of the reserve for its trailer.
        if reserve_bytes == 0 || wanted_bytes == 0 {
            return Ok(());
        }
        let free_bytes = self.ops.free_bytes(&self.path).map_err(|e| failed("query of the free space", e))?;
        if free_bytes >= reserve_bytes.saturating_add(wanted_bytes) {
            return Ok(());
        }
        Err(SnapshotStoreError::NoRoom { wanted_bytes, free_bytes, reserve_bytes })
    }

    /// Indexes the files, and removes temporary ones.
    fn index_files(&self) -> Result<(), SnapshotStoreError> {
        let listing = |e| failed("listing of the directory", e);
        // The previous process may have ended between a rename and the sync of the directory.
        self.ops.sync_dir(&self.path).map_err(|e| failed("sync of the directory", e))?;
        let mut partials: Vec<(SystemTime, GroupId, ContentId, u64)> = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let file_name = entry.file_name();
            match file_name.to_str().and_then(Named::parse) {
                Some(Named::Complete { group, at, content }) => {
                    let meta = self.inspect(&entry.path(), group, at, content);
                    self.index().add(group, content, at, Complete::new(meta));
                }
                Some(Named::Partial { group, content }) => {
                    let metadata = entry.metadata().map_err(listing)?;
                    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    partials.push((modified, group, content, metadata.len()));
                }
                Some(Named::Temporary { .. }) => {
                    self.ops.remove(&entry.path()).map_err(|e| failed("removal", e))?;
                }
                None => tracing::warn!(file = ?entry.path(), "not a snapshot file; ignored"),
            }
        }
        partials.sort_unstable();
        for (_, group, content, bytes) in partials {
            self.leave(group, content, bytes);
        }
        Ok(())
    }

    fn inspect(
        &self,
        path: &Path,
        group: GroupId,
        at: LogId,
        content: ContentId,
    ) -> Result<SnapshotMeta, String> {
        let meta = layout::read_meta(path).map_err(|e| e.to_string()).and_then(|meta| {
            let as_named = (meta.head.group, meta.head.at, meta.content) == (group, at, content);
            as_named.then_some(meta).ok_or_else(|| "its header does not match its name".into())
        });
        meta.map_err(|detail| {
            tracing::error!(file = %path.display(), detail, "a snapshot file is corrupt");
            format!("{}: {detail}", path.display())
        })
    }

    /// Makes a synced file complete: renames it, syncs the directory, and then adds it to the index.
    pub(super) fn publish(
        &self,
        from: &Path,
        meta: &SnapshotMeta,
        received: bool,
    ) -> Result<(), SnapshotStoreError> {
        let (group, content) = (meta.head.group, meta.content);
        let path = self.file(&Named::complete(&meta.head, content));
        let _naming = self.naming();
        let known = self.index().is_named(meta);
        self.ops.rename(from, &path).map_err(|e| failed("rename", e))?;
        if let Err(source) = self.ops.sync_dir(&self.path) {
            if !known {
                self.remove_or_log(&path);
            }
            return Err(failed("sync of the directory", source));
        }
        let misnamed = {
            let mut index = self.index();
            if received {
                index.forget(group, content);
            }
            index.add(group, content, meta.head.at, Complete::new(Ok(meta.clone())));
            index.take_misnamed(meta)
        };
        if let Err(error) = self.remove(misnamed) {
            tracing::warn!(%group, %content, %error, "a snapshot file could not be removed");
        }
        Ok(())
    }

    /// Keeps the partial file of a broken transfer, and removes partial files above the bounds.
    pub(super) fn leave(&self, group: GroupId, content: ContentId, bytes: u64) {
        let _naming = self.naming();
        let gone = {
            let mut index = self.index();
            index.leave(group, content, bytes);
            index.evict(group, &self.config)
        };
        self.give_up(&gone);
    }

    /// Makes room for a transfer of `content`: removes the other partial files of the group. They are rarely resumed, and
    /// would block this transfer for ever.
    pub(super) fn give_way(&self, group: GroupId, content: ContentId) {
        let _naming = self.naming();
        let gone = self.index().evict_others(group, content);
        self.give_up(&gone);
    }

    fn give_up(&self, partials: &[Gone]) {
        for gone in partials {
            let path = self.file(&gone.named);
            tracing::info!(file = %path.display(), "a partial snapshot file is removed");
            self.remove_or_log(&path);
        }
    }

    /// Removes the file of a writer that failed or was discarded.
    pub(super) fn abandon(&self, path: &Path, group: GroupId, partial: Option<ContentId>) {
        let _naming = self.naming();
        self.remove_or_log(path);
        if let Some(content) = partial {
            self.index().forget(group, content);
        }
    }

    pub(super) fn unpin(&self, meta: &SnapshotMeta) {
        if !self.index().unpin(meta) {
            return;
        }
        let (group, content) = (meta.head.group, meta.content);
        let _naming = self.naming();
        let gone = self.index().take_unwanted(meta);
        if let Err(error) = self.remove(gone.into_iter().collect()) {
            tracing::warn!(%group, %content, %error, "a snapshot file could not be removed");
        }
    }

    /// Removes files that were taken out of the index. A file that cannot be removed returns to the index. Returns the first
    /// error.
    pub(super) fn remove(&self, gone: Vec<Gone>) -> io::Result<()> {
        let mut outcome = Ok(());
        for gone in gone {
            let path = self.file(&gone.named);
            let unusable = gone.is_unusable();
            match self.ops.remove(&path) {
                // Logged, because an operator may miss it.
                Ok(()) if unusable => {
                    tracing::info!(file = %path.display(), "a corrupt snapshot file is removed");
                }
                Ok(()) => {}
                Err(e) => {
                    let bytes = fs::metadata(&path).map_or(0, |m| m.len());
                    self.index().put_back(gone, bytes);
                    outcome = outcome.and(Err(e));
                }
            }
        }
        outcome
    }

    /// Removes a useless file, or logs the error. The next start finds a file that remains.
    fn remove_or_log(&self, path: &Path) {
        if let Err(error) = self.ops.remove(path) {
            tracing::warn!(file = %path.display(), %error, "a snapshot file could not be removed");
        }
    }
}

pub(super) fn failed(during: &'static str, source: io::Error) -> SnapshotStoreError {
    SnapshotStoreError::Io { during, source }
}
