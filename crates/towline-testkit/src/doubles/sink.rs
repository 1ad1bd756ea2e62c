use async_trait::async_trait;
use tokio::sync::watch;
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, ProgressCell, SnapshotReceipt, SnapshotRefusal, SnapshotSink, TransferPhase, TransferProgress,
};

use super::{Gate, InboundLog};

/// What a recording sink does. By default it takes everything.
#[derive(Debug, Clone)]
pub struct SinkScript {
    /// The offset at which it wants to start.
    pub offset: u64,
    /// How many chunks pass before `write_gate` applies.
    pub free: usize,
    /// Blocks later chunks, while the sink reports `Storing`.
    pub write_gate: Gate,
    /// The number of a chunk, from 0, that it refuses, and why.
    pub refuse: Option<(usize, SnapshotRefusal)>,
    /// Block the end of the transfer while the sink reports `Verifying`, `Syncing` and `Stepping`.
    pub phase_gates: [Gate; 3],
    /// The outcome.
    pub outcome: Result<SnapshotReceipt, SnapshotRefusal>,
}

impl Default for SinkScript {
    fn default() -> Self {
        Self {
            offset: 0,
            free: 0,
            write_gate: Gate::default(),
            refuse: None,
            phase_gates: Default::default(),
            outcome: Ok(SnapshotReceipt { commit: 77 }),
        }
    }
}

/// What a recording sink got.
#[derive(Debug, Default)]
pub struct SinkLog {
    /// The chunks, in order.
    pub chunks: Vec<Chunk>,
    /// The end of the transfer, once it arrived.
    pub trailer: Option<Trailer>,
    /// Whether the sink has reported its outcome.
    pub finished: bool,
    /// Whether the transport has dropped the sink.
    pub dropped: bool,
}

pub(super) struct RecordingSink {
    script: SinkScript,
    progress: ProgressCell,
    acked: u64,
    taken: usize,
    number: usize,
    log: watch::Sender<InboundLog>,
}

impl RecordingSink {
    pub(super) fn new(script: SinkScript, log: watch::Sender<InboundLog>) -> Self {
        let mut number = 0;
        log.send_modify(|log| {
            number = log.transfers.len();
            log.transfers.push(SinkLog::default());
        });
        let progress = ProgressCell::new(script.offset);
        Self { acked: script.offset, script, progress, taken: 0, number, log }
    }

    fn note(&self, change: impl FnOnce(&mut SinkLog)) {
        self.log.send_modify(|log| {
            if let Some(transfer) = log.transfers.get_mut(self.number) {
                change(transfer);
            }
        });
    }

    fn advance(&self, phase: TransferPhase) {
        self.progress.advance(TransferProgress { acked: self.acked, phase });
    }
}

#[async_trait]
impl SnapshotSink for RecordingSink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        if let Some((at, refusal)) = &self.script.refuse
            && self.taken == *at
        {
            return Err(refusal.clone());
        }
        if self.taken >= self.script.free {
            self.advance(TransferPhase::Storing);
            self.script.write_gate.pass().await;
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
        for (phase, gate) in phases.into_iter().zip(&self.script.phase_gates) {
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

impl Drop for RecordingSink {
    fn drop(&mut self) {
        self.note(|log| log.dropped = true);
    }
}
