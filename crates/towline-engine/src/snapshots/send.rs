//! The sending side: one task for each transfer. The task owns the ticket, so it makes exactly one report.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use towline_metrics::ByteTally;
use towline_metrics::labels::{Direction, SnapshotOutcome};
use tracing::Instrument;

use super::TransferSettings;
use super::pace::{RateLimit, StallWatch, Stalled, TransferWindow};
use super::transfer_record::{Subject, TransferRecord};
use crate::cause::chain;
use crate::core::SnapshotSend;
use crate::ids::NodeId;
use crate::reporter::{SnapshotAttempt, SnapshotFailure, SnapshotTicket};
use crate::snapshot_store::{BodyPart, SnapshotMeta, SnapshotStore, Trailer};
use crate::status::AttemptStatus;
use crate::sync::lock;
use crate::transport::{
    Chunk, Hello, OfferAnswer, Peer, ProgressCell, SnapshotOffer, SnapshotRefusal, Transfer, TransferError,
    TransferPhase, TransferProgress, Transport,
};

/// The cause of transfers that a shutdown ends.
const STOPS: &str = "the node stops";

/// The most chunks read ahead of the transport.
const READ_AHEAD_CHUNKS: usize = 4;

/// What sending needs from the node.
pub(crate) struct SendsDeps {
    pub(crate) node: NodeId,
    pub(crate) settings: TransferSettings,
    pub(crate) store: Arc<dyn SnapshotStore>,
    pub(crate) transports: BTreeMap<String, Arc<dyn Transport>>,
    pub(crate) hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync>,
    pub(crate) runtime: Handle,
    /// Makes the byte tally of one transfer.
    pub(crate) tally: Arc<dyn Fn(NodeId) -> ByteTally + Send + Sync>,
}

/// The transfers this node sends. Clones share them.
#[derive(Clone)]
pub(crate) struct Sends {
    inner: Arc<SendsInner>,
}

struct SendsInner {
    deps: SendsDeps,
    rate: RateLimit,
    table: Mutex<SendTable>,
}

#[derive(Default)]
struct SendTable {
    closed: bool,
    peers: BTreeMap<NodeId, Peer>,
    running: BTreeMap<SnapshotAttempt, Arc<RunningSend>>,
}

/// The shared state of a transfer's task: its progress, and its cancellation.
#[derive(Default)]
struct RunningSend {
    /// The cause of a cancellation.
    cancelled: watch::Sender<Option<Arc<str>>>,
    offset: AtomicU64,
    sent: AtomicU64,
    receiver: Mutex<Option<ReceiverProgress>>,
}

/// The progress that a receiver reports.
struct ReceiverProgress {
    /// Whether it has accepted the offer.
    answered: bool,
    progress: ProgressCell,
}

impl Sends {
    pub(crate) fn new(deps: SendsDeps) -> Self {
        let rate = RateLimit::new(deps.settings.bytes_per_second);
        Self { inner: Arc::new(SendsInner { deps, rate, table: Mutex::default() }) }
    }

    /// Sets the address of a peer.
    pub(crate) fn set_peer(&self, peer: Peer) {
        lock(&self.inner.table).peers.insert(peer.id, peer);
    }

    /// Starts a transfer. On every exit the ticket reports and the transfer record is written.
    pub(crate) fn start(&self, send: SnapshotSend, ticket: SnapshotTicket) {
        let attempt = send.attempt;
        let record = self.inner.open_record(attempt, &send.meta);
        let running = Arc::new(RunningSend::default());
        let listed = {
            let mut table = lock(&self.inner.table);
            if !table.closed {
                table.running.insert(attempt, running.clone());
            }
            (!table.closed).then(|| table.peers.get(&attempt.peer).cloned())
        };
        // The ticket reports in its drop.
        let Some(peer) = listed else { return record.end(SnapshotOutcome::Cancelled, STOPS) };
        let listed = Listed { sends: self.clone(), attempt };
        let inner = self.inner.clone();
        let (node, number) = (inner.deps.node.as_u64(), attempt.number);
        let span = tracing::info_span!("snapshot", node, group = %attempt.group, peer = %attempt.peer, attempt = number);
        let task = async move {
            // Dropped after the ticket: an attempt stays listed as long as its ticket exists.
            let _listed = listed;
            inner.run(send, ticket, peer, &running, record).await;
        };
        self.inner.deps.runtime.spawn(task.instrument(span));
    }

    /// The number of running transfers, with cancelled ones that have not ended yet.
    pub(crate) fn count(&self) -> usize {
        lock(&self.inner.table).running.len()
    }

    /// Whether the transfer of the attempt runs, and so holds the ticket.
    pub(crate) fn is_running(&self, attempt: &SnapshotAttempt) -> bool {
        lock(&self.inner.table).running.contains_key(attempt)
    }

    /// Cancels a transfer.
    pub(crate) fn cancel(&self, attempt: &SnapshotAttempt, cause: &Arc<str>) {
        let running = lock(&self.inner.table).running.get(attempt).cloned();
        if let Some(running) = running {
            running.cancel(cause);
        }
    }

