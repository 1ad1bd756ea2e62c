use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    BodyPart, ContentHasher, ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore,
    SnapshotStoreError, SnapshotWriter, Trailer,
};

use crate::sync::lock;

/// A [`SnapshotStore`] in memory. Clones share one store.
///
/// A snapshot is durable when its commit returns. [`crash`](Self::crash) gives what a power loss leaves,
/// [`restart`](Self::restart) what the end of the process leaves.
#[derive(Debug, Clone, Default)]
pub struct MemSnapshots {
    state: Arc<Mutex<SnapshotsState>>,
}

#[derive(Debug, Default)]
struct SnapshotsState {
    complete: BTreeMap<(GroupId, ContentId), CompleteFile>,
    partial: BTreeMap<(GroupId, ContentId), PartialFile>,
    /// Writers of this node's own snapshots.
    creating: usize,
    left: u64,
}

#[derive(Debug, Clone)]
struct CompleteFile {
    meta: SnapshotMeta,
    body: Arc<SnapshotBody>,
    readers: usize,
    unwanted: bool,
}

#[derive(Debug)]
struct PartialFile {
    /// `None` while a writer holds it.
    left: Option<LeftFile>,
}

#[derive(Debug, Clone)]
struct LeftFile {
    meta: SnapshotMeta,
    body: SnapshotBody,
    number: u64,
}

#[derive(Debug, Clone, Default)]
struct SnapshotBody {
    bytes: Vec<u8>,
    /// The first damaged byte.
    damaged: Option<usize>,
}

impl MemSnapshots {
    /// Bytes under one checksum. One damaged byte makes all of them unreadable.
    pub const CHUNK_BYTES: usize = 64 * 1024;
    /// Partial files of a group. Beyond it, the store removes the oldest.
    pub const PARTIALS_MAX: usize = 2;

    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A second store with what a power loss would leave now: the committed snapshots.
    #[must_use]
    pub fn crash(&self) -> Self {
        let complete = self.lock().complete.clone();
        Self::holding(complete, BTreeMap::new())
    }

    /// A second store with what the end of the process would leave now: committed snapshots and partial files without a
    /// writer.
    #[must_use]
    pub fn restart(&self) -> Self {
        let state = self.lock();
        let left = state.partial.iter().filter_map(|(&key, partial)| {
            partial.left.clone().map(|left| (key, PartialFile { left: Some(left) }))
        });
        Self::holding(state.complete.clone(), left.collect())
    }

    fn holding(
        mut complete: BTreeMap<(GroupId, ContentId), CompleteFile>,
        partial: BTreeMap<(GroupId, ContentId), PartialFile>,
    ) -> Self {
        for file in complete.values_mut() {
            file.readers = 0;
            file.unwanted = false;
        }
        let state = SnapshotsState { complete, partial, creating: 0, left: 1 << 32 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Damages one byte of a complete snapshot or a partial file, as a failing disk would. `false` if it has no such byte.
    pub fn damage(&self, meta: &SnapshotMeta, offset: usize) -> bool {
        let mut state = self.lock();
        let key = (meta.head.group, meta.content);
        let mut hit = false;
        let complete = state.complete.get_mut(&key).map(|file| Arc::make_mut(&mut file.body));
        if let Some(body) = complete {
            hit |= body.damage(offset);
        }
        if let Some(left) = state.partial.get_mut(&key).and_then(|partial| partial.left.as_mut()) {
            hit |= left.body.damage(offset);
        }
        hit
    }

    /// The number of files: complete, partial, being written.
    pub fn files(&self) -> usize {
        let state = self.lock();
        state.complete.len() + state.partial.len() + state.creating
    }

    fn lock(&self) -> MutexGuard<'_, SnapshotsState> {
        lock(&self.state)
    }
}

impl SnapshotBody {
    fn damage(&mut self, offset: usize) -> bool {
        let Some(byte) = self.bytes.get_mut(offset) else { return false };
        *byte ^= 1;
        self.damaged = Some(self.damaged.map_or(offset, |old| old.min(offset)));
        true
    }

