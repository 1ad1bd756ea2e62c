//! Snapshot files.
//!
//! A file is written under a name that says it is not complete, ended by a trailer, synced, renamed, and the directory
//! synced. So a complete name is a complete file, whenever the power goes.

mod buffers;
mod file_ops;
mod index;
mod layout;
mod names;
mod reader;
mod sums;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
    Trailer,
};

pub(crate) use self::file_ops::FileOps;
pub use self::index::SnapshotPartials;
pub use self::layout::SNAPSHOT_CHUNK_BYTES;

use self::index::{Complete, Gone, Index};
use self::layout::{Header, Unreadable};
use self::names::Named;
use self::reader::{FileReader, Pin};
use self::writer::{FileWriter, Resumed, SYNC_BYTES};
use crate::data_dir::{DirLock, SnapshotConfig};
use crate::descriptors::open_in_time;

/// A [`SnapshotStore`] on files in one directory. Made by [`DataDir::open`](crate::DataDir::open).
///
/// [`complete`](SnapshotStore::complete) and [`find`](SnapshotStore::find) answer from memory. The two ends of each file are
/// checked when the store is opened, every byte of the body whenever it is read. A writer whose disk fails or is full
/// leaves nothing behind, not even for a resume; no other file is concerned.
#[derive(Debug)]
pub struct SnapshotFiles {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    config: SnapshotConfig,
    ops: FileOps,
    /// Held while names come, change or go. Taken before `index`, which is never held while the disk is waited for.
    naming: Mutex<()>,
    index: Mutex<Index>,
    temporary: AtomicU64,
    _lock: Option<Arc<DirLock>>,
}

impl SnapshotFiles {
    /// Opens the store in an existing directory, and removes what is of no use.
    pub(crate) fn open_with(
        dir: &Path,
        config: &SnapshotConfig,
        ops: FileOps,
        lock: Option<Arc<DirLock>>,
    ) -> Result<Self, SnapshotStoreError> {
        let shared = Shared {
            dir: dir.into(),
            config: config.clone(),
            ops,
            naming: Mutex::new(()),
            index: Mutex::default(),
            temporary: AtomicU64::new(0),
            _lock: lock,
        };
        shared.look_through()?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What broken transfers of a group have left behind.
    pub fn partials(&self, group: GroupId) -> SnapshotPartials {
        self.shared.index().partials(group)
    }

    fn receiver(&self, meta: &SnapshotMeta) -> Result<(FileWriter, bool), SnapshotStoreError> {
        let (group, content) = (meta.head.group, meta.content);
        let offered = Trailer { length: meta.length, content };
        let header = Header { head: meta.head.clone(), offered: Some(offered) };
        let path = self.shared.path(&Named::Partial { group, content });
        let _naming = lock(&self.shared.naming);
        self.shared.index().claim(group, content)?;
        let opened = match File::options().read(true).write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.shared.ops.create(&path).map(|f| (f, false))
            }
            there => there.map(|file| (file, true)),
        };
        let opened = opened.inspect_err(|_| self.shared.index().forget(group, content));
        let (file, there) = opened.map_err(|e| failed("creation", e))?;
        Ok((FileWriter::new(self.shared.clone(), header, path, file), there))
    }
}

