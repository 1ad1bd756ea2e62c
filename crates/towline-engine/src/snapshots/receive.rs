//! The receiving side. An offer is decided before any payload byte moves. Then a blocking thread writes the chunks to a file.
//! Once the file is verified and durable, the thread passes the message to Raft, and answers whether Raft took it.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use towline_metrics::ByteTally;
use towline_metrics::labels::{Direction, SnapshotOutcome};
use tracing::Instrument;

use super::TransferSettings;
use super::incoming_file::{IncomingFile, IncomingState, refusal};
use super::receive_slots::{Claim, Precedence, ReceiveSlot, ReceiveSlots};
use super::storing::StoreWatch;
use super::transfer_record::{Subject, TransferRecord};
use super::worker::SnapshotWorker;
use crate::core::OfferVerdict;
use crate::ids::NodeId;
use crate::message::Message;
use crate::snapshot_store::{SnapshotMeta, SnapshotStore, SnapshotStoreError, Trailer};
use crate::sync::lock;
use crate::transport::{
    CHUNK_BYTES_MAX, Chunk, ProgressCell, SinkAnswer, SnapshotOffer, SnapshotReceipt, SnapshotRefusal,
    SnapshotSink, TransferPhase, TransferProgress,
};

/// The most chunks that wait for the disk. Network and disk work in parallel.
const QUEUED_CHUNKS: usize = 8;

/// The cause of a transfer whose sender gave up.
const SENDER_GONE: &str = "the stream of the sender ended";

/// The most offers that wait for their group. The node refuses more as busy.
const OFFERS_MAX: usize = 64;

