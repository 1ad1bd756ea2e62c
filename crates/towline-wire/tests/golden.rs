//! The bytes of each kind of frame in protocol version 1 never change. No number gets another meaning or is reused. A receiver
//! skips unknown fields. Any other change needs a new protocol version.

use bytes::Bytes;
use prost::Message as _;
use towline_engine::ids::{ClusterId, FoundingHash, GroupId, Incarnation, NodeId};
use towline_engine::message::{
    Batch, ConfState, Entry, EntryKind, Envelope, Lane, LogId, LostEntries, Member, Message, MessageKind,
    SnapshotRecord,
};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    Chunk, Founded, Hello, Nack, NackCause, PROTOCOL_VERSION, ProgressCell, Refusal, SnapshotOffer,
    SnapshotRefusal, TransferPhase, TransferProgress, Welcome,
};
use towline_wire::pb::frame::Kind;
use towline_wire::{
    Purpose, batch_of, check_first_frame, decode_frame, frames, hello_frame, nacks_frame, nacks_of,
    offer_frame, offer_of, pb, refused_frame, welcome_frame,
};

use crate::samples::*;

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn hex(frame: &pb::Frame) -> String {
    frame.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect()
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId::new("c1").unwrap(),
        from: node(1),
        to: node(2),
        incarnation: Incarnation::new(0x0102_0304_0506_0708).unwrap(),
        protocol: 1,
    }
}

#[test]
fn the_frames_of_a_handshake_keep_their_bytes() {
    assert_eq!(PROTOCOL_VERSION, 1);
    for (purpose, golden) in [(Lane::Append.into(), HELLO), (Purpose::Snapshot, HELLO_OF_A_SNAPSHOT)] {
        assert_eq!(hex(&hello_frame(&hello(), purpose)), golden);
        assert_eq!(check_first_frame(sample(golden)), Ok((hello(), purpose)));
    }
    let welcome = Welcome { node: node(2), incarnation: hello().incarnation, protocol: 1 };
    assert_eq!(hex(&welcome_frame(&welcome)), WELCOME);
    assert_eq!(hex(&refused_frame(&Refusal::UnknownPeer { peer: 7, founded: Vec::new() })), REFUSED);
    let founded = Founded { group: GroupId::new(3), founding: FoundingHash::new(0x1112_1314_1516_1718) };
    let refusal = Refusal::UnknownPeer { peer: 7, founded: vec![founded] };
    assert_eq!(hex(&refused_frame(&refusal)), REFUSED_BY_FOUNDERS);
    let Some(Kind::Refused(refused)) = sample(REFUSED_BY_FOUNDERS).kind else { panic!() };
    assert_eq!(Refusal::try_from(refused), Ok(refusal));
}

#[test]
fn a_batch_keeps_its_bytes() {
    let mut message = Message::new(MessageKind::Append, node(1), node(2));
    (message.term, message.log_term, message.index, message.commit) = (5, 3, 4, 4);
    message.founding = FoundingHash::new(0x1112_1314_1516_1718);
    message.entries = vec![Entry {
        kind: EntryKind::Normal,
        term: 5,
        index: 5,
        data: Bytes::from_static(b"data"),
        context: Bytes::from_static(b"ctx"),
    }];
    let batch = Batch { envelopes: vec![Envelope { group: GroupId::new(3), message }] };
    let frame = frames(batch.clone()).unwrap().next().unwrap();
    assert_eq!(hex(&frame), BATCH);
    assert_eq!(batch_of(sample(BATCH)).unwrap().batch, batch);
}

#[test]
fn nacks_keep_their_bytes() {
    let nack = |group, cause| Nack { group: GroupId::new(group), cause };
    let nacks = vec![nack(1, NackCause::InboxFull), nack(2, NackCause::Rejected)];
    assert_eq!(hex(&nacks_frame(nacks.clone())), NACKS);
    assert_eq!(nacks_of(sample(NACKS)).unwrap(), nacks);
    let lost = vec![nack(3, NackCause::EntriesLost(LostEntries { last_index: 55, acknowledged: 61 }))];
    assert_eq!(hex(&nacks_frame(lost.clone())), NACK_OF_LOST_ENTRIES);
    assert_eq!(nacks_of(sample(NACK_OF_LOST_ENTRIES)).unwrap(), lost);
    let full = vec![nack(3, NackCause::DiskFull)];
    assert_eq!(hex(&nacks_frame(full.clone())), NACK_OF_A_FULL_DISK);
    assert_eq!(nacks_of(sample(NACK_OF_A_FULL_DISK)).unwrap(), full);
}

