use tempfile::TempDir;

use super::*;

fn identity() -> Identity {
    Identity {
        cluster: "prod-eu".parse().unwrap(),
        node: NodeId::new(3).unwrap(),
        incarnation: Incarnation::new(0x0123_4567_89ab_cdef).unwrap(),
    }
}

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let text = text.trim();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn a_new_directory_has_no_identity_and_has_met_nobody() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    assert_eq!(file.load().unwrap(), None);
    assert!(file.seen().unwrap().is_empty());
}

#[test]
fn an_identity_is_written_once() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    file.create(&identity()).unwrap();
    let again = Identity { node: NodeId::new(4).unwrap(), ..identity() };
    let refused = file.create(&again).unwrap_err();
    assert!(matches!(refused, IdentityError::Exists { node, .. } if node == identity().node));
    assert_eq!(IdentityFile::new(dir.path(), None).load().unwrap(), Some(identity()));
}

#[test]
fn the_last_incarnation_of_each_peer_is_remembered() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
    let incarnation = |n| Incarnation::new(n).unwrap();
    file.remember(one, incarnation(10)).unwrap();
    file.remember(two, incarnation(20)).unwrap();
    file.remember(one, incarnation(11)).unwrap();
    let again = IdentityFile::new(dir.path(), None);
    assert_eq!(again.seen().unwrap(), [(one, incarnation(11)), (two, incarnation(20))].into());
}

#[test]
fn each_version_is_written_and_read_as_released() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    file.create(&identity()).unwrap();
    for group in [1, 300] {
        file.add_group(GroupId::new(group)).unwrap();
    }
    file.remember(NodeId::new(1).unwrap(), Incarnation::new(300).unwrap()).unwrap();
    for (name, version) in [(IDENTITY_FILE, "identity_v2"), (PEERS_FILE, "peers_v1")] {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), golden(version), "{name}");
    }
}

#[test]
fn an_identity_of_version_1_has_no_groups_and_takes_some() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(IDENTITY_FILE), golden("identity_v1")).unwrap();
    let file = IdentityFile::new(dir.path(), None);
    assert_eq!((file.load().unwrap(), file.groups().unwrap()), (Some(identity()), BTreeSet::new()));
    file.add_group(GroupId::new(7)).unwrap();
    let again = IdentityFile::new(dir.path(), None);
    assert_eq!(
        (again.load().unwrap(), again.groups().unwrap()),
        (Some(identity()), [GroupId::new(7)].into())
    );
}

#[test]
fn groups_are_remembered_and_need_an_identity() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    assert!(matches!(file.add_group(GroupId::new(1)), Err(IdentityError::Absent)));
    file.create(&identity()).unwrap();
    for group in [2, 1, 2] {
        file.add_group(GroupId::new(group)).unwrap();
    }
    assert_eq!(IdentityFile::new(dir.path(), None).groups().unwrap(), [1, 2].map(GroupId::new).into());
}

#[test]
fn any_flipped_bit_names_the_file() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    file.create(&identity()).unwrap();
    let path = dir.path().join(IDENTITY_FILE);
    let good = fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, bad).unwrap();
        let refused = file.load().unwrap_err();
        assert!(
            matches!(&refused, IdentityError::Corrupt { file, .. } if file.ends_with("identity")),
            "{refused}"
        );
    }
}

#[test]
fn a_later_version_is_refused_and_not_replaced() {
    let dir = TempDir::new().unwrap();
    let file = IdentityFile::new(dir.path(), None);
    let later = format::seal(IDENTITY_VERSION + 1, b"unknown");
    fs::write(dir.path().join(IDENTITY_FILE), &later).unwrap();
    for refused in [file.load().unwrap_err(), file.create(&identity()).unwrap_err()] {
        assert!(refused.to_string().contains("later release"), "{refused}");
    }
    assert_eq!(fs::read(dir.path().join(IDENTITY_FILE)).unwrap(), later);
}
