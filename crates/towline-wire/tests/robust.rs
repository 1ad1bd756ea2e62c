//! Limits and typed errors of malformed or large input.

use bytes::Bytes;
use prost::Message as _;
use towline_engine::ids::{GroupId, NodeId, PeerAddr};
use towline_engine::message::{Batch, Entry, Envelope, Message, MessageKind};
use towline_engine::transport::{ConnectError, Nack, NackCause, PROTOCOL_VERSION, Refusal};
use towline_wire::limits::*;
use towline_wire::{
    Received, WireError, batch_of, check_answer, check_first_frame, decode_frame, encoded_len, frames,
    merge_nacks, pb, refused_frame,
};

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn message(kind: MessageKind) -> Message {
    Message { term: 1, ..Message::new(kind, node(1), node(2)) }
}

fn envelope(message: Message) -> Envelope {
    Envelope { group: GroupId::new(1), message }
}

fn sample() -> Vec<u8> {
    let mut append = message(MessageKind::Append);
    append.entries = (1..4)
        .map(|index| Entry { term: 1, index, data: Bytes::from_static(b"abc"), ..Entry::default() })
        .collect();
    let batch = Batch { envelopes: vec![envelope(append)] };
    frames(batch).unwrap().next().unwrap().encode_to_vec()
}

/// `count` empty fields `number` inside the given outer fields.
fn nested(outer: &[u8], number: u8, count: usize) -> Bytes {
    let mut bytes = [number << 3 | 2, 0].repeat(count);
    for field in outer.iter().rev() {
        let mut wrapped = vec![field << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut wrapped);
        wrapped.append(&mut bytes);
        bytes = wrapped;
    }
    bytes.into()
}

#[test]
fn the_elements_of_a_frame_are_bounded_before_it_is_decoded() {
    let too_many = |what| WireError::TooMany {
        what,
        count_max: match what {
            "entries" => ENTRIES_MAX,
            _ => 4_096,
        },
    };
    for (outer, number, max, what) in [
        (&[4][..], 1, ENVELOPES_MAX, "envelopes"),
        (&[4, 1, 2], 7, ENTRIES_MAX, "entries"),
        (&[5], 1, NACKS_MAX, "nacks"),
    ] {
        assert!(decode_frame(nested(outer, number, max)).is_ok(), "{what}");
        assert_eq!(decode_frame(nested(outer, number, max + 1)).unwrap_err(), too_many(what));
    }
    let conf_state = pb::ConfState { voters: vec![1; MEMBERS_MAX + 1], ..Default::default() };
    let metadata = Some(pb::SnapshotMetadata { conf_state: Some(conf_state), ..Default::default() });
    let snapshot = Some(pb::Snapshot { metadata, ..Default::default() });
    let message = Some(pb::Message { snapshot, ..Default::default() });
    let batch = pb::Batch { envelopes: vec![pb::Envelope { group: 1, message }] };
    let frame = pb::Frame { kind: Some(pb::frame::Kind::Batch(batch)) };
    assert_eq!(decode_frame(frame.encode_to_vec().into()).unwrap_err(), too_many("members"));
}

#[test]
fn a_frame_above_the_limit_is_refused_undecoded() {
    let bytes = FRAME_BYTES_MAX + 1;
    let error = decode_frame(vec![0; bytes].into()).unwrap_err();
    assert_eq!(error, WireError::FrameTooLarge { bytes, bytes_max: FRAME_BYTES_MAX });
}

#[test]
fn a_large_batch_becomes_frames_that_fit_and_keep_the_order() {
    let envelopes: Vec<_> = (0..10_000_u64)
        .map(|i| {
            let mut append = message(MessageKind::Append);
            (append.index, append.context) = (i, vec![7; 1_000].into());
            envelope(append)
        })
        .collect();
    let frames: Vec<_> = frames(Batch { envelopes: envelopes.clone() }).unwrap().collect();
    assert!(frames.iter().all(|frame| encoded_len(frame) <= FRAME_BYTES_TARGET + 8));
    assert!(frames.len() >= 10);
    let back: Vec<_> = frames.into_iter().flat_map(|f| batch_of(f).unwrap().batch.envelopes).collect();
    assert_eq!(back, envelopes);
}

#[test]
fn many_small_messages_are_split_by_count() {
    let envelopes = vec![envelope(message(MessageKind::Heartbeat)); ENVELOPES_MAX + 1];
    let frames: Vec<_> = frames(Batch { envelopes }).unwrap().collect();
    assert_eq!(frames.len(), 2);
}

#[test]
fn the_largest_message_fits_and_a_larger_one_is_refused() {
    let with = |bytes: usize| {
        let mut append = message(MessageKind::Append);
        append.context = vec![0; bytes].into();
        frames(Batch { envelopes: vec![envelope(append)] }).map(|f| f.collect::<Vec<_>>())
    };
    let largest = with(MESSAGE_BYTES_MAX - 100).unwrap();
    assert_eq!(largest.len(), 1);
    assert!(decode_frame(largest[0].encode_to_vec().into()).is_ok());
    assert!(matches!(with(MESSAGE_BYTES_MAX), Err(WireError::MessageTooLarge { .. })));
}

