//! The data directory through its public interface.
#![allow(clippy::unwrap_used)] // helpers of tests

use towline_engine::identity::{Identity, IdentityStore};
use towline_engine::ids::{GroupId, Incarnation, NodeId};
use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
use towline_engine::message::{ConfState, Entry, LogId, MemberTable};
use towline_engine::snapshot_store::{SnapshotHead, SnapshotStore};
use towline_storage::{DataDir, DataDirError};

fn identity() -> Identity {
    Identity {
        cluster: "test".parse().unwrap(),
        node: NodeId::new(1).unwrap(),
        incarnation: Incarnation::new(9).unwrap(),
    }
}

fn head() -> SnapshotHead {
    SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index: 1, term: 1 },
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    }
}

#[test]
fn a_missing_directory_is_made_and_keeps_its_content() {
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
fn the_directory_stays_locked_until_all_its_parts_are_dropped() {
    let root = tempfile::tempdir().unwrap();
    let locked = || matches!(DataDir::open(root.path()), Err(DataDirError::InUse { .. }));
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
    assert!(locked(), "a writer is open");
    drop(writer);
    assert!(!locked());
}

/// The error named another process although this process had the directory open.
#[test]
fn the_error_says_whether_another_process_has_the_lock() {
    let root = tempfile::tempdir().unwrap();
    let dir = DataDir::open(root.path()).unwrap();
    let same = DataDir::open(&root.path().join("log/..")).unwrap_err();
    assert!(matches!(same, DataDirError::InUse { .. }), "{same}");
    drop(dir);
    // The system locks open files, so a lock outside `DataDir` counts as one of another process.
    let foreign = std::fs::File::open(root.path().join("LOCK")).unwrap();
    assert!(fs4::fs_std::FileExt::try_lock_exclusive(&foreign).unwrap());
    let other = DataDir::open(root.path()).unwrap_err();
    assert!(matches!(other, DataDirError::Locked { .. }), "{other}");
    drop(foreign);
    DataDir::open(root.path()).unwrap();
}

#[test]
fn only_a_directory_made_for_a_new_node_may_found_groups() {
    let root = tempfile::tempdir().unwrap();
    let may_found = |dir: DataDir| dir.identity().may_found().unwrap();
    let (new, other) = (root.path().join("new"), root.path().join("other"));
    assert!(!may_found(DataDir::open(&other).unwrap()));
    assert!(may_found(DataDir::create(&new).unwrap()));
    assert!(may_found(DataDir::open(&new).unwrap()), "also after a crash before the founding");
    let founded = root.path().join("founded");
    DataDir::create(&founded).unwrap().identity().create(&identity()).unwrap();
    assert!(may_found(DataDir::open(&founded).unwrap()), "it may found more groups");
    std::fs::remove_file(founded.join("identity")).unwrap();
    assert!(!may_found(DataDir::open(&founded).unwrap()), "a lost identity makes no new node");
    let other_identity = Identity { incarnation: Incarnation::new(10).unwrap(), ..identity() };
    DataDir::open(&founded).unwrap().identity().create(&other_identity).unwrap();
    assert!(!may_found(DataDir::open(&founded).unwrap()), "the permission belongs to another identity");
    for used in [&new, &other] {
        let refused = DataDir::create(used).unwrap_err();
        assert!(matches!(refused, DataDirError::NotNew { part: "log", .. }), "{refused}");
    }
    assert!(!may_found(DataDir::open(&other).unwrap()), "a refused `create` changes nothing");
    std::fs::create_dir_all(root.path().join("volume/lost+found")).unwrap();
    assert!(may_found(DataDir::create(&root.path().join("volume")).unwrap()));
}

#[test]
fn a_damaged_identity_refuses_the_start() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("peers"), b"nonsense").unwrap();
    let refused = DataDir::open(root.path()).unwrap_err();
    assert!(matches!(refused, DataDirError::Identity(_)), "{refused}");
}

#[test]
fn a_file_instead_of_a_directory_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("file"), b"").unwrap();
    let refused = DataDir::open(&root.path().join("file")).unwrap_err();
    assert!(matches!(refused, DataDirError::Io { .. }), "{refused}");
}
