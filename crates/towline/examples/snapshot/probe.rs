//! A transport that notes when heartbeats arrive, and when a transfer gets how far.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use towline::engine::message::{Batch, Lane, MessageKind};
use towline::engine::snapshot_store::Trailer;
use towline::engine::transport::*;
use towline::{GroupId, NodeId, PeerAddr};

use crate::freezes::Span;

/// When heartbeats arrived, and of which group.
#[derive(Clone, Default)]
pub(crate) struct Heartbeats {
    at: Arc<Mutex<Vec<(GroupId, Instant)>>>,
}

impl Heartbeats {
    /// From when each of a group was due, `interval` after the one before, until it came, of those since `from`.
    pub(crate) fn late(&self, group: GroupId, from: Instant, interval: Duration) -> Vec<Span> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let since: Vec<_> =
            at.iter().filter(|(of, at)| *of == group && *at >= from).map(|(_, at)| *at).collect();
        let pairs = since.iter().zip(since.iter().skip(1));
        pairs.map(|(a, b)| ((*a + interval).min(*b), *b)).collect()
    }

    /// From when the next of a group is due until now.
    pub(crate) fn overdue(&self, group: GroupId, interval: Duration) -> Span {
        let (at, now) = (self.at.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let last = at.iter().rev().find(|(of, _)| *of == group).map_or(now, |(_, at)| *at);
        ((last + interval).min(now), now)
    }

    fn see(&self, batch: &Batch) {
        let now = Instant::now();
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let beats = batch.envelopes.iter().filter(|e| e.message.kind == MessageKind::Heartbeat);
        at.extend(beats.map(|envelope| (envelope.group, now)));
    }
}

/// When the last transfer was offered, had sent its bytes, and had its receipt.
#[derive(Clone, Default)]
pub(crate) struct Times(Arc<Mutex<[Option<Instant>; 3]>>);

impl Times {
    fn note(&self, what: usize) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(time) = times.get_mut(what) {
            *time = Some(Instant::now());
        }
    }

    pub(crate) fn since(&self, began: Instant) -> String {
        let times = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [offered, sent, receipt] =
            times.map(|time| time.unwrap_or(began).duration_since(began).as_millis());
        format!("offered after {offered} ms, all sent after {sent} ms, receipt after {receipt} ms")
    }
}

struct Timed(Box<dyn Transfer>, Times);

#[async_trait]
impl Transfer for Timed {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        self.0.send(chunk).await
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        self.1.note(1);
        let receipt = self.0.finish(trailer).await;
        self.1.note(2);
        receipt
    }

    fn progress(&self) -> ProgressCell {
        self.0.progress()
    }
}

pub(crate) struct Probed<T>(pub(crate) Times, pub(crate) T, pub(crate) Heartbeats);

#[async_trait]
impl<T: Transport> Transport for Probed<T> {
    fn scheme(&self) -> &'static str {
        self.1.scheme()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        self.1.listen(at, Arc::new(Door(inbound, self.2.clone()))).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        self.1.connect(to, lane, hello, feedback).await
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        self.0.note(0);
        Ok(match self.1.offer(to, hello, offer, deciding).await? {
            OfferAnswer::Accepted { offset, transfer } => {
                let transfer = Box::new(Timed(transfer, self.0.clone()));
                OfferAnswer::Accepted { offset, transfer }
            }
            answer => answer,
        })
    }
}

struct Door(Arc<dyn Inbound>, Heartbeats);

impl Inbound for Door {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(Session(self.0.admit(hello, cert)?, self.1.clone())))
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.refused(refusal);
    }
}

struct Session(Arc<dyn PeerSession>, Heartbeats);

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.0.peer()
    }

    fn welcome(&self) -> Welcome {
        self.0.welcome()
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        self.1.see(&batch);
        self.0.deliver(lane, batch)
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        self.0.offer(offer, deciding).await
    }
}
