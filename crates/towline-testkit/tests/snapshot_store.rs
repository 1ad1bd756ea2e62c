//! The snapshot stores of this workspace under the suite.

use std::path::PathBuf;

use crate::common::*;
use towline_storage::SNAPSHOT_CHUNK_BYTES;
use towline_testkit::snapshot_store_suite;
use towline_testkit::suites::snapshot_store::SnapshotStoreFixture;

#[derive(Default)]
struct MemSnapshotFixture {
    store: MemSnapshots,
    through_the_double: bool,
}

impl MemSnapshotFixture {
    fn through_the_double() -> Self {
        Self { through_the_double: true, ..Self::default() }
    }
}

impl SnapshotStoreFixture for MemSnapshotFixture {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        let store = Arc::new(self.store.clone());
        if self.through_the_double { Arc::new(FaultySnapshots::new(store)) } else { store }
    }

    fn restart(&mut self) {
        self.store = self.store.restart();
    }

    fn crash(&mut self) {
        self.store = self.store.crash();
    }

    fn chunk_bytes(&self) -> usize {
        MemSnapshots::CHUNK_BYTES
    }

    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        assert!(self.store.damage(meta, offset));
    }

    fn files(&self) -> usize {
        self.store.files()
    }
}

struct DiskSnapshotFixture {
    dir: tempfile::TempDir,
}

impl DiskSnapshotFixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.dir.path().join("snapshots")).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    }
}

impl SnapshotStoreFixture for DiskSnapshotFixture {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        DataDir::open(self.dir.path()).unwrap().snapshots()
    }

    fn restart(&mut self) {}

    // towline-storage tests crashes that lose unsynced data.
    fn crash(&mut self) {}

    fn chunk_bytes(&self) -> usize {
        SNAPSHOT_CHUNK_BYTES
    }

    // The format of docs/wire.md: magic, length of the header's frame, frame, then chunks with four bytes before each.
    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        let content = meta.content.to_string();
        let path = self.paths().into_iter().find(|path| path.to_string_lossy().contains(&content)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let frame = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        bytes[12 + frame + offset + 4 * (offset / SNAPSHOT_CHUNK_BYTES + 1)] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    fn files(&self) -> usize {
        self.paths().len()
    }
}

snapshot_store_suite!(in_memory, MemSnapshotFixture::default);
snapshot_store_suite!(in_memory_through_the_double, MemSnapshotFixture::through_the_double);
snapshot_store_suite!(on_disk, DiskSnapshotFixture::new);