    /// The start of the first damaged chunk.
    fn damaged_from(&self) -> Option<usize> {
        self.damaged.map(|at| at - at % MemSnapshots::CHUNK_BYTES)
    }
}

impl SnapshotStore for MemSnapshots {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        let state = self.lock();
        let of_group = state.complete.values().map(|file| &file.meta).filter(|m| m.head.group == group);
        let mut metas: Vec<_> = of_group.cloned().collect();
        metas.sort_by_key(|meta| Reverse(meta.head.at));
        Ok(metas)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.lock().complete.get(&(group, content)).map(|file| file.meta.clone()))
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.lock().creating += 1;
        Ok(Box::new(MemWriter::new(self.clone(), head.clone(), None)))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let key = (meta.head.group, meta.content);
        let offered = Trailer { length: meta.length, content: meta.content };
        let left = {
            let mut state = self.lock();
            let partial = state.partial.insert(key, PartialFile { left: None });
            match partial {
                Some(PartialFile { left: None }) => {
                    return Err(SnapshotStoreError::Busy { content: meta.content });
                }
                Some(PartialFile { left }) => left,
                None => None,
            }
        };
        let mut writer = MemWriter::new(self.clone(), meta.head.clone(), Some(offered));
        if let Some(left) = left.filter(|left| left.meta == *meta) {
            let damaged_from = left.body.damaged_from();
            writer.body = left.body.bytes;
            writer.body.truncate(damaged_from.unwrap_or(usize::MAX));
            for chunk in writer.body.chunks(Self::CHUNK_BYTES) {
                writer.hasher.update(chunk);
                if !goes_on(writer.hasher.length()) {
                    return Err(SnapshotStoreError::Stopped { content: meta.content });
                }
            }
        }
        Ok(Box::new(writer))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let content = meta.content;
        let key = (meta.head.group, content);
        let mut state = self.lock();
        let file = state.complete.get_mut(&key).filter(|file| file.meta == *meta);
        let file = file.ok_or(SnapshotStoreError::Missing { content })?;
        if offset > meta.length {
            return Err(failed("open", io::ErrorKind::InvalidInput.into()));
        }
        file.readers += 1;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(Box::new(MemReader { store: self.clone(), key, body: file.body.clone(), at, broken: false }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let mut state = self.lock();
        state.complete.retain(|(of, content), file| {
            if *of == group {
                file.unwanted = !keep.contains(content);
            }
            file.readers > 0 || !file.unwanted
        });
        state.partial.retain(|(of, content), partial| {
            *of != group || partial.left.is_none() || keep.contains(content)
        });
        Ok(())
    }
}

struct MemReader {
    store: MemSnapshots,
    key: (GroupId, ContentId),
    body: Arc<SnapshotBody>,
    at: usize,
    broken: bool,
}

impl SnapshotReader for MemReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        let rest = self.body.bytes.get(self.at..).unwrap_or_default();
        let sound = self.body.damaged_from().map_or(rest.len(), |damaged| damaged.saturating_sub(self.at));
        let part = rest.get(..sound.min(rest.len()).min(bytes_max.max(1))).unwrap_or_default();
        self.broken |= part.is_empty() && !rest.is_empty();
        if self.broken {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum does not match"));
        }
        self.at += part.len();
        let part = BodyPart { bytes: Bytes::copy_from_slice(part), crc32c: crc32c::crc32c(part) };
        Ok(Some(part).filter(|part| !part.bytes.is_empty()))
    }
}

