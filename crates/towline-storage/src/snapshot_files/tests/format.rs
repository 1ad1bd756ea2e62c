//! The released bytes: docs/wire.md has the table.

use towline_engine::ids::{FoundingHash, Incarnation};

use super::*;

/// Numbers of each width of the encoding.
fn golden_head() -> SnapshotHead {
    let id = |n| NodeId::new(n).unwrap();
    let member =
        |address: &str, n| Member { address: address.parse().unwrap(), incarnation: Incarnation::new(n) };
    SnapshotHead {
        founding: FoundingHash::new(0x1112_1314_1516_1718),
        group: GroupId::new(1),
        at: LogId { index: 300, term: 70_000 },
        conf_state: ConfState {
            voters: vec![id(1), id(2)],
            learners: vec![id(3)],
            voters_outgoing: vec![id(1)],
            learners_next: vec![id(2)],
            auto_leave: true,
        },
        members: [
            (id(1), member("grpc://a:7001", 0x0102_0304_0506_0708)),
            (id(2), member("grpc://b:7002", 0)),
        ]
        .into(),
    }
}

const BODY: &[u8] = b"one small body\n";

#[test]
fn v2_keeps_its_released_bytes() {
    let (_dir, files) = store();
    let own = create(&files, &golden_head(), BODY).unwrap();
    let path = files.dir.file(&Named::complete(&own.head, own.content));
    assert_eq!(fs::read(&path).unwrap(), golden("snapshot_v2"));
    files.retain(own.head.group, &[]).unwrap();
    receive(&files, &own, BODY).unwrap();
    assert_eq!(fs::read(&path).unwrap(), golden("snapshot_received_v2"));
}

#[test]
fn released_v2_files_are_read() {
    let meta = meta_of(&golden_head(), BODY);
    for name in ["snapshot_v2", "snapshot_received_v2"] {
        let dir = TempDir::new().unwrap();
        let named = Named::complete(&meta.head, meta.content);
        fs::write(dir.path().join(named.name()), golden(name)).unwrap();
        let files = open(dir.path());
        assert_eq!(files.latest(meta.head.group).unwrap().as_ref(), Some(&meta), "{name}");
        assert_eq!(read(&files, &meta), BODY, "{name}");
    }
}

#[test]
fn a_v2_transfer_resumes() {
    let meta = meta_of(&golden_head(), BODY);
    let dir = TempDir::new().unwrap();
    let named = Named::Partial { group: meta.head.group, content: meta.content };
    let whole = golden("snapshot_received_v2");
    // The whole body, and a trailer that the writer writes again.
    fs::write(dir.path().join(named.name()), whole).unwrap();
    let files = open(dir.path());
    assert_eq!(files.receive(&meta).unwrap().verified(), BODY.len() as u64);
    assert_eq!(receive(&files, &meta, BODY).unwrap(), meta);
}
