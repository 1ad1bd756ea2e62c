//! A transport around another one that breaks the offer or the transfer of a snapshot, and records each offer.

use super::*;

/// What happens to the next offer. Later ones pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OfferFault {
    /// The offer panics.
    OfferPanics,
    /// The offer is not sent and never gets an answer.
    OfferPends,
    /// The offer is not sent and gets this answer.
    Refused(SnapshotRefusal),
    /// Sending the first chunk panics.
    SendPanics,
    /// The receiver gets everything, and its receipt is lost.
    ReceiptIsLost,
    /// The attempt is offered again as soon as it is accepted.
    Twice,
    /// After `after` chunks the transfer stalls, and the receiver does not learn that the sender gave up.
    Orphaned { after: u64 },
}

/// One offer that the engine asked its transport to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// The number of the attempt.
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

/// Breaks offers of all transports of a test, and records them. Clones share their state.
#[derive(Clone, Default)]
pub(crate) struct Offers {
    state: Arc<OfferState>,
}

#[derive(Default)]
struct OfferState {
    next: Mutex<Option<OfferFault>>,
    /// Where all offers go instead of to their peer.
    elsewhere: Mutex<Option<(Arc<dyn Transport>, PeerAddr)>>,
    offered: Mutex<Vec<Offered>>,
    /// The results of second offers.
    second: Mutex<Vec<String>>,
    /// Transfers that their sender gave up and their receiver still waits for.
    orphans: Mutex<Vec<Orphan>>,
}

/// A transfer that was given up, and its trailer.
type Orphan = (Box<dyn Transfer>, Trailer);

impl Offers {
    /// Wraps the transport of a node.
    pub(crate) fn around(&self, node: NodeId, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(FaultyOffers { node, inner, state: self.state.clone() })
    }

    pub(crate) fn next(&self, fault: OfferFault) {
        *self.state.next.lock().unwrap() = Some(fault);
    }

    /// Sends all later offers to one address, for any peer.
    pub(crate) fn elsewhere(&self, over: Arc<dyn Transport>, address: PeerAddr) {
        *self.state.elsewhere.lock().unwrap() = Some((over, address));
    }

    /// All offers so far.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        self.state.offered.lock().unwrap().clone()
    }

    pub(crate) fn second(&self) -> Vec<String> {
        self.state.second.lock().unwrap().clone()
    }

    pub(crate) fn orphan(&self) -> Orphan {
        self.state.orphans.lock().unwrap().pop().expect("a transfer was given up")
    }
}

struct FaultyOffers {
    node: NodeId,
    inner: Arc<dyn Transport>,
    state: Arc<OfferState>,
}

#[async_trait]
impl Transport for FaultyOffers {
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
        self.inner.listen(at, inbound).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        self.inner.connect(to, lane, hello, feedback).await
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let begins = Offered { from: self.node, to: to.id, number: offer.attempt, at: Instant::now() };
        self.state.offered.lock().unwrap().push(begins);
        let elsewhere = self.state.elsewhere.lock().unwrap().clone();
        if let Some((over, address)) = elsewhere {
            return over.offer(&Peer { id: to.id, address }, hello, offer, deciding).await;
        }
        let fault = self.state.next.lock().unwrap().take();
        match fault {
            Some(OfferFault::OfferPanics) => panic!("a transport"),
            Some(OfferFault::OfferPends) => return std::future::pending().await,
            Some(OfferFault::Refused(refusal)) => return Ok(OfferAnswer::Refused(refusal)),
            _ => {}
        }
        let answer = self.inner.offer(to, hello, offer, deciding).await?;
        let OfferAnswer::Accepted { offset, transfer } = answer else { return Ok(answer) };
        if fault == Some(OfferFault::Twice) {
            let second = match self.inner.offer(to, hello, offer, deciding).await {
                Ok(OfferAnswer::Refused(SnapshotRefusal::Busy)) => "busy".into(),
                Ok(OfferAnswer::Accepted { .. }) => "accepted".into(),
                Ok(_) => "something else".into(),
                Err(error) => error.to_string(),
            };
            self.state.second.lock().unwrap().push(second);
        }
        let transfer: Box<dyn Transfer> = match fault {
            Some(OfferFault::Orphaned { after }) => {
                let trailer = Trailer { length: offer.meta.length, content: offer.meta.content };
                Box::new(OrphanedTransfer {
                    inner: Some((transfer, trailer)),
                    left: after,
                    state: self.state.clone(),
                })
            }
            Some(fault) => Box::new(FaultyTransfer { inner: transfer, fault }),
            None => transfer,
        };
        Ok(OfferAnswer::Accepted { offset, transfer })
    }
}

struct FaultyTransfer {
    inner: Box<dyn Transfer>,
    fault: OfferFault,
}

#[async_trait]
impl Transfer for FaultyTransfer {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        assert_ne!(self.fault, OfferFault::SendPanics, "a transport");
        self.inner.send(chunk).await
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let receipt = self.inner.finish(trailer).await?;
        if self.fault == OfferFault::ReceiptIsLost {
            return Err(TransferError::Broken { detail: "the receipt is lost".into() });
        }
        Ok(receipt)
    }

    fn progress(&self) -> ProgressCell {
        self.inner.progress()
    }
}

struct OrphanedTransfer {
    inner: Option<Orphan>,
    left: u64,
    state: Arc<OfferState>,
}

#[async_trait]
impl Transfer for OrphanedTransfer {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        if self.left == 0 {
            return std::future::pending().await;
        }
        self.left -= 1;
        self.inner.as_mut().unwrap().0.send(chunk).await
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, TransferError> {
        std::future::pending().await
    }

    fn progress(&self) -> ProgressCell {
        self.inner.as_ref().unwrap().0.progress()
    }
}

impl Drop for OrphanedTransfer {
    fn drop(&mut self) {
        self.state.orphans.lock().unwrap().extend(self.inner.take());
    }
}
