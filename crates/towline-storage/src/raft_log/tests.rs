use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use towline_engine::log_store::{ConfRecord, Install};
use towline_engine::message::HardState;
use towline_engine::snapshot_store::ContentId;

use super::*;
use crate::disk::{Hook, Op};
use crate::fixtures::copy;
use crate::log_manifest::Queue;

mod crashes;
mod full_disk;

const GROUP: GroupId = GroupId::DEFAULT;
const OTHER: GroupId = GroupId::new(2);
/// The list of log files. Only in these tests it lies in the log's directory.
const LIST: &str = "log-files";
/// A few appends fill a file.
const SMALL: LogConfig = LogConfig { file_bytes: ByteSize::bytes(512), purge_bytes: ByteSize::kib(2) };

fn open(dir: &Path, config: &LogConfig) -> Result<RaftLog, LogError> {
    open_on(dir, config, Disk::new())
}

fn open_on(dir: &Path, config: &LogConfig, disk: Disk) -> Result<RaftLog, LogError> {
    RaftLog::open(dir, &dir.join(LIST), config, disk, None)
}

fn small() -> (TempDir, RaftLog) {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    (dir, log)
}

fn entries(range: Range<u64>, term: u64) -> Vec<Entry> {
    let data = |index| format!("entry {index} of {term}").into();
    range.map(|index| Entry { index, term, data: data(index), ..Entry::default() }).collect()
}

fn write_one(log: &RaftLog, write: GroupWrite) -> Result<(), LogError> {
    log.append(&mut LogBatch { writes: vec![write] })
}

fn put(log: &RaftLog, group: GroupId, entries: Vec<Entry>) -> Result<(), LogError> {
    write_one(log, GroupWrite { entries, ..GroupWrite::new(group) })
}

fn put_each(log: &RaftLog, range: Range<u64>) {
    range.for_each(|index| put(log, GROUP, entries(index..index + 1, 1)).unwrap());
}

/// Appends entries of `GROUP`, with a compaction and a purge after each.
fn purge_often(log: &RaftLog, range: Range<u64>) {
    for index in range {
        put_each(log, index..index + 1);
        log.compact(GROUP, index - 1).unwrap();
        log.purge().unwrap();
    }
}

fn all(log: &RaftLog, group: GroupId) -> Vec<Entry> {
    let recovered = log.recover(group).unwrap();
    let mut out = Vec::new();
    log.entries(group, recovered.truncated.index + 1..recovered.last_index + 1, usize::MAX, &mut out)
        .unwrap();
    out
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = all.filter(|p| Queue::of(p).is_some()).collect();
    files.sort();
    files
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let of = |file: &PathBuf| Queue::of(file).is_some_and(|(queue, _)| queue == Queue::Append);
    log_files(dir).into_iter().filter(of).collect()
}

/// Fails every operation from the n-th on, and keeps the synced content of each file.
#[derive(Default)]
struct Faults {
    fail_from: Option<usize>,
    done: AtomicUsize,
    durable: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    /// Writes to each file since its last sync, and their maximum.
    unsynced: Mutex<BTreeMap<PathBuf, (usize, usize)>>,
}

impl Hook for Faults {
    fn before(&self, _: Op, _: &Path) -> io::Result<()> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        match self.fail_from {
            Some(from) if number >= from => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }

    fn after(&self, op: Op, path: &Path) {
        let mut unsynced = self.unsynced.lock().unwrap();
        let (now, most) = unsynced.entry(path.into()).or_default();
        match op {
            Op::Write => *now += 1,
            Op::Sync => *now = 0,
            _ => {}
        }
        *most = (*most).max(*now);
        let mut durable = self.durable.lock().unwrap();
        match op {
            // `replace_file` syncs the list before the rename.
            Op::Sync | Op::Rename => drop(durable.insert(path.into(), fs::read(path).unwrap())),
            Op::Delete => drop(durable.remove(path)),
            _ => {}
        }
    }
}

impl Faults {
    /// A directory with the synced content only, as after a power loss.
    fn after_power_loss(&self) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (path, bytes) in &*self.durable.lock().unwrap() {
            fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        dir
    }
}

const INSTALL: Install = Install { at: LogId { index: 30, term: 2 }, installing: ContentId([7; 16]) };
const SCRIPT_STEPS: u64 = 18;

