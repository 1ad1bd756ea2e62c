//! The bytes of each kind of frame in protocol version 1. They never change: a number is never given another meaning and
//! never reused, a field that a receiver does not know is skipped, and what is not understood that way needs a new
//! protocol version.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

use bytes::Bytes;
use prost::Message as _;
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use towline_engine::message::{
    Batch, ConfState, Entry, EntryKind, Envelope, Lane, LogId, Member, Message, MessageKind, SnapshotRecord,
};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    Chunk, Hello, Nack, NackCause, PROTOCOL_VERSION, ProgressCell, Refusal, SnapshotOffer, SnapshotRefusal,
    TransferPhase, TransferProgress, Welcome,
};
use towline_wire::pb::frame::Kind;
use towline_wire::{
    Purpose, batch_of, check_first_frame, decode_frame, frames, hello_frame, nacks_frame, nacks_of,
    offer_frame, offer_of, pb, refused_frame, welcome_frame,
};

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn hex(frame: &pb::Frame) -> String {
    frame.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
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

const HELLO: &str = "0a150a02633110011802210807060504030201280130 02";
const WELCOME: &str = "120d08021108070605040302011801";
const REFUSED: &str = "1a1c080312166e6f64652037206973206e6f742061206d656d6265722007";
const BATCH: &str = "22250a230803121f0803100218012005280330043a0f1005180522046461746132036374784004";
const NACKS: &str = "2a0c0a04080110010a0408021004";
const HELLO_OF_A_SNAPSHOT: &str = "0a150a0263311001180221080706050403020128013003";
const OFFER: &str = concat!(
    "326e0a1a08071002180120054a10120e0a070a02010212010310ac0218041239080310ac02180422",
    "070a0201021201032a170801120a677270633a2f2f613a311908070605040302012a0e0802120a71",
    "7569633a2f2f623a3218e8072210000102030405060708090a0b0c0d0e0f2806",
);
const ACCEPTED: &str = "3a020800";
const ALREADY_HAVE: &str = "3a0310ac02";
const OFFER_REFUSED: &str = "3a1f1a1d080412157374616c65207465726d3a20352062656c6f77203618062005";
const CHUNK: &str = "420e08ac021204626f64791d04030201";
const TRAILER: &str = "4a1508b0021210000102030405060708090a0b0c0d0e0f";
const PROGRESS: &str = "520508ac021002";
const PROGRESS_OF_PHASE_5: &str = "520508ac021005";
const PROGRESS_OF_PHASE_MINUS_1: &str = "520e08ac0210ffffffffffffffffff01";
const COMMITTED: &str = "5a0308ac02";
const TAKEN: &str = "620308ac02";
const NOT_TAKEN: &str = "5a0d120b080512076368756e6b2032";

#[test]
fn the_version_is_the_one_these_bytes_are_of() {
    assert_eq!(PROTOCOL_VERSION, 1);
}

#[test]
fn a_hello_keeps_its_bytes() {
    let golden = HELLO.replace(' ', "");
    assert_eq!(hex(&hello_frame(&hello(), Lane::Append)), golden);
    let decoded = check_first_frame(decode_frame(unhex(&golden)).unwrap()).unwrap();
    assert_eq!(decoded, (hello(), Lane::Append.into()));
}

#[test]
fn a_welcome_keeps_its_bytes() {
    let welcome = Welcome { node: node(2), incarnation: hello().incarnation, protocol: 1 };
    assert_eq!(hex(&welcome_frame(&welcome)), WELCOME);
}

#[test]
fn a_refusal_keeps_its_bytes() {
    assert_eq!(hex(&refused_frame(&Refusal::UnknownPeer { peer: 7 })), REFUSED);
}

#[test]
fn a_batch_keeps_its_bytes() {
    let mut message = Message::new(MessageKind::Append, node(1), node(2));
    (message.term, message.log_term, message.index, message.commit) = (5, 3, 4, 4);
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
    assert_eq!(batch_of(decode_frame(unhex(BATCH)).unwrap()).unwrap().batch, batch);
}

#[test]
fn nacks_keep_their_bytes() {
    let nack = |group, cause| Nack { group: GroupId::new(group), cause };
    let nacks = vec![nack(1, NackCause::InboxFull), nack(2, NackCause::Rejected)];
    assert_eq!(hex(&nacks_frame(nacks.clone())), NACKS);
    assert_eq!(nacks_of(decode_frame(unhex(NACKS)).unwrap()).unwrap(), nacks);
}

#[test]
fn a_hello_of_a_snapshot_stream_keeps_its_bytes() {
    assert_eq!(hex(&hello_frame(&hello(), Purpose::Snapshot)), HELLO_OF_A_SNAPSHOT);
    let decoded = check_first_frame(decode_frame(unhex(HELLO_OF_A_SNAPSHOT)).unwrap()).unwrap();
    assert_eq!(decoded, (hello(), Purpose::Snapshot));
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
    message.snapshot = Some(SnapshotRecord { index: 300, term: 4, conf_state: conf_state.clone() });
    let met = Member { address: "grpc://a:1".parse().unwrap(), incarnation: Some(hello().incarnation) };
    let not_met = Member { address: "quic://b:2".parse().unwrap(), incarnation: None };
    let head = SnapshotHead {
        group: GroupId::new(3),
        at: LogId { index: 300, term: 4 },
        conf_state,
        members: [(node(1), met), (node(2), not_met)].into(),
    };
    let meta = SnapshotMeta { head, length: 1_000, content: content() };
    let offer = SnapshotOffer { message, meta, attempt: 6 };
    assert_eq!(hex(&offer_frame(&offer)), OFFER);
    assert_eq!(offer_of(decode_frame(unhex(OFFER)).unwrap()), Ok(offer));
}

/// Both ways.
fn keeps_its_bytes(kind: Kind, golden: &str) -> Kind {
    let frame = pb::Frame { kind: Some(kind) };
    assert_eq!(hex(&frame), golden);
    let decoded = decode_frame(unhex(golden)).unwrap();
    assert_eq!(decoded, frame);
    decoded.kind.unwrap()
}

#[test]
fn an_answer_to_an_offer_keeps_its_bytes() {
    let answer = |kind| Kind::Answer(pb::Answer { kind: Some(kind) });
    // The whole body is wanted: zero is said, or there would be no answer.
    keeps_its_bytes(answer(pb::answer::Kind::Accepted(0)), ACCEPTED);
    keeps_its_bytes(answer(pb::answer::Kind::AlreadyHave(300)), ALREADY_HAVE);
    let refusal = SnapshotRefusal::StaleTerm { ours: 6, theirs: 5 };
    let said = keeps_its_bytes(answer(pb::answer::Kind::Refused((&refusal).into())), OFFER_REFUSED);
    let Kind::Answer(pb::Answer { kind: Some(pb::answer::Kind::Refused(refused)) }) = said else {
        panic!("{said:?}")
    };
    assert_eq!(SnapshotRefusal::from(refused), refusal);
}

#[test]
fn a_chunk_and_a_trailer_keep_their_bytes() {
    let chunk = Chunk { offset: 300, data: Bytes::from_static(b"body"), crc32c: 0x0102_0304 };
    let Kind::Chunk(said) = keeps_its_bytes(Kind::Chunk(chunk.clone().into()), CHUNK) else { panic!() };
    assert_eq!(Chunk::from(said), chunk);
    let trailer = Trailer { length: 304, content: content() };
    let Kind::Trailer(said) = keeps_its_bytes(Kind::Trailer(trailer.into()), TRAILER) else { panic!() };
    assert_eq!(Trailer::try_from(said), Ok(trailer));
}

#[test]
fn progress_and_outcomes_keep_their_bytes() {
    let progress = TransferProgress { acked: 300, phase: TransferPhase::Verifying };
    let Kind::Progress(said) = keeps_its_bytes(Kind::Progress(progress.into()), PROGRESS) else { panic!() };
    assert_eq!(TransferProgress::from(said), progress);
    keeps_its_bytes(Kind::Taken(pb::Taken { bytes: 300 }), TAKEN);
    let outcome = |kind| Kind::Outcome(pb::Outcome { kind: Some(kind) });
    keeps_its_bytes(outcome(pb::outcome::Kind::Commit(300)), COMMITTED);
    let refusal = SnapshotRefusal::Corrupt { detail: "chunk 2".into() };
    keeps_its_bytes(outcome(pb::outcome::Kind::Refused((&refusal).into())), NOT_TAKEN);
}

/// The numbers that are open-ended, each said once.
#[test]
fn refusals_of_snapshots_and_phases_keep_their_numbers() {
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

/// Such a phase would need a new version of the protocol: a dialler of this one waits as for the last phase, and sees none
/// before it any more.
#[test]
fn a_phase_of_a_later_version_counts_as_the_last_one_and_ends_all_before_it() {
    let stepping = TransferProgress { acked: 300, phase: TransferPhase::Stepping };
    for unknown in [PROGRESS_OF_PHASE_5, PROGRESS_OF_PHASE_MINUS_1] {
        let Some(Kind::Progress(said)) = decode_frame(unhex(unknown)).unwrap().kind else { panic!() };
        assert_eq!(TransferProgress::from(said), stepping, "{unknown}");
        let cell = ProgressCell::new(0);
        cell.advance(said.into());
        for phase in [TransferPhase::Receiving, TransferPhase::Storing, TransferPhase::Verifying] {
            cell.advance(TransferProgress { acked: 300, phase });
            assert_eq!(cell.now(), stepping, "{unknown}, then {phase:?}");
        }
    }
}

#[test]
fn fields_of_a_later_version_are_skipped() {
    // Field 99 of the hello and field 100 of the frame, both strings.
    let mut bytes = unhex(&HELLO.replace(' ', "")).to_vec();
    bytes.extend_from_slice(&[0x9a, 0x06, 1, b'x']);
    bytes[1] += 4;
    bytes.extend_from_slice(&[0xa2, 0x06, 1, b'y']);
    assert_eq!(
        check_first_frame(decode_frame(bytes.into()).unwrap()).unwrap(),
        (hello(), Lane::Append.into())
    );
}
