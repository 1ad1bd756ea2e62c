use std::fmt::Debug;

use towline_engine::ids::Incarnation;
use towline_engine::message::Member;

use super::*;
use crate::fixtures::{flipped, golden};

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
        founding: FoundingHash::new(0x1112_1314_1516_1718),
        members: [
            (node(1), member(7001, None)),
            (node(300), member(7300, Incarnation::new(0x0123_4567_89ab_cdef))),
        ]
        .into(),
    }
}

#[test]
fn each_record_keeps_its_released_bytes() {
    fn check<T: PartialEq + Debug>(
        name: &str,
        value: T,
        encoded: Vec<u8>,
        decode: impl Fn(&[u8]) -> Result<T, Damage>,
    ) {
        assert_eq!(encoded, golden(name), "{name}");
        assert_eq!(decode(&encoded), Ok(value), "{name}");
    }
    let state = HardState { term: 7, vote: Some(node(3)), commit: 0x0102_0304_0506 };
    check("hard_state_v1", state, encode_hard_state(&state), decode_hard_state);
    let at = LogId { index: 9, term: 2 };
    check("truncated_v1", at, encode_truncated(at), decode_truncated);
    let content = ContentId(std::array::from_fn(|i| i as u8));
    for (content, name) in [(Some(content), "installing_v1"), (None, "installing_none_v1")] {
        check(name, content, encode_installing(content), decode_installing);
    }
    check("conf_v2", conf(), encode_conf(&conf()).unwrap(), decode_conf);
    assert_eq!(decode_hard_state(&encode_hard_state(&HardState::default())), Ok(HardState::default()));
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let good = encode_conf(&conf()).unwrap();
    for bad in flipped(&good) {
        assert_eq!(decode_conf(&bad), Err(Damage::Checksum), "{bad:02x?}");
    }
    for len in 0..good.len() {
        assert!(decode_conf(&good[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_later_version_is_refused_with_its_number() {
    let later = format::seal(CONF_VERSION + 1, b"whatever");
    assert_eq!(decode_conf(&later), Err(Damage::Later { found: CONF_VERSION + 1, newest: CONF_VERSION }));
}

/// No release wrote version 1. It was reported as damaged.
#[test]
fn a_membership_from_before_the_first_release_is_refused_with_what_to_do() {
    let refused = decode_conf(&golden("conf_v1")).unwrap_err();
    assert_eq!(refused, Damage::Earlier { found: 1, oldest: CONF_VERSION });
    assert!(refused.to_string().contains("found the group again on empty data directories"), "{refused}");
}

#[test]
fn a_huge_length_in_a_payload_allocates_nothing() {
    // A vector of 2^62 voters, with a matching checksum.
    let hostile = format::seal(CONF_VERSION, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0x40]);
    assert!(matches!(decode_conf(&hostile), Err(Damage::Content { .. })));
}
