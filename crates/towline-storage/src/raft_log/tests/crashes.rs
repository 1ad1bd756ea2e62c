//! Crashes one after another, each at any operation on the disk, of a log whose files change and are purged all the time.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::log_manifest::Queue;

const SEEDS: u64 = 3;
const LIVES: usize = 60;

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What a group's log must be after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Model {
    truncated: u64,
    last: u64,
    commit: u64,
}

impl Model {
    fn of(log: &RaftLog, group: GroupId) -> Self {
        let recovered = log.recover(group).unwrap();
        assert_eq!(
            all(log, group).len() as u64,
            recovered.last_index - recovered.truncated.index,
            "every entry is there"
        );
        Self {
            truncated: recovered.truncated.index,
            last: recovered.last_index,
            commit: recovered.hard_state.map_or(0, |state| state.commit),
        }
    }
}

/// The next write of a group, and what it makes of it.
fn next_write(dice: &mut Dice, group: GroupId, model: &mut Model) -> GroupWrite {
    let mut write = GroupWrite::new(group);
    if dice.roll(25) == 0 {
        let at = LogId { index: model.last + 5, term: 1 };
        write.install = Some(Install { at, installing: ContentId([7; 16]) });
        (model.truncated, model.last) = (at.index, at.index);
    } else if dice.roll(10) == 0 && model.last > model.truncated + 2 {
        model.last -= 2; // what follows overwrites the end
    }
    let count = 1 + dice.roll(4);
    write.entries = entries(model.last + 1..model.last + 1 + count, 1);
    model.last += count;
    if dice.roll(2) == 0 {
        model.commit = model.last;
        write.hard_state = Some(HardState { term: 1, vote: None, commit: model.commit });
    }
    write
}

/// One step on the log, and what it makes of the groups.
fn random_step(dice: &mut Dice, log: &RaftLog, models: &mut [Model; 2]) -> Result<(), LogError> {
    match dice.roll(12) {
        0 | 1 => log.purge().map(drop),
        2..=4 => {
            let of = dice.roll(2) as usize;
            let (group, model) = ([GROUP, OTHER][of], &mut models[of]);
            // Nothing is stored of a new group.
            let through = if model.last == 0 { 0 } else { model.last - dice.roll(model.last.min(3)) };
            model.truncated = model.truncated.max(through);
            log.compact(group, through)
        }
        // One group much more often than the other: purges move what lies still.
        5 => {
            let writes = [(GROUP, 0), (OTHER, 1)].map(|(group, of)| next_write(dice, group, &mut models[of]));
            log.append(&mut LogBatch { writes: writes.into() })
        }
        _ => log.append(&mut LogBatch { writes: vec![next_write(dice, GROUP, &mut models[0])] }),
    }
}

/// What a crash leaves: of each file what was synced, and after that any part of what was written later.
fn torn(dir: &Path, faults: &Faults, dice: &mut Dice) -> TempDir {
    let after = faults.after_power_loss();
    for file in log_files(dir) {
        let written = fs::read(&file).unwrap();
        let to = after.path().join(file.file_name().unwrap());
        let synced = fs::read(&to).unwrap_or_default();
        let same = written.iter().zip(&synced).take_while(|(a, b)| a == b).count();
        let cut = same + dice.roll((written.len() - same + 1) as u64) as usize;
        let rest = synced.get(cut..).unwrap_or_default();
        fs::write(to, [&written[..cut], rest].concat()).unwrap();
    }
    after
}

/// raft-engine cut such a file and went on in it with a header of version 1: the start after the next one was refused.
#[test]
fn a_file_whose_header_a_crash_interrupted_gets_one_and_is_read_again() {
    for header_bytes in [0, 1, 53, 60, 68] {
        for appends in [0, 20] {
            let dir = TempDir::new().unwrap();
            let log = open(dir.path(), &SMALL).unwrap();
            (1..=appends).for_each(|index| put(&log, GROUP, entries(index..index + 1, 1)).unwrap());
            drop(log);
            let newest = log_files(dir.path())
                .into_iter()
                .filter_map(|file| Queue::of(&file))
                .max_by_key(|(queue, number)| (*queue == Queue::Append, *number));
            let (queue, number) = newest.unwrap();
            // The file after it, or the first one of a new directory.
            let number = if appends == 0 { number } else { number + 1 };
            if appends == 0 {
                fs::remove_file(dir.path().join(LIST)).unwrap();
            }
            let whole = crate::scan::file_header();
            fs::write(dir.path().join(queue.file_name(number)), &whole[..header_bytes]).unwrap();
            for life in 1..=3 {
                let log =
                    open(dir.path(), &SMALL).unwrap_or_else(|e| panic!("{header_bytes}, life {life}: {e}"));
                let last = log.recover(GROUP).unwrap().last_index;
                assert_eq!(last, appends + life - 1);
                put(&log, GROUP, entries(last + 1..last + 2, 1)).unwrap();
            }
        }
    }
}

