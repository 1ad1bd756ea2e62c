use tempfile::TempDir;

use super::*;
use crate::fixtures::{flipped, golden};

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn incarnation(number: u64) -> Incarnation {
    Incarnation::new(number).unwrap()
}

fn identity() -> Identity {
    let cluster = "prod-eu".parse().unwrap();
    Identity { cluster, node: node(3), incarnation: incarnation(0x0123_4567_89ab_cdef) }
}

fn store() -> (TempDir, IdentityFile) {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    (dir, file)
}

#[test]
fn a_new_directory_has_no_identity_and_no_seen_peers() {
    let (_dir, file) = store();
    assert_eq!(file.load().unwrap(), None);
    assert!(file.seen().unwrap().is_empty());
}

#[test]
fn an_identity_is_written_once() {
    let (dir, file) = store();
    file.create(&identity()).unwrap();
    let again = Identity { node: node(4), ..identity() };
    let refused = file.create(&again).unwrap_err();
    assert!(matches!(refused, IdentityError::Exists { node, .. } if node == identity().node));
    assert_eq!(IdentityFile::new(dir.path(), None).load().unwrap(), Some(identity()));
}

#[test]
fn the_last_incarnation_of_each_peer_is_stored() {
    let (dir, file) = store();
    for (id, number) in [(1, 10), (2, 20), (1, 11)] {
        file.remember(node(id), incarnation(number)).unwrap();
    }
    let again = IdentityFile::new(dir.path(), None);
    assert_eq!(again.seen().unwrap(), [(node(1), incarnation(11)), (node(2), incarnation(20))].into());
}

#[test]
fn each_file_keeps_its_released_bytes() {
    let (dir, file) = store();
    file.create(&identity()).unwrap();
    for group in [1, 300] {
        file.add_group(GroupId::new(group)).unwrap();
    }
    file.remember(node(1), incarnation(300)).unwrap();
    for (group, lost) in LOST {
        file.record_lost(GroupId::new(group), lost).unwrap();
    }
    let files = [(IDENTITY_FILE, "identity_v2"), (PEERS_FILE, "peers_v1"), (LOST_FILE, "lost_v1")];
    for (name, version) in files {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), golden(version), "{name}");
    }
}

const LOST: [(u64, LostEntries); 2] = [
    (1, LostEntries { last_index: 55, acknowledged: 61 }),
    (300, LostEntries { last_index: 0, acknowledged: 300 }),
];

#[test]
fn what_a_group_lost_stays_recorded() {
    let (dir, file) = store();
    assert!(file.lost().unwrap().is_empty());
    for (group, lost) in LOST {
        file.record_lost(GroupId::new(group), lost).unwrap();
    }
    let again = IdentityFile::new(dir.path(), None);
    assert_eq!(again.lost().unwrap(), LOST.map(|(group, lost)| (GroupId::new(group), lost)).into());
    fs::write(dir.path().join(LOST_FILE), b"torn").unwrap();
    let refused = again.lost().unwrap_err();
    assert!(matches!(&refused, IdentityError::Corrupt { file, .. } if file.ends_with("lost")), "{refused}");
}

#[test]
fn an_identity_of_version_1_has_no_groups_and_accepts_new_ones() {
    let (dir, file) = store();
    fs::write(dir.path().join(IDENTITY_FILE), golden("identity_v1")).unwrap();
    assert_eq!((file.load().unwrap(), file.groups().unwrap()), (Some(identity()), BTreeSet::new()));
    file.add_group(GroupId::new(7)).unwrap();
    let again = IdentityFile::new(dir.path(), None);
    let expected = (Some(identity()), [GroupId::new(7)].into());
    assert_eq!((again.load().unwrap(), again.groups().unwrap()), expected);
}

#[test]
fn groups_are_stored_and_need_an_identity() {
    let (dir, file) = store();
    assert!(matches!(file.add_group(GroupId::new(1)), Err(IdentityError::Absent)));
    file.create(&identity()).unwrap();
    for group in [2, 1, 2] {
        file.add_group(GroupId::new(group)).unwrap();
    }
    assert_eq!(IdentityFile::new(dir.path(), None).groups().unwrap(), [1, 2].map(GroupId::new).into());
}

#[test]
fn the_error_for_any_flipped_bit_names_the_file() {
    let (dir, file) = store();
    file.create(&identity()).unwrap();
    let path = dir.path().join(IDENTITY_FILE);
    for bad in flipped(&fs::read(&path).unwrap()) {
        fs::write(&path, bad).unwrap();
        let refused = file.load().unwrap_err();
        let named = matches!(&refused, IdentityError::Corrupt { file, .. } if file.ends_with("identity"));
        assert!(named, "{refused}");
    }
}

#[test]
fn a_later_version_is_refused_and_not_replaced() {
    let (dir, file) = store();
    let later = format::seal(IDENTITY_VERSION + 1, b"unknown");
    fs::write(dir.path().join(IDENTITY_FILE), &later).unwrap();
    for refused in [file.load().unwrap_err(), file.create(&identity()).unwrap_err()] {
        assert!(refused.to_string().contains("later release"), "{refused}");
    }
    assert_eq!(fs::read(dir.path().join(IDENTITY_FILE)).unwrap(), later);
}
