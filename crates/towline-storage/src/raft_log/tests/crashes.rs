//! Repeated crashes, each at a random operation on the disk, of a log that changes and purges its files all the time.

use std::sync::atomic::AtomicBool;

use super::*;

const SEEDS: u64 = 3;
const RUNS: usize = 60;

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The expected log of a group after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Model {
    truncated: u64,
    last: u64,
    commit: u64,
}

impl Model {
    fn of(log: &RaftLog, group: GroupId) -> Self {
        let recovered = log.recover(group).unwrap();
        let expected = recovered.last_index - recovered.truncated.index;
        assert_eq!(all(log, group).len() as u64, expected, "every entry is there");
        Self {
            truncated: recovered.truncated.index,
            last: recovered.last_index,
            commit: recovered.hard_state.map_or(0, |state| state.commit),
        }
    }
}

fn next_write(dice: &mut Dice, group: GroupId, model: &mut Model) -> GroupWrite {
    let mut write = GroupWrite::new(group);
    if dice.roll(25) == 0 {
        let at = LogId { index: model.last + 5, term: 1 };
        write.install = Some(Install { at, installing: ContentId([7; 16]) });
        (model.truncated, model.last) = (at.index, at.index);
    } else if dice.roll(10) == 0 && model.last > model.truncated + 2 {
        model.last -= 2; // the next entries overwrite the end
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

fn random_step(dice: &mut Dice, log: &RaftLog, models: &mut [Model; 2]) -> Result<(), LogError> {
    match dice.roll(12) {
        0 | 1 => log.purge().map(drop),
        2..=4 => {
            let of = dice.roll(2) as usize;
            let (group, model) = ([GROUP, OTHER][of], &mut models[of]);
            let through = if model.last == 0 { 0 } else { model.last - dice.roll(model.last.min(3)) };
            model.truncated = model.truncated.max(through);
            log.compact(group, through)
        }
        // One group writes more often: purges move the entries of the other.
        5 => {
            let writes = [(GROUP, 0), (OTHER, 1)].map(|(group, of)| next_write(dice, group, &mut models[of]));
            log.append(&mut LogBatch { writes: writes.into() })
        }
        _ => log.append(&mut LogBatch { writes: vec![next_write(dice, GROUP, &mut models[0])] }),
    }
}

/// The files after a crash: the synced content of each, then a random part of the later writes.
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

/// raft-engine cut such a file and continued in it with a header of version 1. The second start was then refused.
#[test]
fn a_file_with_an_interrupted_header_is_begun_again() {
    for header_bytes in [0, 1, 53, 60, 68] {
        for appends in [0, 20] {
            let (dir, log) = small();
            put_each(&log, 1..appends + 1);
            drop(log);
            let newest = log_files(dir.path())
                .into_iter()
                .filter_map(|file| Queue::of(&file))
                .max_by_key(|(queue, number)| (*queue == Queue::Append, *number));
            let (queue, number) = newest.unwrap();
            // The next file, or the first file of a new directory.
            let number = if appends == 0 { number } else { number + 1 };
            if appends == 0 {
                fs::remove_file(dir.path().join(LIST)).unwrap();
            }
            let whole = crate::scan::file_header();
            fs::write(dir.path().join(queue.file_name(number)), &whole[..header_bytes]).unwrap();
            for run in 1..=3 {
                let log =
                    open(dir.path(), &SMALL).unwrap_or_else(|e| panic!("{header_bytes}, run {run}: {e}"));
                let last = log.recover(GROUP).unwrap().last_index;
                assert_eq!(last, appends + run - 1);
                put_each(&log, last + 1..last + 2);
            }
        }
    }
}

#[test]
fn a_log_opens_with_every_acknowledged_write_after_each_of_many_crashes() {
    for seed in 1..=SEEDS {
        let dice = &mut Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut dir = TempDir::new().unwrap();
        // The models without and with the interrupted step.
        let mut allowed = [[Model::default(); 2]; 2];
        for run in 0..RUNS {
            let faults = Faults { fail_from: Some(1 + dice.roll(90) as usize), ..Faults::default() };
            for file in fs::read_dir(dir.path()).unwrap() {
                let path = file.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                faults.durable.lock().unwrap().insert(path, bytes);
            }
            let faults = Arc::new(faults);
            let crashed = match open_on(dir.path(), &SMALL, Disk::with_hook(Some(faults.clone()))) {
                Err(LogError::Io { source, .. }) if source.raw_os_error() == Some(5) => true,
                Err(refused) => panic!("seed {seed}, run {run}: {refused}"),
                Ok(log) => {
                    let found = [GROUP, OTHER].map(|group| Model::of(&log, group));
                    let is_allowed = allowed.contains(&found);
                    assert!(is_allowed, "seed {seed}, run {run}: {found:?}, not of {allowed:?}");
                    allowed = [found; 2];
                    loop {
                        let mut models = allowed[0];
                        let stepped = random_step(dice, &log, &mut models);
                        allowed[1] = models;
                        match stepped {
                            Ok(()) => allowed[0] = models,
                            Err(LogError::Io { .. }) => break true,
                            Err(other) => panic!("seed {seed}, run {run}: {other}"),
                        }
                        // Some runs end without a crash.
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

/// A full disk, on which the list of log files cannot be replaced.
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
}

#[test]
fn a_log_opens_and_purges_on_a_disk_without_room_for_its_list_of_files() {
    let (dir, log) = small();
    put_each(&log, 1..100);
    log.compact(GROUP, 98).unwrap();
    let killed = copy(dir.path());
    drop(log);
    let hook = Arc::new(NoRoomForTheList::default());
    let log = open_on(killed.path(), &SMALL, Disk::with_hook(Some(hook.clone()))).unwrap();
    assert_eq!(hook.refused.load(Ordering::SeqCst), 1, "the list was behind");
    let before = files(killed.path()).len();
    log.purge().unwrap();
    assert!(files(killed.path()).len() < before, "purged");
    let crashed = copy(killed.path());
    assert_eq!(all(&open(crashed.path(), &SMALL).unwrap(), GROUP), entries(99..100, 1));
    hook.has_room.store(true, Ordering::SeqCst);
    log.purge().unwrap();
    put_each(&log, 100..101);
    drop(log);
    let newest = files(killed.path()).pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    fs::write(&newest, []).unwrap();
    assert_refused(killed.path(), &newest, "emptied: the list is back");
    fs::write(&newest, whole).unwrap();
    assert_eq!(all(&open(killed.path(), &SMALL).unwrap(), GROUP), entries(99..101, 1));
}