#[test]
fn a_payload_is_not_copied_on_the_way_in() {
    let bytes: Bytes = sample().into();
    let range = bytes.as_ptr_range();
    let received = batch_of(decode_frame(bytes.clone()).unwrap()).unwrap();
    let data = &received.batch.envelopes[0].message.entries[0].data;
    assert!(range.contains(&data.as_ptr()));
}

#[test]
fn a_malformed_message_affects_only_its_group() {
    let good = pb::Message::from(message(MessageKind::Append));
    let entry = || pb::Entry { term: 1, index: u64::MAX, ..Default::default() };
    let snapshot = || pb::Snapshot { data: vec![1].into(), metadata: None };
    let overflow = |entries| WireError::IndexOverflow { index: u64::MAX, entries };
    type Spoil<'a> = &'a dyn Fn(&mut pb::Message);
    let cases: [(Spoil<'_>, WireError); 8] = [
        (&|m| m.msg_type = 2, WireError::ForbiddenKind { kind: "MESSAGE_TYPE_PROPOSE" }),
        (&|m| m.msg_type = 99, WireError::Unknown { what: "message kind", number: 99 }),
        (&|m| m.from = 0, WireError::Zero { field: "from" }),
        (&|m| m.to = 0, WireError::Zero { field: "to" }),
        (&|m| m.term = 0, WireError::Zero { field: "term" }),
        (&|m| m.entries = vec![entry()], overflow(1)),
        (&|m| m.index = u64::MAX, overflow(0)),
        (&|m| m.snapshot = Some(snapshot()), WireError::InlineSnapshot { bytes: 1 }),
    ];
    for (spoil, error) in cases {
        let mut message = good.clone();
        spoil(&mut message);
        let envelopes = vec![
            pb::Envelope { group: 1, message: Some(message) },
            pb::Envelope { group: 2, message: Some(good.clone()) },
        ];
        let received = Received::try_from(pb::Batch { envelopes }).unwrap();
        assert_eq!(received.rejected[0].error, error);
        assert_eq!(received.rejected[0].group, GroupId::new(1));
        assert_eq!(received.batch.envelopes[0].group, GroupId::new(2));
        let nacks = merge_nacks(Vec::new(), &received.rejected);
        assert_eq!(nacks, [Nack { group: GroupId::new(1), cause: NackCause::Rejected }]);
    }
}

#[test]
fn a_read_barrier_may_have_term_zero_and_an_entry_without_index() {
    let entries = vec![pb::Entry { data: vec![1].into(), ..Default::default() }];
    let read = pb::Message { msg_type: 15, from: 1, to: 2, entries, ..Default::default() };
    assert_eq!(Message::try_from(read).unwrap().entries[0].data, [1][..]);
}

#[test]
fn every_refusal_round_trips() {
    let text = || "why".to_owned();
    let address = PeerAddr::new("grpc://127.0.0.1:1").unwrap();
    for refusal in [
        Refusal::WrongCluster { ours: text() },
        Refusal::WrongNode { ours: 3 },
        Refusal::UnknownPeer { peer: 4, founded: Vec::new() },
        Refusal::WrongIncarnation { peer: 5 },
        Refusal::Version { ours: 1, theirs: 2 },
        Refusal::Unauthenticated { detail: text() },
        Refusal::Malformed { detail: text() },
        Refusal::TooManyConnections,
        Refusal::HandshakeTimeout,
        Refusal::ShuttingDown,
    ] {
        match check_answer(&address, node(1), refused_frame(&refusal)) {
            Err(ConnectError::Refused(arrived)) => assert_eq!(arrived, refusal),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_unknown_refusal_shows_its_text_and_a_long_one_is_cut() {
    let refused = pb::Refused { code: 77, detail: "ä".repeat(10_000), ..Default::default() };
    match Refusal::try_from(refused) {
        Err(WireError::UnknownRefusal { code: 77, detail }) => assert_eq!(detail.len(), DETAIL_BYTES_MAX),
        other => panic!("{other:?}"),
    }
    assert!(
        encoded_len(&refused_frame(&Refusal::Malformed { detail: "ä".repeat(10_000) })) < HELLO_BYTES_MAX
    );
}

#[test]
fn a_future_version_is_reported_before_any_other_fault_of_the_hello() {
    let hello = pb::Hello { protocol: PROTOCOL_VERSION + 1, lane: 9, ..Default::default() };
    let frame = pb::Frame { kind: Some(pb::frame::Kind::Hello(hello)) };
    let refusal = Refusal::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION + 1 };
    assert_eq!(check_first_frame(frame), Err(refusal));
}