    /// Adds the progress of the attempt to `status`.
    pub(crate) fn observe(&self, attempt: &SnapshotAttempt, status: &mut AttemptStatus) {
        let Some(running) = lock(&self.inner.table).running.get(attempt).cloned() else { return };
        status.offset = running.offset.load(Ordering::Relaxed);
        status.sent = running.sent.load(Ordering::Relaxed);
        let receiver = lock(&running.receiver);
        let Some(ReceiverProgress { answered, progress }) = &*receiver else { return };
        let TransferProgress { acked, phase } = progress.now();
        status.acked = acked;
        status.phase = Some(phase).filter(|phase| *answered || *phase != TransferPhase::Receiving);
    }

    /// Cancels all transfers, and refuses new ones.
    pub(crate) fn close(&self) {
        let running: Vec<_> = {
            let mut table = lock(&self.inner.table);
            table.closed = true;
            table.running.values().cloned().collect()
        };
        running.iter().for_each(|running| running.cancel(&STOPS.into()));
    }
}

impl RunningSend {
    fn set_receiver(&self, answered: bool, progress: ProgressCell) {
        let receiver = ReceiverProgress { answered, progress };
        *lock(&self.receiver) = Some(receiver);
    }

    /// Keeps the first cause.
    fn cancel(&self, cause: &Arc<str>) {
        self.cancelled.send_if_modified(|cancelled| {
            let first = cancelled.is_none();
            cancelled.get_or_insert_with(|| cause.clone());
            first
        });
    }

    async fn cancelled(&self) -> Arc<str> {
        let mut cancelled = self.cancelled.subscribe();
        let cause = cancelled.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        cause.unwrap_or_else(|| STOPS.into())
    }
}

/// Removes the attempt from the table on every exit of its task.
struct Listed {
    sends: Sends,
    attempt: SnapshotAttempt,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.sends.inner.table).running.remove(&self.attempt);
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("no address is known, or no transport for it")]
    NoRoute,
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("the receiver refused: {0}")]
    Refused(SnapshotRefusal),
    #[error("the receiver wants to begin at {offset} of {length} bytes")]
    Offset { offset: u64, length: u64 },
    #[error("no answer to the offer for {:?}, {:?}", .0.waited, .0.at.phase)]
    NoAnswer(Stalled),
    #[error("no progress for {:?} at {} bytes, {:?}", .0.waited, .0.at.acked, .0.at.phase)]
    Stalled(Stalled),
    #[error("the file could not be read: {0}")]
    File(String),
    #[error("{0}")]
    Cancelled(Arc<str>),
}

impl SendError {
    fn failure(&self) -> SnapshotFailure {
        match self {
            Self::NoRoute => SnapshotFailure::NoRoute,
            Self::Refused(SnapshotRefusal::Corrupt { .. })
            | Self::Transfer(TransferError::Refused(SnapshotRefusal::Corrupt { .. })) => {
                SnapshotFailure::Corrupt
            }
            Self::Refused(refusal) | Self::Transfer(TransferError::Refused(refusal)) => {
                SnapshotFailure::Refused { lasting: refusal.is_lasting() }
            }
            Self::Transfer(TransferError::Unsupported) => SnapshotFailure::Refused { lasting: true },
            Self::Transfer(_) | Self::Offset { .. } => SnapshotFailure::Transfer,
            Self::NoAnswer(_) | Self::Stalled(_) => SnapshotFailure::Timeout,
            Self::File(_) => SnapshotFailure::Storage,
            Self::Cancelled(_) => SnapshotFailure::Abandoned,
        }
    }

    fn outcome(&self) -> SnapshotOutcome {
        match self {
            Self::Refused(_) => SnapshotOutcome::Refused,
            Self::Cancelled(_) => SnapshotOutcome::Cancelled,
            _ => SnapshotOutcome::Failed,
        }
    }
}

impl SendsInner {
    fn open_record(&self, attempt: SnapshotAttempt, meta: &SnapshotMeta) -> TransferRecord {
        let SnapshotAttempt { group, peer, index, number, .. } = attempt;
        let subject = Subject { group, peer, index, attempt: number, total: meta.length };
        let mut record = TransferRecord::open(Direction::Sent, subject, (self.deps.tally)(peer));
        record.cancelled_by("the runtime has ended");
        record
    }

    async fn run(
        &self,
        send: SnapshotSend,
        ticket: SnapshotTicket,
        peer: Option<Peer>,
        running: &RunningSend,
        mut record: TransferRecord,
    ) {
        let SnapshotSend { attempt, message, meta } = send;
        let offer = SnapshotOffer { message, meta, attempt: attempt.number };
        let result = tokio::select! {
            biased;
            cause = running.cancelled() => Err(SendError::Cancelled(cause)),
            result = self.transfer(peer, offer, running, &mut record) => result,
        };
        match result {
            Ok(outcome) => {
                record.end(outcome, "");
                ticket.finish();
            }
            Err(error) => {
                record.end(error.outcome(), chain(&error));
                ticket.fail(error.failure());
            }
        }
    }

