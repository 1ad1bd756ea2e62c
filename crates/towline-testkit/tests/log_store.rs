//! The log stores of this workspace under the suite.

use crate::common::*;
use towline_testkit::log_store_suite;
use towline_testkit::suites::log_store::LogStoreFixture;

#[derive(Default)]
struct MemLogFixture {
    log: MemLog,
}

impl LogStoreFixture for MemLogFixture {
    fn open(&mut self) -> Arc<dyn LogStore> {
        Arc::new(self.log.clone())
    }

    fn crash(&mut self) {
        self.log = self.log.crash();
    }
}

struct DiskLogFixture {
    dir: tempfile::TempDir,
    config: DataDirConfig,
}

impl DiskLogFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, config: DataDirConfig::default() }
    }

    /// Uses small files, so that every purge removes some.
    fn in_small_files() -> Self {
        let mut small = Self::new();
        small.config.log.file_bytes = ByteSize::bytes(600);
        small.config.log.purge_bytes = ByteSize::bytes(1_800);
        small
    }
}

impl LogStoreFixture for DiskLogFixture {
    fn open(&mut self) -> Arc<dyn LogStore> {
        DataDir::open_with(self.dir.path(), self.config.clone()).unwrap().log()
    }

    // towline-storage tests crashes that lose unsynced data.
    fn crash(&mut self) {}
}

log_store_suite!(in_memory, MemLogFixture::default);
log_store_suite!(on_disk, DiskLogFixture::new);
log_store_suite!(on_disk_in_small_files, DiskLogFixture::in_small_files);
