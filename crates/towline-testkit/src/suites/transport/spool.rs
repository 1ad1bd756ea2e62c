//! The receiver of a snapshot, played by the suite.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::message::{ConfState, LogId, Member, MemberTable, Message, MessageKind, SnapshotRecord};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    CHUNK_BYTES_MAX, Chunk, ProgressCell, SnapshotOffer, SnapshotReceipt, SnapshotRefusal, SnapshotSink,
    TransferPhase, TransferProgress,
};

use super::bench::node;
use super::engine::{Gate, Log};

/// What a receiver does.
#[derive(Clone)]
pub(super) struct SpoolScript {
    /// Where it wants to start.
    pub(super) offset: u64,
    /// Chunks that pass before the gate.
    pub(super) free: usize,
    /// Before every later chunk is taken. It says meanwhile that it stores.
    pub(super) writes: Gate,
    /// Refuses instead of taking the chunk with this number, from 0.
    pub(super) refuse: Option<(usize, SnapshotRefusal)>,
    /// Held while verifying, syncing, stepping.
    pub(super) phases: [Gate; 3],
    /// The outcome.
    pub(super) outcome: Result<SnapshotReceipt, SnapshotRefusal>,
}

impl Default for SpoolScript {
    fn default() -> Self {
        Self {
            offset: 0,
            free: 0,
            writes: Gate::new(),
            refuse: None,
            phases: std::array::from_fn(|_| Gate::new()),
            outcome: Ok(SnapshotReceipt { commit: 77 }),
        }
    }
}

impl SpoolScript {
    pub(super) fn open_all(&self) {
        self.phases.iter().chain([&self.writes]).for_each(Gate::open);
    }
}

/// What became of a transfer at its receiver.
#[derive(Default)]
pub(super) struct TransferLog {
    pub(super) chunks: Vec<Chunk>,
    /// Came with the end.
    pub(super) trailer: Option<Trailer>,
    /// Whether the end was worked through.
    pub(super) finished: bool,
    /// Whether the transport has let go of the sink.
    pub(super) gone: bool,
}

pub(super) struct Spool {
    script: SpoolScript,
    progress: ProgressCell,
    acked: u64,
    taken: usize,
    number: usize,
    log: watch::Sender<Log>,
}

impl Spool {
    pub(super) fn new(script: SpoolScript, log: watch::Sender<Log>) -> Self {
        let mut number = 0;
        log.send_modify(|log| {
            number = log.transfers.len();
            log.transfers.push(TransferLog::default());
        });
        let progress = ProgressCell::new(script.offset);
        Self { acked: script.offset, script, progress, taken: 0, number, log }
    }

    fn note(&self, change: impl FnOnce(&mut TransferLog)) {
        self.log.send_modify(|log| change(&mut log.transfers[self.number]));
    }

    fn advance(&self, phase: TransferPhase) {
        self.progress.advance(TransferProgress { acked: self.acked, phase });
    }
}

#[async_trait]
impl SnapshotSink for Spool {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        if let Some((at, refusal)) = &self.script.refuse
            && self.taken == *at
        {
            return Err(refusal.clone());
        }
        if self.taken >= self.script.free {
            self.advance(TransferPhase::Storing);
            self.script.writes.pass().await;
        }
        self.taken += 1;
        self.acked += chunk.data.len() as u64;
        self.note(|log| log.chunks.push(chunk));
        self.advance(TransferPhase::Receiving);
        Ok(())
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        self.note(|log| log.trailer = Some(trailer));
        let phases = [TransferPhase::Verifying, TransferPhase::Syncing, TransferPhase::Stepping];
        for (phase, gate) in phases.into_iter().zip(&self.script.phases) {
            self.advance(phase);
            gate.pass().await;
        }
        self.note(|log| log.finished = true);
        self.script.outcome.clone()
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.note(|log| log.gone = true);
    }
}

/// A snapshot to send: the offer, its bytes, and what ends it.
pub(super) struct Parcel {
    pub(super) offer: SnapshotOffer,
    pub(super) body: Bytes,
    pub(super) trailer: Trailer,
}

impl Parcel {
    /// A snapshot of a group for node 2, with that many bytes.
    pub(super) fn new(group: u64, attempt: u64, length: usize) -> Self {
        let body: Bytes =
            (0..length as u64).map(|at| (at * 31 + (at >> 8)).wrapping_add(attempt) as u8).collect();
        let conf_state = ConfState {
            voters: vec![node(1), node(2)],
            learners: vec![node(3)],
            voters_outgoing: vec![node(1)],
            learners_next: vec![node(4)],
            auto_leave: true,
        };
        let member = |raw: u64| {
            let address = format!("grpc://host-{raw}:7001").parse().unwrap();
            (node(raw), Member { address, incarnation: towline_engine::ids::Incarnation::new(raw * 9) })
        };
        let head = SnapshotHead {
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
        message.snapshot = Some(SnapshotRecord { index: head.at.index, term: 4, conf_state });
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

    pub(super) fn from(&self) -> NodeId {
        self.offer.message.from
    }
}
