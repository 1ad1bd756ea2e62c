//! One of each frame there is.

use bytes::Bytes;
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use towline_engine::message::{
    Batch, ConfState, Entry, Envelope, Lane, LogId, Member, Message, MessageKind, SnapshotRecord,
};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    Chunk, Hello, Nack, NackCause, PROTOCOL_VERSION, Refusal, SnapshotOffer, TransferPhase, TransferProgress,
    Welcome,
};
use towline_wire::pb::{self, frame::Kind};
use towline_wire::{Purpose, frames, hello_frame, nacks_frame, offer_frame, refused_frame, welcome_frame};

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// One of each frame there is.
pub(crate) fn samples() -> Vec<pb::Frame> {
    let incarnation = Incarnation::new(7).unwrap();
    let cluster = ClusterId::new("cluster").unwrap();
    let hello = Hello { cluster, from: node(1), to: node(2), incarnation, protocol: PROTOCOL_VERSION };
    let conf_state =
        ConfState { voters: vec![node(1), node(2)], learners: vec![node(3)], ..ConfState::default() };
    let mut append = Message::new(MessageKind::Append, node(1), node(2));
    append.term = 3;
    append.entries = (1..4)
        .map(|index| Entry { term: 1, index, data: Bytes::from_static(b"abc"), ..Entry::default() })
        .collect();
    let mut message = Message::new(MessageKind::Snapshot, node(1), node(2));
    message.term = 3;
    message.snapshot = Some(SnapshotRecord { index: 9, term: 2, conf_state: conf_state.clone() });
    let member = Member { address: "grpc://host:1".parse().unwrap(), incarnation: Some(incarnation) };
    let head = SnapshotHead {
        group: GroupId::DEFAULT,
        at: LogId { index: 9, term: 2 },
        conf_state,
        members: [(node(1), member)].into(),
    };
    let (length, content) = (3, ContentId([5; 16]));
    let offer = SnapshotOffer { message, meta: SnapshotMeta { head, length, content }, attempt: 4 };
    let nack = Nack { group: GroupId::DEFAULT, cause: NackCause::InboxFull };
    let said = |kind| pb::Frame { kind: Some(kind) };
    let progress = TransferProgress { acked: 3, phase: TransferPhase::Syncing };
    let batch = Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message: append }] };
    vec![
        hello_frame(&hello, Lane::Append),
        hello_frame(&hello, Purpose::Snapshot),
        welcome_frame(&Welcome { node: node(2), incarnation, protocol: PROTOCOL_VERSION }),
        refused_frame(&Refusal::WrongCluster { ours: "other".into() }),
        frames(batch).unwrap().next().unwrap(),
        nacks_frame([nack; 3]),
        offer_frame(&offer),
        said(Kind::Chunk(Chunk { offset: 0, data: Bytes::from_static(b"abc"), crc32c: 1 }.into())),
        said(Kind::Trailer(Trailer { length, content }.into())),
        said(Kind::Answer(pb::Answer { kind: Some(pb::answer::Kind::Accepted(1)) })),
        said(Kind::Progress(progress.into())),
        said(Kind::Outcome(pb::Outcome { kind: Some(pb::outcome::Kind::Commit(9)) })),
        said(Kind::Taken(pb::Taken { bytes: 300 })),
    ]
}
