//! A log whose file descriptors other threads take. A program of its own: the limit holds for a whole process.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towline_engine::ids::GroupId;
use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
use towline_engine::message::Entry;
use towline_engine::units::ByteSize;
use towline_storage::{DataDir, DataDirConfig, RaftLog};

/// How long the test tries to make raft-engine lose a descriptor.
const TRIES: Duration = Duration::from_secs(30);
/// Descriptors that are left for the log and those who take them.
const LEFT: u64 = 24;
const GROUPS: u64 = 40;

/// Panics of raft-engine because it could not open the directory of a new log file.
static LOST: AtomicUsize = AtomicUsize::new(0);

fn lost() -> usize {
    LOST.load(Ordering::SeqCst)
}

fn config() -> DataDirConfig {
    let mut config = DataDirConfig::default();
    (config.log.file_bytes, config.log.purge_bytes) = (ByteSize::kib(4), ByteSize::kib(16));
    config
}

/// Takes every descriptor there is, again and again.
fn take(done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let until = Instant::now() + Duration::from_millis(3);
        let mut taken = Vec::new();
        while Instant::now() < until {
            taken.extend(File::open("/dev/null"));
        }
        drop(taken);
        thread::sleep(Duration::from_millis(1)); // not synchronisation: the log gets on meanwhile
    }
}

/// Also when an assertion fails: the others are waited for.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One more entry of each group, and forgets all but the last few.
fn write(log: &RaftLog, index: u64) {
    let groups = || (1..=GROUPS).map(GroupId::new);
    let entry = Entry { index, term: 1, data: vec![7; 100].into(), ..Entry::default() };
    let writes = groups().map(|group| GroupWrite { entries: vec![entry.clone()], ..GroupWrite::new(group) });
    log.append(&mut LogBatch { writes: writes.collect() }).unwrap();
    if index % 8 == 0 {
        groups().for_each(|group| log.compact(group, index - 4).unwrap());
    }
}

/// The log was poisoned where raft-engine found none for the directory of a new file, which ended the groups of the node.
#[test]
fn other_threads_that_take_every_descriptor_do_not_end_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.to_string().contains("Os { code: 24,") {
        true => drop(LOST.fetch_add(1, Ordering::SeqCst)),
        false => shown(panic),
    }));
    let before = getrlimit(Resource::Nofile);
    let (mut index, mut of_writes) = (0, 0);
    let started = Instant::now();
    // The scheduler decides whether a descriptor is lost. Without a loss the test still shows that the log survives.
    while of_writes == 0 && started.elapsed() < TRIES {
        let data = DataDir::open_with(dir.path(), config()).unwrap();
        let log = data.log();
        let next = u64::try_from(File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(next + LEFT), ..before }).unwrap();
        let (done, lost_before) = (AtomicBool::new(false), lost());
        thread::scope(|scope| {
            let _ends = Ends(&done);
            (0..2).for_each(|_| drop(scope.spawn(|| take(&done))));
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until && of_writes == 0 {
                let earlier = lost();
                index += 1;
                write(&log, index);
                of_writes += lost() - earlier;
                log.purge().unwrap();
            }
        });
        assert!(log.descriptor_waits() >= (lost() - lost_before) as u64, "each loss is counted");
        setrlimit(Resource::Nofile, before).unwrap();
        index += 1;
        write(&log, index);
        drop((log, data));
        let data = DataDir::open_with(dir.path(), config()).unwrap();
        for group in (1..=GROUPS).map(GroupId::new) {
            assert_eq!(data.log().recover(group).unwrap().last_index, index, "{group}");
        }
    }
}
