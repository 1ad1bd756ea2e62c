//! A wrapper of any [`Transport`] that damages what it carries, on request and from a seed.
//!
//! It works at the seam: on messages, batches and chunks. To damage the bytes of a real wire, see
//! [`proxy`](crate::proxy). Each [`Direction`] has its own faults, which change at any time, also on open links.
//!
//! ```
//! use towline_engine::message::Lane;
//! use towline_testkit::fault::{Direction, FaultyTransport, LaneFaults};
//! use towline_testkit::mem::MemNet;
//!
//! let (transport, faults) = FaultyTransport::new(MemNet::new().transport(), 7);
//! faults.lane(Lane::Append, Direction::Out, LaneFaults { drop: 0.1, ..LaneFaults::default() });
//! faults.lane(Lane::Control, Direction::In, LaneFaults { black_hole: true, ..LaneFaults::default() });
//! faults.clear();
//! assert_eq!(faults.counts().dropped, 0);
//! # let _ = transport;
//! ```

mod link;
mod plan;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use async_trait::async_trait;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    CertIdentity, ConnectError, Connected, Hello, Inbound, LinkFeedback, Listener, Nack, OfferAnswer, Peer,
    PeerSession, ProgressCell, Refusal, SinkAnswer, SnapshotOffer, SnapshotRefusal, TransferError, Transport,
    TransportError, Violation, Welcome,
};

pub use plan::{Direction, FaultCounts, Faults, LaneFaults, SnapshotFaults};

/// A transport that damages what it carries.
#[derive(Debug)]
pub struct FaultyTransport<T> {
    inner: Arc<T>,
    faults: Faults,
}

impl<T: Transport> FaultyTransport<T> {
    /// Wraps `inner`, without faults at first. Every chance comes from the seed.
    pub fn new(inner: Arc<T>, seed: u64) -> (Arc<Self>, Faults) {
        let faults = Faults::new(seed);
        (Arc::new(Self { inner, faults: faults.clone() }), faults)
    }
}

#[async_trait]
impl<T: Transport> Transport for FaultyTransport<T> {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn identity(&self) -> Option<NodeId> {
        self.inner.identity()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        self.inner.listen(at, Arc::new(FaultyInbound { inner: inbound, faults: self.faults.clone() })).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let (link, feedback) = link::wrap(&self.faults, lane, feedback);
        let connected = self.inner.connect(to, lane, hello, feedback).await?;
        Ok(Connected { link: link.over(connected.link), welcome: connected.welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        Ok(match self.inner.offer(to, hello, offer, deciding).await? {
            OfferAnswer::Accepted { offset, transfer } => {
                OfferAnswer::Accepted { offset, transfer: transfer::outgoing(&self.faults, transfer) }
            }
            other => other,
        })
    }
}

struct FaultyInbound {
    inner: Arc<dyn Inbound>,
    faults: Faults,
}

impl Inbound for FaultyInbound {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let inner = self.inner.admit(hello, cert)?;
        let lanes = Lane::ALL.map(|lane| self.faults.lane_faults(lane, Direction::In));
        Ok(Arc::new(FaultySession { inner, faults: self.faults.clone(), lanes }))
    }

    fn refused(&self, refusal: &Refusal) {
        self.inner.refused(refusal);
    }
}

struct FaultySession {
    inner: Arc<dyn PeerSession>,
    faults: Faults,
    lanes: [plan::FaultyLane; 2],
}

#[async_trait]
impl PeerSession for FaultySession {
    fn peer(&self) -> towline_engine::ids::NodeId {
        self.inner.peer()
    }

    fn welcome(&self) -> Welcome {
        self.inner.welcome()
    }

    fn deliver(&self, lane: Lane, mut batch: Batch) -> Result<Vec<Nack>, Violation> {
        let [control, append] = &self.lanes;
        let faulty = match lane {
            Lane::Control => control,
            Lane::Append => append,
        };
        if faulty.kills(&batch) {
            return Err(Violation { detail: "fault: killed".into() });
        }
        faulty.change(&mut batch);
        match batch.envelopes.is_empty() {
            true => Ok(Vec::new()),
            false => self.inner.deliver(lane, batch),
        }
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(match self.inner.offer(offer, deciding).await? {
            SinkAnswer::Accept { offset, sink } => {
                SinkAnswer::Accept { offset, sink: transfer::incoming(&self.faults, sink) }
            }
            other => other,
        })
    }
}
