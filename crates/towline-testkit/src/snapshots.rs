//! A snapshot store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    ContentHasher, ContentId, SnapshotHead, SnapshotMeta, SnapshotStore, SnapshotStoreError, SnapshotWriter,
    Trailer,
};

/// Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemSnapshots {
    files: Arc<Mutex<Files>>,
}

#[derive(Debug, Default, Clone)]
struct Files {
    complete: BTreeMap<(GroupId, ContentId), (SnapshotMeta, Bytes)>,
    partial: BTreeMap<(GroupId, ContentId), Vec<u8>>,
    writing: BTreeSet<(GroupId, ContentId)>,
}

impl MemSnapshots {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a power loss leaves: complete files, which were made durable before they became visible, and no others.
    #[must_use]
    pub fn crash(&self) -> Self {
        let complete = self.lock().complete.clone();
        Self { files: Arc::new(Mutex::new(Files { complete, ..Files::default() })) }
    }
}

impl SnapshotStore for MemSnapshots {
    fn latest(&self, group: GroupId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        let files = self.lock();
        let of_group = files.complete.iter().filter(|((of, _), _)| *of == group).map(|(_, (meta, _))| meta);
        Ok(of_group.max_by_key(|meta| meta.head.at.index).cloned())
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.lock().complete.get(&(group, content)).map(|(meta, _)| meta.clone()))
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(Box::new(Writer {
            store: self.clone(),
            head: head.clone(),
            hasher: ContentHasher::new(head),
            body: Vec::new(),
            key: None,
            verified: None,
        }))
    }

    fn receive(&self, meta: &SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let key = (meta.head.group, meta.content);
        let mut files = self.lock();
        if !files.writing.insert(key) {
            return Err(SnapshotStoreError::Busy { content: meta.content });
        }
        let body = files.partial.remove(&key).unwrap_or_default();
        let mut hasher = ContentHasher::new(&meta.head);
        hasher.update(&body);
        let head = meta.head.clone();
        Ok(Box::new(Writer { store: self.clone(), head, hasher, body, key: Some(key), verified: None }))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn Read + Send>, SnapshotStoreError> {
        let files = self.lock();
        let found = files.complete.get(&(meta.head.group, meta.content));
        let (_, body) = found.ok_or(SnapshotStoreError::Missing { content: meta.content })?;
        let rest = body.slice(body.len().min(offset as usize)..);
        Ok(Box::new(rest.reader()))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let mut files = self.lock();
        files.complete.retain(|(of, content), _| *of != group || keep.contains(content));
        files.partial.retain(|(of, content), _| *of != group || keep.contains(content));
        Ok(())
    }
}

struct Writer {
    store: MemSnapshots,
    head: SnapshotHead,
    hasher: ContentHasher,
    body: Vec<u8>,
    /// Of a received one.
    key: Option<(GroupId, ContentId)>,
    verified: Option<Trailer>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.body.extend_from_slice(bytes);
        self.verified = None;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for Writer {
    fn verified(&self) -> u64 {
        self.body.len() as u64
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        let found = self.hasher.finish();
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            let detail = format!("{} of {} bytes, digest {}", found.length, expected.length, found.content);
            return Err(SnapshotStoreError::Corrupt { content: expected.content, detail });
        }
        self.verified = Some(found);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        let content = self.key.map_or(ContentId([0; 32]), |(_, content)| content);
        let body = std::mem::take(&mut self.body);
        let Some(Trailer { length, content }) = self.verified else {
            return Err(SnapshotStoreError::Corrupt { content, detail: "it was not verified".into() });
        };
        let meta = SnapshotMeta { head: self.head.clone(), length, content };
        let file = (meta.clone(), body.into());
        self.store.lock().complete.insert((meta.head.group, content), file);
        Ok(meta)
    }

    fn discard(mut self: Box<Self>) {
        self.body.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let body = std::mem::take(&mut self.body);
            let mut files = self.store.lock();
            files.writing.remove(&key);
            if !body.is_empty() {
                files.partial.insert(key, body);
            }
        }
    }
}
