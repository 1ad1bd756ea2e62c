//! A failed operation, a kill or a power loss at each step.

use super::*;

type Inode = usize;

/// A disk that can fail, and that knows which bytes and names are durable.
#[derive(Default)]
struct Power {
    /// Every operation from this one on fails, as after a kill.
    dead_from: Option<usize>,
    /// Only this operation fails.
    fails: Option<usize>,
    /// The first sync of an incomplete file fails. It runs beside writes, so it has no fixed number.
    fails_first_sync: bool,
    /// Syncs of paths for which this is true do nothing and succeed.
    lies: Option<fn(&Path) -> bool>,
    /// Free bytes, if the disk is small.
    room: Option<Mutex<usize>>,
    state: Mutex<PowerState>,
}

#[derive(Default)]
struct PowerState {
    done: Vec<(Op, PathBuf)>,
    next: Inode,
    names: BTreeMap<PathBuf, Inode>,
    /// The names at the last sync of the directory.
    synced_names: BTreeMap<PathBuf, Inode>,
    /// The bytes at the last sync of each file.
    synced_bytes: BTreeMap<Inode, Vec<u8>>,
}

impl Hook for Power {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let number = state.done.len();
        let first_sync = op == Op::Sync && path.is_file() && !state.done.contains(&(op, path.into()));
        state.done.push((op, path.into()));
        if first_sync && self.fails_first_sync {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.fails == Some(number) || self.dead_from.is_some_and(|from| number >= from) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn after(&self, op: Op, path: &Path) {
        let mut state = self.state.lock().unwrap();
        match op {
            Op::Create => {
                let inode = state.next;
                state.next += 1;
                state.names.insert(path.into(), inode);
            }
            Op::Delete => drop(state.names.remove(path)),
            Op::Rename => {
                let from = state.names.keys().find(|name| !name.exists()).unwrap().clone();
                let inode = state.names.remove(&from).unwrap();
                state.names.insert(path.into(), inode);
            }
            Op::Sync if self.lies.is_some_and(|lies| lies(path)) => {}
            Op::Sync if path.is_dir() => state.synced_names = state.names.clone(),
            Op::Sync => {
                let inode = state.names[path];
                state.synced_bytes.insert(inode, fs::read(path).unwrap());
            }
            _ => {}
        }
    }

    fn room(&self, _: &Path, bytes: usize) -> usize {
        let Some(room) = &self.room else { return bytes };
        let mut room = room.lock().unwrap();
        let fits = bytes.min(*room);
        *room -= fits;
        fits
    }
}

impl Power {
    /// Two possible images after a power loss: synced contents under the synced names, or under the current names, since the
    /// system may write a directory back at any time.
    fn after_power_loss(&self) -> [TempDir; 2] {
        let state = self.state.lock().unwrap();
        [&state.synced_names, &state.names].map(|names| {
            let dir = TempDir::new().unwrap();
            for (path, inode) in names {
                let bytes = state.synced_bytes.get(inode).cloned().unwrap_or_default();
                fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
            }
            dir
        })
    }

