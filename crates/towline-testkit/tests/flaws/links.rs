//! Flawed links, listeners and sessions.

use std::net::SocketAddr;

use crate::common::*;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{FlawState, IMPATIENCE, TransportFlaw, transfers};

/// Wraps the feedback of a link.
pub(super) fn feedback(flaw: Option<TransportFlaw>, feedback: LinkFeedback) -> LinkFeedback {
    match flaw {
        None => feedback,
        Some(flaw) => LinkFeedback::new(Arc::new(FlawedFeedback { above: Mutex::new(Some(feedback)), flaw })),
    }
}

struct FlawedFeedback {
    above: Mutex<Option<LinkFeedback>>,
    flaw: TransportFlaw,
}

impl LinkEvents for FlawedFeedback {
    fn nack(&self, nack: Nack) {
        let above = self.above.lock().unwrap();
        let Some(above) = &*above else { return };
        match self.flaw {
            TransportFlaw::LosesNacks => {}
            TransportFlaw::NacksEveryGroup => {
                (1..=3).for_each(|group| above.nack(Nack { group: GroupId::new(group), ..nack }));
            }
            TransportFlaw::KeepsOneNack if nack.group == GroupId::new(7) => {}
            _ => above.nack(nack),
        }
    }

    fn closed(&self, cause: LinkClosed) {
        let above = self.above.lock().unwrap().take();
        match self.flaw {
            TransportFlaw::ForgetsClosed => std::mem::forget(above),
            _ => above.into_iter().for_each(|above| above.closed(cause.clone())),
        }
    }
}

/// A link that exists before the peer has answered.
pub(super) fn in_the_background(
    inner: &Arc<MemTransport>,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Connected {
    let (inner, to, hello) = (inner.clone(), to.clone(), hello.clone());
    let incarnation = Incarnation::new(0xEF00_0000 + to.id.as_u64()).unwrap();
    let welcome = Welcome { node: to.id, incarnation, protocol: PROTOCOL_VERSION };
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        if let Ok(connected) = inner.connect(&to, lane, &hello, feedback).await {
            drain(connected.link, receiver).await;
        }
    });
    Connected { link: Box::new(UnboundedLink(sender)), welcome }
}

async fn drain(mut link: Box<dyn Link>, mut batches: mpsc::UnboundedReceiver<Batch>) {
    while let Some(batch) = batches.recv().await {
        if link.dispatch(batch).await.is_err() {
            return;
        }
    }
}

/// A link without flow control.
struct UnboundedLink(mpsc::UnboundedSender<Batch>);

#[async_trait]
impl Link for UnboundedLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        self.0.send(batch).map_err(|_| DispatchError::Closed)
    }
}

pub(super) async fn link(
    flaw: Option<TransportFlaw>,
    state: &Arc<FlawState>,
    mut inner: Box<dyn Link>,
) -> Box<dyn Link> {
    let Some(flaw) = flaw else { return inner };
    if flaw == TransportFlaw::Retries {
        let last = state.last.lock().unwrap().take();
        if let Some(last) = last {
            let _ = inner.dispatch(last).await;
        }
    }
    match flaw {
        TransportFlaw::TakesEverything | TransportFlaw::DispatchesInTheBackground => {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(drain(inner, receiver));
            match flaw {
                TransportFlaw::TakesEverything => Box::new(UnboundedLink(sender)),
                _ => Box::new(BackgroundLink { sender, room: Arc::default() }),
            }
        }
        TransportFlaw::OneQueue => {
            Box::new(SharedLink { inner: Arc::new(tokio::sync::Mutex::new(inner)), state: state.clone() })
        }
        flaw => Box::new(FlawedLink { inner, flaw, state: state.clone(), behind: None, count: 0 }),
    }
}

/// A link that goes on after a dispatch was dropped.
struct BackgroundLink {
    sender: mpsc::UnboundedSender<Batch>,
    room: Arc<std::sync::atomic::AtomicU64>,
}

