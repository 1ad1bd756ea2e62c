//! One snapshot between two nodes: chunks one way, progress and the outcome the other.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, sleep};
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, Hello, LinkClosed, OfferAnswer, PROGRESS_INTERVAL, Peer, PeerSession, ProgressCell, SinkAnswer,
    SnapshotOffer, SnapshotReceipt, SnapshotRefusal, Transfer, TransferError,
};

use super::link::{Knock, knock, time_of};
use super::{Fault, Shared, TRANSFER_CHUNKS_MAX, Wire};

/// What goes from the sender to the receiver. A stream that ends without the second is a reset.
enum Item {
    Chunk(Chunk),
    End(Trailer),
}

/// What the receiver answers to an offer.
enum Answered {
    Accepted { offset: u64 },
    AlreadyHave { commit: u64 },
    Refused(SnapshotRefusal),
}

type Outcome = Result<SnapshotReceipt, TransferError>;

pub(crate) async fn offer(
    net: &Arc<Shared>,
    to: &Peer,
    hello: &Hello,
    offer: &SnapshotOffer,
    deciding: &ProgressCell,
) -> Result<OfferAnswer, TransferError> {
    let Knock { door, wire, session, .. } =
        knock(net, to, hello, None).await.map_err(TransferError::Connect)?;
    // Ends the receiver when this future, or the transfer, is dropped.
    let held = HeldWire(wire.clone());
    let (items, received) = mpsc::channel(TRANSFER_CHUNKS_MAX);
    let (answered, answer) = oneshot::channel();
    let (outcome_sender, outcome) = oneshot::channel();
    let progress = ProgressCell::new(0);
    let (deciding, cell, over) = (deciding.clone(), progress.clone(), Over(progress.clone()));
    let receiver = Receiver { net: net.clone(), wire, items: received, deciding, progress: cell };
    let offer = offer.clone();
    let inside = door.enter();
    door.runtime.spawn(async move {
        let _inside = inside;
        let outcome = receiver.run(session, offer, answered).await;
        // A sender that is gone does not want to know.
        let _ = outcome_sender.send(outcome);
        drop(over);
    });
    let outgoing = MemTransfer { items: Some(items), outcome: Some(outcome), progress, held };
    match answer.await {
        Ok(Answered::Accepted { offset }) => {
            Ok(OfferAnswer::Accepted { offset, transfer: Box::new(outgoing) })
        }
        Ok(Answered::AlreadyHave { commit }) => Ok(OfferAnswer::AlreadyHave { commit }),
        Ok(Answered::Refused(refusal)) => Ok(OfferAnswer::Refused(refusal)),
        // It broke before there was an answer.
        Err(_) => Err(outgoing.end().await),
    }
}

/// Closes the sender's cell when the receiver has ended, however it did.
struct Over(ProgressCell);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Our end of the wire.
struct HeldWire(Arc<Wire>);

impl Drop for HeldWire {
    fn drop(&mut self) {
        self.0.close(LinkClosed::Abandoned);
    }
}

struct MemTransfer {
    /// `None` once a send failed or was dropped midway.
    items: Option<mpsc::Sender<Item>>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    progress: ProgressCell,
    held: HeldWire,
}

impl MemTransfer {
    /// Why there will be no success.
    async fn end(mut self) -> TransferError {
        self.over().await
    }

    async fn over(&mut self) -> TransferError {
        match self.outcome().await {
            Err(error) => error,
            Ok(_) => broken("the receiver ended it before the end was sent"),
        }
    }

    async fn outcome(&mut self) -> Outcome {
        match self.outcome.as_mut() {
            None => Err(broken("it was over before")),
            Some(outcome) => {
                let outcome = outcome.await.unwrap_or_else(|_| Err(broken("the receiver is gone")));
                self.outcome = None;
                outcome
            }
        }
    }

