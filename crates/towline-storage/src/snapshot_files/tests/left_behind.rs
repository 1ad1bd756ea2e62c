//! Partial, temporary, damaged and foreign files in the directory.

use std::time::SystemTime;

use super::*;

fn with_bounds(dir: &Path, partials_max: usize, partial_bytes_max: u64) -> SnapshotFiles {
    let partial_bytes_max = ByteSize::bytes(partial_bytes_max);
    let config = SnapshotConfig { partials_max, partial_bytes_max, ..SnapshotConfig::default() };
    SnapshotFiles::open_with(dir, &config, FileOps::default(), None).unwrap()
}

/// Leaves a partial file of one chunk.
fn leave(files: &SnapshotFiles, index: u64) -> SnapshotMeta {
    let bytes = body(2 * CHUNK, index as u8);
    let meta = meta_of(&head(index), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
    meta
}

fn left(files: &SnapshotFiles, meta: &SnapshotMeta) -> bool {
    partial(files, meta).exists()
}

#[test]
fn above_the_bound_on_files_the_oldest_partial_file_is_removed() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 2, u64::MAX);
    let metas: Vec<_> = (1..=2).map(|index| leave(&files, index)).collect();
    assert_eq!(files.partials(GROUP).files, 2);
    // A resume makes the first one the younger one.
    drop(files.receive(&metas[0]).unwrap());
    let third = leave(&files, 3);
    assert!(left(&files, &metas[0]) && !left(&files, &metas[1]) && left(&files, &third));
    assert_eq!(files.partials(GROUP).evicted, 1);
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn above_the_bound_on_bytes_the_oldest_partial_file_is_removed() {
    let dir = TempDir::new().unwrap();
    let files = with_bounds(dir.path(), 9, 2 * CHUNK as u64);
    let first = leave(&files, 1);
    let bytes = files.partials(GROUP).bytes;
    assert!(bytes > CHUNK as u64, "the header counts too");
    let second = leave(&files, 2);
    assert!(!left(&files, &first) && left(&files, &second));
    assert_eq!(files.partials(GROUP).bytes, bytes);
    let none = with_bounds(dir.path(), 9, CHUNK as u64);
    assert!(!left(&none, &second), "the bounds hold for the files of an earlier process");
    assert_eq!(none.partials(GROUP), SnapshotPartials { evicted: 1, ..SnapshotPartials::default() });
    let third = leave(&none, 3);
    assert!(!left(&none, &third), "one file alone may exceed the bound");
}

#[test]
fn a_partial_file_with_a_writer_is_not_removed() {
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
        let file = File::options().write(true).open(partial(&files, meta)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
    };
    metas.iter().zip([10, 30, 20]).for_each(|(meta, seconds)| set_age(meta, seconds));
    let again = with_bounds(dir.path(), 2, u64::MAX);
    assert!(left(&again, &metas[0]) && !left(&again, &metas[1]) && left(&again, &metas[2]));
}

#[test]
fn a_partial_file_of_any_length_resumes_after_its_last_whole_chunk() {
    let (dir, files) = store();
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
fn a_temporary_file_of_an_earlier_process_is_removed() {
    let dir = TempDir::new().unwrap();
    let temporary = Named::Temporary { group: GROUP, number: 0 }.name();
    fs::write(dir.path().join(&temporary), b"half").unwrap();
    fs::write(dir.path().join("notes.txt"), b"not ours").unwrap();
    let files = open(dir.path());
    assert_eq!(names(dir.path()), ["notes.txt".to_owned()].into());
    create(&files, &head(1), b"body").unwrap();
}

#[test]
fn the_error_names_a_damaged_file_which_hides_no_other_and_can_be_replaced() {
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
fn a_deleted_file_is_missing_and_a_file_cut_under_its_reader_is_invalid() {
    let (dir, files) = store();
    let bytes = body(2 * CHUNK, 1);
    let meta = create(&files, &head(1), &bytes).unwrap();
    let path = dir.path().join(names(dir.path()).first().unwrap());
    let mut reader = BodyRead::new(files.open(&meta, 0).unwrap());
    File::options().write(true).open(&path).unwrap().set_len(CHUNK as u64).unwrap();
    let refused = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    fs::remove_file(&path).unwrap();
    assert!(matches!(files.open(&meta, 0), Err(SnapshotStoreError::Missing { .. })));
    assert!(files.open(&meta, meta.length + 1).is_err());
}

/// The index lost the misnamed file, which stayed until the store was opened again.
#[test]
fn receiving_a_content_removes_a_misnamed_file_of_it() {
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

/// For example when the node stops during the resume.
#[test]
fn an_interrupted_resume_keeps_every_byte() {
    let (_dir, files) = store();
    let bytes = body(3 * CHUNK + 9, 1);
    let meta = meta_of(&head(1), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..2 * CHUNK + 5]).unwrap();
    let partial = partial(&files, &meta);
    let before = fs::read(&partial).unwrap();
    let stopped = files.receive_while(&meta, &mut |_| false);
    assert!(matches!(stopped, Err(SnapshotStoreError::Stopped { .. })));
    assert!(fs::read(&partial).unwrap() == before);
    let panicking =
        std::panic::AssertUnwindSafe(|| files.receive_while(&meta, &mut |_| panic!("on purpose")).is_ok());
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert!(fs::read(&partial).unwrap() == before, "a panic of the caller costs no byte");
    assert_eq!(files.partials(GROUP).bytes, before.len() as u64);
    assert_eq!(files.receive(&meta).unwrap().verified(), 2 * CHUNK as u64 + 5);
}
