//! The directory from outside.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use towline_engine::identity::{Identity, IdentityStore};
use towline_engine::ids::{GroupId, Incarnation, NodeId};
use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
use towline_engine::message::{ConfState, Entry, MemberTable};
use towline_engine::snapshot_store::{SnapshotHead, SnapshotStore};
use towline_engine::state_machine::Applied;
use towline_storage::{DataDir, DataDirError};

#[allow(clippy::unwrap_used)] // a fixture
fn identity() -> Identity {
    Identity {
        cluster: "test".parse().unwrap(),
        node: NodeId::new(1).unwrap(),
        incarnation: Incarnation::new(9).unwrap(),
    }
}

fn head() -> SnapshotHead {
    SnapshotHead {
        group: GroupId::DEFAULT,
        at: Applied { index: 1, term: 1 },
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    }
}

#[test]
fn a_missing_directory_is_made_and_keeps_what_is_written() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a/b");
    let dir = DataDir::open(&path).unwrap();
    dir.identity().create(&identity()).unwrap();
    let entry = Entry { index: 1, term: 1, data: "x".into(), ..Entry::default() };
    let write = GroupWrite { entries: vec![entry], ..GroupWrite::new(GroupId::DEFAULT) };
    dir.log().append(&mut LogBatch { writes: vec![write] }).unwrap();
    let mut writer = dir.snapshots().create(&head()).unwrap();
    writer.verify(None).unwrap();
    let snapshot = writer.commit().unwrap();
    drop(dir);
    let dir = DataDir::open(&path).unwrap();
    assert_eq!(dir.identity().load().unwrap(), Some(identity()));
    assert_eq!(dir.log().recover(GroupId::DEFAULT).unwrap().last_index, 1);
    assert_eq!(dir.snapshots().latest(GroupId::DEFAULT).unwrap(), Some(snapshot));
}

#[test]
fn it_stays_locked_until_every_part_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let locked = || matches!(DataDir::open(root.path()), Err(DataDirError::Locked { .. }));
    let dir = DataDir::open(root.path()).unwrap();
    assert!(locked());
    let (log, identity, snapshots) = (dir.log(), dir.identity(), dir.snapshots());
    drop(dir);
    assert!(locked());
    drop(log);
    assert!(locked());
    drop(identity);
    assert!(locked());
    let writer = snapshots.create(&head()).unwrap();
    drop(snapshots);
    assert!(locked(), "a file is being written");
    drop(writer);
    assert!(!locked());
}

#[test]
fn a_damaged_identity_refuses_the_start() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("peers"), b"nonsense").unwrap();
    let refused = DataDir::open(root.path()).unwrap_err();
    assert!(matches!(refused, DataDirError::Identity(_)), "{refused}");
}

#[test]
fn a_file_in_the_place_of_the_directory_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("file"), b"").unwrap();
    let refused = DataDir::open(&root.path().join("file")).unwrap_err();
    assert!(matches!(refused, DataDirError::Io { .. }), "{refused}");
}