/// The groups of a node, for offers and received snapshots.
#[async_trait]
pub(crate) trait SnapshotGroups: Send + Sync + 'static {
    /// See `core::GroupCore::offer`.
    async fn offer(&self, from: NodeId, offer: SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal>;
    /// See `core::GroupCore::receive`. Called on blocking threads.
    async fn receive(
        &self,
        from: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> Result<u64, SnapshotRefusal>;
}

/// What receiving needs from the node.
pub(crate) struct ReceivesDeps {
    pub(crate) node: NodeId,
    pub(crate) settings: TransferSettings,
    pub(crate) store: Arc<dyn SnapshotStore>,
    pub(crate) worker: SnapshotWorker,
    pub(crate) groups: Arc<dyn SnapshotGroups>,
    pub(crate) runtime: Handle,
}

/// The transfers this node receives.
pub(crate) struct Receives {
    deps: Arc<ReceivesDeps>,
    offers: Semaphore,
    slots: ReceiveSlots<IncomingFile>,
}

impl Receives {
    pub(crate) fn new(deps: ReceivesDeps) -> Self {
        let slots = ReceiveSlots::new(deps.settings.receives_max);
        Self { deps: Arc::new(deps), offers: Semaphore::new(OFFERS_MAX), slots }
    }

    /// Ends the re-reading of partial files, because the node stops. Transfers end with their streams.
    pub(crate) fn close(&self) {
        self.slots.close();
    }

    /// Decides on an offer, and reports progress in `deciding` meanwhile. `tally` counts the bytes.
    pub(crate) async fn offer(
        &self,
        from: NodeId,
        offer: SnapshotOffer,
        tally: ByteTally,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        let (node, group) = (self.deps.node.as_u64(), offer.meta.head.group);
        let span = tracing::info_span!("snapshot", node, %group, peer = %from, attempt = offer.attempt);
        self.answer(from, offer, tally, deciding).instrument(span).await
    }

    async fn answer(
        &self,
        from: NodeId,
        offer: SnapshotOffer,
        tally: ByteTally,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        let head = &offer.meta.head;
        let subject = Subject {
            group: head.group,
            peer: from,
            index: head.at.index,
            attempt: offer.attempt,
            total: offer.meta.length,
        };
        let mut record = TransferRecord::open(Direction::Received, subject, tally);
        record.cancelled_by(SENDER_GONE);
        match self.decide(from, &offer, deciding).await {
            Ok(Decision::Wanted { incoming, slot }) => Ok(self.accept(from, offer, record, incoming, slot)),
            Ok(Decision::Have { commit }) => {
                record.end(SnapshotOutcome::AlreadyHad, "");
                Ok(SinkAnswer::AlreadyHave { commit })
            }
            Err(refusal) => {
                record.end(SnapshotOutcome::Refused, refusal.to_string());
                Err(refusal)
            }
        }
    }

    async fn decide(
        &self,
        from: NodeId,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<Decision, SnapshotRefusal> {
        let (length, length_max) = (offer.meta.length, self.deps.settings.bytes_max);
        if length > length_max {
            return Err(SnapshotRefusal::TooLarge { length, length_max });
        }
        let verdict = {
            let _room = self.offers.try_acquire().map_err(|_| SnapshotRefusal::Busy)?;
            self.deps.groups.offer(from, offer.clone()).await?
        };
        if let OfferVerdict::Have { commit } = verdict {
            return Ok(Decision::Have { commit });
        }
        let precedence = Precedence { term: offer.message.term, attempt: offer.attempt };
        let claimed = self.slots.claim(offer.meta.head.group, precedence, offer.meta.content, deciding).await;
        let Claim { opened, slot } = claimed.ok_or(SnapshotRefusal::Busy)?;
        // A partial file is read again before it counts. That can take longer than the sender waits without progress.
        deciding.advance(TransferProgress { acked: 0, phase: TransferPhase::Verifying });
        if let Some(slot) = slot {
            let (deps, meta) = (self.deps.clone(), offer.meta.clone());
            // The thread holds the slot until it has closed the file, even if the sender abandons the offer.
            self.deps.runtime.spawn_blocking(move || {
                let incoming =
                    IncomingFile::open(&*deps.store, &deps.worker, &meta, &mut |read| slot.goes_on(read));
                let incoming = incoming.map_err(|error| match (&error, slot.ends()) {
                    (SnapshotStoreError::Stopped { .. }, Some(why)) => why,
                    _ => refusal(error),
                });
                slot.hand_over(incoming);
            });
        }
        // The thread gives no answer if the store panicked.
        let failed = || SnapshotRefusal::Storage { detail: "the file could not be opened".into() };
        let (incoming, slot) = opened.await.unwrap_or_else(|_| Err(failed()))?;
        Ok(Decision::Wanted { incoming, slot })
    }

    fn accept(
        &self,
        from: NodeId,
        offer: SnapshotOffer,
        mut record: TransferRecord,
        incoming: IncomingFile,
        slot: ReceiveSlot<IncomingFile>,
    ) -> SinkAnswer {
        let offset = incoming.offset(&offer.meta);
        record.offset = offset;
        record.cancelled_by("the receiver panicked");
        let progress = ProgressCell::new(offset);
        let (parts, mut queue) = mpsc::channel(QUEUED_CHUNKS);
        let failure = Arc::new(Mutex::new(None));
        let task = ReceiveTask {
            deps: self.deps.clone(),
            from,
            message: offer.message,
            meta: offer.meta,
            written: offset,
            storing: StoreWatch::new(
                &self.deps.runtime,
                progress.clone(),
                self.deps.settings.progress_timeout,
            ),
            progress: progress.clone(),
        };
        let superseded = slot.superseded();
        let failed = failure.clone();
        let span = tracing::Span::current();
        self.deps.runtime.spawn_blocking(move || {
            let _entered = span.entered();
            // Held until the file is closed, so that the next attempt finds the partial file.
            let _slot = slot;
            let (to, result) = task.run(incoming, &mut queue, superseded, &record);
            match result {
                Ok(commit) => {
                    record.end(SnapshotOutcome::Finished, "");
                    if let Some(to) = to {
                        let _ = to.send(Ok(SnapshotReceipt { commit }));
                    }
                }
                Err(refusal) => {
                    let outcome = match &refusal {
                        None | Some(SnapshotRefusal::Superseded) => SnapshotOutcome::Cancelled,
                        Some(_) => SnapshotOutcome::Failed,
                    };
                    let cause = refusal.as_ref().map_or_else(|| SENDER_GONE.into(), ToString::to_string);
                    record.end(outcome, cause);
                    // Set before `to` and the queue are dropped: the drop makes the sink look here.
                    *lock(&failed) = refusal;
                }
            }
        });
        SinkAnswer::Accept { offset, sink: Box::new(QueueSink { parts, failure, progress }) }
    }
}

enum Decision {
    Wanted { incoming: IncomingFile, slot: ReceiveSlot<IncomingFile> },
    Have { commit: u64 },
}

type ReceiptSender = oneshot::Sender<Result<SnapshotReceipt, SnapshotRefusal>>;

/// What the sink passes to the thread.
enum IncomingPart {
    Chunk(Chunk),
    End(Trailer, ReceiptSender),
}

/// The transport's side of a transfer.
struct QueueSink {
    parts: mpsc::Sender<IncomingPart>,
    failure: Arc<Mutex<Option<SnapshotRefusal>>>,
    progress: ProgressCell,
}

impl QueueSink {
    fn failure(&self) -> SnapshotRefusal {
        let failure = lock(&self.failure).clone();
        failure.unwrap_or_else(|| SnapshotRefusal::NotTaken { detail: "the receiver has stopped".into() })
    }
}

#[async_trait]
impl SnapshotSink for QueueSink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        self.parts.send(IncomingPart::Chunk(chunk)).await.map_err(|_| self.failure())
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        let (answer, answered) = oneshot::channel();
        self.parts.send(IncomingPart::End(trailer, answer)).await.map_err(|_| self.failure())?;
        answered.await.unwrap_or_else(|_| Err(self.failure()))
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// The thread's side of a transfer.
struct ReceiveTask {
    deps: Arc<ReceivesDeps>,
    from: NodeId,
    message: Message,
    meta: SnapshotMeta,
    written: u64,
    storing: StoreWatch,
    progress: ProgressCell,
}

impl ReceiveTask {
    /// Receives until the end. The result is the commit index, or the refusal; without one, the sender gave up.
    fn run(
        mut self,
        mut incoming: IncomingFile,
        queue: &mut mpsc::Receiver<IncomingPart>,
        superseded: impl Future<Output = ()>,
        record: &TransferRecord,
    ) -> (Option<ReceiptSender>, Result<u64, Option<SnapshotRefusal>>) {
        let timeout = self.deps.settings.progress_timeout;
        let mut superseded = pin!(superseded);
        loop {
            let next = self.deps.runtime.block_on(async {
                tokio::select! {
                    next = tokio::time::timeout(timeout, queue.recv()) => match next {
                        Ok(next) => Ok(next),
                        Err(_) => Err(SnapshotRefusal::Stalled { millis: timeout.as_millis() as u64 }),
                    },
                    () = &mut superseded => Err(SnapshotRefusal::Superseded),
                }
            });
            // On a refusal the writer keeps its verified bytes for a later attempt, unless they are corrupt.
            let refusal = match next {
                Ok(None) => None, // the sender gave up
                Err(refusal) => Some(refusal),
                Ok(Some(IncomingPart::Chunk(chunk))) => {
                    // Counted also if it is corrupt, for the comparison with the sender's total.
                    record.add(chunk.data.len() as u64);
                    match self.take(&mut incoming, &chunk) {
                        Ok(()) => continue,
                        Err(refusal) => Some(refusal),
                    }
                }
                Ok(Some(IncomingPart::End(trailer, to))) => {
                    return (Some(to), self.finish(incoming, trailer).map_err(Some));
                }
            };
            if let Some(SnapshotRefusal::Corrupt { .. }) = &refusal {
                incoming.discard();
            }
            return (None, Err(refusal));
        }
    }

    fn take(&mut self, incoming: &mut IncomingFile, chunk: &Chunk) -> Result<(), SnapshotRefusal> {
        let corrupt = |detail: String| Err(SnapshotRefusal::Corrupt { detail });
        let (at, bytes) = (self.written, chunk.data.len() as u64);
        if chunk.offset != at {
            return corrupt(format!("a chunk at {} where {at} was expected", chunk.offset));
        }
        if bytes == 0 || bytes > CHUNK_BYTES_MAX as u64 || bytes > self.meta.length - at {
            return corrupt(format!("a chunk of {bytes} bytes at {at} of {}", self.meta.length));
        }
        // A complete file takes no chunk: the check above refuses it.
        if let IncomingState::Open(writer) = &mut incoming.file
            && let Err(error) = self.storing.during(|| writer.write_part(&chunk.data, chunk.crc32c))
        {
            return match error.kind() {
                io::ErrorKind::InvalidData => corrupt(format!("the chunk at {at}: {error}")),
                _ => Err(SnapshotRefusal::Storage { detail: error.to_string() }),
            };
        }
        self.written += bytes;
        self.progress.advance(TransferProgress { acked: self.written, phase: TransferPhase::Receiving });
        Ok(())
    }

    fn finish(&mut self, incoming: IncomingFile, trailer: Trailer) -> Result<u64, SnapshotRefusal> {
        let phase = |phase| self.progress.advance(TransferProgress { acked: self.written, phase });
        let promised = Trailer { length: self.meta.length, content: self.meta.content };
        if trailer != promised || self.written != promised.length {
            incoming.discard();
            let detail = format!("the end came at {} of {} bytes", self.written, promised.length);
            return Err(SnapshotRefusal::Corrupt { detail });
        }
        let IncomingFile { file, pin } = incoming;
        if let IncomingState::Open(mut writer) = file {
            phase(TransferPhase::Verifying);
            if let Err(error) = writer.verify(Some(&promised)) {
                writer.discard();
                return Err(refusal(error));
            }
            phase(TransferPhase::Syncing);
            writer.commit().map_err(refusal)?;
        }
        phase(TransferPhase::Stepping);
        let received = self.deps.groups.receive(self.from, self.message.clone(), self.meta.clone());
        let taken = self.deps.runtime.block_on(received);
        drop(pin);
        taken
    }
}

#[cfg(test)]
mod tests;