#[async_trait]
impl Link for BackgroundLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        let taken = self.room.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.sender.send(batch).map_err(|_| DispatchError::Closed)?;
        match taken {
            5 => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

struct FlawedLink {
    inner: Box<dyn Link>,
    flaw: TransportFlaw,
    state: Arc<FlawState>,
    behind: Option<Batch>,
    count: u64,
}

#[async_trait]
impl Link for FlawedLink {
    async fn dispatch(&mut self, mut batch: Batch) -> Result<(), DispatchError> {
        self.count += 1;
        let unlucky = self.count % 10 == 0;
        let bytes = batch.payload_bytes();
        match self.flaw {
            TransportFlaw::Reorders if unlucky => {
                self.behind = Some(batch);
                return Ok(());
            }
            TransportFlaw::LosesABatch if unlucky => return Ok(()),
            TransportFlaw::DeliversTwice if unlucky => self.inner.dispatch(batch.clone()).await?,
            TransportFlaw::Retries => *self.state.last.lock().unwrap() = Some(batch.clone()),
            TransportFlaw::Conflates => batch.envelopes.dedup(),
            TransportFlaw::LosesAField => batch.envelopes.iter_mut().for_each(|e| e.message.priority = 0),
            TransportFlaw::CutsLargeBatches => batch.envelopes.truncate(4_096),
            TransportFlaw::RefusesLargeMessages if bytes > 1 << 20 => {
                return Err(DispatchError::TooLarge { bytes, bytes_max: 1 << 20 });
            }
            TransportFlaw::SwallowsOversized if bytes > MESSAGE_BYTES_MAX => return Ok(()),
            _ => {}
        }
        // A snapshot that holds the lock delays all lanes.
        let _queue = match self.flaw {
            TransportFlaw::LanesBehindSnapshots => Some(self.state.queue.lock().await),
            _ => None,
        };
        match self.flaw {
            TransportFlaw::GivesUpSlowLinks => {
                let dispatched = timeout(IMPATIENCE, self.inner.dispatch(batch)).await;
                dispatched.unwrap_or(Err(DispatchError::Closed))?;
            }
            _ => self.inner.dispatch(batch).await?,
        }
        if let Some(behind) = self.behind.take() {
            self.inner.dispatch(behind).await?;
        }
        Ok(())
    }
}

/// A link that shares one queue with all links of its transport.
struct SharedLink {
    inner: Arc<tokio::sync::Mutex<Box<dyn Link>>>,
    state: Arc<FlawState>,
}

#[async_trait]
impl Link for SharedLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        let (inner, state) = (self.inner.clone(), self.state.clone());
        // The dispatch goes on although its caller gave up.
        let queued = tokio::spawn(async move {
            let _queue = state.queue.lock().await;
            inner.lock().await.dispatch(batch).await
        });
        queued.await.unwrap_or(Err(DispatchError::Closed))
    }
}

pub(super) struct LeavesLinksOpen(pub(super) Option<Box<dyn Listener>>);

#[async_trait]
impl Listener for LeavesLinksOpen {
    fn local_addr(&self) -> SocketAddr {
        self.0.as_ref().unwrap().local_addr()
    }

    async fn shutdown(mut self: Box<Self>) {
        std::mem::forget(self.0.take());
    }
}

pub(super) struct FlawedInbound {
    pub(super) inner: Arc<dyn Inbound>,
    pub(super) flaw: Option<TransportFlaw>,
    pub(super) state: Arc<FlawState>,
}

impl Inbound for FlawedInbound {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let mut known = self.state.session.lock().unwrap();
        if let (Some(TransportFlaw::AdmitsOnce), Some(known)) = (self.flaw, &*known) {
            return Ok(known.clone());
        }
        let invented = CertIdentity { node: hello.from };
        let cert = if self.flaw == Some(TransportFlaw::InventsIdentities) { Some(&invented) } else { cert };
        let inner = self.inner.admit(hello, cert)?;
        if self.flaw == Some(TransportFlaw::KeepsSessions) {
            std::mem::forget(inner.clone());
        }
        let session: Arc<dyn PeerSession> = Arc::new(FlawedSession { inner, flaw: self.flaw });
        if self.flaw == Some(TransportFlaw::AdmitsOnce) {
            *known = Some(session.clone());
        }
        Ok(session)
    }

    fn refused(&self, refusal: &Refusal) {
        self.inner.refused(refusal);
    }
}

struct FlawedSession {
    inner: Arc<dyn PeerSession>,
    flaw: Option<TransportFlaw>,
}

#[async_trait]
impl PeerSession for FlawedSession {
    fn peer(&self) -> NodeId {
        self.inner.peer()
    }

    fn welcome(&self) -> Welcome {
        self.inner.welcome()
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        match self.inner.deliver(lane, batch) {
            Err(_) if self.flaw == Some(TransportFlaw::OverlooksViolations) => Ok(Vec::new()),
            other => other,
        }
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(match self.inner.offer(offer, deciding).await? {
            SinkAnswer::Accept { offset, sink } if self.flaw == Some(TransportFlaw::KeepsSinks) => {
                SinkAnswer::Accept { offset, sink: Box::new(transfers::KeptSink(Some(sink))) }
            }
            other => other,
        })
    }
}
