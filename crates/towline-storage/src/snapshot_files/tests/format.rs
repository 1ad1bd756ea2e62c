//! The bytes as released: docs/wire.md has the table.

use towline_engine::ids::Incarnation;

use super::*;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let text = text.trim();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Numbers of each width that the encoding has.
fn golden_head() -> SnapshotHead {
    let id = |n| NodeId::new(n).unwrap();
    let member =
        |address: &str, n| Member { address: address.parse().unwrap(), incarnation: Incarnation::new(n) };
    SnapshotHead {
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
fn v1_is_written_as_released() {
    let dir = TempDir::new().unwrap();
    let files = open(dir.path());
    let own = create(&files, &golden_head(), BODY).unwrap();
    let path = files.shared.path(&Named::complete(&own.head, own.content));
    assert_eq!(fs::read(&path).unwrap(), golden("snapshot_v1"));
    files.retain(own.head.group, &[]).unwrap();
    receive(&files, &own, BODY).unwrap();
    assert_eq!(fs::read(&path).unwrap(), golden("snapshot_received_v1"));
}

#[test]
fn v1_is_read_as_released() {
    let meta = meta_of(&golden_head(), BODY);
    for name in ["snapshot_v1", "snapshot_received_v1"] {
        let dir = TempDir::new().unwrap();
        let named = Named::complete(&meta.head, meta.content);
        fs::write(dir.path().join(named.name()), golden(name)).unwrap();
        let files = open(dir.path());
        assert_eq!(files.latest(meta.head.group).unwrap().as_ref(), Some(&meta), "{name}");
        assert_eq!(read(&files, &meta), BODY, "{name}");
    }
}

#[test]
fn a_v1_transfer_is_gone_on_with() {
    let meta = meta_of(&golden_head(), BODY);
    let dir = TempDir::new().unwrap();
    let named = Named::Partial { group: meta.head.group, content: meta.content };
    let whole = golden("snapshot_received_v1");
    // All of the body, and a trailer that is written once more.
    fs::write(dir.path().join(named.name()), whole).unwrap();
    let files = open(dir.path());
    assert_eq!(files.receive(&meta).unwrap().verified(), BODY.len() as u64);
    assert_eq!(receive(&files, &meta, BODY).unwrap(), meta);
}
