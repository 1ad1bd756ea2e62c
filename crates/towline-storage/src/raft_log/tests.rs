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

mod crashes;

const GROUP: GroupId = GroupId::DEFAULT;
const OTHER: GroupId = GroupId::new(2);
/// The list of log files. Elsewhere it lies outside of the log's directory.
const LIST: &str = "log-files";
/// So small that a few appends change the file.
const SMALL: LogConfig = LogConfig { file_bytes: ByteSize::bytes(512), purge_bytes: ByteSize::kib(2) };

fn open(dir: &Path, config: &LogConfig) -> Result<RaftLog, LogError> {
    open_on(dir, config, Disk::new())
}

fn open_on(dir: &Path, config: &LogConfig, disk: Disk) -> Result<RaftLog, LogError> {
    RaftLog::open(dir, &dir.join(LIST), config, disk, None)
}

fn entries(range: Range<u64>, term: u64) -> Vec<Entry> {
    range
        .map(|index| Entry {
            index,
            term,
            data: format!("entry {index} of {term}").into(),
            ..Entry::default()
        })
        .collect()
}

fn put(log: &RaftLog, group: GroupId, entries: Vec<Entry>) -> Result<(), LogError> {
    log.append(&mut LogBatch { writes: vec![GroupWrite { entries, ..GroupWrite::new(group) }] })
}

fn all(log: &RaftLog, group: GroupId) -> Vec<Entry> {
    let recovered = log.recover(group).unwrap();
    let mut out = Vec::new();
    log.entries(group, recovered.truncated.index + 1..recovered.last_index + 1, usize::MAX, &mut out)
        .unwrap();
    out
}

/// The append files by name.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "raftlog"))
        .collect();
    files.sort();
    files
}

fn copy(from: &Path) -> TempDir {
    let to = TempDir::new().unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

/// Fails every operation from the n-th on, and keeps what each file held when it was last synced.
#[derive(Default)]
struct Faults {
    fail_from: Option<usize>,
    done: AtomicUsize,
    durable: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    /// Writes to each file since its last sync, and the most there ever were.
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
            // The list is replaced as a whole, with the syncs that takes.
            Op::Sync | Op::Rename => drop(durable.insert(path.into(), fs::read(path).unwrap())),
            Op::Delete => drop(durable.remove(path)),
            _ => {}
        }
    }
}

impl Faults {
    /// A directory with what a power loss would have left: nothing that was not synced.
    fn after_power_loss(&self) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (path, bytes) in &*self.durable.lock().unwrap() {
            fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        dir
    }
}

const SCRIPT_STEPS: u64 = 18;

/// One of a fixed series of writes: appends for two groups, a compaction, an install, a purge.
fn step(log: &RaftLog, number: u64) -> Result<(), LogError> {
    let next = |group| log.recover(group).unwrap().last_index + 1;
    match number {
        8 => log.compact(GROUP, 3),
        12 => log.append(&mut LogBatch {
            writes: vec![GroupWrite {
                install: Some(Install { at: LogId { index: 30, term: 2 }, installing: ContentId([7; 16]) }),
                entries: entries(31..32, 2),
                ..GroupWrite::new(OTHER)
            }],
        }),
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

type State = [(Recovered, Vec<Entry>); 2];

fn state(log: &RaftLog) -> State {
    [GROUP, OTHER].map(|group| (log.recover(group).unwrap(), all(log, group)))
}

/// The state after each step, the empty one first.
fn expected_states() -> Vec<State> {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
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
                    let cause = source.to_string();
                    assert!(
                        matches!(&refused, LogError::Poisoned { cause: c } if c.contains(&cause)),
                        "{refused}"
                    );
                    assert!(matches!(log.compact(GROUP, 1), Err(LogError::Poisoned { .. })));
                    assert!(matches!(log.remove(GROUP), Err(LogError::Poisoned { .. })));
                    assert!(matches!(log.purge(), Err(LogError::Poisoned { .. })));
                }
                failed
            }
        };
        let Some(failed) = failed else {
            assert!(fail_from > 20, "the script does more than that");
            return;
        };
        let LogError::Io { source, during } = &failed else { panic!("{fail_from}: {failed}") };
        assert_eq!(source.raw_os_error(), Some(5), "{fail_from}: during {during}");
        // What was written may be there after the process is gone; what was only written may be gone after a power
        // loss. Either way every acknowledged step is, and the failed one as a whole or not at all.
        for (how, after) in [("kill", copy(dir.path())), ("power loss", faults.after_power_loss())] {
            let log = open(after.path(), &SMALL).unwrap_or_else(|e| panic!("{fail_from}, {how}: {e}"));
            let found = state(&log);
            let allowed = &states[acknowledged..=(acknowledged + 1).min(states.len() - 1)];
            assert!(allowed.contains(&found), "{fail_from}, {how}, {acknowledged} acknowledged: {found:#?}");
        }
    }
}

