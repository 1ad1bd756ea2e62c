//! Faults of the snapshot double, and the images of the snapshot store in memory.

use std::io::{ErrorKind, Write};

use crate::common::*;
use towline_testkit::suites::snapshot_store::head;

const GROUP: GroupId = GroupId::DEFAULT;
const BODY: &[u8] = b"0123456789";

fn pair() -> (MemSnapshots, FaultySnapshots) {
    let inner = MemSnapshots::new();
    (inner.clone(), FaultySnapshots::new(Arc::new(inner)))
}

fn meta() -> SnapshotMeta {
    let mut hasher = ContentHasher::new(&head(1));
    hasher.update(BODY);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head: head(1), length, content }
}

fn put(store: &dyn SnapshotStore) -> Result<SnapshotMeta, SnapshotStoreError> {
    let mut writer = store.create(&head(1))?;
    writer.write_all(BODY).map_err(|source| SnapshotStoreError::Io { during: "write", source })?;
    writer.verify(None)?;
    writer.commit()
}

fn io_kind<T>(outcome: Result<T, SnapshotStoreError>) -> Option<ErrorKind> {
    match outcome {
        Err(SnapshotStoreError::Io { source, .. }) => Some(source.kind()),
        _ => None,
    }
}

#[test]
fn a_disk_stays_full_until_there_is_room() {
    let (inner, store) = pair();
    for full_at in 0..BODY.len() as u64 {
        store.full_at(Some(full_at));
        assert_eq!(io_kind(put(&store)), Some(ErrorKind::StorageFull), "{full_at}");
        assert_eq!(io_kind(put(&store)), Some(ErrorKind::StorageFull), "{full_at}, again");
    }
    assert_eq!(inner.files(), 0, "no file is left");
    store.full_at(Some(BODY.len() as u64));
    put(&store).unwrap();
    store.full_at(None);
    put(&store).unwrap();
}

#[test]
fn a_writer_that_found_the_disk_full_stays_broken() {
    let (inner, store) = pair();
    store.full_at(Some(BODY.len() as u64 - 1));
    let mut writer = store.receive(&meta()).unwrap();
    assert_eq!(writer.write_all(BODY).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(writer.verified(), BODY.len() as u64 - 1);
    store.full_at(None);
    assert!(writer.write_all(b"9").is_err());
    assert!(writer.verify(None).is_err());
    drop(writer);
    assert_eq!(inner.files(), 0);
}

#[test]
fn a_flipped_bit_is_found_by_verify() {
    let (_, store) = pair();
    store.flip_at(4);
    let mut writer = store.receive(&meta()).unwrap();
    writer.write_part(BODY, crc32c::crc32c(BODY)).unwrap();
    assert!(matches!(writer.verify(None), Err(SnapshotStoreError::Corrupt { .. })));
    drop(writer);
    assert_eq!(store.receive(&meta()).unwrap().verified(), 0);
    put(&store).unwrap();
}

#[test]
fn an_open_fails_once() {
    let (_, store) = pair();
    let meta = put(&store).unwrap();
    store.fail_open();
    assert!(io_kind(store.open(&meta, 0).map(drop)).is_some());
    store.open(&meta, 0).unwrap();
}

#[test]
fn a_held_operation_waits_for_its_gate() {
    let (inner, store) = pair();
    let gate = store.hold(SnapshotOp::Commit);
    assert!(!gate.wait_held(Duration::from_millis(1)), "nothing is held yet");
    let committing = std::thread::spawn({
        let store = store.clone();
        move || put(&store).unwrap()
    });
    assert!(gate.wait_held(Duration::from_secs(30)));
    assert_eq!(store.count(SnapshotOp::Commit), 1);
    assert_eq!(inner.latest(GROUP).unwrap(), None);
    drop(gate);
    assert_eq!(committing.join().unwrap(), meta());
}

#[test]
fn a_crash_of_the_store_in_memory_keeps_committed_files_and_a_restart_partial_ones_too() {
    let store = MemSnapshots::new();
    let committed = put(&store).unwrap();
    let mut hasher = ContentHasher::new(&head(2));
    hasher.update(BODY);
    let left = SnapshotMeta { head: head(2), length: 10, content: hasher.finish().content };
    store.receive(&left).unwrap().write_all(&BODY[..4]).unwrap();
    let mut open = store.create(&head(3)).unwrap();
    open.write_all(BODY).unwrap();
    let (crashed, restarted) = (store.crash(), store.restart());
    assert_eq!((store.files(), crashed.files(), restarted.files()), (3, 1, 2));
    assert_eq!(crashed.latest(GROUP).unwrap(), Some(committed));
    assert_eq!(crashed.receive(&left).unwrap().verified(), 0);
    assert_eq!(restarted.receive(&left).unwrap().verified(), 4);
    // The original store goes on.
    open.verify(None).unwrap();
    open.commit().unwrap();
    assert_eq!(crashed.latest(GROUP).unwrap().unwrap().head.at.index, 1);
}

#[test]
fn the_store_in_memory_bounds_its_partial_files() {
    let store = MemSnapshots::new();
    let metas: Vec<_> = (1..=3).map(|index| SnapshotMeta { head: head(index), ..meta() }).collect();
    for (number, meta) in metas.iter().enumerate() {
        let content = towline_engine::snapshot_store::ContentId([number as u8; 16]);
        let meta = SnapshotMeta { content, ..meta.clone() };
        store.receive(&meta).unwrap().write_all(b"x").unwrap();
    }
    assert_eq!(store.files(), MemSnapshots::PARTIALS_MAX);
}
