//! Faults of the snapshot double, and the images of the snapshot store in memory.

use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
fn a_disk_may_be_full_at_the_last_byte() {
    let (inner, store) = pair();
    store.fail_write_at(BODY.len() as u64 - 1, SnapshotFault::DiskFull);
    let mut writer = store.receive(&meta()).unwrap();
    let refused = writer.write_all(BODY).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(writer.verified(), BODY.len() as u64 - 1);
    assert!(writer.write_all(b"9").is_err(), "the writer stays broken");
    assert!(writer.verify(None).is_err());
    drop(writer);
    assert_eq!(inner.files(), 0);
    put(&store).unwrap();
}

#[test]
fn each_step_of_a_file_can_fail_by_number_and_once() {
    for op in [SnapshotOp::Create, SnapshotOp::Write, SnapshotOp::Verify, SnapshotOp::Commit] {
        let (inner, store) = pair();
        store.fail(op, 2, SnapshotFault::DiskFull);
        put(&store).unwrap();
        store.retain(GROUP, &[]).unwrap();
        assert_eq!(io_kind(put(&store)), Some(ErrorKind::StorageFull), "{op:?}");
        assert_eq!(inner.files(), 0, "{op:?}");
        put(&store).unwrap();
        assert_eq!(store.count(op), 3);
    }
    let (_, store) = pair();
    let meta = put(&store).unwrap();
    for op in [SnapshotOp::Look, SnapshotOp::Receive, SnapshotOp::Open, SnapshotOp::Retain] {
        store.fail_next(op, SnapshotFault::Eio);
        let act = || match op {
            SnapshotOp::Look => store.latest(GROUP).map(drop),
            SnapshotOp::Receive => store.receive(&meta).map(drop),
            SnapshotOp::Open => store.open(&meta, 0).map(drop),
            _ => store.retain(GROUP, &[meta.content]),
        };
        assert!(io_kind(act()).is_some(), "{op:?}");
        act().unwrap();
    }
}

#[test]
fn a_corrupted_write_is_found_by_verify() {
    let (_, store) = pair();
    store.fail_write_at(4, SnapshotFault::Corrupt);
    let mut writer = store.receive(&meta()).unwrap();
    writer.write_all(BODY).unwrap();
    assert!(matches!(writer.verify(None), Err(SnapshotStoreError::Corrupt { .. })));
    drop(writer);
    assert_eq!(store.receive(&meta()).unwrap().verified(), 0);
}

#[test]
fn a_read_fails_at_its_byte_and_gives_what_comes_before() {
    for (fault, kind) in [(SnapshotFault::Corrupt, Some(ErrorKind::InvalidData)), (SnapshotFault::Eio, None)]
    {
        let (_, store) = pair();
        let meta = put(&store).unwrap();
        store.fail_read_at(6, fault);
        let mut reader = BodyRead::new(store.open(&meta, 2).unwrap());
        let mut out = Vec::new();
        let refused = reader.read_to_end(&mut out).unwrap_err();
        assert!(kind.is_none_or(|kind| refused.kind() == kind), "{refused}");
        assert_eq!(out, b"2345");
        out.clear();
        BodyRead::new(store.open(&meta, 0).unwrap()).read_to_end(&mut out).unwrap();
        assert_eq!(out, BODY);
    }
}

#[test]
fn a_commit_whose_answer_is_lost_is_durable() {
    let (inner, store) = pair();
    store.fail_next(SnapshotOp::Commit, SnapshotFault::AnswerLost);
    assert!(io_kind(put(&store)).is_some());
    assert_eq!(inner.crash().latest(GROUP).unwrap(), Some(meta()));
}

#[test]
fn a_writer_that_panics_releases_its_file() {
    for op in [SnapshotOp::Write, SnapshotOp::Verify, SnapshotOp::Commit] {
        let (inner, store) = pair();
        store.fail_next(op, SnapshotFault::Panic);
        let meta = meta();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut writer = store.receive(&meta).unwrap();
            writer.write_all(BODY).unwrap();
            writer.verify(None).unwrap();
            writer.commit().unwrap();
        }));
        assert!(panicked.is_err(), "{op:?}");
        assert_eq!(inner.latest(GROUP).unwrap(), None);
        store.receive(&meta).unwrap().discard();
        assert_eq!(inner.files(), 0);
    }
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