/// What lets a torn last record be told from damage: see `scan`.
#[test]
fn no_file_ever_has_two_unsynced_records() {
    let faults = Arc::new(Faults::default());
    let dir = TempDir::new().unwrap();
    let config = LogConfig { file_bytes: ByteSize::mib(1), purge_bytes: ByteSize::mib(2) };
    let log = open_on(dir.path(), &config, Disk::with_hook(Some(faults.clone()))).unwrap();
    // So much that raft-engine moves it in several records.
    let large = |index| Entry { index, term: 1, data: vec![1; 100_000].into(), ..Entry::default() };
    for group in 10..20 {
        put(&log, GroupId::new(group), (1..5).map(large).collect()).unwrap();
    }
    // So many that raft-engine would write some together.
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
        // The header of a queue's first file is synced with its first record.
        let allowed = if file.file_stem().is_some_and(|s| s == "0000000000000001") { 2 } else { 1 };
        assert!(*most <= allowed, "{}: {most} unsynced writes", file.display());
    }
}

/// Nothing allocated ahead, no next file.
fn one_file_of(appends: u64) -> (TempDir, PathBuf, Vec<usize>) {
    let dir = TempDir::new().unwrap();
    let mut ends = Vec::new();
    for index in 1..=appends {
        let log = open(dir.path(), &LogConfig::default()).unwrap();
        put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
        drop(log);
        ends.push(fs::metadata(&files(dir.path())[0]).unwrap().len() as usize);
    }
    // What a process leaves that was killed: its list does not know the last records yet.
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

/// Left alone, raft-engine cuts the last file at the damage and drops the acknowledged records behind it.
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
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    for index in 1..40 {
        put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
    }
    drop(log);
    let first = files(dir.path())[0].clone();
    assert!(files(dir.path()).len() > 2);
    let whole = fs::read(&first).unwrap();
    for damaged in [&whole[..whole.len() - 1], &whole[..0], &[&whole[..], &[0]].concat()] {
        fs::write(&first, damaged).unwrap();
        let refused = open(dir.path(), &SMALL).expect_err("damaged");
        assert!(
            matches!(&refused, LogError::Corrupt { place, .. } if place.contains("1.raftlog")),
            "{refused}"
        );
    }
}

/// A log whose files were written and purged, and a copy of the directory of before its last writes.
fn with_an_older_copy() -> (TempDir, TempDir) {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    let mut older = None;
    for number in 0..60 {
        if number == 57 {
            older = Some(copy(dir.path()));
        }
        put(&log, GROUP, entries(number + 1..number + 2, 1)).unwrap();
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

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = all.filter(|p| crate::log_manifest::Queue::of(p).is_some()).collect();
    files.sort();
    files
}

fn assert_refused(dir: &Path, file: &Path, how: &str) {
    let name = file.file_name().unwrap().to_str().unwrap();
    match open(dir, &SMALL) {
        Ok(_) => panic!("{name} {how}: not found"),
        Err(LogError::Corrupt { place, .. }) => assert!(place.contains(name), "{name} {how}: {place}"),
        Err(other) => panic!("{name} {how}: {other}"),
    }
}

/// The newest file could go without a word: the log ended earlier then, and the node had forgotten what it acknowledged and
/// whom it voted for. The oldest one too, if no group's entries began in it.
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
        // What of it is allocated ahead is no difference.
        let before = fs::read(older.path().join(name)).unwrap_or_default();
        let sound = before.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        if sound < whole.len() {
            damages.push(("of before", Some(before)));
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
    assert_refused(gone.path(), &files(dir.path())[0], "with all others");
    open(dir.path(), &SMALL).unwrap();
}

/// A process that is killed leaves no last list.
#[test]
fn after_a_kill_each_file_and_what_was_there_at_the_last_purge_is_missed() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    for index in 1..40 {
        put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
    }
    let before = copy(dir.path());
    put(&log, GROUP, entries(40..41, 1)).unwrap();
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
    assert_refused(swapped.path(), &newest, "of before the purge");
    assert_eq!(all(&open(killed.path(), &SMALL).unwrap(), GROUP).len(), 40);
}

