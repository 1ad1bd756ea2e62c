//! Reading, and removal of files.

use super::*;

pub fn a_read_begins_at_any_offset(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    for length in [0, 1, chunk, 2 * chunk + 9] {
        let bytes = body(length, 1);
        let meta = open.put(&head(1 + length as u64), &bytes);
        for offset in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 8, length] {
            if offset <= length {
                assert!(open.read(&meta, offset as u64) == bytes[offset..], "{offset} of {length}");
            }
        }
    }
}

pub fn reads_of_any_size_give_the_same_bytes(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk() + 9, 1);
    let meta = open.put(&head(1), &bytes);
    for size in [1, 1000, open.chunk(), open.chunk() + 1, 4 * open.chunk()] {
        let mut reader = open.reader(&meta, 3);
        assert_eq!(reader.read(&mut []).unwrap(), 0);
        let (mut out, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            out.extend_from_slice(&buffer[..count]);
        }
        assert!(out == bytes[3..], "{size}");
        assert_eq!(reader.read(&mut buffer).unwrap(), 0, "bytes follow the end");
    }
}

pub fn a_reader_detects_damage(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let bytes = body(3 * chunk + 50, 1);
    for (number, at) in [0, chunk - 1, 2 * chunk, 3 * chunk + 49].into_iter().enumerate() {
        let meta = open.put(&head(1 + number as u64), &bytes);
        open.damage(&meta, at);
        let mut reader = open.reader(&meta, 0);
        let mut out = Vec::new();
        let refused = reader.read_to_end(&mut out).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(out == bytes[..at - at % chunk], "bytes before the damage differ");
        assert!(reader.read(&mut [0; 8]).is_err(), "bytes follow the damage");
    }
}

pub fn an_absent_snapshot_is_missing(open: OpenSnapshotStore) {
    let meta = meta_of(&head(1), b"body");
    let missing = |meta: &SnapshotMeta| {
        let answer = open.store().open(meta, 0);
        matches!(answer, Err(SnapshotStoreError::Missing { content }) if content == meta.content)
    };
    assert!(missing(&meta));
    open.put(&head(1), b"body");
    assert!(!missing(&meta));
    assert!(missing(&SnapshotMeta { head: head_of(B, 1, 3), ..meta.clone() }));
    assert!(missing(&SnapshotMeta { length: meta.length + 1, ..meta.clone() }), "another length");
    open.store().retain(A, &[]).unwrap();
    assert!(missing(&meta));
}

pub fn retain_removes_other_snapshots(mut open: OpenSnapshotStore) {
    let metas: Vec<_> = (1..=4).map(|index| open.put(&head(index), &body(10, index))).collect();
    open.store().retain(A, &[metas[1].content, metas[2].content]).unwrap();
    for _ in 0..2 {
        assert_eq!(open.fixture.files(), 2);
        assert_eq!(open.store().latest(A).unwrap().as_ref(), Some(&metas[2]));
        open.assert_nothing_of(&metas[0]);
        open.assert_nothing_of(&metas[3]);
        assert_eq!(open.read(&metas[1], 0), body(10, 2));
        open.restart();
    }
    open.store().retain(A, &[]).unwrap();
    assert_eq!(open.store().latest(A).unwrap(), None);
    assert_eq!(open.fixture.files(), 0);
}

pub fn retain_removes_partial_files(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    open.leave(&meta, &bytes, open.chunk());
    assert_eq!(open.fixture.files(), 1);
    open.store().retain(A, &[ContentId([1; 16])]).unwrap();
    open.assert_gone(&meta);
}

pub fn retain_keeps_named_files(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk(), 1);
    let (complete, left) = (open.put(&head(1), b"body"), meta_of(&head(2), &bytes));
    open.leave(&left, &bytes, open.chunk());
    open.store().retain(A, &[left.content, complete.content, ContentId([1; 16])]).unwrap();
    assert_eq!(open.read(&complete, 0), b"body");
    assert_eq!(open.finish(&left, &bytes), open.chunk());
}

pub fn retain_keeps_files_of_open_writers(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk() + 5, 1);
    let theirs = meta_of(&head(1), &bytes);
    let (mut received, mut own) = (open.receive(&theirs), open.store().create(&head(2)).unwrap());
    for part in bytes.chunks(open.chunk() / 2) {
        received.write_all(part).unwrap();
        own.write_all(part).unwrap();
        open.store().retain(A, &[]).unwrap();
    }
    received.verify(Some(&trailer(&theirs))).unwrap();
    own.verify(None).unwrap();
    open.store().retain(A, &[]).unwrap();
    assert_eq!(received.commit().unwrap(), theirs);
    let ours = own.commit().unwrap();
    for meta in [theirs, ours] {
        assert_eq!(open.read(&meta, 0), bytes);
    }
}