#[test]
fn a_log_that_crashes_again_and_again_always_opens_with_all_that_was_acknowledged() {
    for seed in 1..=SEEDS {
        let dice = &mut Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut dir = TempDir::new().unwrap();
        // Of each group: as acknowledged, and with the step that a crash interrupted.
        let mut allowed = [[Model::default(); 2]; 2];
        for life in 0..LIVES {
            let faults = Faults { fail_from: Some(1 + dice.roll(90) as usize), ..Faults::default() };
            for file in fs::read_dir(dir.path()).unwrap() {
                let path = file.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                faults.durable.lock().unwrap().insert(path, bytes);
            }
            let faults = Arc::new(faults);
            let crashed = match open_on(dir.path(), &SMALL, Disk::with_hook(Some(faults.clone()))) {
                Err(LogError::Io { source, .. }) if source.raw_os_error() == Some(5) => true,
                Err(refused) => panic!("seed {seed}, life {life}: {refused}"),
                Ok(log) => {
                    let found = [GROUP, OTHER].map(|group| Model::of(&log, group));
                    assert!(
                        allowed.contains(&found),
                        "seed {seed}, life {life}: {found:?}, not of {allowed:?}"
                    );
                    allowed = [found; 2];
                    loop {
                        let mut models = allowed[0];
                        let stepped = random_step(dice, &log, &mut models);
                        allowed[1] = models;
                        match stepped {
                            Ok(()) => allowed[0] = models,
                            Err(LogError::Io { .. }) => break true,
                            Err(other) => panic!("seed {seed}, life {life}: {other}"),
                        }
                        // Some lives end in order.
                        if dice.roll(100) == 0 {
                            break false;
                        }
                    }
                }
            };
            if crashed {
                dir = match dice.roll(3) {
                    0 => copy(dir.path()),
                    1 => faults.after_power_loss(),
                    _ => torn(dir.path(), &faults, dice),
                };
            }
        }
    }
}

/// A full disk fails every operation that needs room: here the replacement of the list of log files.
#[derive(Default)]
struct NoRoomForTheList {
    refused: AtomicUsize,
    has_room: AtomicBool,
}

impl Hook for NoRoomForTheList {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        if op == Op::Rename && path.ends_with(LIST) && !self.has_room.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn after(&self, _: Op, _: &Path) {}
}

#[test]
fn a_log_opens_and_gives_space_back_on_a_disk_that_has_no_room_for_its_list_of_files() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), &SMALL).unwrap();
    (1..100).for_each(|index| put(&log, GROUP, entries(index..index + 1, 1)).unwrap());
    log.compact(GROUP, 98).unwrap();
    let killed = copy(dir.path());
    drop(log);
    let hook = Arc::new(NoRoomForTheList::default());
    let log = open_on(killed.path(), &SMALL, Disk::with_hook(Some(hook.clone()))).unwrap();
    assert_eq!(hook.refused.load(Ordering::SeqCst), 1, "the list was behind");
    let before = files(killed.path()).len();
    log.purge().unwrap();
    assert!(files(killed.path()).len() < before, "the files are what fills the disk");
    // As after a crash in between.
    let crashed = copy(killed.path());
    assert_eq!(all(&open(crashed.path(), &SMALL).unwrap(), GROUP), entries(99..100, 1));
    hook.has_room.store(true, Ordering::SeqCst);
    log.purge().unwrap();
    put(&log, GROUP, entries(100..101, 1)).unwrap();
    drop(log);
    let newest = files(killed.path()).pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    fs::write(&newest, []).unwrap();
    assert_refused(killed.path(), &newest, "emptied: the list is back");
    fs::write(&newest, whole).unwrap();
    assert_eq!(all(&open(killed.path(), &SMALL).unwrap(), GROUP), entries(99..101, 1));
}
