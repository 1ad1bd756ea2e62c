//! Flawed transfers of snapshots.

use crate::common::*;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{FlawState, IMPATIENCE, TransportFlaw};

pub(super) async fn offer(
    inner: &Arc<MemTransport>,
    flaw: Option<TransportFlaw>,
    state: &Arc<FlawState>,
    to: &Peer,
    hello: &Hello,
    offer: &SnapshotOffer,
    deciding: &ProgressCell,
) -> Result<OfferAnswer, TransferError> {
    let Some(flaw) = flaw else { return inner.offer(to, hello, offer, deciding).await };
    let mut sent = offer.clone();
    if flaw == TransportFlaw::LosesTheAttempt {
        sent.attempt = 0;
    }
    let answer = match flaw {
        TransportFlaw::OffersInTheBackground => {
            let (inner, to, hello, deciding) = (inner.clone(), to.clone(), hello.clone(), deciding.clone());
            tokio::spawn(async move { inner.offer(&to, &hello, &sent, &deciding).await }).await.unwrap()
        }
        TransportFlaw::FreezesProgress => inner.offer(to, hello, &sent, &ProgressCell::new(0)).await,
        _ => inner.offer(to, hello, &sent, deciding).await,
    };
    let broken = || TransferError::Broken { detail: "no".into() };
    let flat = flaw == TransportFlaw::FlattensTransfers;
    let (offset, transfer) = match answer {
        Ok(OfferAnswer::Accepted { offset, transfer }) => (offset, transfer),
        Ok(OfferAnswer::AlreadyHave { .. }) if flat => {
            return Ok(OfferAnswer::Refused(SnapshotRefusal::Busy));
        }
        Ok(OfferAnswer::Refused(_)) | Err(_) if flat => return Err(broken()),
        other => return other,
    };
    let offset = if flaw == TransportFlaw::IgnoresTheOffset { 0 } else { offset };
    let trailer = Trailer { length: offer.meta.length, content: offer.meta.content };
    let mut transfer = Some(transfer);
    if flaw == TransportFlaw::MixesTransfers {
        let mut first = state.first.lock().await;
        if first.is_none() {
            *first = transfer.take();
        }
    }
    let progress = match (&transfer, flaw) {
        (Some(transfer), TransportFlaw::KeepsTheHighestPhase) => highest_phase(transfer.progress()),
        (Some(transfer), flaw) if flaw != TransportFlaw::FreezesProgress => transfer.progress(),
        _ => ProgressCell::new(offset),
    };
    let mut queue = None;
    if matches!(flaw, TransportFlaw::TakesEverything | TransportFlaw::EndsDroppedSends)
        && let Some(mut transfer) = transfer.take()
    {
        let ends = flaw == TransportFlaw::EndsDroppedSends;
        let (sender, mut receiver) = mpsc::channel(if ends { 2 } else { 1 << 20 });
        tokio::spawn(async move {
            while let Some(chunk) = receiver.recv().await {
                if transfer.send(chunk).await.is_err() {
                    return;
                }
            }
            if ends {
                let _ = transfer.finish(trailer).await;
            }
        });
        queue = Some(sender);
    }
    let state = state.clone();
    let transfer = Box::new(FlawedTransfer { inner: transfer, flaw, state, progress, queue, trailer });
    Ok(OfferAnswer::Accepted { offset, transfer })
}

/// Follows a progress cell, but never goes back to a lower phase.
fn highest_phase(of: ProgressCell) -> ProgressCell {
    let cell = ProgressCell::new(of.now().acked);
    let told = cell.clone();
    tokio::spawn(async move {
        let mut highest = of.now().phase;
        loop {
            let now = of.now();
            highest = highest.max(now.phase);
            told.advance(TransferProgress { phase: highest, ..now });
            // not synchronisation: poll interval of the loop
            tokio::time::sleep(PROGRESS_INTERVAL / 20).await;
        }
    });
    cell
}

struct FlawedTransfer {
    inner: Option<Box<dyn Transfer>>,
    flaw: TransportFlaw,
    state: Arc<FlawState>,
    progress: ProgressCell,
    queue: Option<mpsc::Sender<Chunk>>,
    /// The end of the body, from the offer.
    trailer: Trailer,
}

impl FlawedTransfer {
    fn flatten(&self, error: TransferError) -> TransferError {
        match self.flaw {
            TransportFlaw::FlattensTransfers => TransferError::Broken { detail: "no".into() },
            _ => error,
        }
    }
}

#[async_trait]
impl Transfer for FlawedTransfer {
    async fn send(&mut self, mut chunk: Chunk) -> Result<(), TransferError> {
        if let Some(queue) = &self.queue {
            let _ = queue.send(chunk).await;
            return Ok(());
        }
        if self.flaw == TransportFlaw::FlipsAByte && chunk.data.len() == 1 {
            chunk.data = vec![chunk.data[0] ^ 1].into();
        }
        // The first transfer carries the chunks of all.
        let mut first = match self.flaw {
            TransportFlaw::MixesTransfers => Some(self.state.first.lock().await),
            _ => None,
        };
        if let Some(first) = first.as_mut().and_then(|first| first.as_mut()) {
            return first.send(chunk).await;
        }
        let queue = match self.flaw {
            TransportFlaw::LanesBehindSnapshots => Some(self.state.queue.lock().await),
            _ => None,
        };
        let sending = self.inner.as_mut().unwrap().send(chunk);
        let sent = match self.flaw {
            TransportFlaw::GivesUpSlowLinks => timeout(IMPATIENCE, sending)
                .await
                .unwrap_or_else(|late| Err(TransferError::Broken { detail: late.to_string() })),
            _ => sending.await,
        };
        drop(queue);
        match sent {
            Err(TransferError::Broken { .. }) if self.flaw == TransportFlaw::HidesBreaks => Ok(()),
            sent => sent.map_err(|error| self.flatten(error)),
        }
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let taken = match self.flaw {
            TransportFlaw::MixesTransfers => self.state.first.lock().await.take().or(self.inner.take()),
            _ => self.inner.take(),
        };
        let Some(inner) = taken else { return Err(TransferError::Unsupported) };
        let early = SnapshotReceipt { commit: 77 };
        match self.flaw {
            TransportFlaw::GivesReceiptsEarly => {
                tokio::spawn(inner.finish(trailer));
                Ok(early)
            }
            TransportFlaw::FinishesInTheBackground => tokio::spawn(inner.finish(trailer)).await.unwrap(),
            TransportFlaw::GivesReceiptsAlways => Ok(inner.finish(trailer).await.unwrap_or(early)),
            _ => inner.finish(trailer).await.map_err(|error| self.flatten(error)),
        }
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

impl Drop for FlawedTransfer {
    fn drop(&mut self) {
        if let (TransportFlaw::EndsDroppedTransfers, Some(inner)) = (self.flaw, self.inner.take()) {
            tokio::spawn(inner.finish(self.trailer));
        }
    }
}

/// A sink that is never dropped.
pub(super) struct KeptSink(pub(super) Option<Box<dyn SnapshotSink>>);

#[async_trait]
impl SnapshotSink for KeptSink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        self.0.as_mut().unwrap().write(chunk).await
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        Ok(SnapshotReceipt { commit: 77 })
    }

    fn progress(&self) -> ProgressCell {
        self.0.as_ref().unwrap().progress()
    }
}

impl Drop for KeptSink {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}
