//! The log stores of this workspace under the suite.

use std::sync::Arc;

use towline_engine::log_store::LogStore;
use towline_storage::{DataDir, DataDirConfig};
use towline_testkit::log::MemLog;
use towline_testkit::log_store_suite;
use towline_testkit::suites::log_store::Fixture;

#[derive(Default)]
struct InMemory {
    log: MemLog,
}

impl Fixture for InMemory {
    fn open(&mut self) -> Arc<dyn LogStore> {
        Arc::new(self.log.clone())
    }

    fn crash(&mut self) {
        self.log = self.log.crash();
    }
}

struct OnDisk {
    dir: tempfile::TempDir,
    config: DataDirConfig,
}

impl OnDisk {
    fn new() -> Self {
        #[allow(clippy::unwrap_used)]
        let dir = tempfile::tempdir().unwrap();
        Self { dir, config: DataDirConfig::default() }
    }

    /// With files so small that every purge has something to do.
    fn in_small_files() -> Self {
        let mut small = Self::new();
        small.config.log.file_bytes = 600;
        small.config.log.purge_bytes = 1800;
        small
    }
}

impl Fixture for OnDisk {
    fn open(&mut self) -> Arc<dyn LogStore> {
        #[allow(clippy::unwrap_used)]
        DataDir::open_with(self.dir.path(), self.config.clone()).unwrap().log()
    }

    // Crashes that lose what is not synced are tested where the disk can be: in towline-storage.
    fn crash(&mut self) {}
}

log_store_suite!(in_memory, InMemory::default);
log_store_suite!(on_disk, OnDisk::new);
log_store_suite!(on_disk_in_small_files, OnDisk::in_small_files);
