//! A snapshot that a case offers.

use bytes::Bytes;
use towline_engine::ids::{GroupId, Incarnation};
use towline_engine::message::{ConfState, LogId, Member, MemberTable, Message, MessageKind, SnapshotRecord};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{CHUNK_BYTES_MAX, Chunk, SnapshotOffer};

use crate::cluster::node_id as node;

/// The offer of a snapshot, its bytes and its trailer.
pub(super) struct TestSnapshot {
    pub(super) offer: SnapshotOffer,
    pub(super) body: Bytes,
    pub(super) trailer: Trailer,
}

impl TestSnapshot {
    /// A snapshot of a group for node 2, with that many bytes.
    pub(super) fn new(group: u64, attempt: u64, length: usize) -> Self {
        let mut body = vec![0; length];
        // Eight bytes at a time: an iterator over bytes took a sixth of the suite's time.
        fastrand::Rng::with_seed(attempt).fill(&mut body);
        let body = Bytes::from(body);
        let conf_state = ConfState {
            voters: vec![node(1), node(2)],
            learners: vec![node(3)],
            voters_outgoing: vec![node(1)],
            learners_next: vec![node(4)],
            auto_leave: true,
        };
        let member = |raw: u64| {
            let address = format!("grpc://host-{raw}:7001").parse().unwrap();
            (node(raw), Member { address, incarnation: Incarnation::new(raw * 9) })
        };
        let head = SnapshotHead {
            founding: Default::default(),
            group: GroupId::new(group),
            at: LogId { index: 900 + group % 100, term: 4 },
            conf_state: conf_state.clone(),
            members: MemberTable::from_iter((1..=3).map(member)),
        };
        let mut hasher = ContentHasher::new(&head);
        hasher.update(&body);
        let trailer = hasher.finish();
        let mut message = Message::new(MessageKind::Snapshot, node(1), node(2));
        message.term = 5;
        message.snapshot = Some(Box::new(SnapshotRecord { index: head.at.index, term: 4, conf_state }));
        let meta = SnapshotMeta { head, length: trailer.length, content: trailer.content };
        Self { offer: SnapshotOffer { message, meta, attempt }, body, trailer }
    }

    /// The body from `offset` on, in the largest chunks.
    pub(super) fn chunks(&self, offset: u64) -> impl Iterator<Item = Chunk> + '_ {
        (offset as usize..self.body.len()).step_by(CHUNK_BYTES_MAX).map(|from| {
            let data = self.body.slice(from..self.body.len().min(from + CHUNK_BYTES_MAX));
            let crc32c = crc32c::crc32c(&data);
            Chunk { offset: from as u64, data, crc32c }
        })
    }
}