/// A step of a fixed script: appends for two groups, a compaction, an installation, a purge.
fn step(log: &RaftLog, number: u64) -> Result<(), LogError> {
    let next = |group| log.recover(group).unwrap().last_index + 1;
    match number {
        8 => log.compact(GROUP, 3),
        12 => write_one(
            log,
            GroupWrite { install: Some(INSTALL), entries: entries(31..32, 2), ..GroupWrite::new(OTHER) },
        ),
        15 => log.purge().map(drop),
        _ => log.append(&mut LogBatch {
            writes: [GROUP, OTHER]
                .map(|group| GroupWrite {
                    entries: entries(next(group)..next(group) + 2, 1),
                    hard_state: Some(HardState { term: 1, vote: None, commit: number }),
                    ..GroupWrite::new(group)
                })
                .into(),
        }),
    }
}

type LogState = [(Recovered, Vec<Entry>); 2];

fn state(log: &RaftLog) -> LogState {
    [GROUP, OTHER].map(|group| (log.recover(group).unwrap(), all(log, group)))
}

/// The state after each step, the empty one first.
fn expected_states() -> Vec<LogState> {
    let (_dir, log) = small();
    let mut states = vec![state(&log)];
    for number in 0..SCRIPT_STEPS {
        step(&log, number).unwrap();
        states.push(state(&log));
    }
    states
}

#[test]
fn a_failing_disk_poisons_at_every_operation_and_loses_nothing_acknowledged() {
    let states = expected_states();
    for fail_from in 0.. {
        let faults = Arc::new(Faults { fail_from: Some(fail_from), ..Faults::default() });
        let dir = TempDir::new().unwrap();
        let opened = open_on(dir.path(), &SMALL, Disk::with_hook(Some(faults.clone())));
        let mut acknowledged = 0;
        let failed = match opened {
            Err(e) => Some(e),
            Ok(log) => {
                let failed = (0..SCRIPT_STEPS).find_map(|n| {
                    let outcome = step(&log, n).err();
                    acknowledged += usize::from(outcome.is_none());
                    outcome
                });
                if let Some(LogError::Io { source, .. }) = &failed {
                    let refused = put(&log, GROUP, entries(1..2, 9)).unwrap_err();
                    let LogError::Poisoned { cause } = &refused else { panic!("{refused}") };
                    assert!(cause.contains(&source.to_string()), "{refused}");
                    assert!(matches!(log.compact(GROUP, 1), Err(LogError::Poisoned { .. })));
                    assert!(matches!(log.remove(GROUP), Err(LogError::Poisoned { .. })));
                    assert!(matches!(log.purge(), Err(LogError::Poisoned { .. })));
                }
                failed
            }
        };
        let Some(failed) = failed else {
            assert!(fail_from > 20, "the script has more operations");
            return;
        };
        let LogError::Io { source, during } = &failed else { panic!("{fail_from}: {failed}") };
        assert_eq!(source.raw_os_error(), Some(5), "{fail_from}: during {during}");
        // Both images have every acknowledged step, and the failed step whole or not at all.
        for (how, after) in [("kill", copy(dir.path())), ("power loss", faults.after_power_loss())] {
            let log = open(after.path(), &SMALL).unwrap_or_else(|e| panic!("{fail_from}, {how}: {e}"));
            let found = state(&log);
            let allowed = &states[acknowledged..=(acknowledged + 1).min(states.len() - 1)];
            assert!(allowed.contains(&found), "{fail_from}, {how}, {acknowledged} acknowledged: {found:#?}");
        }
    }
}

/// `scan` relies on it to tell a torn last record from damage.
#[test]
fn no_file_ever_has_two_unsynced_records() {
    let faults = Arc::new(Faults::default());
    let dir = TempDir::new().unwrap();
    let config = LogConfig { file_bytes: ByteSize::mib(1), purge_bytes: ByteSize::mib(2) };
    let log = open_on(dir.path(), &config, Disk::with_hook(Some(faults.clone()))).unwrap();
    // raft-engine moves this much data in several records.
    let large = |index| Entry { index, term: 1, data: vec![1; 100_000].into(), ..Entry::default() };
    for group in 10..20 {
        put(&log, GroupId::new(group), (1..5).map(large).collect()).unwrap();
    }
    // Alone, raft-engine would join writes of several threads.
    std::thread::scope(|threads| {
        for group in 1..7 {
            let (log, group) = (&log, GroupId::new(group));
            threads.spawn(move || {
                for index in 1..60 {
                    put(log, group, entries(index..index + 1, 1)).unwrap();
                    log.compact(group, index - 1).unwrap();
                }
            });
        }
        log.purge().unwrap();
    });
    let unsynced = faults.unsynced.lock().unwrap();
    assert!(unsynced.keys().any(|file| file.extension().is_some_and(|e| e == "rewrite")));
    for (file, (_, most)) in &*unsynced {
        // The header of a queue's first file and its first record share a sync.
        let allowed = if file.file_stem().is_some_and(|s| s == "0000000000000001") { 2 } else { 1 };
        assert!(*most <= allowed, "{}: {most} unsynced writes", file.display());
    }
}

