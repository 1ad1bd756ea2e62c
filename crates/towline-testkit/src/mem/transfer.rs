//! Snapshot transfers: chunks in one direction, progress and the outcome in the other.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, sleep};
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, Hello, LinkClosed, OfferAnswer, PROGRESS_INTERVAL, Peer, PeerSession, ProgressCell, SinkAnswer,
    SnapshotOffer, SnapshotReceipt, SnapshotRefusal, Transfer, TransferError,
};

use super::link::{Admitted, handshake};
use super::{Fault, MemNetShared, TRANSFER_CHUNKS_MAX, Wire};

/// What the sender sends. A stream that ends without `End` is a reset.
enum TransferItem {
    Chunk(Chunk),
    End(Trailer),
}

/// The receiver's answer to an offer.
enum OfferOutcome {
    Accepted { offset: u64 },
    AlreadyHave { commit: u64 },
    Refused(SnapshotRefusal),
}

type TransferOutcome = Result<SnapshotReceipt, TransferError>;

pub(crate) async fn offer(
    net: &Arc<MemNetShared>,
    to: &Peer,
    hello: &Hello,
    offer: &SnapshotOffer,
    deciding: &ProgressCell,
) -> Result<OfferAnswer, TransferError> {
    let Admitted { endpoint, wire, session, .. } =
        handshake(net, to, hello, None).await.map_err(TransferError::Connect)?;
    // Ends the receiver when this future, or the transfer, is dropped.
    let held = SenderWire(wire.clone());
    let (items, received) = mpsc::channel(TRANSFER_CHUNKS_MAX);
    let (answered, answer) = oneshot::channel();
    let (outcome_sender, outcome) = oneshot::channel();
    let progress = ProgressCell::new(0);
    let (deciding, cell, over) = (deciding.clone(), progress.clone(), ClosesProgress(progress.clone()));
    let receiver = TransferReceiver { net: net.clone(), wire, items: received, deciding, progress: cell };
    let offer = offer.clone();
    let running = endpoint.enter();
    endpoint.runtime.spawn(async move {
        let _running = running;
        let outcome = receiver.run(session, offer, answered).await;
        let _ = outcome_sender.send(outcome);
        drop(over);
    });
    let mut outgoing = MemTransfer { items: Some(items), outcome: Some(outcome), progress, held };
    match answer.await {
        Ok(OfferOutcome::Accepted { offset }) => {
            Ok(OfferAnswer::Accepted { offset, transfer: Box::new(outgoing) })
        }
        Ok(OfferOutcome::AlreadyHave { commit }) => Ok(OfferAnswer::AlreadyHave { commit }),
        Ok(OfferOutcome::Refused(refusal)) => Ok(OfferAnswer::Refused(refusal)),
        Err(_) => Err(outgoing.failure().await),
    }
}

/// Closes the sender's cell when the receiver ends.
struct ClosesProgress(ProgressCell);

impl Drop for ClosesProgress {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Ends the wire when the sender is dropped.
struct SenderWire(Arc<Wire>);

impl Drop for SenderWire {
    fn drop(&mut self) {
        self.0.close(LinkClosed::Abandoned);
    }
}

struct MemTransfer {
    /// `None` once a send failed or was dropped.
    items: Option<mpsc::Sender<TransferItem>>,
    outcome: Option<oneshot::Receiver<TransferOutcome>>,
    progress: ProgressCell,
    held: SenderWire,
}

impl MemTransfer {
    /// Why the transfer fails.
    async fn failure(&mut self) -> TransferError {
        match self.outcome().await {
            Err(error) => error,
            Ok(_) => broken("the receiver ended it before the end was sent"),
        }
    }

    async fn outcome(&mut self) -> TransferOutcome {
        match self.outcome.as_mut() {
            None => Err(broken("it has ended before")),
            Some(outcome) => {
                let outcome = outcome.await.unwrap_or_else(|_| Err(broken("the receiver is gone")));
                self.outcome = None;
                outcome
            }
        }
    }

    async fn put(&mut self, item: TransferItem) -> Result<(), TransferError> {
        let Some(items) = self.items.take() else { return Err(broken("it has ended before")) };
        let mut end = self.held.0.end.subscribe();
        let sent = tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => false,
            sent = items.send(item) => sent.is_ok(),
        };
        if !sent {
            return Err(self.failure().await);
        }
        self.items = Some(items);
        Ok(())
    }
}

fn broken(detail: &str) -> TransferError {
    TransferError::Broken { detail: detail.into() }
}