    async fn transfer(
        &self,
        peer: Option<Peer>,
        offer: SnapshotOffer,
        running: &RunningSend,
        record: &mut TransferRecord,
    ) -> Result<SnapshotOutcome, SendError> {
        let settings = &self.deps.settings;
        let peer = peer.ok_or(SendError::NoRoute)?;
        let transport = self.deps.transports.get(peer.address.scheme()).ok_or(SendError::NoRoute)?;
        let hello = (self.deps.hello)(peer.id);
        let deciding = ProgressCell::new(0);
        running.set_receiver(false, deciding.clone());
        let mut watch = StallWatch::new(settings.offer_timeout, settings.phase_timeout, deciding.clone());
        let asked = watch.guard(transport.offer(&peer, &hello, &offer, &deciding));
        let (offset, transfer) = match asked.await.map_err(SendError::NoAnswer)?? {
            OfferAnswer::AlreadyHave { .. } => return Ok(SnapshotOutcome::AlreadyHad),
            OfferAnswer::Refused(refusal) => return Err(SendError::Refused(refusal)),
            OfferAnswer::Accepted { offset, transfer } => (offset, transfer),
        };
        let length = offer.meta.length;
        if offset > length {
            return Err(SendError::Offset { offset, length });
        }
        record.offset = offset;
        running.offset.store(offset, Ordering::Relaxed);
        running.set_receiver(true, transfer.progress());
        let window = TransferWindow::new(settings, transfer.progress());
        let chunks = self.read(offer.meta.clone(), offset, window.chunk_bytes());
        self.stream(chunks, transfer, &offer.meta, window, running, record).await
    }

    async fn stream(
        &self,
        mut chunks: mpsc::Receiver<Result<BodyPart, String>>,
        mut transfer: Box<dyn Transfer>,
        meta: &SnapshotMeta,
        mut window: TransferWindow,
        running: &RunningSend,
        record: &mut TransferRecord,
    ) -> Result<SnapshotOutcome, SendError> {
        let mut offset = running.offset.load(Ordering::Relaxed);
        let settings = &self.deps.settings;
        let mut watch =
            StallWatch::new(settings.progress_timeout, settings.phase_timeout, transfer.progress());
        loop {
            watch.guard(window.wait()).await.map_err(SendError::Stalled)?;
            let Some(part) = watch.guard(chunks.recv()).await.map_err(SendError::Stalled)? else { break };
            let BodyPart { bytes: data, crc32c } = part.map_err(SendError::File)?;
            let bytes = data.len();
            self.rate.take(bytes).await;
            watch.moved();
            let chunk = Chunk { offset, data, crc32c };
            window.sent(bytes);
            watch.guard(transfer.send(chunk)).await.map_err(SendError::Stalled)??;
            watch.moved();
            offset += bytes as u64;
            record.add(bytes as u64);
            running.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        // A store that panics ends the chunks early. A trailer now would make the receiver discard its bytes.
        if offset != meta.length {
            return Err(SendError::File(format!("reading stopped at {offset} of {} bytes", meta.length)));
        }
        let trailer = Trailer { length: meta.length, content: meta.content };
        let receipt = watch.guard(transfer.finish(trailer)).await.map_err(SendError::Stalled)??;
        tracing::debug!(commit = receipt.commit, "the peer has the snapshot");
        Ok(SnapshotOutcome::Finished)
    }

    /// Reads the file on a blocking thread, a few chunks ahead. Ends when the receiving half is dropped.
    fn read(
        &self,
        meta: SnapshotMeta,
        offset: u64,
        size: Arc<AtomicUsize>,
    ) -> mpsc::Receiver<Result<BodyPart, String>> {
        let (chunks, taken) = mpsc::channel(READ_AHEAD_CHUNKS);
        let store = self.deps.store.clone();
        self.deps.runtime.spawn_blocking(move || {
            if let Err(error) = read_chunks(&*store, &meta, offset, &size, &chunks) {
                let _ = chunks.blocking_send(Err(error));
            }
        });
        taken
    }
}

fn read_chunks(
    store: &dyn SnapshotStore,
    meta: &SnapshotMeta,
    mut offset: u64,
    size: &AtomicUsize,
    chunks: &mpsc::Sender<Result<BodyPart, String>>,
) -> Result<(), String> {
    let mut body = store.open(meta, offset).map_err(|error| chain(&error))?;
    while let Some(part) = body.next_part(size.load(Ordering::Relaxed)).map_err(|error| chain(&error))? {
        offset += part.bytes.len() as u64;
        if chunks.blocking_send(Ok(part)).is_err() {
            return Ok(());
        }
    }
    if offset != meta.length {
        return Err(format!("it ends at {offset} of {} bytes", meta.length));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