    fn done(&self) -> Vec<(Op, PathBuf)> {
        self.state.lock().unwrap().done.clone()
    }
}

type Snapshots = [(SnapshotMeta, Vec<u8>); 3];

fn snapshots() -> Snapshots {
    [(1, 10), (2, CHUNK + 9), (3, 20)].map(|(index, length)| {
        let body = body(length, index as u8);
        (meta_of(&head(index), &body), body)
    })
}

/// Makes a snapshot, receives one, makes a third, and removes the first two. `promised` are those to keep.
fn script(
    files: &SnapshotFiles,
    snapshots: &Snapshots,
    promised: &mut Vec<SnapshotMeta>,
) -> Result<(), SnapshotStoreError> {
    let [first, second, third] = snapshots;
    promised.push(create(files, &first.0.head, &first.1)?);
    promised.push(receive(files, &second.0, &second.1)?);
    promised.push(create(files, &third.0.head, &third.1)?);
    promised.drain(..2);
    files.retain(GROUP, &[promised[0].content])
}

#[test]
fn a_crash_at_any_step_keeps_committed_snapshots_and_shows_no_incomplete_one() {
    let snapshots = snapshots();
    let steps = {
        let power = Arc::new(Power::default());
        let (_dir, files) = hooked(&power);
        script(&files, &snapshots, &mut Vec::new()).unwrap();
        let done = power.done();
        for op in [Op::Create, Op::Write, Op::Sync, Op::Rename, Op::Delete] {
            assert!(done.iter().any(|(done, _)| *done == op), "{op:?} is not tried");
        }
        done.len()
    };
    for dead_from in 1..=steps {
        let dir = TempDir::new().unwrap();
        let power = Arc::new(Power { dead_from: Some(dead_from), ..Power::default() });
        let mut promised = Vec::new();
        {
            let files = open_with(dir.path(), FileOps::with_hook(power.clone()));
            assert_eq!(script(&files, &snapshots, &mut promised).is_ok(), dead_from == steps);
        }
        let [synced, written_back] = power.after_power_loss();
        for (image, left) in
            [("synced", synced), ("written back", written_back), ("killed", copy(dir.path()))]
        {
            let files = open(left.path());
            let context = format!("{image}, dead from step {dead_from}: {:?}", power.done().last());
            for meta in &promised {
                let found = files.find(GROUP, meta.content).unwrap();
                assert_eq!(found.as_ref(), Some(meta), "{context}");
            }
            for (meta, body) in &snapshots {
                match files.find(GROUP, meta.content) {
                    Ok(None) => {}
                    Ok(Some(_)) => assert!(read(&files, meta) == *body, "{context}"),
                    Err(e) => panic!("{context}: {e}"),
                }
            }
            let latest = files.latest(GROUP).unwrap();
            let newest_promised = promised.iter().map(|meta| meta.head.at.index).max();
            assert!(latest.as_ref().map(|meta| meta.head.at.index) >= newest_promised, "{context}");
            // The interrupted transfer can finish.
            let (meta, body) = &snapshots[1];
            assert_eq!(receive(&files, meta, body).unwrap(), *meta, "{context}");
            assert!(read(&files, meta) == *body, "{context}");
        }
    }
}

/// The control of the test above, without the sync of the file, or of the directory.
#[test]
fn on_a_disk_that_skips_syncs_a_power_loss_takes_committed_snapshots() {
    for (lies, what) in [(Path::is_dir as fn(&Path) -> bool, "names"), (Path::is_file, "bytes")] {
        let power = Arc::new(Power { lies: Some(lies), ..Power::default() });
        let (_dir, files) = hooked(&power);
        let (own, theirs) = (body(CHUNK + 9, 1), body(10, 2));
        let metas = [create(&files, &head(1), &own).unwrap(), meta_of(&head(2), &theirs)];
        receive(&files, &metas[1], &theirs).unwrap();
        let [synced, written_back] = power.after_power_loss();
        let image = open(if what == "names" { synced.path() } else { written_back.path() });
        for meta in metas {
            let found = image.find(GROUP, meta.content);
            assert!(!matches!(&found, Ok(Some(_))), "{what} are lost, but {found:?}");
        }
    }
}

#[test]
fn a_failed_step_fails_only_its_writer_and_leaves_no_file() {
    let (older, newer) = (body(10, 1), body(2 * CHUNK + 9, 2));
    let meta = meta_of(&head(2), &newer);
    let write = |files: &SnapshotFiles, received: bool| match received {
        true => receive(files, &meta, &newer),
        false => create(files, &head(2), &newer),
    };
    for received in [false, true] {
        let (mut fails, mut failures) = (0, 0);
        loop {
            let dir = TempDir::new().unwrap();
            let old = create(&open(dir.path()), &head(1), &older).unwrap();
            // The first step is the sync of the directory at open.
            fails += 1;
            let power = Arc::new(Power { fails: Some(fails), ..Power::default() });
            let files = open_with(dir.path(), FileOps::with_hook(power.clone()));
            let outcome = write(&files, received);
            if power.done().len() <= fails {
                outcome.unwrap();
                break;
            }
            failures += 1;
            let context = format!("step {fails}: {:?}", power.done()[fails]);
            assert!(matches!(outcome, Err(SnapshotStoreError::Io { .. })), "{context}");
            assert_eq!(files.latest(GROUP).unwrap().as_ref(), Some(&old), "{context}");
            assert_eq!(files.find(GROUP, meta.content).unwrap(), None, "{context}");
            assert_eq!(names(dir.path()).len(), 1, "{context}");
            if received {
                assert_eq!(files.receive(&meta).unwrap().verified(), 0, "{context}");
            }
            assert_eq!(write(&files, received).unwrap(), meta, "{context}");
            assert!(read(&files, &meta) == newer, "{context}");
            assert_eq!(read(&files, &old), older, "{context}");
        }
        assert!(failures >= 8, "only {failures} steps were tried");
    }
}

#[test]
fn a_disk_that_is_full_before_the_last_byte_fails_only_the_writer() {
    let bytes = body(CHUNK + 200, 1);
    let meta = meta_of(&head(1), &bytes);
    let whole = {
        let (dir, files) = store();
        receive(&files, &meta, &bytes).unwrap();
        fs::metadata(dir.path().join(names(dir.path()).first().unwrap())).unwrap().len() as usize
    };
    assert!(whole > CHUNK + 100 + 46);
    for room in [0, 1, 40, CHUNK, CHUNK + 100, whole - 46, whole - 45, whole - 2, whole - 1, whole] {
        let power = Arc::new(Power { room: Some(Mutex::new(room)), ..Power::default() });
        let (dir, files) = hooked(&power);
        let outcome = receive(&files, &meta, &bytes);
        if room == whole {
            outcome.unwrap();
            continue;
        }
        let full = matches!(&outcome, Err(SnapshotStoreError::Io { source, .. })
            if source.kind() == io::ErrorKind::StorageFull);
        assert!(full, "{room}: {outcome:?}");
        assert_eq!(files.latest(GROUP).unwrap(), None);
        assert_eq!(names(dir.path()).len(), 0, "{room}: the file still takes space");
        *power.room.as_ref().unwrap().lock().unwrap() = whole;
        assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta, "{room}");
    }
}