impl SnapshotStore for SnapshotFiles {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.shared.index().complete(group))
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        self.shared.index().find(group, content)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.shared.room_for(SYNC_BYTES)?;
        let number = self.shared.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.path(&Named::Temporary { group: head.group, number });
        let file = self.shared.ops.create(&path).map_err(|e| failed("creation", e))?;
        let header = Header { head: head.clone(), offered: None };
        let mut writer = FileWriter::new(self.shared.clone(), header, path, file);
        writer.start()?;
        Ok(Box::new(writer))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let left = self.shared.index().left_bytes(meta.head.group, meta.content);
        let wanted = layout::stored_bytes(meta.length).unwrap_or(u64::MAX).saturating_sub(left);
        if self.shared.room_for(wanted).is_err() {
            self.shared.give_way(meta.head.group, meta.content);
            self.shared.room_for(wanted)?;
        }
        let (mut writer, there) = self.receiver(meta)?;
        if !there {
            writer.start()?;
            return Ok(Box::new(writer));
        }
        let cause = match writer.resume(goes_on) {
            Ok(Resumed::GoesOn) => return Ok(Box::new(writer)),
            Ok(Resumed::Stopped) => return Err(SnapshotStoreError::Stopped { content: meta.content }),
            Ok(Resumed::OfNoUse) => String::from("it is another file"),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            group = %meta.head.group, content = %meta.content, bytes = left, cause,
            "an unfinished snapshot file is of no use and begins anew"
        );
        writer.restart()?;
        Ok(Box::new(writer))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let content = meta.content;
        self.shared.index().pin(meta)?;
        let pin = Pin { store: self.shared.clone(), meta: meta.clone() };
        let named = Named::complete(&meta.head, content);
        let file = open_in_time(&self.shared.path(&named)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SnapshotStoreError::Missing { content },
            _ => failed("open", source),
        })?;
        match FileReader::open(file, pin, offset) {
            Ok(reader) => Ok(Box::new(reader)),
            Err(Unreadable::Io(source)) => Err(failed("open", source)),
            Err(Unreadable::Damage(damage)) => {
                Err(SnapshotStoreError::Corrupt { content, detail: format!("{}: {damage}", named.name()) })
            }
        }
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let _naming = lock(&self.shared.naming);
        let gone = self.shared.index().retain(group, keep);
        self.shared.remove(gone).map_err(|e| failed("removal", e))
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn path(&self, named: &Named) -> PathBuf {
        self.dir.join(named.name())
    }

    /// Whether so many bytes can be taken without touching those that are kept for the log.
    fn room_for(&self, wanted_bytes: u64) -> Result<(), SnapshotStoreError> {
        let reserve_bytes = self.config.disk_reserve_bytes.as_u64();
        // A body that is all here is worth more than the little that ends its file.
        if reserve_bytes == 0 || wanted_bytes == 0 {
            return Ok(());
        }
        let free_bytes = self.ops.free_bytes(&self.dir).map_err(|e| failed("look at the free space", e))?;
        if free_bytes >= reserve_bytes.saturating_add(wanted_bytes) {
            return Ok(());
        }
        Err(SnapshotStoreError::NoRoom { wanted_bytes, free_bytes, reserve_bytes })
    }

    /// Learns which files there are.
    fn look_through(&self) -> Result<(), SnapshotStoreError> {
        let listing = |e| failed("listing of the directory", e);
        // A complete name whose directory was not synced before the process ended is synced now.
        self.ops.sync_dir(&self.dir).map_err(|e| failed("sync of the directory", e))?;
        let mut partials: Vec<(SystemTime, GroupId, ContentId, u64)> = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(listing)? {
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
                None => tracing::warn!(file = ?entry.path(), "this is no snapshot file; it is left alone"),
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
        at: towline_engine::message::LogId,
        content: ContentId,
    ) -> Result<SnapshotMeta, String> {
        let told = layout::read_meta(path).map_err(|e| e.to_string()).and_then(|meta| {
            let as_named = (meta.head.group, meta.head.at, meta.content) == (group, at, content);
            as_named.then_some(meta).ok_or_else(|| "it is not what its name says".into())
        });
        told.map_err(|detail| {
            tracing::error!(file = %path.display(), detail, "a snapshot file is corrupt");
            format!("{}: {detail}", path.display())
        })
    }

    /// Makes a synced file complete: the rename, the sync of the directory, and only then the word of it.
    fn publish(&self, from: &Path, meta: &SnapshotMeta, received: bool) -> Result<(), SnapshotStoreError> {
        let (group, content) = (meta.head.group, meta.content);
        let path = self.path(&Named::complete(&meta.head, content));
        let _naming = lock(&self.naming);
        let known = self.index().is_named(meta);
        self.ops.rename(from, &path).map_err(|e| failed("rename", e))?;
        if let Err(source) = self.ops.sync_dir(&self.dir) {
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

    /// A transfer broke; its file stays within the bounds.
    fn leave(&self, group: GroupId, content: ContentId, bytes: u64) {
        let _naming = lock(&self.naming);
        let gone = {
            let mut index = self.index();
            index.leave(group, content, bytes);
            index.evict(group, &self.config)
        };
        self.give_up(&gone);
    }

    /// A transfer of this content does not fit: what others of its group have left goes. They are seldom gone on with, and
    /// would keep it out for ever.
    fn give_way(&self, group: GroupId, content: ContentId) {
        let _naming = lock(&self.naming);
        let gone = self.index().evict_others(group, content);
        self.give_up(&gone);
    }

    /// What was received of these is sent again, if it is wanted.
    fn give_up(&self, partials: &[Gone]) {
        for gone in partials {
            let path = self.path(&gone.named);
            tracing::info!(file = %path.display(), "an unfinished snapshot file is given up");
            self.remove_or_log(&path);
        }
    }

    /// A file that will not be complete goes.
    fn abandon(&self, path: &Path, group: GroupId, partial: Option<ContentId>) {
        let _naming = lock(&self.naming);
        self.remove_or_log(path);
        if let Some(content) = partial {
            self.index().forget(group, content);
        }
    }

    fn unpin(&self, meta: &SnapshotMeta) {
        if !self.index().unpin(meta) {
            return;
        }
        let (group, content) = (meta.head.group, meta.content);
        let _naming = lock(&self.naming);
        let gone = self.index().take_unwanted(meta);
        if let Err(error) = self.remove(gone.into_iter().collect()) {
            tracing::warn!(%group, %content, %error, "a snapshot file could not be removed");
        }
    }

    /// Removes what was taken out of the index; what cannot be removed is in it again. The first failure.
    fn remove(&self, gone: Vec<Gone>) -> io::Result<()> {
        let mut outcome = Ok(());
        for gone in gone {
            let path = self.path(&gone.named);
            let unusable = gone.is_unusable();
            match self.ops.remove(&path) {
                // What it once was is not known: somebody may look for it.
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

    /// For files of no use, whose removal nobody waits for: what stays is found when the store is opened again.
    fn remove_or_log(&self, path: &Path) {
        if let Err(error) = self.ops.remove(path) {
            tracing::warn!(file = %path.display(), %error, "a snapshot file could not be removed");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(during: &'static str, source: io::Error) -> SnapshotStoreError {
    SnapshotStoreError::Io { during, source }
}

#[cfg(test)]
mod tests;
