//! A sound transport in memory with one flaw.

mod links;
mod transfers;

use crate::common::*;
use crate::transport_suite::MemPath;
use towline_testkit::suites::transport::{Capabilities, Path, TransportFixture};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportFlaw {
    ForgetsClosed,
    LosesNacks,
    NacksEveryGroup,
    KeepsOneNack,
    Reorders,
    LosesABatch,
    DeliversTwice,
    Retries,
    Conflates,
    LosesAField,
    CutsLargeBatches,
    RefusesLargeMessages,
    SwallowsOversized,
    OneQueue,
    LanesBehindSnapshots,
    TakesEverything,
    DispatchesInTheBackground,
    AdmitsOnce,
    ConnectsInTheBackground,
    FlattensRefusals,
    AcceptsAnyPeer,
    InventsIdentities,
    AllowsMore,
    LeavesLinksOpen,
    KeepsSessions,
    OverlooksViolations,
    Panics,
    MakesUpTheWelcome,
    EndsDroppedTransfers,
    EndsDroppedSends,
    KeepsSinks,
    FreezesProgress,
    KeepsTheHighestPhase,
    GivesReceiptsEarly,
    GivesReceiptsAlways,
    FlattensTransfers,
    IgnoresTheOffset,
    LosesTheAttempt,
    FlipsAByte,
    MixesTransfers,
    FinishesInTheBackground,
    OffersInTheBackground,
    HidesBreaks,
    GivesUpSlowLinks,
}

/// How soon `GivesUpSlowLinks` gives up a slow link.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(50);

/// The network of one test.
pub(crate) struct FlawedFixture {
    net: MemNet,
    flaw: Option<TransportFlaw>,
    hosts: AtomicU64,
    state: Arc<FlawState>,
}

/// What the links of one flawed transport share.
#[derive(Default)]
pub(crate) struct FlawState {
    /// Serializes dispatches.
    pub(crate) queue: tokio::sync::Mutex<()>,
    pub(crate) last: Mutex<Option<Batch>>,
    pub(crate) session: Mutex<Option<Arc<dyn PeerSession>>>,
    pub(crate) first: tokio::sync::Mutex<Option<Box<dyn Transfer>>>,
}

impl FlawedFixture {
    pub(crate) fn new(flaw: Option<TransportFlaw>) -> Self {
        Self { net: MemNet::new(), flaw, hosts: AtomicU64::new(0), state: Arc::default() }
    }
}

#[async_trait]
impl TransportFixture for FlawedFixture {
    fn transport(&self, _: NodeId) -> Arc<dyn Transport> {
        let (inner, state) = (self.net.transport(), self.state.clone());
        Arc::new(FlawedTransport { inner, flaw: self.flaw, state })
    }

    fn address(&self) -> PeerAddr {
        PeerAddr::new(&format!("mem://host-{}:0", self.hosts.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    fn capabilities(&self) -> Capabilities {
        let connections_max = if self.is(TransportFlaw::AllowsMore) { 3 } else { LISTENER_LINKS_MAX };
        // Small, so that a missing bound is found soon.
        Capabilities {
            connections_max,
            link_bytes_max: 4 << 20,
            transfer_bytes_max: 4 << 20,
            ..Default::default()
        }
    }

    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        Some(Box::new(MemPath { net: self.net.clone(), address: to.clone() }))
    }

    fn deadline(&self) -> Duration {
        // A flawed transport uses up the deadline, so it is short.
        if self.flaw.is_some() { Duration::from_secs(2) } else { Duration::from_secs(20) }
    }
}

impl FlawedFixture {
    fn is(&self, flaw: TransportFlaw) -> bool {
        self.flaw == Some(flaw)
    }
}

struct FlawedTransport {
    inner: Arc<MemTransport>,
    flaw: Option<TransportFlaw>,
    state: Arc<FlawState>,
}

impl FlawedTransport {
    fn is(&self, flaw: TransportFlaw) -> bool {
        self.flaw == Some(flaw)
    }
}

#[async_trait]
impl Transport for FlawedTransport {
    fn scheme(&self) -> &'static str {
        "flawed"
    }

    fn identity(&self) -> Option<NodeId> {
        self.inner.identity()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let inbound = links::FlawedInbound { inner: inbound, flaw: self.flaw, state: self.state.clone() };
        let inner = self.inner.listen(at, Arc::new(inbound)).await?;
        match self.is(TransportFlaw::LeavesLinksOpen) {
            true => Ok(Box::new(links::LeavesLinksOpen(Some(inner)))),
            false => Ok(inner),
        }
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        if self.is(TransportFlaw::Panics) {
            tokio::spawn(async { panic!("on purpose") }).await.ok();
        }
        let feedback = links::feedback(self.flaw, feedback);
        if self.is(TransportFlaw::ConnectsInTheBackground) {
            return Ok(links::in_the_background(&self.inner, to, lane, hello, feedback));
        }
        let connected = match self.inner.connect(to, lane, hello, feedback).await {
            Err(ConnectError::Refused(_)) if self.is(TransportFlaw::FlattensRefusals) => {
                let detail = "refused".into();
                return Err(ConnectError::Protocol { address: to.address.clone(), detail });
            }
            Err(ConnectError::WrongPeer { .. }) if self.is(TransportFlaw::AcceptsAnyPeer) => {
                let to = Peer { id: node_id(3), ..to.clone() };
                self.inner.connect(&to, lane, hello, LinkLog::new().1).await?
            }
            other => other?,
        };
        let mut welcome = connected.welcome;
        if self.is(TransportFlaw::MakesUpTheWelcome) {
            welcome.incarnation = Incarnation::new(1).unwrap();
        }
        let link = links::link(self.flaw, &self.state, connected.link).await;
        Ok(Connected { link, welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        transfers::offer(&self.inner, self.flaw, &self.state, to, hello, offer, deciding).await
    }
}
