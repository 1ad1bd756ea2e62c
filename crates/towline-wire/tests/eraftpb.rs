//! The schema is compatible with that of the raft crate: the bytes of one decode as the other.

use proptest::prelude::*;
use prost::Message as _;
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb;
use towline_engine::message::{Message, MessageKind};
use towline_wire::pb;

fn bytes() -> impl Strategy<Value = bytes::Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Into::into)
}

prop_compose! {
    fn entry()(entry_type in 0..3_i32, term: u64, index: u64, data in bytes(), context in bytes(), sync_log: bool)
        -> pb::Entry {
        pb::Entry { entry_type, term, index, data, context, sync_log }
    }
}

prop_compose! {
    fn conf_state()(
        voters in prop::collection::vec(any::<u64>(), 0..4),
        learners in prop::collection::vec(any::<u64>(), 0..4),
        voters_outgoing in prop::collection::vec(any::<u64>(), 0..4),
        learners_next in prop::collection::vec(any::<u64>(), 0..4),
        auto_leave: bool,
    ) -> pb::ConfState {
        pb::ConfState { voters, learners, voters_outgoing, learners_next, auto_leave }
    }
}

prop_compose! {
    fn snapshot()(
        data in bytes(), conf_state in prop::option::of(conf_state()), index: u64, term: u64, some: bool,
    ) -> pb::Snapshot {
        pb::Snapshot { data, metadata: some.then_some(pb::SnapshotMetadata { conf_state, index, term }) }
    }
}

prop_compose! {
    fn message(msg_type: i32)(
        numbers: [u64; 10],
        entries in prop::collection::vec(entry(), 0..4),
        snapshot in prop::option::of(snapshot()),
        reject: bool,
        context in bytes(),
        priority: i64,
    ) -> pb::Message {
        let [to, from, term, log_term, index, commit, commit_term, request_snapshot, reject_hint, old] = numbers;
        pb::Message {
            msg_type, to, from, term, log_term, index, entries: entries.clone(), commit, commit_term,
            snapshot: snapshot.clone(), request_snapshot, reject, reject_hint, context: context.clone(),
            deprecated_priority: old, priority, applied: 0, acked: 0, founding: 0, disk_low: false,
        }
    }
}

fn raft_bytes(message: &impl protobuf::Message) -> Vec<u8> {
    message.write_to_bytes().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kind_of_message_decodes_in_both_directions(seed in message(0)) {
        for kind in eraftpb::MessageType::values() {
            let ours = pb::Message { msg_type: kind.value(), ..seed.clone() };
            prop_assert!(pb::MessageType::try_from(kind.value()).is_ok());
            let theirs = eraftpb::Message::parse_from_bytes(&ours.encode_to_vec()).unwrap();
            // Field by field, so that two swapped numbers cannot cancel each other out.
            prop_assert_eq!(theirs.get_msg_type(), *kind);
            prop_assert_eq!((theirs.to, theirs.from, theirs.term), (ours.to, ours.from, ours.term));
            prop_assert_eq!((theirs.log_term, theirs.index), (ours.log_term, ours.index));
            prop_assert_eq!((theirs.commit, theirs.commit_term), (ours.commit, ours.commit_term));
            prop_assert_eq!((theirs.request_snapshot, theirs.reject), (ours.request_snapshot, ours.reject));
            prop_assert_eq!((theirs.reject_hint, theirs.priority), (ours.reject_hint, ours.priority));
            prop_assert_eq!(theirs.deprecated_priority, ours.deprecated_priority);
            prop_assert_eq!(&theirs.context, &ours.context);
            prop_assert_eq!(theirs.entries.len(), ours.entries.len());
            for (theirs, ours) in theirs.entries.iter().zip(&ours.entries) {
                prop_assert_eq!(theirs.get_entry_type().value(), ours.entry_type);
                prop_assert_eq!((theirs.term, theirs.index, theirs.sync_log), (ours.term, ours.index, ours.sync_log));
                prop_assert_eq!((&theirs.data, &theirs.context), (&ours.data, &ours.context));
            }
            if let Some(ours) = &ours.snapshot {
                let theirs = theirs.get_snapshot();
                prop_assert_eq!(&theirs.data, &ours.data);
                if let Some(ours) = &ours.metadata {
                    let theirs = theirs.get_metadata();
                    prop_assert_eq!((theirs.index, theirs.term), (ours.index, ours.term));
                    if let Some(ours) = &ours.conf_state {
                        let theirs = theirs.get_conf_state();
                        prop_assert_eq!((&theirs.voters, &theirs.learners), (&ours.voters, &ours.learners));
                        prop_assert_eq!(&theirs.voters_outgoing, &ours.voters_outgoing);
                        prop_assert_eq!(&theirs.learners_next, &ours.learners_next);
                        prop_assert_eq!(theirs.auto_leave, ours.auto_leave);
                    }
                }
            }
            let back = pb::Message::decode(raft_bytes(&theirs).as_slice()).unwrap();
            prop_assert_eq!(back, ours);
        }
    }

    #[test]
    fn hard_states_decode_in_both_directions(term: u64, vote: u64, commit: u64) {
        let ours = pb::HardState { term, vote, commit };
        let theirs = eraftpb::HardState::parse_from_bytes(&ours.encode_to_vec()).unwrap();
        prop_assert_eq!((theirs.term, theirs.vote, theirs.commit), (term, vote, commit));
        prop_assert_eq!(pb::HardState::decode(raft_bytes(&theirs).as_slice()).unwrap(), ours);
    }

    #[test]
    fn a_converted_message_converts_back_to_itself(seed in message(0)) {
        for kind in MessageKind::ALL {
            let wire = pb::Message { msg_type: pb::MessageType::from(kind).into(), ..seed.clone() };
            if let Ok(message) = Message::try_from(wire) {
                prop_assert_eq!(message.kind, kind);
                let again = pb::Message::from(message.clone());
                prop_assert_eq!(Message::try_from(again).unwrap(), message);
            }
        }
    }
}