impl Drop for MemReader {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        if let Some(file) = state.complete.get_mut(&self.key) {
            file.readers = file.readers.saturating_sub(1);
            if file.readers == 0 && file.unwanted {
                state.complete.remove(&self.key);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriterState {
    Open,
    Checked(Trailer),
    Refused,
    Committed,
}

struct MemWriter {
    store: MemSnapshots,
    head: SnapshotHead,
    offered: Option<Trailer>,
    hasher: ContentHasher,
    body: Vec<u8>,
    condition: WriterState,
}

impl MemWriter {
    fn new(store: MemSnapshots, head: SnapshotHead, offered: Option<Trailer>) -> Self {
        let hasher = ContentHasher::new(&head);
        Self { store, head, offered, hasher, body: Vec::new(), condition: WriterState::Open }
    }

    fn refuse(&mut self, content: ContentId, detail: String) -> SnapshotStoreError {
        self.condition = WriterState::Refused;
        SnapshotStoreError::Corrupt { content, detail }
    }
}

impl Write for MemWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.hasher.length() + bytes.len() as u64;
        if self.condition == WriterState::Refused || self.offered.is_some_and(|o| length > o.length) {
            self.condition = WriterState::Refused;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is longer than the offer"));
        }
        if !bytes.is_empty() {
            self.condition = WriterState::Open;
        }
        self.hasher.update(bytes);
        self.body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for MemWriter {
    fn verified(&self) -> u64 {
        self.hasher.length()
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        if self.condition == WriterState::Refused {
            return Err(failed("verification", io::Error::other("the snapshot file failed before")));
        }
        let found = self.hasher.finish();
        let wrong = self.offered.iter().chain(expected).find(|expected| **expected != found).copied();
        if let Some(expected) = wrong {
            return Err(self.refuse(expected.content, format!("expected {expected:?}, found {found:?}")));
        }
        self.condition = WriterState::Checked(found);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        let WriterState::Checked(trailer) = self.condition else {
            let content = self.offered.unwrap_or_else(|| self.hasher.finish()).content;
            return Err(self.refuse(content, "the snapshot was not verified before its commit".into()));
        };
        let meta = SnapshotMeta { head: self.head.clone(), length: trailer.length, content: trailer.content };
        let key = (meta.head.group, meta.content);
        let body = Arc::new(SnapshotBody { bytes: std::mem::take(&mut self.body), damaged: None });
        self.condition = WriterState::Committed;
        let mut state = self.store.lock();
        let readers = state.complete.get(&key).map_or(0, |old| old.readers);
        state.complete.insert(key, CompleteFile { meta: meta.clone(), body, readers, unwanted: false });
        match self.offered {
            Some(_) => drop(state.partial.remove(&key)),
            None => state.creating -= 1,
        }
        Ok(meta)
    }

    fn discard(mut self: Box<Self>) {
        self.condition = WriterState::Refused;
    }
}

impl Drop for MemWriter {
    fn drop(&mut self) {
        if self.condition == WriterState::Committed {
            return;
        }
        let mut state = self.store.lock();
        let Some(offered) = self.offered else {
            state.creating -= 1;
            return;
        };
        let group = self.head.group;
        let key = (group, offered.content);
        if self.condition == WriterState::Refused || self.body.is_empty() {
            state.partial.remove(&key);
            return;
        }
        state.left += 1;
        let meta = SnapshotMeta { head: self.head.clone(), length: offered.length, content: offered.content };
        let body = SnapshotBody { bytes: std::mem::take(&mut self.body), damaged: None };
        let left = Some(LeftFile { meta, body, number: state.left });
        state.partial.insert(key, PartialFile { left });
        let mut numbers: Vec<_> = state
            .partial
            .iter()
            .filter(|((of, _), _)| *of == group)
            .filter_map(|(&key, partial)| partial.left.as_ref().map(|left| (left.number, key)))
            .collect();
        numbers.sort_unstable();
        let excess = numbers.len().saturating_sub(MemSnapshots::PARTIALS_MAX);
        for (_, key) in numbers.into_iter().take(excess) {
            state.partial.remove(&key);
        }
    }
}

fn failed(during: &'static str, source: io::Error) -> SnapshotStoreError {
    SnapshotStoreError::Io { during, source }
}
