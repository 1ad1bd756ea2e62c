use towline_engine::ids::Incarnation;
use towline_engine::message::Member;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The bytes a released version wrote: they must be written the same way by this version of the format, and be read
/// by every later one.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    unhex(&std::fs::read_to_string(path).unwrap())
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn conf() -> ConfRecord {
    let member = |port, incarnation| Member {
        address: format!("grpc://127.0.0.1:{port}").parse().unwrap(),
        incarnation,
    };
    ConfRecord {
        conf_state: ConfState {
            voters: vec![node(1), node(2)],
            learners: vec![node(300)],
            voters_outgoing: vec![node(1)],
            learners_next: vec![],
            auto_leave: true,
        },
        index: 70_000,
        members: [
            (node(1), member(7001, None)),
            (node(300), member(7300, Incarnation::new(0x0123_4567_89ab_cdef))),
        ]
        .into(),
    }
}

#[test]
fn hard_state_v1_is_written_and_read_as_released() {
    let state = HardState { term: 7, vote: Some(node(3)), commit: 0x0102_0304_0506 };
    assert_eq!(hex(&encode_hard_state(&state)), hex(&golden("hard_state_v1")));
    assert_eq!(decode_hard_state(&golden("hard_state_v1")), Ok(state));
    let nobody = HardState::default();
    assert_eq!(decode_hard_state(&encode_hard_state(&nobody)), Ok(nobody));
}

#[test]
fn truncated_v1_is_written_and_read_as_released() {
    let at = LogId { index: 9, term: 2 };
    assert_eq!(hex(&encode_truncated(at)), hex(&golden("truncated_v1")));
    assert_eq!(decode_truncated(&golden("truncated_v1")), Ok(at));
}

#[test]
fn installing_v1_is_written_and_read_as_released() {
    let content = ContentId(std::array::from_fn(|i| i as u8));
    for (content, name) in [(Some(content), "installing_v1"), (None, "installing_none_v1")] {
        assert_eq!(hex(&encode_installing(content)), hex(&golden(name)));
        assert_eq!(decode_installing(&golden(name)), Ok(content));
    }
}

#[test]
fn conf_v1_is_written_and_read_as_released() {
    assert_eq!(hex(&encode_conf(&conf()).unwrap()), hex(&golden("conf_v1")));
    assert_eq!(decode_conf(&golden("conf_v1")), Ok(conf()));
}

#[test]
fn any_flipped_bit_is_refused() {
    let good = encode_conf(&conf()).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_conf(&bad), Err(Damage::Checksum), "bit {bit}");
    }
}

#[test]
fn any_cut_is_refused() {
    let good = encode_conf(&conf()).unwrap();
    for len in 0..good.len() {
        assert!(decode_conf(&good[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_later_version_is_refused_by_name() {
    let later = format::seal(CONF_VERSION + 1, b"whatever");
    assert_eq!(decode_conf(&later), Err(Damage::Later { found: CONF_VERSION + 1, newest: CONF_VERSION }));
}

#[test]
fn a_length_from_a_damaged_payload_allocates_nothing() {
    // A vector of 2^62 voters, with a matching checksum.
    let hostile = format::seal(CONF_VERSION, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0x40]);
    assert!(matches!(decode_conf(&hostile), Err(Damage::Content { .. })));
}