/// A log in one file, with the file's length after each append.
fn one_file_of(appends: u64) -> (TempDir, PathBuf, Vec<usize>) {
    let dir = TempDir::new().unwrap();
    let mut ends = Vec::new();
    for index in 1..=appends {
        let log = open(dir.path(), &LogConfig::default()).unwrap();
        put_each(&log, index..index + 1);
        drop(log);
        ends.push(fs::metadata(&files(dir.path())[0]).unwrap().len() as usize);
    }
    // The list of a killed process does not know the last records.
    fs::remove_file(dir.path().join(LIST)).unwrap();
    let file = files(dir.path())[0].clone();
    (dir, file, ends)
}

#[test]
fn a_last_record_torn_at_any_byte_is_cut_off() {
    let (dir, file, ends) = one_file_of(4);
    let whole = fs::read(&file).unwrap();
    for cut in ends[2]..=ends[3] {
        for zeros in [0, 4096] {
            let mut torn = whole[..cut].to_vec();
            torn.resize(cut + zeros, 0);
            let copy = copy(dir.path());
            fs::write(copy.path().join(file.file_name().unwrap()), torn).unwrap();
            let log = open(copy.path(), &LogConfig::default()).unwrap();
            // A byte of the checksum may be zero itself.
            let kept = all(&log, GROUP).len() as u64;
            let whole_again = zeros > 0 && whole[cut..].iter().all(|&b| b == 0);
            assert_eq!(kept, if cut == ends[3] || whole_again { 4 } else { 3 }, "cut at {cut}");
            put(&log, GROUP, entries(kept + 1..kept + 2, 2)).unwrap();
            drop(log);
            let again = open(copy.path(), &LogConfig::default()).unwrap();
            assert_eq!(all(&again, GROUP).len() as u64, kept + 1);
        }
    }
}

/// raft-engine alone cuts the last file at the damage and drops the acknowledged records after it.
#[test]
fn a_flipped_bit_before_the_last_record_refuses_with_file_and_offset() {
    let (dir, file, ends) = one_file_of(4);
    let whole = fs::read(&file).unwrap();
    for at in 0..ends[2] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&file, flipped).unwrap();
        let refused = open(dir.path(), &LogConfig::default()).expect_err(&format!("flipped at {at}"));
        let record = if at < 69 {
            0
        } else {
            std::iter::once(69).chain(ends.iter().copied()).rfind(|&e| e <= at).unwrap()
        };
        let expected = format!("{} at offset {record}", file.display());
        assert!(matches!(&refused, LogError::Corrupt { place, .. } if *place == expected), "{at}: {refused}");
    }
}

#[test]
fn any_damage_in_an_earlier_file_refuses() {
    let (dir, log) = small();
    put_each(&log, 1..40);
    drop(log);
    let first = files(dir.path())[0].clone();
    assert!(files(dir.path()).len() > 2);
    let whole = fs::read(&first).unwrap();
    for damaged in [&whole[..whole.len() - 1], &whole[..0], &[&whole[..], &[0]].concat()] {
        fs::write(&first, damaged).unwrap();
        assert_refused(dir.path(), &first, "damaged");
    }
}

/// A log after writes and purges, and a copy from before its last writes.
fn with_an_older_copy() -> (TempDir, TempDir) {
    let (dir, log) = small();
    let mut older = None;
    for number in 0..60 {
        if number == 57 {
            older = Some(copy(dir.path()));
        }
        put_each(&log, number + 1..number + 2);
        if number % 20 == 10 {
            put(&log, OTHER, entries(number / 20 + 1..number / 20 + 2, 1)).unwrap();
        }
        if number % 10 == 0 {
            log.compact(GROUP, number / 2).unwrap();
            log.purge().unwrap();
        }
    }
    drop(log);
    (dir, older.unwrap())
}

fn assert_refused(dir: &Path, file: &Path, how: &str) {
    let name = file.file_name().unwrap().to_str().unwrap();
    match open(dir, &SMALL) {
        Ok(_) => panic!("{name} {how}: not noticed"),
        Err(LogError::Corrupt { place, .. }) => assert!(place.contains(name), "{name} {how}: {place}"),
        Err(other) => panic!("{name} {how}: {other}"),
    }
}

