//! A data directory on a small file system that is really full. Needs the right to mount.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests, and the reason of a skipped one

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use towline_engine::ids::GroupId;
use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
use towline_engine::message::Entry;
use towline_engine::units::ByteSize;
use towline_storage::{DataDir, DataDirConfig, RaftLog};

const DEADLINE: Duration = Duration::from_secs(60);
const GROUP: GroupId = GroupId::DEFAULT;

/// A small file system in memory.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(dir.path());
        let can = mount.output().is_ok_and(|output| output.status.success());
        assert!(can || std::env::var_os("CI").is_none(), "CI cannot mount a tmpfs");
        if !can {
            eprintln!("skipped: no right to mount a tmpfs");
        }
        can.then_some(Self { dir })
    }

    fn data(&self) -> DataDir {
        let mut config = DataDirConfig::default();
        (config.log.file_bytes, config.log.purge_bytes) = (ByteSize::kib(64), ByteSize::mib(1));
        DataDir::open_with(&self.dir.path().join("data"), config).unwrap()
    }

    /// Writes a file until not one byte fits.
    fn fill(&self) -> Filler<'_> {
        let filler = self.dir.path().join("filler");
        let mut file = File::options().create(true).append(true).open(filler).unwrap();
        while file.write(&[7; 4096]).is_ok_and(|written| written > 0) {}
        Filler(self)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// Its drop makes room again, also when an assertion fails.
struct Filler<'a>(&'a SmallDisk);

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.dir.path().join("filler"));
    }
}

fn free(log: &RaftLog) -> u64 {
    log.space().unwrap().unwrap().free
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1)); // not synchronisation: poll interval under a deadline
    }
}

fn entry(index: u64) -> Entry {
    // Some are larger than a log file, so that a write ends in the middle.
    let bytes = if index % 3 == 0 { 100_000 } else { 1_000 };
    Entry { index, term: 1, data: vec![index as u8; bytes].into(), ..Entry::default() }
}

fn put(log: &RaftLog, index: u64) {
    let write = GroupWrite { entries: vec![entry(index)], ..GroupWrite::new(GROUP) };
    log.append(&mut LogBatch { writes: vec![write] }).unwrap();
}

fn assert_has(log: &RaftLog, last: u64) {
    let mut found = Vec::new();
    log.entries(GROUP, 1..last + 1, usize::MAX, &mut found).unwrap();
    assert_eq!(log.recover(GROUP).unwrap().last_index, last);
    assert!(found == (1..=last).map(entry).collect::<Vec<_>>(), "entries differ");
}

/// The log was poisoned, and its node silent until a restart.
#[test]
fn an_append_to_a_full_file_system_waits_for_room_and_a_restart_on_it_reads_everything() {
    let Some(disk) = SmallDisk::mount() else { return };
    let data = disk.data();
    let log = data.log();
    put(&log, 1);
    let filler = disk.fill();
    assert_eq!(free(&log), 0);
    thread::scope(|threads| {
        let write = threads.spawn(|| (2..7).for_each(|index| put(&log, index)));
        let filler = filler;
        until("the append waits", || log.space_waits() > 2);
        assert!(!write.is_finished());
        drop(filler);
        until("the append ends", || write.is_finished());
    });
    assert_has(&log, 6);
    let _filler = disk.fill();
    drop((log, data));
    let data = disk.data();
    assert_has(&data.log(), 6);
    assert_eq!(free(&data.log()), 0);
}
