//! A transport around another one that does something odd to a snapshot it is to offer, and notes when each is offered.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::*;

/// What happens to the next offer; later ones pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Oddity {
    /// Instead of an offer.
    OfferPanics,
    /// It is never made, and never answered.
    OfferPends,
    /// It is never made, and this is the answer.
    Refused(SnapshotRefusal),
    /// Instead of the first chunk.
    SendPanics,
    /// All of it comes, and nobody says so.
    ReceiptIsLost,
    /// The same attempt is offered once more as soon as it is accepted.
    Twice,
    /// After so many chunks nothing goes out any more, and nobody tells the receiver that its sender gave up.
    Haunts { after: u64 },
}

/// An offer as its transport was asked to make it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// The attempt's.
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

/// Switches the oddities of all transports of a test, and knows what they saw. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Offers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    next: Mutex<Option<Oddity>>,
    /// Where all offers go, if not to their peer.
    elsewhere: Mutex<Option<(Arc<dyn Transport>, PeerAddr)>>,
    offered: Mutex<Vec<Offered>>,
    /// What became of second offers.
    second: Mutex<Vec<String>>,
    /// Transfers that were given up, as their receivers still see them.
    ghosts: Mutex<Vec<Ghost>>,
}

/// A transfer that was given up, and its end.
type Ghost = (Box<dyn Transfer>, Trailer);

impl Offers {
    /// The transport of a node.
    pub(crate) fn around(&self, node: NodeId, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(Odd { node, inner, shared: self.shared.clone() })
    }

    pub(crate) fn next(&self, oddity: Oddity) {
        *self.shared.next.lock().unwrap() = Some(oddity);
    }

    /// Offers go there from now on, whoever they are for.
    pub(crate) fn elsewhere(&self, over: Arc<dyn Transport>, address: PeerAddr) {
        *self.shared.elsewhere.lock().unwrap() = Some((over, address));
    }

    /// All so far.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        self.shared.offered.lock().unwrap().clone()
    }

    pub(crate) fn second(&self) -> Vec<String> {
        self.shared.second.lock().unwrap().clone()
    }

    pub(crate) fn ghost(&self) -> Ghost {
        self.shared.ghosts.lock().unwrap().pop().expect("a transfer was given up")
    }
}

struct Odd {
    node: NodeId,
    inner: Arc<dyn Transport>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Transport for Odd {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
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
        self.shared.offered.lock().unwrap().push(begins);
        let elsewhere = self.shared.elsewhere.lock().unwrap().clone();
        if let Some((over, address)) = elsewhere {
            return over.offer(&Peer { id: to.id, address }, hello, offer, deciding).await;
        }
        let odd = self.shared.next.lock().unwrap().take();
        match odd {
            Some(Oddity::OfferPanics) => panic!("a transport"),
            Some(Oddity::OfferPends) => return std::future::pending().await,
            Some(Oddity::Refused(refusal)) => return Ok(OfferAnswer::Refused(refusal)),
            _ => {}
        }
        let answer = self.inner.offer(to, hello, offer, deciding).await?;
        let OfferAnswer::Accepted { offset, transfer } = answer else { return Ok(answer) };
        if odd == Some(Oddity::Twice) {
            let second = match self.inner.offer(to, hello, offer, deciding).await {
                Ok(OfferAnswer::Refused(SnapshotRefusal::Busy)) => "busy".into(),
                Ok(OfferAnswer::Accepted { .. }) => "accepted".into(),
                Ok(_) => "something else".into(),
                Err(error) => error.to_string(),
            };
            self.shared.second.lock().unwrap().push(second);
        }
        let transfer: Box<dyn Transfer> = match odd {
            Some(Oddity::Haunts { after }) => {
                let trailer = Trailer { length: offer.meta.length, content: offer.meta.content };
                Box::new(Haunting {
                    inner: Some((transfer, trailer)),
                    left: after,
                    shared: self.shared.clone(),
                })
            }
            Some(odd) => Box::new(OddTransfer { inner: transfer, odd }),
            None => transfer,
        };
        Ok(OfferAnswer::Accepted { offset, transfer })
    }
}

struct OddTransfer {
    inner: Box<dyn Transfer>,
    odd: Oddity,
}

#[async_trait]
impl Transfer for OddTransfer {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        assert_ne!(self.odd, Oddity::SendPanics, "a transport");
        self.inner.send(chunk).await
    }

    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let receipt = self.inner.finish(trailer).await?;
        if self.odd == Oddity::ReceiptIsLost {
            return Err(TransferError::Broken { detail: "the receipt is lost".into() });
        }
        Ok(receipt)
    }

    fn progress(&self) -> ProgressCell {
        self.inner.progress()
    }
}

struct Haunting {
    inner: Option<Ghost>,
    left: u64,
    shared: Arc<Shared>,
}

#[async_trait]
impl Transfer for Haunting {
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

impl Drop for Haunting {
    fn drop(&mut self) {
        self.shared.ghosts.lock().unwrap().extend(self.inner.take());
    }
}
