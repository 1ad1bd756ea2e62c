//! A disk without room.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::faults::DiskFaults;
use crate::purges::NAMED_MAX;

const DEADLINE: Duration = Duration::from_secs(60);

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1)); // not synchronisation: poll interval under a deadline
    }
}

fn open_small(dir: &Path, faults: &DiskFaults) -> RaftLog {
    open_on(dir, &SMALL, Disk::with_hook(Some(Arc::new(faults.clone())))).unwrap()
}

/// Makes room, also when an assertion fails: the waiting thread must end.
struct MakesRoom<F: Fn()>(F);

impl<F: Fn()> Drop for MakesRoom<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A disk that is full from its n-th operation that needs room, until there is room.
struct FullFrom {
    from: usize,
    /// Whether the first write without room writes a half.
    in_half: bool,
    has_room: AtomicBool,
    done: AtomicUsize,
    refused: AtomicUsize,
}

impl FullFrom {
    /// Whether the next operation has room.
    fn fits(&self) -> bool {
        self.has_room.load(Ordering::SeqCst) || self.done.fetch_add(1, Ordering::SeqCst) < self.from
    }

    fn refuse(&self) -> usize {
        self.refused.fetch_add(1, Ordering::SeqCst)
    }
}

impl Hook for FullFrom {
    fn before(&self, op: Op, _: &Path) -> io::Result<()> {
        if !matches!(op, Op::Create | Op::Rename) || self.fits() {
            return Ok(());
        }
        self.refuse();
        Err(io::ErrorKind::StorageFull.into())
    }

    fn room(&self, _: &Path, bytes: usize) -> usize {
        if self.fits() {
            return bytes;
        }
        if self.refuse() == 0 && self.in_half { bytes / 2 } else { 0 }
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(if self.has_room.load(Ordering::SeqCst) { u64::MAX } else { 0 })
    }
}