pub fn an_open_file_stays_until_its_last_reader_is_dropped(open: OpenSnapshotStore) {
    let bytes = body(3 * open.chunk(), 1);
    let meta = open.put(&head(1), &bytes);
    let newer = open.put(&head(2), b"newer");
    let mut readers = [open.reader(&meta, 0), open.reader(&meta, 1)];
    let mut start = [0; 10];
    readers[0].read_exact(&mut start).unwrap();
    open.store().retain(A, &[newer.content]).unwrap();
    assert_eq!(open.fixture.files(), 2);
    let [mut first, mut second] = readers;
    let mut out = start.to_vec();
    first.read_to_end(&mut out).unwrap();
    assert!(out == bytes);
    drop(first);
    assert_eq!(open.fixture.files(), 2, "the second reader still holds the file");
    out.clear();
    second.read_to_end(&mut out).unwrap();
    assert!(out == bytes[1..]);
    drop(second);
    open.assert_nothing_of(&meta);
    assert_eq!(open.fixture.files(), 1);
    assert_eq!(open.store().latest(A).unwrap(), Some(newer));
}

pub fn a_file_that_is_retained_again_stays(open: OpenSnapshotStore) {
    let meta = open.put(&head(1), b"body");
    let reader = open.store().open(&meta, 0).unwrap();
    open.store().retain(A, &[]).unwrap();
    open.store().retain(A, &[meta.content]).unwrap();
    drop(reader);
    assert_eq!(open.read(&meta, 0), b"body");
    drop(open.store().open(&meta, 0).unwrap());
    assert_eq!(open.store().latest(A).unwrap(), Some(meta));
}

pub fn a_reader_is_not_disturbed_by_the_same_snapshot_again(open: OpenSnapshotStore) {
    let bytes = body(3 * open.chunk(), 1);
    let meta = open.put(&head(1), &bytes);
    let mut reader = open.reader(&meta, 0);
    let mut out = vec![0; 10];
    reader.read_exact(&mut out).unwrap();
    open.store().retain(A, &[]).unwrap();
    assert_eq!(open.finish(&meta, &bytes), 0);
    assert_eq!(open.put(&head(1), &bytes), meta);
    reader.read_to_end(&mut out).unwrap();
    assert!(out == bytes);
    drop(reader);
    assert_eq!(open.read(&meta, 0), bytes, "the snapshot was stored again");
    assert_eq!(open.fixture.files(), 1);
}

pub fn many_threads_write_and_read(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let (done, finished) = mpsc::channel();
    let store = open.store.clone().unwrap();
    let threads: Vec<_> = (0..4_u64)
        .map(|number| {
            let (store, done) = (store.clone(), done.clone());
            std::thread::spawn(move || {
                let group = GroupId::new(1 + number % 2);
                for round in 0..5 {
                    let bytes = body(chunk + 7, number * 100 + round);
                    let meta = meta_of(&head_of(group, number * 100 + round, 1), &bytes);
                    let mut writer = store.receive(&meta).unwrap();
                    writer.write_all(&bytes).unwrap();
                    writer.verify(Some(&trailer(&meta))).unwrap();
                    writer.commit().unwrap();
                    // Another thread may have removed it by now.
                    if let Ok(reader) = store.open(&meta, 0) {
                        let mut reader = BodyRead::new(reader);
                        store.retain(group, &[]).unwrap();
                        let mut out = Vec::new();
                        reader.read_to_end(&mut out).unwrap();
                        assert!(out == bytes);
                    }
                    store.latest(group).unwrap();
                }
                done.send(()).unwrap();
            })
        })
        .collect();
    drop((done, store));
    let finished =
        (0..threads.len()).all(|_| finished.recv_timeout(std::time::Duration::from_secs(60)).is_ok());
    assert!(finished, "a thread failed or hangs");
    for thread in threads {
        thread.join().unwrap();
    }
    for group in [GroupId::new(1), GroupId::new(2)] {
        open.store().retain(group, &[]).unwrap();
    }
    assert_eq!(open.fixture.files(), 0);
}
