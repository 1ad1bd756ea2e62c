//! A transport that notes when heartbeats arrive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use towline::engine::message::{Batch, Lane, MessageKind};
use towline::engine::transport::*;
use towline::{GroupId, NodeId, PeerAddr};

use crate::freezes::Span;

/// The group and arrival time of each heartbeat.
#[derive(Clone, Default)]
pub(crate) struct Heartbeats {
    at: Arc<Mutex<Vec<(GroupId, Instant)>>>,
}

impl Heartbeats {
    /// The heartbeats of a group since `from`: when each was due, `interval` after the one before, and when it came.
    pub(crate) fn late(&self, group: GroupId, from: Instant, interval: Duration) -> Vec<Span> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let since: Vec<_> =
            at.iter().filter(|(of, at)| *of == group && *at >= from).map(|(_, at)| *at).collect();
        let pairs = since.iter().zip(since.iter().skip(1));
        pairs.map(|(a, b)| ((*a + interval).min(*b), *b)).collect()
    }

    /// When the next heartbeat of a group is due, and now.
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

pub(crate) struct Probed<T>(pub(crate) T, pub(crate) Heartbeats);

#[async_trait]
impl<T: Transport> Transport for Probed<T> {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    fn identity(&self) -> Option<NodeId> {
        self.0.identity()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        self.0.listen(at, Arc::new(ProbedInbound(inbound, self.1.clone()))).await
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
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        self.0.offer(to, hello, offer, deciding).await
    }
}

struct ProbedInbound(Arc<dyn Inbound>, Heartbeats);

impl Inbound for ProbedInbound {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(ProbedSession(self.0.admit(hello, cert)?, self.1.clone())))
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.refused(refusal);
    }
}

struct ProbedSession(Arc<dyn PeerSession>, Heartbeats);

#[async_trait]
impl PeerSession for ProbedSession {
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