    async fn put(&mut self, item: Item) -> Result<(), TransferError> {
        let Some(items) = self.items.take() else { return Err(broken("it was over before")) };
        let mut end = self.held.0.end.subscribe();
        let sent = tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => false,
            sent = items.send(item) => sent.is_ok(),
        };
        if !sent {
            return Err(self.over().await);
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
        self.put(Item::Chunk(chunk)).await
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        self.put(Item::End(trailer)).await?;
        self.outcome().await
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// The receiving end.
struct Receiver {
    net: Arc<Shared>,
    wire: Arc<Wire>,
    items: mpsc::Receiver<Item>,
    /// The sender's, until there is an answer.
    deciding: ProgressCell,
    /// The sender's.
    progress: ProgressCell,
}

impl Receiver {
    /// Until the transfer is over, the wire ends or the sender is gone; the session and the sink go with it.
    async fn run(
        mut self,
        session: Arc<dyn PeerSession>,
        offer: SnapshotOffer,
        answered: oneshot::Sender<Answered>,
    ) -> Outcome {
        let mut end = self.wire.end.subscribe();
        let (wire, net) = (self.wire.clone(), self.net.clone());
        let outcome = tokio::select! {
            biased;
            end = end.wait_for(Option::is_some) => {
                Err(broken(match end.as_deref() {
                    Ok(Some(LinkClosed::Broken { detail } | LinkClosed::ByPeer { detail })) => detail,
                    _ => "given up",
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
        answered: oneshot::Sender<Answered>,
    ) -> Outcome {
        let theirs = ProgressCell::new(0);
        let back = report(&self.net, &self.wire, theirs.clone(), self.deciding.clone());
        let decided = tokio::select! {
            decided = session.offer(offer, &theirs) => decided,
            () = back => return Err(broken("cut")),
        };
        let (answer, sink) = match decided {
            Ok(SinkAnswer::Accept { offset, sink }) => (Answered::Accepted { offset }, Some(sink)),
            Ok(SinkAnswer::AlreadyHave { commit }) => (Answered::AlreadyHave { commit }, None),
            Err(refusal) => (Answered::Refused(refusal), None),
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
                    Item::Chunk(chunk) => sink.write(chunk).await.map_err(TransferError::Refused)?,
                    Item::End(trailer) => return sink.finish(trailer).await.map_err(TransferError::Refused),
                }
            }
        };
        let outcome = tokio::select! {
            outcome = forth => outcome,
            () = back => Err(broken("cut")),
        };
        progress.advance(theirs.now());
        // The answer travels the other way.
        match answer_gets_through(&net, &wire).await {
            true => outcome,
            false => Err(broken("cut")),
        }
    }

    /// The next item, subject to what is wrong between the two nodes.
    async fn next(&mut self) -> Result<Item, TransferError> {
        let mut changed = self.net.watch();
        let mut swallowed = false;
        loop {
            changed.borrow_and_update();
            let fault = self.net.wrong(self.wire.from, self.wire.to);
            match fault {
                None | Some(Fault::Delay(_) | Fault::Rate(_)) if swallowed => {
                    return Err(broken("lost in a black hole"));
                }
                Some(Fault::Cut) => return Err(broken("cut")),
                Some(Fault::Stall) => {
                    let _ = changed.changed().await;
                    continue;
                }
                _ => {}
            }
            let item = tokio::select! {
                biased;
                _ = changed.changed() => continue,
                item = self.items.recv() => item,
            };
            let Some(item) = item else { return Err(broken("reset by the sender")) };
            if fault == Some(Fault::Swallow) {
                swallowed = true;
                continue;
            }
            let bytes = match &item {
                Item::Chunk(chunk) => chunk.data.len(),
                Item::End(_) => 0,
            };
            match fault {
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::Rate(rate)) => sleep(time_of(bytes, rate)).await,
                _ => {}
            }
            self.net.carry(&self.wire, bytes);
            return Ok(item);
        }
    }
}

/// Tells the sender how far the receiver is, unless what is wrong on the way back keeps it; ends if that is cut.
async fn report(net: &Shared, wire: &Wire, from: ProgressCell, to: ProgressCell) {
    let mut ticks = interval(PROGRESS_INTERVAL / 4);
    let mut seen = from.now();
    loop {
        seen = tokio::select! {
            _ = ticks.tick() => from.now(),
            now = from.moved(seen) => now,
        };
        match net.wrong(wire.to, wire.from) {
            None | Some(Fault::Delay(_) | Fault::Rate(_)) => to.advance(from.now()),
            Some(Fault::Cut) => return,
            Some(Fault::Swallow | Fault::Stall) => {}
        }
    }
}

/// Waits while the way back is stalled.
async fn answer_gets_through(net: &Shared, wire: &Wire) -> bool {
    let mut changed = net.watch();
    loop {
        changed.borrow_and_update();
        match net.wrong(wire.to, wire.from) {
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