#[async_trait]
impl Transfer for MemTransfer {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        self.put(TransferItem::Chunk(chunk)).await
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        self.put(TransferItem::End(trailer)).await?;
        self.outcome().await
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// The receiving end of a transfer.
struct TransferReceiver {
    net: Arc<MemNetShared>,
    wire: Arc<Wire>,
    items: mpsc::Receiver<TransferItem>,
    /// Of the sender, until the answer.
    deciding: ProgressCell,
    /// Of the sender, from the answer on.
    progress: ProgressCell,
}

impl TransferReceiver {
    /// Runs until the transfer or the wire ends, and drops session and sink.
    async fn run(
        mut self,
        session: Arc<dyn PeerSession>,
        offer: SnapshotOffer,
        answered: oneshot::Sender<OfferOutcome>,
    ) -> TransferOutcome {
        let mut end = self.wire.end.subscribe();
        let (wire, net) = (self.wire.clone(), self.net.clone());
        let outcome = tokio::select! {
            biased;
            end = end.wait_for(Option::is_some) => {
                Err(broken(match end.as_deref() {
                    Ok(Some(LinkClosed::Broken { detail } | LinkClosed::ByPeer { detail })) => detail,
                    _ => "dropped by the sender",
                }))
            }
            () = net.silence(&wire) => Err(broken("keep-alive: no answer")),
            outcome = self.receive(session, offer, answered) => outcome,
        };
        wire.close(LinkClosed::ByPeer { detail: "the transfer is over".into() });
        outcome
    }

    async fn receive(
        &mut self,
        session: Arc<dyn PeerSession>,
        offer: SnapshotOffer,
        answered: oneshot::Sender<OfferOutcome>,
    ) -> TransferOutcome {
        let theirs = ProgressCell::new(0);
        let back = report(&self.net, &self.wire, theirs.clone(), self.deciding.clone());
        let decided = tokio::select! {
            decided = session.offer(offer, &theirs) => decided,
            () = back => return Err(broken("cut")),
        };
        let (answer, sink) = match decided {
            Ok(SinkAnswer::Accept { offset, sink }) => (OfferOutcome::Accepted { offset }, Some(sink)),
            Ok(SinkAnswer::AlreadyHave { commit }) => (OfferOutcome::AlreadyHave { commit }, None),
            Err(refusal) => (OfferOutcome::Refused(refusal), None),
        };
        if let Some(sink) = &sink {
            self.progress.advance(sink.progress().now());
        }
        if answered.send(answer).is_err() {
            return Err(broken("the sender is gone"));
        }
        let Some(mut sink) = sink else { return Err(broken("there was no transfer")) };
        let (net, wire, progress) = (self.net.clone(), self.wire.clone(), self.progress.clone());
        let back = report(&net, &wire, sink.progress(), progress.clone());
        let theirs = sink.progress();
        let this = self;
        let forth = async move {
            loop {
                match this.next().await? {
                    TransferItem::Chunk(chunk) => sink.write(chunk).await.map_err(TransferError::Refused)?,
                    TransferItem::End(trailer) => {
                        return sink.finish(trailer).await.map_err(TransferError::Refused);
                    }
                }
            }
        };
        let outcome = tokio::select! {
            outcome = forth => outcome,
            () = back => Err(broken("cut")),
        };
        progress.advance(theirs.now());
        match answer_gets_through(&net, &wire).await {
            true => outcome,
            false => Err(broken("cut")),
        }
    }

    async fn next(&mut self) -> Result<TransferItem, TransferError> {
        let bytes = |item: &TransferItem| match item {
            TransferItem::Chunk(chunk) => chunk.data.len(),
            TransferItem::End(_) => 0,
        };
        let next = self.net.next(&self.wire, &mut self.items, bytes).await.map_err(broken)?;
        next.ok_or_else(|| broken("reset by the sender"))
    }
}

/// Copies the progress to the sender unless a fault of the way back prevents it. Returns when that way is cut.
async fn report(net: &MemNetShared, wire: &Wire, from: ProgressCell, to: ProgressCell) {
    let mut ticks = interval(PROGRESS_INTERVAL / 4);
    let mut seen = from.now();
    loop {
        seen = tokio::select! {
            _ = ticks.tick() => from.now(),
            now = from.moved(seen) => now,
        };
        match net.fault(wire.to, wire.from) {
            None | Some(Fault::Delay(_) | Fault::Rate(_)) => to.advance(from.now()),
            Some(Fault::Cut) => return,
            Some(Fault::Swallow | Fault::Stall) => {}
        }
    }
}

/// Waits while the way back is stalled. `false` if it is cut.
async fn answer_gets_through(net: &MemNetShared, wire: &Wire) -> bool {
    let mut changed = net.watch();
    loop {
        changed.borrow_and_update();
        match net.fault(wire.to, wire.from) {
            None | Some(Fault::Rate(_)) => return true,
            Some(Fault::Delay(time)) => {
                sleep(time).await;
                return true;
            }
            Some(Fault::Cut) => return false,
            Some(Fault::Swallow | Fault::Stall) => {
                let _ = changed.changed().await;
            }
        }
    }
}