/// A full disk poisoned the log at the first write without room.
#[test]
fn a_write_that_finds_the_disk_full_at_any_operation_waits_and_is_durable_once_there_is_room() {
    let states = expected_states();
    let ends = |state: &LogState| state.each_ref().map(|(group, _)| (group.last_index, group.hard_state));
    for (from, in_half) in (0..).flat_map(|from| [(from, false), (from, true)]) {
        let dir = TempDir::new().unwrap();
        let disk = Arc::new(FullFrom {
            from,
            in_half,
            has_room: AtomicBool::new(true),
            done: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        });
        let log = open_on(dir.path(), &SMALL, Disk::with_hook(Some(disk.clone()))).unwrap();
        disk.has_room.store(false, Ordering::SeqCst);
        let acknowledged = AtomicUsize::new(0);
        thread::scope(|threads| {
            let room = MakesRoom(|| disk.has_room.store(true, Ordering::SeqCst));
            let steps = threads.spawn(|| {
                for number in 0..SCRIPT_STEPS {
                    step(&log, number).unwrap();
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            });
            until("the write waits", || steps.is_finished() || log.space_waits() > 1);
            if !steps.is_finished() {
                let acknowledged = acknowledged.load(Ordering::SeqCst);
                let killed = copy(dir.path());
                let found = state(&open(killed.path(), &SMALL).unwrap_or_else(|e| panic!("{from}: {e}")));
                let allowed = states[acknowledged..].iter().take(2).map(ends);
                assert!(allowed.into_iter().any(|a| a == ends(&found)), "{from}, {acknowledged}: {found:#?}");
            }
            drop(room);
            until("the write ends", || steps.is_finished());
            steps.join().unwrap();
        });
        // Does what was put off.
        log.purge().unwrap();
        let expected = states.last().unwrap();
        assert_eq!(&state(&log), expected, "{from}");
        drop(log);
        assert_eq!(&state(&open(dir.path(), &SMALL).unwrap()), expected, "{from}");
        if disk.refused.load(Ordering::SeqCst) == 0 {
            assert!(from > 20, "the script has more operations");
            return;
        }
    }
}

/// The purge that would have made the room waited behind a compaction, which waited behind the write.
#[test]
fn reads_compactions_and_purges_go_on_while_a_write_waits_and_make_its_room() {
    let (dir, faults) = (TempDir::new().unwrap(), DiskFaults::new());
    let log = open_small(dir.path(), &faults);
    put_each(&log, 1..100);
    put(&log, OTHER, entries(1..4, 1)).unwrap();
    log.compact(GROUP, 98).unwrap();
    faults.leave_free(Some(1_000));
    let large = Entry { index: 100, term: 1, data: vec![7; 2_000].into(), ..Entry::default() };
    thread::scope(|threads| {
        let _room = MakesRoom(|| faults.leave_free(None));
        let write = threads.spawn(|| put(&log, GROUP, vec![large.clone()]).unwrap());
        until("the write waits", || log.space_waits() > 0);
        assert_eq!(all(&log, OTHER), entries(1..4, 1));
        log.compact(OTHER, 1).unwrap();
        assert_eq!(log.recover(OTHER).unwrap().truncated.index, 1);
        assert!(!write.is_finished());
        log.purge().unwrap();
        until("the write ends", || write.is_finished());
    });
    drop(log);
    let log = open(dir.path(), &SMALL).unwrap();
    assert_eq!(all(&log, GROUP), [entries(99..100, 1), vec![large]].concat());
}

#[test]
fn a_compaction_without_room_is_put_off_until_a_purge_with_room() {
    let (dir, faults) = (TempDir::new().unwrap(), DiskFaults::new());
    let log = open_small(dir.path(), &faults);
    put_each(&log, 1..4);
    faults.leave_free(Some(0));
    log.compact(GROUP, 2).unwrap();
    log.compact(GROUP, 1).unwrap();
    assert_eq!((all(&log, GROUP), log.purge().unwrap()), (entries(1..4, 1), vec![]));
    faults.leave_free(None);
    log.purge().unwrap();
    assert_eq!(all(&log, GROUP), entries(3..4, 1));
}

/// A log whose next purge moves entries of `OTHER`, and has no room for it.
fn with_a_purge_that_waits(faults: &DiskFaults) -> (TempDir, RaftLog) {
    let dir = TempDir::new().unwrap();
    let log = open_small(dir.path(), faults);
    put(&log, OTHER, entries(1..20, 1)).unwrap();
    put_each(&log, 1..100);
    log.compact(GROUP, 98).unwrap();
    faults.leave_free(Some(0));
    assert_eq!(log.purge().unwrap(), []);
    assert!(log.space_waits() > 0);
    (dir, log)
}

#[test]
fn a_purge_without_room_goes_on_in_the_background_and_reads_do_not_wait_for_it() {
    let faults = DiskFaults::new();
    let (dir, log) = with_a_purge_that_waits(&faults);
    let before = files(dir.path()).len();
    for _ in 0..100 {
        assert_eq!(all(&log, OTHER), entries(1..20, 1));
    }
    assert_eq!(log.purge().unwrap(), []);
    assert_eq!(files(dir.path()).len(), before);
    faults.leave_free(None);
    until("the purge ends", || log.purge().is_ok() && files(dir.path()).len() < before);
    put_each(&log, 100..101);
    drop(log);
    let log = open(dir.path(), &SMALL).unwrap();
    assert_eq!((all(&log, GROUP), all(&log, OTHER)), (entries(99..101, 1), entries(1..20, 1)));
}

#[test]
fn a_log_closes_while_its_purge_waits_for_room() {
    let faults = DiskFaults::new();
    let (dir, log) = with_a_purge_that_waits(&faults);
    let closing = thread::spawn(|| drop(log));
    until("the log closes", || closing.is_finished());
    let log = open_small(dir.path(), &faults);
    assert_eq!((all(&log, GROUP), all(&log, OTHER)), (entries(99..100, 1), entries(1..20, 1)));
}

/// A log with a truncation to repeat, and a file that was begun and has no header.
#[test]
fn a_log_opens_without_a_free_byte_and_takes_writes_once_there_is_room() {
    const HALF_A_HEADER: &[u8] = b"half a header";
    let (dir, log) = small();
    put(&log, OTHER, entries(1..6, 1)).unwrap();
    purge_often(&log, 1..50);
    log.compact(OTHER, 3).unwrap();
    purge_often(&log, 50..100);
    drop(log);
    let newest = files(dir.path()).pop().unwrap();
    let (queue, number) = Queue::of(&newest).unwrap();
    fs::write(dir.path().join(queue.file_name(number + 1)), HALF_A_HEADER).unwrap();
    let faults = DiskFaults::new();
    faults.leave_free(Some(0));
    let log = open_small(dir.path(), &faults);
    assert!(!lock(&log.truncate_again).is_empty(), "raft-engine has found truncated entries again");
    assert_eq!(log.recover(OTHER).unwrap().truncated.index, 3);
    assert_eq!((all(&log, OTHER), all(&log, GROUP)), (entries(4..6, 1), entries(99..100, 1)));
    // The removal of that file gave its bytes back.
    let free = HALF_A_HEADER.len() as u64;
    assert_eq!(log.space().unwrap(), Some(DiskSpace { free, reserve: 1_536 }));
    thread::scope(|threads| {
        let room = MakesRoom(|| faults.leave_free(None));
        let write = threads.spawn(|| put(&log, OTHER, entries(6..7, 1)).unwrap());
        until("the write waits", || log.space_waits() > 1);
        assert!(!write.is_finished());
        drop(room);
        until("the write ends", || write.is_finished());
    });
    drop(log);
    let log = open(dir.path(), &SMALL).unwrap();
    assert!(lock(&log.truncate_again).is_empty(), "the truncation was repeated");
    assert_eq!((all(&log, OTHER), all(&log, GROUP)), (entries(4..7, 1), entries(99..100, 1)));
}

/// The disk is full at every sync.
struct FullSyncs(AtomicBool);

impl Hook for FullSyncs {
    fn before(&self, op: Op, _: &Path) -> io::Result<()> {
        let full = op == Op::Sync && self.0.load(Ordering::SeqCst);
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

#[test]
fn a_sync_that_finds_the_disk_full_poisons_the_log() {
    let (dir, disk) = (TempDir::new().unwrap(), Arc::new(FullSyncs(AtomicBool::new(false))));
    let log = open_on(dir.path(), &SMALL, Disk::with_hook(Some(disk.clone()))).unwrap();
    disk.0.store(true, Ordering::SeqCst);
    let failed = put(&log, GROUP, entries(1..2, 1)).unwrap_err();
    assert!(matches!(&failed, LogError::Io { during: "sync", source } if is_full(source)), "{failed}");
    assert!(matches!(put(&log, GROUP, entries(1..2, 1)), Err(LogError::Poisoned { .. })));
    assert_eq!(log.space_waits(), 0);
}

#[test]
fn a_purge_that_would_fill_the_disk_is_not_begun_until_there_is_room_or_a_compaction() {
    const FREE: u64 = 3_000;
    for compacts in [false, true] {
        let (dir, faults) = (TempDir::new().unwrap(), DiskFaults::new());
        let log = open_small(dir.path(), &faults);
        put_each(&log, 1..200);
        let before = files(dir.path()).len();
        for _ in 0..NAMED_MAX {
            assert_eq!(log.purge().unwrap(), [GROUP]);
        }
        faults.leave_free(Some(FREE));
        for _ in 0..3 {
            assert_eq!(log.purge().unwrap(), [GROUP], "the engine still has to compact it");
        }
        assert_eq!((log.space().unwrap().unwrap().free, log.space_waits()), (FREE, 0));
        if compacts {
            log.compact(GROUP, 100).unwrap();
            assert_eq!(log.purge().unwrap(), [GROUP], "not yet 70% of its entries");
            assert!(files(dir.path()).len() >= before);
            log.compact(GROUP, 190).unwrap();
        } else {
            faults.leave_free(None);
        }
        log.purge().unwrap();
        assert!(files(dir.path()).len() < before);
        assert_eq!(log.space_waits(), 0);
        assert_eq!(all(&log, GROUP), entries(if compacts { 191 } else { 1 }..200, 1));
    }
}

#[test]
fn a_removed_group_that_comes_back_keeps_its_entries() {
    let (dir, faults) = (TempDir::new().unwrap(), DiskFaults::new());
    let log = open_small(dir.path(), &faults);
    put_each(&log, 1..4);
    faults.leave_free(Some(0));
    log.compact(GROUP, 2).unwrap();
    faults.leave_free(None);
    log.remove(GROUP).unwrap();
    put_each(&log, 1..11);
    log.purge().unwrap();
    assert_eq!(all(&log, GROUP), entries(1..11, 1));
}

#[test]
fn a_damaged_group_does_not_stop_the_compactions_of_the_others() {
    let (dir, faults) = (TempDir::new().unwrap(), DiskFaults::new());
    let log = open_small(dir.path(), &faults);
    for group in [GROUP, OTHER] {
        put(&log, group, entries(1..4, 1)).unwrap();
    }
    faults.leave_free(Some(0));
    log.compact(GROUP, 2).unwrap();
    log.compact(OTHER, 2).unwrap();
    faults.leave_free(None);
    let damage = |out: &mut raft_engine::LogBatch| {
        out.add_command(GROUP.min(OTHER).as_u64(), Command::Clean);
        Ok(())
    };
    log.commit("test", damage).unwrap();
    log.purge().unwrap();
    assert_eq!(all(&log, GROUP.max(OTHER)), entries(3..4, 1));
}

/// Panics where a purge moves a record.
struct PanickingPurge;

impl Hook for PanickingPurge {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        let moves = Queue::of(path).is_some_and(|(queue, _)| queue == Queue::Rewrite);
        assert!(op != Op::Delete, "no file is deleted");
        assert!(!(moves && op == Op::Sync), "raft-engine panics");
        Ok(())
    }
}

#[test]
fn after_a_purge_that_panicked_the_log_takes_writes_and_deletes_nothing() {
    let dir = TempDir::new().unwrap();
    open(dir.path(), &SMALL).unwrap();
    let log = open_on(dir.path(), &SMALL, Disk::with_hook(Some(Arc::new(PanickingPurge)))).unwrap();
    put(&log, OTHER, entries(1..20, 1)).unwrap();
    put_each(&log, 1..100);
    log.compact(GROUP, 98).unwrap();
    for index in 100..103 {
        assert_eq!(log.purge().unwrap(), []);
        put_each(&log, index..index + 1);
    }
    drop(log);
    let log = open(dir.path(), &SMALL).unwrap();
    log.purge().unwrap();
    assert_eq!((all(&log, GROUP), all(&log, OTHER)), (entries(99..103, 1), entries(1..20, 1)));
}

#[cfg(target_os = "linux")]
#[test]
fn an_append_that_waits_in_a_new_file_keeps_the_reserved_descriptors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let held = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path)).count()
    };
    let faults = DiskFaults::new();
    let log = open_small(dir.path(), &faults);
    let large = |index| Entry { index, term: 1, data: vec![7; 2_000].into(), ..Entry::default() };
    // The next one begins a file.
    put(&log, GROUP, vec![large(1)]).unwrap();
    faults.leave_free(Some(1_000));
    thread::scope(|threads| {
        let _room = MakesRoom(|| faults.leave_free(None));
        threads.spawn(|| put(&log, GROUP, vec![large(2)]).unwrap());
        until("the write was repeated", || log.space_waits() > 60);
        let tries = log.space_waits() + 50;
        until("more tries", || {
            assert!(held() >= 8, "the reserve is full again");
            log.space_waits() > tries
        });
    });
}
