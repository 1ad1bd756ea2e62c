//! What a directory holds that is not a complete, sound file.

use super::*;

fn with_bounds(dir: &Path, partials_max: usize, partial_bytes_max: u64) -> SnapshotFiles {
    let partial_bytes_max = ByteSize::bytes(partial_bytes_max);
    let config = SnapshotConfig { partials_max, partial_bytes_max, ..SnapshotConfig::default() };
    SnapshotFiles::open_with(dir, &config, FileOps::default(), None).unwrap()
}

/// Leaves one chunk of a transfer behind.
fn leave(files: &SnapshotFiles, index: u64) -> SnapshotMeta {
    let bytes = body(2 * CHUNK, index as u8);
    let meta = meta_of(&head(index), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
    meta
}

fn left(files: &SnapshotFiles, meta: &SnapshotMeta) -> bool {
    let named = Named::Partial { group: GROUP, content: meta.content };
    files.shared.path(&named).exists()
}

#[test]
fn more_partial_files_than_allowed_go_oldest_first() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 2, u64::MAX);
    let metas: Vec<_> = (1..=2).map(|index| leave(&files, index)).collect();
    assert_eq!(files.partials(GROUP).files, 2);
    // The first is gone on with, so that it is the younger one.
    drop(files.receive(&metas[0]).unwrap());
    let third = leave(&files, 3);
    assert!(left(&files, &metas[0]) && !left(&files, &metas[1]) && left(&files, &third));
    assert_eq!(files.partials(GROUP).evicted, 1);
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn more_partial_bytes_than_allowed_go_oldest_first() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 9, 2 * CHUNK as u64);
    let first = leave(&files, 1);
    let bytes = files.partials(GROUP).bytes;
    assert!(bytes > CHUNK as u64, "the header counts too");
    let second = leave(&files, 2);
    assert!(!left(&files, &first) && left(&files, &second));
    assert_eq!(files.partials(GROUP).bytes, bytes);
    let none = with_bounds(dir.path(), 9, CHUNK as u64);
    assert!(!left(&none, &second), "the bounds hold for what an earlier process left");
    assert_eq!(none.partials(GROUP), SnapshotPartials { evicted: 1, ..SnapshotPartials::default() });
    let third = leave(&none, 3);
    assert!(!left(&none, &third), "one alone may be too much");
}

#[test]
fn a_partial_file_that_is_being_written_is_not_evicted() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 0, 0);
    let bytes = body(2 * CHUNK, 1);
    let meta = meta_of(&head(1), &bytes);
    let mut writer = files.receive(&meta).unwrap();
    writer.write_all(&bytes).unwrap();
    let other = leave(&files, 2);
    assert!(!left(&files, &other) && left(&files, &meta));
    writer.verify(None).unwrap();
    assert_eq!(writer.commit().unwrap(), meta);
}

#[test]
fn the_age_of_partial_files_survives_a_restart() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 9, u64::MAX);
    let metas: Vec<_> = (1..=3).map(|index| leave(&files, index)).collect();
    let set_age = |meta: &SnapshotMeta, seconds: u64| {
        let named = Named::Partial { group: GROUP, content: meta.content };
        let file = File::options().write(true).open(files.shared.path(&named)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
    };
    set_age(&metas[0], 10);
    set_age(&metas[1], 30);
    set_age(&metas[2], 20);
    let again = with_bounds(dir.path(), 2, u64::MAX);
    assert!(left(&again, &metas[0]) && !left(&again, &metas[1]) && left(&again, &metas[2]));
}

#[test]
fn a_prefix_is_cut_at_every_torn_length() {
    let dir = TempDir::new().unwrap();
    let files = open(dir.path());
    let bytes = body(2 * CHUNK, 1);
    let meta = meta_of(&head(1), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK + 100]).unwrap();
    let path = dir.path().join(names(dir.path()).first().unwrap());
    let whole = fs::read(&path).unwrap();
    let header = whole.len() - (CHUNK + 100 + 8);
    let torn = [0, 1, header - 1, header, header + 4, header + 5, header + CHUNK + 3, header + CHUNK + 4]
        .into_iter()
        .chain(header + CHUNK + 5..whole.len());
    for length in torn {
        fs::write(&path, &whole[..length]).unwrap();
        let writer = files.receive(&meta).unwrap();
        let verified = if length < header + CHUNK + 4 { 0 } else { CHUNK };
        assert_eq!(writer.verified(), verified as u64, "{length}");
        drop(writer);
    }
    assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta);
    assert!(read(&files, &meta) == bytes);
}

#[test]
fn a_file_of_the_process_before_that_was_not_complete_is_removed() {
    let dir = TempDir::new().unwrap();
    let temporary = Named::Temporary { group: GROUP, number: 0 }.name();
    fs::write(dir.path().join(&temporary), b"half").unwrap();
    fs::write(dir.path().join("notes.txt"), b"not ours").unwrap();
    let files = open(dir.path());
    assert_eq!(names(dir.path()), ["notes.txt".to_owned()].into());
    create(&files, &head(1), b"body").unwrap();
}

