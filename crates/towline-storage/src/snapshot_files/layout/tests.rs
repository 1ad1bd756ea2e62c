use proptest::prelude::*;
use towline_engine::ids::{Incarnation, NodeId};
use towline_engine::message::Member;

use super::*;
use crate::fixtures::{flipped, golden};

fn header() -> Header {
    let id = |n| NodeId::new(n).unwrap();
    let member = |port: u16, incarnation| Member {
        address: format!("grpc://h:{port}").parse().unwrap(),
        incarnation: Incarnation::new(incarnation),
    };
    Header {
        head: SnapshotHead {
            group: GroupId::new(300),
            founding: FoundingHash::new(u64::MAX),
            at: LogId { index: 70_000, term: 5 },
            conf_state: ConfState {
                voters: vec![id(1), id(2)],
                learners: vec![id(3)],
                ..ConfState::default()
            },
            members: [(id(1), member(7001, 9)), (id(2), member(7002, 0))].into(),
        },
        offered: Some(Trailer { length: 3, content: ContentId([0xab; 16]) }),
    }
}

#[test]
fn a_header_round_trips() {
    for offered in [None, header().offered] {
        let header = Header { offered, ..header() };
        let bytes = header.encode().unwrap();
        let behind = [&bytes[..], b"body"].concat();
        assert_eq!(Header::read(&mut &behind[..]).unwrap(), (header, bytes.len() as u64));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_header_is_refused() {
    let good = header().encode().unwrap();
    for bad in flipped(&good) {
        assert!(Header::read(&mut &bad[..]).is_err(), "{bad:02x?}");
    }
    for length in 0..good.len() {
        assert!(Header::read(&mut &good[..length]).is_err(), "{length} bytes");
    }
}

/// A file that begins with this frame.
fn with_header(frame: &[u8]) -> Vec<u8> {
    [MAGIC.as_slice(), &(frame.len() as u32).to_le_bytes(), frame].concat()
}

#[test]
fn a_later_version_does_not_count_as_damage() {
    let later = with_header(&format::seal(HEADER_VERSION + 1, b"unknown"));
    let refused = Header::read(&mut &later[..]).unwrap_err();
    assert!(refused.to_string().contains("later release"), "{refused}");
}

#[test]
fn a_header_from_before_the_first_release_is_refused_with_what_to_do() {
    let refused = Header::read(&mut &golden("snapshot_v1")[..]).unwrap_err();
    assert!(refused.to_string().contains("it has version 1, written by a build from before"), "{refused}");
}

#[test]
fn a_header_with_a_huge_length_is_refused_unread() {
    struct Endless;
    impl Read for Endless {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("it was read")
        }
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    let refused = Header::read(&mut bytes.as_slice().chain(Endless)).unwrap_err();
    assert!(refused.to_string().contains("too long"), "{refused}");
}

#[test]
fn a_misplaced_chunk_does_not_match() {
    let stored = [&chunk_sum(3, b"bytes")[..], b"bytes"].concat();
    assert!(chunk_holds(3, &stored));
    assert!(!chunk_holds(4, &stored));
    assert!(!chunk_holds(3, &stored[..3]));
}

#[test]
fn stored_lengths_do_not_overflow() {
    assert_eq!(stored_bytes(0), Some(0));
    assert_eq!(stored_bytes(CHUNK_BYTES), Some(CHUNK_BYTES + 4));
    assert_eq!(stored_bytes(CHUNK_BYTES + 1), Some(CHUNK_BYTES + 9));
    assert_eq!(stored_bytes(u64::MAX), None);
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Header::read(&mut &bytes[..]).is_err());
        prop_assert!(decode_trailer(&bytes).is_err());
    }

    /// Magic, length and checksum are right, so the decoder itself sees the garbage.
    #[test]
    fn sealed_garbage_does_not_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let frame = format::seal(HEADER_VERSION, &payload);
        let _ = Header::read(&mut &with_header(&frame)[..]);
        let _ = decode_trailer(&frame);
    }

    #[test]
    fn a_damaged_header_is_never_another_header(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = header().encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((read, _)) = Header::read(&mut &bytes[..]) {
            prop_assert_eq!(read, header());
        }
    }
}
