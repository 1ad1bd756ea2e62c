//! Receiving: an offer is decided before a byte of it moves; then the bytes go to a file on a thread that may block; and
//! only when the file is durable and verified is Raft told of it, and asked whether it took it.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::transport::{
    CHUNK_BYTES_MAX, Chunk, ProgressCell, SinkAnswer, SnapshotOffer, SnapshotReceipt, SnapshotRefusal,
    SnapshotSink, TransferPhase, TransferProgress,
};

/// Chunks that may wait for the disk, so that network and disk work at the same time.
const QUEUED_CHUNKS: usize = 8;

/// Why a transfer ended that its sender gave up.
const SENDER_GONE: &str = "the stream of the sender ended";

/// Offers that wait for their group at a time; more are told that the node is busy.
const OFFERS_MAX: usize = 64;

/// The groups of a node, as a receiver of snapshots sees them.
#[async_trait]
pub(crate) trait SnapshotGroups: Send + Sync + 'static {
    /// See `core::GroupCore::offer`.
    async fn offer(&self, from: NodeId, offer: SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal>;
    /// See `core::GroupCore::receive`. May be called on any thread of the runtime that may block.
    async fn receive(
        &self,
        from: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> Result<u64, SnapshotRefusal>;
}

/// What receiving works with.
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

    /// The node stops: what is read again before an offer is decided is given up. Transfers end with their streams.
    pub(crate) fn close(&self) {
        self.slots.close();
    }

    /// Decides on an offer, and keeps `deciding` current while that takes long. `tally` counts the bytes.
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
            Ok(Decided::Wanted { incoming, slot }) => Ok(self.accept(from, offer, record, incoming, slot)),
            Ok(Decided::Have { commit }) => {
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
    ) -> Result<Decided, SnapshotRefusal> {
        let (length, length_max) = (offer.meta.length, self.deps.settings.bytes_max);
        if length > length_max {
            return Err(SnapshotRefusal::TooLarge { length, length_max });
        }
        let verdict = {
            let _room = self.offers.try_acquire().map_err(|_| SnapshotRefusal::Busy)?;
            self.deps.groups.offer(from, offer.clone()).await?
        };
        if let OfferVerdict::Have { commit } = verdict {
            return Ok(Decided::Have { commit });
        }
        let precedence = Precedence { term: offer.message.term, attempt: offer.attempt };
        let claimed = self.slots.claim(offer.meta.head.group, precedence, offer.meta.content, deciding).await;
        let Claim { opened, slot } = claimed.ok_or(SnapshotRefusal::Busy)?;
        // What is here of it is read again before it counts, which can take longer than any sender waits for silence.
        deciding.advance(TransferProgress { acked: 0, phase: TransferPhase::Verifying });
        if let Some(slot) = slot {
            let (deps, meta) = (self.deps.clone(), offer.meta.clone());
            // This thread holds the slot until it has closed the file, even if the offer is abandoned meanwhile.
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
        // Nothing: the store panicked.
        let failed = || SnapshotRefusal::Storage { detail: "the file could not be opened".into() };
        let (incoming, slot) = opened.await.unwrap_or_else(|_| Err(failed()))?;
        Ok(Decided::Wanted { incoming, slot })
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
        let (commands, queue) = mpsc::channel(QUEUED_CHUNKS);
        let failure = Arc::new(Mutex::new(None));
        let receiver = Receiver {
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
            // Until the file is closed: somebody who comes in its place must find what it left behind.
            let _slot = slot;
            let result = receiver.run(incoming, queue, superseded, &record);
            match result {
                Ok(answer) => {
                    record.end(SnapshotOutcome::Finished, "");
                    let _ = answer.to.send(Ok(answer.receipt));
                }
                Err(ended) => {
                    let outcome = match &ended.refusal {
                        None | Some(SnapshotRefusal::Superseded) => SnapshotOutcome::Cancelled,
                        Some(_) => SnapshotOutcome::Failed,
                    };
                    let cause =
                        ended.refusal.as_ref().map_or_else(|| SENDER_GONE.into(), ToString::to_string);
                    record.end(outcome, cause);
                    // First, because whoever finds the queue closed looks here.
                    failed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&ended.refusal);
                    drop(ended.queue);
                    if let (Some(to), Some(refusal)) = (ended.to, ended.refusal) {
                        let _ = to.send(Err(refusal));
                    }
                }
            }
        });
        SinkAnswer::Accept { offset, sink: Box::new(Sink { commands, failure, progress }) }
    }
}

enum Decided {
    Wanted { incoming: IncomingFile, slot: ReceiveSlot<IncomingFile> },
    Have { commit: u64 },
}

enum Command {
    Chunk(Chunk),
    Finish(Trailer, oneshot::Sender<Result<SnapshotReceipt, SnapshotRefusal>>),
}

/// What the transport holds.
struct Sink {
    commands: mpsc::Sender<Command>,
    failure: Arc<Mutex<Option<SnapshotRefusal>>>,
    progress: ProgressCell,
}

impl Sink {
    fn failure(&self) -> SnapshotRefusal {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure.unwrap_or_else(|| SnapshotRefusal::NotTaken { detail: "the receiver has stopped".into() })
    }
}

#[async_trait]
impl SnapshotSink for Sink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        self.commands.send(Command::Chunk(chunk)).await.map_err(|_| self.failure())
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Finish(trailer, answer)).await.map_err(|_| self.failure())?;
        answered.await.unwrap_or_else(|_| Err(self.failure()))
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// The thread's side of a transfer.
struct Receiver {
    deps: Arc<ReceivesDeps>,
    from: NodeId,
    message: Message,
    meta: SnapshotMeta,
    written: u64,
    storing: StoreWatch,
    progress: ProgressCell,
}

struct Answer {
    to: oneshot::Sender<Result<SnapshotReceipt, SnapshotRefusal>>,
    receipt: SnapshotReceipt,
}

/// It did not end well. No refusal: the sender's side went away.
struct Ended {
    refusal: Option<SnapshotRefusal>,
    to: Option<oneshot::Sender<Result<SnapshotReceipt, SnapshotRefusal>>>,
    /// Closed only after the refusal is where [`Sink`] looks for it.
    queue: mpsc::Receiver<Command>,
}

impl Receiver {
    fn run(
        mut self,
        mut incoming: IncomingFile,
        mut queue: mpsc::Receiver<Command>,
        superseded: impl Future<Output = ()>,
        record: &TransferRecord,
    ) -> Result<Answer, Ended> {
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
            // The writer keeps what it verified, for a later attempt.
            let refusal = match next {
                // Nobody sends any more.
                Ok(None) => None,
                Err(refusal) => Some(refusal),
                Ok(Some(Command::Chunk(chunk))) => {
                    // What arrived, whatever it is worth: so it can be compared with what was sent.
                    record.add(chunk.data.len() as u64);
                    match self.take(&mut incoming, &chunk) {
                        Ok(()) => continue,
                        Err(refusal) => Some(refusal),
                    }
                }
                Ok(Some(Command::Finish(trailer, to))) => {
                    return match self.finish(incoming, trailer) {
                        Ok(commit) => Ok(Answer { to, receipt: SnapshotReceipt { commit } }),
                        Err(refusal) => Err(Ended { refusal: Some(refusal), to: Some(to), queue }),
                    };
                }
            };
            if let Some(SnapshotRefusal::Corrupt { .. }) = &refusal {
                incoming.discard();
            }
            return Err(Ended { refusal, to: None, queue });
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
        // A incoming that is complete has no room for a chunk: none gets here.
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