#[test]
fn a_damaged_file_is_named_hides_no_other_and_another_can_take_its_place() {
    let dir = TempDir::new().unwrap();
    let bytes = body(CHUNK + 5, 1);
    let older = create(&open(dir.path()), &head(1), b"older").unwrap();
    let meta = create(&open(dir.path()), &head(2), &bytes).unwrap();
    let name = Named::complete(&meta.head, meta.content).name();
    let path = dir.path().join(&name);
    let good = fs::read(&path).unwrap();
    let mut flipped_header = good.clone();
    flipped_header[20] ^= 1;
    let mut flipped_trailer = good.clone();
    *flipped_trailer.last_mut().unwrap() ^= 1;
    let longer = [&good[..good.len() - 45], b"x", &good[good.len() - 45..]].concat();
    let cut = good[..good.len() - 1].to_vec();
    for bad in [Vec::new(), cut, flipped_header, flipped_trailer, longer] {
        fs::write(&path, &bad).unwrap();
        let files = open(dir.path());
        let refused = files.find(GROUP, meta.content).unwrap_err();
        assert!(refused.to_string().contains(&name), "{refused}");
        assert!(matches!(refused, SnapshotStoreError::Corrupt { content, .. } if content == meta.content));
        assert_eq!(files.complete(GROUP).unwrap(), std::slice::from_ref(&older));
        assert!(matches!(files.open(&meta, 0), Err(SnapshotStoreError::Corrupt { .. })));
        assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta);
        assert_eq!(files.complete(GROUP).unwrap(), [meta.clone(), older.clone()]);
        assert!(read(&files, &meta) == bytes);
        fs::write(&path, &bad).unwrap();
        let files = open(dir.path());
        files.retain(GROUP, &[older.content]).unwrap();
        assert_eq!(names(dir.path()).len(), 1);
    }
}

#[test]
fn a_file_under_the_name_of_another_is_corrupt() {
    let dir = TempDir::new().unwrap();
    let meta = create(&open(dir.path()), &head(1), b"body").unwrap();
    let other = Named::complete(&head(2), meta.content);
    fs::rename(dir.path().join(names(dir.path()).first().unwrap()), dir.path().join(other.name())).unwrap();
    let refused = open(dir.path()).find(GROUP, meta.content).unwrap_err();
    assert!(refused.to_string().contains("name"), "{refused}");
}

#[test]
fn a_file_that_vanished_is_missing_and_one_cut_under_a_reader_is_invalid() {
    let dir = TempDir::new().unwrap();
    let files = open(dir.path());
    let bytes = body(2 * CHUNK, 1);
    let meta = create(&files, &head(1), &bytes).unwrap();
    let path = dir.path().join(names(dir.path()).first().unwrap());
    let mut reader = BodyRead::new(files.open(&meta, 0).unwrap());
    File::options().write(true).open(&path).unwrap().set_len(CHUNK as u64).unwrap();
    let refused = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    fs::remove_file(&path).unwrap();
    assert!(matches!(files.open(&meta, 0), Err(SnapshotStoreError::Missing { .. })));
    let past = files.open(&SnapshotMeta { length: meta.length, ..meta.clone() }, meta.length + 1);
    assert!(past.is_err());
}

/// Its entry in memory was overwritten, and it stayed until the store was opened again.
#[test]
fn a_file_of_the_same_content_that_says_another_place_goes_with_the_next_of_that_content() {
    let dir = TempDir::new().unwrap();
    let bytes = body(CHUNK + 9, 1);
    let meta = create(&open(dir.path()), &head(1), &bytes).unwrap();
    let name = |index| {
        Named::Complete { group: GROUP, at: LogId { index, ..meta.head.at }, content: meta.content }.name()
    };
    fs::rename(dir.path().join(name(1)), dir.path().join(name(2))).unwrap();
    let files = open(dir.path());
    assert!(matches!(files.find(GROUP, meta.content), Err(SnapshotStoreError::Corrupt { .. })));
    assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta);
    assert_eq!(names(dir.path()), [name(1)].into());
    assert!(read(&files, &meta) == bytes);
}

/// A node that stops in the middle of it loses nothing that it had received.
#[test]
fn a_prefix_that_is_not_read_to_its_end_keeps_every_byte() {
    let dir = TempDir::new().unwrap();
    let files = open(dir.path());
    let bytes = body(3 * CHUNK + 9, 1);
    let meta = meta_of(&head(1), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..2 * CHUNK + 5]).unwrap();
    let partial = files.shared.path(&Named::Partial { group: GROUP, content: meta.content });
    let before = fs::read(&partial).unwrap();
    let stopped = files.receive_while(&meta, &mut |_| false);
    assert!(matches!(stopped, Err(SnapshotStoreError::Stopped { .. })));
    assert!(fs::read(&partial).unwrap() == before);
    let asked =
        std::panic::AssertUnwindSafe(|| files.receive_while(&meta, &mut |_| panic!("told to")).is_ok());
    assert!(std::panic::catch_unwind(asked).is_err());
    assert!(fs::read(&partial).unwrap() == before, "nor does a caller that panics cost a byte");
    assert_eq!(files.partials(GROUP).bytes, before.len() as u64);
    assert_eq!(files.receive(&meta).unwrap().verified(), 2 * CHUNK as u64 + 5);
}