#[test]
fn a_large_file_is_synced_during_writing_resumes_and_a_failure_of_that_sync_is_final() {
    let part = body(4 * CHUNK, 1);
    let meta = meta_of_parts(&part, 34);
    for fails in [false, true] {
        let power = Arc::new(Power { fails_first_sync: fails, ..Power::default() });
        let (dir, files) = hooked(&power);
        let mut writer = files.receive(&meta).unwrap();
        (0..34).for_each(|_| writer.write_all(&part).unwrap());
        assert_eq!(writer.verify(None).is_err(), fails);
        assert_eq!(writer.verify(None).is_err(), fails, "it stays failed");
        let syncs = power.done().iter().filter(|(op, path)| *op == Op::Sync && path != dir.path()).count();
        assert_eq!(syncs, 1);
        drop(writer);
        // Bytes under a failed sync may not be on the disk.
        let mut writer = files.receive(&meta).unwrap();
        assert_eq!(writer.verified(), if fails { 0 } else { meta.length });
        if !fails {
            writer.verify(None).unwrap();
            assert_eq!(writer.commit().unwrap(), meta);
            assert!(read(&files, &meta) == part.repeat(34));
        }
    }
}

#[test]
fn a_file_that_cannot_be_removed_stays_in_the_index() {
    // Sync at open; create, header, last chunk, trailer, sync, rename, sync of the directory; removal.
    let power = Arc::new(Power { fails: Some(8), ..Power::default() });
    let (dir, files) = hooked(&power);
    let meta = create(&files, &head(1), b"body").unwrap();
    assert!(matches!(files.retain(GROUP, &[]), Err(SnapshotStoreError::Io { .. })));
    assert_eq!(power.done()[8].0, Op::Delete);
    assert_eq!(read(&files, &meta), b"body");
    files.retain(GROUP, &[]).unwrap();
    assert_eq!(names(dir.path()).len(), 0);
}