/// The loss of the newest file was not noticed: the log ended earlier, and the node forgot acknowledged entries and its vote.
/// The same held for the oldest file if no group's entries began in it.
#[test]
fn any_log_file_that_is_missing_short_or_an_older_copy_refuses_and_is_named() {
    let (dir, older) = with_an_older_copy();
    let all = log_files(dir.path());
    let (rewritten, appended): (Vec<_>, Vec<_>) =
        all.iter().partition(|f| f.extension().is_some_and(|e| e == "rewrite"));
    assert!(!rewritten.is_empty() && appended.len() > 2, "{all:?}");
    for file in &all {
        let name = file.file_name().unwrap();
        let whole = fs::read(file).unwrap();
        let mut damages = vec![("missing", None)];
        if whole.len() > 69 {
            damages.push(("emptied", Some(Vec::new())));
            damages.push(("cut at half", Some(whole[..whole.len() / 2].to_vec())));
            damages.push(("cut to its header", Some(whole[..69].to_vec())));
        }
        // Zeros that were allocated ahead make no difference.
        let before = fs::read(older.path().join(name)).unwrap_or_default();
        let sound = before.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        if sound < whole.len() {
            damages.push(("an older copy", Some(before)));
        }
        for (how, bytes) in damages {
            let copy = copy(dir.path());
            match bytes {
                None => fs::remove_file(copy.path().join(name)).unwrap(),
                Some(bytes) => fs::write(copy.path().join(name), bytes).unwrap(),
            }
            assert_refused(copy.path(), file, how);
        }
    }
    let gone = copy(dir.path());
    all.iter().for_each(|file| fs::remove_file(gone.path().join(file.file_name().unwrap())).unwrap());
    assert_refused(gone.path(), &files(dir.path())[0], "missing with all others");
    open(dir.path(), &SMALL).unwrap();
}

/// A killed process does not write the list a last time.
#[test]
fn after_a_kill_a_missing_file_and_a_copy_from_before_the_last_purge_are_noticed() {
    let (dir, log) = small();
    put_each(&log, 1..40);
    let before = copy(dir.path());
    put_each(&log, 40..41);
    log.purge().unwrap();
    let killed = copy(dir.path());
    let newest = files(dir.path()).pop().unwrap();
    let name = newest.file_name().unwrap();
    for file in files(dir.path()) {
        let copy = copy(killed.path());
        fs::remove_file(copy.path().join(file.file_name().unwrap())).unwrap();
        assert_refused(copy.path(), &file, "missing after a kill");
    }
    let swapped = copy(killed.path());
    fs::copy(before.path().join(name), swapped.path().join(name)).unwrap();
    assert_refused(swapped.path(), &newest, "from before the purge");
    assert_eq!(all(&open(killed.path(), &SMALL).unwrap(), GROUP).len(), 40);
}

/// As in a directory of the first releases, or one that lost only its list.
#[test]
fn a_log_without_a_list_opens_and_gets_one() {
    let (dir, _) = with_an_older_copy();
    fs::remove_file(dir.path().join(LIST)).unwrap();
    drop(open(dir.path(), &SMALL).unwrap());
    let newest = files(dir.path()).pop().unwrap();
    fs::remove_file(&newest).unwrap();
    assert_refused(dir.path(), &newest, "missing");
}

/// raft-engine moves small groups to another file and purges the file with the truncation. After a restart the entries were
/// back, and an append after the truncation point panicked with "has a hole".
#[test]
fn truncation_and_removal_survive_purges() {
    let (dir, mut log) = small();
    let (removed, partly) = (GroupId::new(3), GroupId::new(4));
    put(&log, OTHER, entries(1..4, 1)).unwrap();
    put(&log, removed, entries(1..4, 1)).unwrap();
    put(&log, partly, entries(1..6, 1)).unwrap();
    let mut index = 1;
    for round in 0..40 {
        put_each(&log, index..index + 8);
        index += 8;
        log.compact(GROUP, index - 2).unwrap();
        if round == 10 {
            log.compact(OTHER, 9).unwrap();
            log.compact(partly, 3).unwrap();
            log.remove(removed).unwrap();
        }
        log.purge().unwrap();
        if round % 7 == 0 {
            drop(log);
            log = open(dir.path(), &SMALL).unwrap();
        }
    }
    assert!(files(dir.path()).len() < 12, "purged: {}", files(dir.path()).len());
    drop(log);
    let log = open(dir.path(), &SMALL).unwrap();
    assert_eq!(log.groups().unwrap(), [GROUP, OTHER, partly]);
    assert_eq!(all(&log, partly), entries(4..6, 1));
    assert_eq!(log.recover(OTHER).unwrap().truncated, LogId { index: 9, term: 1 });
    assert_eq!(log.recover(OTHER).unwrap().last_index, 9);
    put(&log, OTHER, entries(10..12, 2)).unwrap();
    assert_eq!(all(&log, OTHER), entries(10..12, 2));
}

