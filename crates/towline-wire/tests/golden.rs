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
use towline_engine::message::{Batch, Entry, EntryKind, Envelope, Lane, Message, MessageKind};
use towline_engine::transport::{Hello, Nack, NackCause, PROTOCOL_VERSION, Refusal, Welcome};
use towline_wire::{
    batch_of, check_first_frame, decode_frame, frames, hello_frame, nacks_frame, nacks_of, pb, refused_frame,
    welcome_frame,
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
