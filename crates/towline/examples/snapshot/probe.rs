//! A transport that notes when heartbeats arrive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use towline::engine::message::{Batch, Lane, MessageKind};
use towline::engine::transport::*;
use towline::{GroupId, NodeId, PeerAddr};

/// When heartbeats of one group arrived.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    group: GroupId,
    at: Arc<Mutex<Vec<Instant>>>,
}

impl Heartbeats {
    pub(crate) fn of(group: GroupId) -> Self {
        Self { group, at: Arc::default() }
    }

    /// How much later than `interval` after the one before each came, of those since `from`; sorted.
    pub(crate) fn delays(&self, from: Instant, interval: Duration) -> Vec<Duration> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let since: Vec<_> = at.iter().filter(|at| **at >= from).collect();
        let pairs = since.iter().zip(since.iter().skip(1));
        let mut delays: Vec<_> = pairs.map(|(a, b)| b.duration_since(**a).saturating_sub(interval)).collect();
        delays.sort_unstable();
        delays
    }

    fn see(&self, batch: &Batch) {
        let mine = batch.envelopes.iter().filter(|envelope| envelope.group == self.group);
        if mine.clone().any(|envelope| envelope.message.kind == MessageKind::Heartbeat) {
            self.at.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        }
    }
}

pub(crate) struct Probed<T>(pub(crate) T, pub(crate) Heartbeats);

#[async_trait]
impl<T: Transport> Transport for Probed<T> {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        self.0.listen(at, Arc::new(Door(inbound, self.1.clone()))).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        self.0.connect(to, lane, hello, feedback).await
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
    ) -> Result<OfferAnswer, TransferError> {
        self.0.offer(to, hello, offer).await
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

    async fn offer(&self, offer: SnapshotOffer) -> Result<SinkAnswer, SnapshotRefusal> {
        self.0.offer(offer).await
    }
}
