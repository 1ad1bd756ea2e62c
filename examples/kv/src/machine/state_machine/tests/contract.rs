//! Runs the testkit's suites for state machines.

use std::path::PathBuf;

use towline_testkit::suites::state_machine::StateMachineFixture;
use towline_testkit::suites::state_machine::files::FilesFixture;

use super::*;

struct OnDisk {
    dir: TempDir,
}

impl OnDisk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

impl StateMachineFixture for OnDisk {
    type Machine = KvMachine;

    fn open(&mut self) -> KvMachine {
        open(&self.dir, &Arc::default())
    }

    /// Data that fjall has not synced stays in the page cache, because no test can clear that.
    fn crash(&mut self) {}

    fn command(&self, number: u64) -> Bytes {
        let text = format!("{number},");
        let (key, value) = (Blob(b"k"), Blob(text.as_bytes()));
        let op = match number % 4 {
            0 => Op::Append { key, value },
            1 => Op::Add { key: Blob(b"n"), delta: number as i64 + 1 },
            2 => set(text.as_bytes(), b"", Expiry::After { ttl_ms: 1_000_000 + number }),
            _ => Op::SetMany { pairs: vec![(key, value)] },
        };
        entry(1, &[Command { now_ms: 1, op }]).data
    }

    fn contents(&self, view: &View) -> Vec<u8> {
        self.try_contents(view).unwrap()
    }

    fn reply(&self, reply: &Vec<Answer>) -> Vec<u8> {
        format!("{reply:?}").into_bytes()
    }
}

impl FilesFixture for OnDisk {
    fn dir(&self) -> PathBuf {
        self.dir.path().join("kv")
    }

    fn try_open(&mut self) -> Result<KvMachine, String> {
        KvMachine::open(&self.dir(), &StoreConfig::default(), &roomy()).map_err(|error| error.to_string())
    }

    fn try_contents(&self, view: &View) -> Result<Vec<u8>, String> {
        let seen = view.digest().map_err(|error| error.to_string())?;
        Ok([seen.keys, seen.digest].map(u64::to_be_bytes).concat())
    }
}

towline_testkit::state_machine_suite!(on_fjall, OnDisk::new);
towline_testkit::state_machine_files_suite!(damaged, OnDisk::new);
