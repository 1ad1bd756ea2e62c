//! Snapshot files.
//!
//! A writer writes a file under the name of an incomplete one, adds a trailer, syncs the file, renames it and syncs the
//! directory. After a power loss, a file with a complete name is therefore complete.

mod buffers;
mod dir;
mod file_ops;
mod index;
mod layout;
mod names;
mod reader;
mod sums;
mod writer;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
    Trailer,
};

pub(crate) use self::file_ops::FileOps;
pub use self::index::SnapshotPartials;
pub use self::layout::SNAPSHOT_CHUNK_BYTES;

use self::dir::{SnapshotDir, failed};
use self::layout::{Header, Unreadable};
use self::names::Named;
use self::reader::{FileReader, Pin};
use self::writer::{FileWriter, Resumed, SYNC_BYTES};
use crate::config::SnapshotConfig;
use crate::descriptors::open_in_time;
use crate::dir_lock::DirLock;

/// A [`SnapshotStore`] on files in one directory. Made by [`DataDir::open`](crate::DataDir::open).
///
/// [`complete`](SnapshotStore::complete) and [`find`](SnapshotStore::find) answer from memory. Opening the store checks
/// header and trailer of each file; every read checks the bytes of the body. A writer whose disk fails or is full leaves
/// nothing, not even for a resume, and affects no other file.
#[derive(Debug)]
pub struct SnapshotFiles {
    dir: Arc<SnapshotDir>,
}

impl SnapshotFiles {
    /// Opens the store in an existing directory, and removes useless files.
    pub(crate) fn open_with(
        dir: &Path,
        config: &SnapshotConfig,
        ops: FileOps,
        lock: Option<Arc<DirLock>>,
    ) -> Result<Self, SnapshotStoreError> {
        Ok(Self { dir: SnapshotDir::open(dir, config, ops, lock)? })
    }

    /// The partial files of a group.
    pub fn partials(&self, group: GroupId) -> SnapshotPartials {
        self.dir.index().partials(group)
    }

    fn receiver(&self, meta: &SnapshotMeta) -> Result<(FileWriter, bool), SnapshotStoreError> {
        let (group, content) = (meta.head.group, meta.content);
        let offered = Trailer { length: meta.length, content };
        let header = Header { head: meta.head.clone(), offered: Some(offered) };
        let path = self.dir.file(&Named::Partial { group, content });
        let _naming = self.dir.naming();
        self.dir.index().claim(group, content)?;
        let opened = match File::options().read(true).write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.dir.ops.create(&path).map(|f| (f, false)),
            there => there.map(|file| (file, true)),
        };
        let opened = opened.inspect_err(|_| self.dir.index().forget(group, content));
        let (file, there) = opened.map_err(|e| failed("creation", e))?;
        Ok((FileWriter::new(self.dir.clone(), header, path, file), there))
    }
}

impl SnapshotStore for SnapshotFiles {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.dir.index().complete(group))
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        self.dir.index().find(group, content)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.dir.room_for(SYNC_BYTES)?;
        let path = self.dir.temporary(head.group);
        let file = self.dir.ops.create(&path).map_err(|e| failed("creation", e))?;
        let header = Header { head: head.clone(), offered: None };
        let mut writer = FileWriter::new(self.dir.clone(), header, path, file);
        writer.start()?;
        Ok(Box::new(writer))
    }

    fn check_room(&self, bytes: u64) -> Result<(), SnapshotStoreError> {
        self.dir.room_for(layout::stored_bytes(bytes).unwrap_or(u64::MAX))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let left = self.dir.index().left_bytes(meta.head.group, meta.content);
        let wanted = layout::stored_bytes(meta.length).unwrap_or(u64::MAX).saturating_sub(left);
        if self.dir.room_for(wanted).is_err() {
            self.dir.give_way(meta.head.group, meta.content);
            self.dir.room_for(wanted)?;
        }
        let (mut writer, there) = self.receiver(meta)?;
        if !there {
            writer.start()?;
            return Ok(Box::new(writer));
        }
        let cause = match writer.resume(goes_on) {
            Ok(Resumed::GoesOn) => return Ok(Box::new(writer)),
            Ok(Resumed::Stopped) => return Err(SnapshotStoreError::Stopped { content: meta.content }),
            Ok(Resumed::Foreign) => String::from("it is another file"),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            group = %meta.head.group, content = %meta.content, bytes = left, cause,
            "a partial snapshot file cannot be resumed; the transfer starts at byte 0"
        );
        writer.restart()?;
        Ok(Box::new(writer))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let content = meta.content;
        self.dir.index().pin(meta)?;
        let pin = Pin { dir: self.dir.clone(), meta: meta.clone() };
        let named = Named::complete(&meta.head, content);
        let file = open_in_time(&self.dir.file(&named)).map_err(|source| match source.kind() {
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
        let _naming = self.dir.naming();
        let gone = self.dir.index().retain(group, keep);
        self.dir.remove(gone).map_err(|e| failed("removal", e))
    }
}

#[cfg(test)]
mod tests;