#[test]
fn a_nack_of_an_unknown_cause_or_of_entries_that_are_not_lost_counts_as_rejected() {
    for (cause, last_index) in [(99, 55), (pb::NackCause::EntriesLost.into(), 61)] {
        let nack = pb::Nack { group: 3, cause, last_index, acknowledged: 61 };
        assert_eq!(Nack::from(nack).cause, NackCause::Rejected, "{nack:?}");
    }
}

/// A heartbeat says what its receiver acknowledged; every other field of this batch is in `BATCH`.
#[test]
fn a_heartbeat_keeps_its_bytes() {
    let mut message = Message::new(MessageKind::Heartbeat, node(1), node(2));
    (message.term, message.commit, message.acked) = (5, 4, 6);
    let batch = Batch { envelopes: vec![Envelope { group: GroupId::new(3), message }] };
    let frame = frames(batch.clone()).unwrap().next().unwrap();
    assert_eq!(hex(&frame), HEARTBEAT);
    assert_eq!(batch_of(sample(HEARTBEAT)).unwrap().batch, batch);
}

/// A sender of an older version does not say whether its disk is low.
#[test]
fn an_answer_to_a_heartbeat_keeps_its_bytes() {
    let mut message = Message::new(MessageKind::HeartbeatResponse, node(2), node(1));
    (message.term, message.applied) = (5, 7);
    for (disk_low, golden) in [(false, HEARTBEAT_RESPONSE), (true, HEARTBEAT_RESPONSE_OF_A_LOW_DISK)] {
        let message = Message { disk_low, ..message.clone() };
        let batch = Batch { envelopes: vec![Envelope { group: GroupId::new(3), message }] };
        assert_eq!(hex(&frames(batch.clone()).unwrap().next().unwrap()), golden);
        assert_eq!(batch_of(sample(golden)).unwrap().batch, batch);
    }
}

fn content() -> ContentId {
    ContentId(std::array::from_fn(|at| at as u8))
}

#[test]
fn an_offer_keeps_its_bytes() {
    let conf_state =
        ConfState { voters: vec![node(1), node(2)], learners: vec![node(3)], ..ConfState::default() };
    let mut message = Message::new(MessageKind::Snapshot, node(1), node(2));
    message.term = 5;
    message.snapshot = Some(Box::new(SnapshotRecord { index: 300, term: 4, conf_state: conf_state.clone() }));
    let met = Member { address: "grpc://a:1".parse().unwrap(), incarnation: Some(hello().incarnation) };
    let not_met = Member { address: "quic://b:2".parse().unwrap(), incarnation: None };
    let head = SnapshotHead {
        founding: FoundingHash::new(0x1112_1314_1516_1718),
        group: GroupId::new(3),
        at: LogId { index: 300, term: 4 },
        conf_state,
        members: [(node(1), met), (node(2), not_met)].into(),
    };
    let meta = SnapshotMeta { head, length: 1_000, content: content() };
    let offer = SnapshotOffer { message, meta, attempt: 6 };
    assert_eq!(hex(&offer_frame(&offer)), OFFER);
    assert_eq!(offer_of(sample(OFFER)), Ok(offer));
}

/// Checks both directions. Returns the decoded kind.
fn keeps_its_bytes(kind: Kind, golden: &str) -> Kind {
    let frame = pb::Frame { kind: Some(kind) };
    assert_eq!(hex(&frame), golden);
    let decoded = sample(golden);
    assert_eq!(decoded, frame);
    decoded.kind.unwrap()
}

#[test]
fn an_answer_to_an_offer_keeps_its_bytes() {
    let answer = |kind| Kind::Answer(pb::Answer { kind: Some(kind) });
    // Offset zero is encoded explicitly; without it the answer would be empty.
    keeps_its_bytes(answer(pb::answer::Kind::Accepted(0)), ACCEPTED);
    keeps_its_bytes(answer(pb::answer::Kind::AlreadyHave(300)), ALREADY_HAVE);
    let refusal = SnapshotRefusal::StaleTerm { ours: 6, theirs: 5 };
    let decoded = keeps_its_bytes(answer(pb::answer::Kind::Refused((&refusal).into())), OFFER_REFUSED);
    let Kind::Answer(pb::Answer { kind: Some(pb::answer::Kind::Refused(refused)) }) = decoded else {
        panic!("{decoded:?}")
    };
    assert_eq!(SnapshotRefusal::from(refused), refusal);
}