/// A directory of before there was a list, or one whose list alone was lost: the log is whole.
#[test]
fn a_log_without_a_list_opens_and_gets_one() {
    let (dir, _) = with_an_older_copy();
    fs::remove_file(dir.path().join(LIST)).unwrap();
    drop(open(dir.path(), &SMALL).unwrap());
    let newest = files(dir.path()).pop().unwrap();
    fs::remove_file(&newest).unwrap();
    assert_refused(dir.path(), &newest, "missing");
}

/// raft-engine moves small groups to another file and purges the one that held the truncation; after a restart the
/// entries are back, and appending behind the truncation point panicked with "has a hole".
#[test]
fn truncation_and_removal_survive_purges() {
    let dir = TempDir::new().unwrap();
    let (removed, partly) = (GroupId::new(3), GroupId::new(4));
    let mut log = open(dir.path(), &SMALL).unwrap();
    put(&log, OTHER, entries(1..4, 1)).unwrap();
    put(&log, removed, entries(1..4, 1)).unwrap();
    put(&log, partly, entries(1..6, 1)).unwrap();
    let mut index = 1;
    for round in 0..40 {
        for _ in 0..8 {
            put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
            index += 1;
        }
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

/// raft-engine moves values to another file and purges the one with their deletion; after a restart a deleted value
/// was back, and the node would have restored an old snapshot over a newer state.
#[test]
fn the_end_of_an_installation_survives_purges() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    let install = Install { at: LogId { index: 30, term: 2 }, installing: ContentId([7; 16]) };
    let other = |install, installed| LogBatch {
        writes: vec![GroupWrite { install, installed, ..GroupWrite::new(OTHER) }],
    };
    log.append(&mut other(Some(install), false)).unwrap();
    for index in 1..100 {
        put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
        if index == 50 {
            log.append(&mut other(None, true)).unwrap();
        }
        log.compact(GROUP, index - 1).unwrap();
        log.purge().unwrap();
    }
    drop(log);
    assert_eq!(open(dir.path(), &SMALL).unwrap().recover(OTHER).unwrap().installing, None);
}

/// raft-engine moves entries to another file; if they are then overwritten by fewer and those are truncated, the purge
/// of the file that overwrote them brought the overwritten ones back at the next start.
#[test]
fn overwritten_entries_do_not_come_back_after_truncation_and_purges() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    put(&log, OTHER, entries(1..11, 1)).unwrap();
    for index in 1..100 {
        put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
        if index == 50 {
            put(&log, OTHER, entries(5..7, 2)).unwrap();
            log.compact(OTHER, 6).unwrap();
        }
        log.compact(GROUP, index - 1).unwrap();
        log.purge().unwrap();
    }
    drop(log);
    assert_eq!(open(dir.path(), &SMALL).unwrap().recover(OTHER).unwrap().last_index, 6);
}

/// raft-engine caches the last block a thread read without asking which log it is from.
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
fn reads_go_on_while_purges_move_what_is_read() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    put(&log, OTHER, entries(1..20, 1)).unwrap();
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for index in 1..400 {
                put(&log, GROUP, entries(index..index + 1, 1)).unwrap();
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

#[test]
fn a_damaged_record_of_a_group_names_the_group() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &LogConfig::default()).unwrap();
    let conf = ConfRecord { index: 4, ..ConfRecord::default() };
    log.append(&mut LogBatch { writes: vec![GroupWrite { conf: Some(conf), ..GroupWrite::new(OTHER) }] })
        .unwrap();
    log.commit("test", |out| {
        out.put(OTHER.as_u64(), record::CONF_KEY.to_vec(), b"nonsense".to_vec()).unwrap();
        Ok(())
    })
    .unwrap();
    let refused = log.recover(OTHER).unwrap_err();
    assert!(
        matches!(&refused, LogError::Corrupt { place, .. } if place == "group 2, record `c`"),
        "{refused}"
    );
}