/// raft-engine moves values to another file and purges the file with their deletion. After a restart a deleted value was
/// back, and the node would have restored an old snapshot over a newer state.
#[test]
fn the_end_of_an_installation_survives_purges() {
    let (dir, log) = small();
    write_one(&log, GroupWrite { install: Some(INSTALL), ..GroupWrite::new(OTHER) }).unwrap();
    purge_often(&log, 1..50);
    write_one(&log, GroupWrite { installed: true, ..GroupWrite::new(OTHER) }).unwrap();
    purge_often(&log, 50..100);
    drop(log);
    assert_eq!(open(dir.path(), &SMALL).unwrap().recover(OTHER).unwrap().installing, None);
}

/// raft-engine moves entries to another file. Fewer entries then overwrite them and are truncated. The purge of the file with
/// the overwriting entries brought the overwritten ones back at the next start.
#[test]
fn overwritten_entries_do_not_come_back_after_truncation_and_purges() {
    let (dir, log) = small();
    put(&log, OTHER, entries(1..11, 1)).unwrap();
    purge_often(&log, 1..50);
    put(&log, OTHER, entries(5..7, 2)).unwrap();
    log.compact(OTHER, 6).unwrap();
    purge_often(&log, 50..100);
    drop(log);
    assert_eq!(open(dir.path(), &SMALL).unwrap().recover(OTHER).unwrap().last_index, 6);
}

/// raft-engine's cache of the last block does not tell logs apart.
#[test]
fn two_logs_read_by_one_thread_stay_apart() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let logs = dirs.each_ref().map(|dir| open(dir.path(), &LogConfig::default()).unwrap());
    for (log, term) in logs.iter().zip([1, 2]) {
        put(log, GROUP, entries(1..2, term)).unwrap();
    }
    for (log, term) in logs.iter().zip([1, 2]) {
        assert_eq!(all(log, GROUP), entries(1..2, term));
    }
}

#[test]
fn reads_work_while_purges_move_their_entries() {
    let (_dir, log) = small();
    put(&log, OTHER, entries(1..20, 1)).unwrap();
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for index in 1..400 {
                put_each(&log, index..index + 1);
                if index % 5 == 0 {
                    log.compact(GROUP, index - 1).unwrap();
                    log.purge().unwrap();
                }
            }
        });
        while !writer.is_finished() {
            assert_eq!(all(&log, OTHER), entries(1..20, 1));
        }
    });
}

/// `compact` waited for its own lock, and `entries` never returned: raft-engine has no error for a group without entries.
#[test]
fn entries_that_raft_engine_lost_are_an_error() {
    for command in [Command::Clean, Command::Compact { index: 3 }] {
        let (_dir, log) = small();
        put(&log, GROUP, entries(1..4, 1)).unwrap();
        log.commit("test", |out| {
            out.add_command(GROUP.as_u64(), command.clone());
            Ok(())
        })
        .unwrap();
        let refused = log.entries(GROUP, 1..4, usize::MAX, &mut Vec::new()).unwrap_err();
        assert!(refused.to_string().contains(MISSING), "{refused}");
        let refused = log.compact(GROUP, 2).unwrap_err();
        assert!(matches!(&refused, LogError::Corrupt { detail, .. } if detail == MISSING), "{refused}");
    }
}

#[test]
fn the_error_for_a_damaged_record_names_the_group() {
    let (_dir, log) = small();
    let conf = Some(ConfRecord { index: 4, ..ConfRecord::default() });
    write_one(&log, GroupWrite { conf, ..GroupWrite::new(OTHER) }).unwrap();
    log.commit("test", |out| {
        out.put(OTHER.as_u64(), record::CONF_KEY.to_vec(), b"nonsense".to_vec()).unwrap();
        Ok(())
    })
    .unwrap();
    let refused = log.recover(OTHER).unwrap_err();
    let named = matches!(&refused, LogError::Corrupt { place, .. } if place == "group 2, record `c`");
    assert!(named, "{refused}");
}