#[test]
fn a_chunk_and_a_trailer_keep_their_bytes() {
    let chunk = Chunk { offset: 300, data: Bytes::from_static(b"body"), crc32c: 0x0102_0304 };
    let Kind::Chunk(decoded) = keeps_its_bytes(Kind::Chunk(chunk.clone().into()), CHUNK) else { panic!() };
    assert_eq!(Chunk::from(decoded), chunk);
    let trailer = Trailer { length: 304, content: content() };
    let Kind::Trailer(decoded) = keeps_its_bytes(Kind::Trailer(trailer.into()), TRAILER) else { panic!() };
    assert_eq!(Trailer::try_from(decoded), Ok(trailer));
}

#[test]
fn progress_and_outcomes_keep_their_bytes() {
    let progress = TransferProgress { acked: 300, phase: TransferPhase::Verifying };
    let Kind::Progress(decoded) = keeps_its_bytes(Kind::Progress(progress.into()), PROGRESS) else {
        panic!()
    };
    assert_eq!(TransferProgress::from(decoded), progress);
    keeps_its_bytes(Kind::Taken(pb::Taken { bytes: 300 }), TAKEN);
    let outcome = |kind| Kind::Outcome(pb::Outcome { kind: Some(kind) });
    keeps_its_bytes(outcome(pb::outcome::Kind::Commit(300)), COMMITTED);
    let refusal = SnapshotRefusal::Corrupt { detail: "chunk 2".into() };
    keeps_its_bytes(outcome(pb::outcome::Kind::Refused((&refusal).into())), NOT_TAKEN);
}

#[test]
fn codes_of_snapshot_refusals_and_phases_keep_their_numbers() {
    let detail = String::new;
    for (code, refusal) in (1..).zip([
        SnapshotRefusal::Busy,
        SnapshotRefusal::TooLarge { length: 2, length_max: 1 },
        SnapshotRefusal::WrongNode,
        SnapshotRefusal::StaleTerm { ours: 2, theirs: 1 },
        SnapshotRefusal::Corrupt { detail: detail() },
        SnapshotRefusal::Storage { detail: detail() },
        SnapshotRefusal::NotTaken { detail: detail() },
        SnapshotRefusal::Stalled { millis: 1 },
        SnapshotRefusal::Unsupported,
        SnapshotRefusal::Superseded,
    ]) {
        assert_eq!(pb::SnapshotRefused::from(&refusal).code, code, "{refusal}");
    }
    for (number, phase) in (0..).zip([
        TransferPhase::Receiving,
        TransferPhase::Storing,
        TransferPhase::Verifying,
        TransferPhase::Syncing,
        TransferPhase::Stepping,
    ]) {
        assert_eq!(pb::Progress::from(TransferProgress { acked: 0, phase }).phase, number, "{phase:?}");
    }
}

/// A new phase needs a new protocol version: a dialler of this one waits as for the last phase.
#[test]
fn an_unknown_phase_counts_as_the_last_one() {
    let stepping = TransferProgress { acked: 300, phase: TransferPhase::Stepping };
    for unknown in [PROGRESS_OF_PHASE_5, PROGRESS_OF_PHASE_MINUS_1] {
        let Some(Kind::Progress(decoded)) = sample(unknown).kind else { panic!() };
        assert_eq!(TransferProgress::from(decoded), stepping, "{unknown}");
        let cell = ProgressCell::new(0);
        cell.advance(decoded.into());
        for phase in [TransferPhase::Receiving, TransferPhase::Storing, TransferPhase::Verifying] {
            cell.advance(TransferProgress { acked: 300, phase });
            assert_eq!(cell.now(), stepping, "{unknown}, then {phase:?}");
        }
    }
}

#[test]
fn fields_of_a_later_version_are_skipped() {
    // Field 99 of the hello and field 100 of the frame, both strings.
    let mut bytes = unhex(HELLO).to_vec();
    bytes.extend_from_slice(&[0x9a, 0x06, 1, b'x']);
    bytes[1] += 4;
    bytes.extend_from_slice(&[0xa2, 0x06, 1, b'y']);
    let decoded = check_first_frame(decode_frame(bytes.into()).unwrap());
    assert_eq!(decoded, Ok((hello(), Lane::Append.into())));
}
