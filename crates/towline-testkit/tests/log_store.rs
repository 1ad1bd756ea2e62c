//! The log stores of this workspace under the suite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::sync::Arc;

use towline_engine::log_store::LogStore;
use towline_engine::units::ByteSize;
use towline_storage::{DataDir, DataDirConfig};
use towline_testkit::log::MemLog;
use towline_testkit::log_store_suite;
use towline_testkit::suites::log_store::LogStoreFixture;

#[derive(Default)]
struct InMemory {
    log: MemLog,
}

impl LogStoreFixture for InMemory {
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
        small.config.log.file_bytes = ByteSize::bytes(600);
        small.config.log.purge_bytes = ByteSize::bytes(1_800);
        small
    }
}

impl LogStoreFixture for OnDisk {
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
