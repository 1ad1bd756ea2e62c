//! gRPC and QUIC through one interface, a listener that records, and raw peers that break the protocol.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod raw;
#[path = "../../../towline-tls/tests/common/raw_client.rs"]
mod raw_client;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use towline_engine::ids::{GroupId, NodeId, PeerAddr};
use towline_engine::message::{Batch, Lane, LogId, Message, MessageKind};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta};
use towline_engine::transport::{
    CertIdentity, ConnectError, Connected, Hello, Inbound, Link, LinkClosed, LinkFeedback, Listener,
    OfferAnswer, Peer, PeerSession, ProgressCell, Refusal, SnapshotOffer, TransferError, Transport,
    TransportError,
};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_quic::{QuicConfig, QuicTransport};
use towline_testkit::cluster::{node_id, within};
use towline_testkit::doubles::{LinkLog, RecordingInbound, hello};
use towline_tls::TlsConfig;
use towline_tls::dev::{DevAuthority, DevCert};

pub use raw::{First, Heard, RawLane};

/// The authority that every node trusts.
pub static AUTHORITY: LazyLock<DevAuthority> = LazyLock::new(|| DevAuthority::new().unwrap());

pub fn identity(trusts: &DevAuthority, cert: &DevCert) -> TlsConfig {
    TlsConfig::from_pem(trusts.ca_pem().as_bytes(), cert.cert.as_bytes(), cert.key.as_bytes()).unwrap()
}

pub fn of_node(id: u64) -> TlsConfig {
    identity(&AUTHORITY, &AUTHORITY.issue(node_id(id)).unwrap())
}

/// The settings that both transports have, by one name each.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections_max: usize,
    pub per_peer_max: usize,
    pub per_second_max: u32,
    /// High by default: a test of connections must not reach it first.
    pub streams_per_lane_max: usize,
    pub handshake_timeout: Duration,
    pub keepalive_interval: Duration,
    pub idle_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 256,
            per_peer_max: 16,
            per_second_max: 10_000,
            streams_per_lane_max: 64,
            handshake_timeout: Duration::from_millis(400),
            keepalive_interval: Duration::from_millis(250),
            idle_timeout: Duration::from_millis(500),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Grpc,
    Quic,
}

impl Wire {
    pub const BOTH: [Self; 2] = [Self::Grpc, Self::Quic];

    pub fn scheme(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
        }
    }

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Grpc => b"h2",
            Self::Quic => b"towline/1",
        }
    }

    pub fn transport(self, bounds: &Bounds, tls: TlsConfig) -> Arc<dyn Transport> {
        match self {
            Self::Grpc => {
                let config = GrpcConfig {
                    connections_max: bounds.connections_max,
                    connections_per_peer_max: bounds.per_peer_max,
                    connections_per_second_max: bounds.per_second_max,
                    handshake_timeout: bounds.handshake_timeout,
                    streams_per_lane_max: bounds.streams_per_lane_max,
                    keepalive_interval: bounds.keepalive_interval,
                    keepalive_timeout: bounds.idle_timeout,
                    ..GrpcConfig::default()
                };
                Arc::new(GrpcTransport::with_tls(config, tls))
            }
            Self::Quic => {
                let config = QuicConfig {
                    connections_max: bounds.connections_max,
                    connections_per_peer_max: bounds.per_peer_max,
                    handshakes_per_second_max: bounds.per_second_max,
                    handshake_timeout: bounds.handshake_timeout,
                    streams_per_lane_max: bounds.streams_per_lane_max,
                    keepalive_interval: bounds.keepalive_interval,
                    idle_timeout: bounds.idle_timeout,
                    ..QuicConfig::default()
                };
                Arc::new(QuicTransport::new(config, tls))
            }
        }
    }

    pub fn address(self, at: SocketAddr) -> PeerAddr {
        PeerAddr::new(&format!("{}://{at}", self.scheme())).unwrap()
    }

    pub fn anywhere(self) -> PeerAddr {
        self.address("127.0.0.1:0".parse().unwrap())
    }

    /// Connects with `cert`, if any, sends `first` and returns the answer.
    pub async fn say(self, at: SocketAddr, cert: Option<&DevCert>, first: First) -> Heard {
        match self {
            Self::Grpc => raw::grpc(at, raw::client(cert, self.alpn()), first).await,
            Self::Quic => raw::quic(at, raw::client(cert, self.alpn()), first).await,
        }
    }

    /// Opens a raw lane with the certificate of node 1.
    pub async fn raw_lane(self, at: SocketAddr) -> RawLane {
        let tls = raw::client(Some(&AUTHORITY.issue(node_id(1)).unwrap()), self.alpn());
        match self {
            Self::Grpc => raw::grpc_lane(at, raw::grpc_connect(at, tls).await.unwrap()).await.unwrap(),
            Self::Quic => raw::quic_lane(&raw::quic_connect(at, tls).await.unwrap()).await,
        }
    }
}

/// Node 2 listens on a transport under test and records what arrives.
pub struct Listening {
    pub inbound: RecordingInbound,
    pub listener: Box<dyn Listener>,
    scheme: &'static str,
}

impl Listening {
    pub async fn start(wire: Wire, bounds: &Bounds) -> Self {
        Self::on(&*wire.transport(bounds, of_node(2))).await
    }

    pub async fn on(transport: &dyn Transport) -> Self {
        let (inbound, scheme) = (RecordingInbound::new(node_id(2)), transport.scheme());
        let at = PeerAddr::new(&format!("{scheme}://127.0.0.1:0")).unwrap();
        let listener = transport.listen(&at, inbound.inbound()).await.unwrap();
        Self { inbound, listener, scheme }
    }

    pub fn at(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub fn peer(&self) -> Peer {
        Peer { id: node_id(2), address: PeerAddr::new(&format!("{}://{}", self.scheme, self.at())).unwrap() }
    }

    /// Dials as node 1.
    pub async fn connect(
        &self,
        transport: &dyn Transport,
        lane: Lane,
    ) -> (Result<Connected, ConnectError>, LinkLog) {
        connect(transport, &self.peer(), lane, &hello(1, 2)).await
    }

    pub async fn link(&self, transport: &dyn Transport, lane: Lane) -> (Box<dyn Link>, LinkLog) {
        let (connected, log) = self.connect(transport, lane).await;
        (connected.unwrap().link, log)
    }

    /// Waits for the oldest refusal.
    pub async fn refusal(&self) -> Refusal {
        within(self.inbound.next_refusal()).await
    }

    /// Waits for the oldest batch.
    pub async fn arrived(&self) -> (Lane, Batch) {
        let delivered = within(self.inbound.next_batch()).await;
        (delivered.lane, delivered.batch)
    }
}

/// Connects under a deadline. A failed attempt must end its feedback as abandoned.
pub async fn connect(
    transport: &dyn Transport,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
) -> (Result<Connected, ConnectError>, LinkLog) {
    let (log, feedback) = LinkLog::new();
    let connected = within(transport.connect(to, lane, hello, feedback)).await;
    if connected.is_err() {
        assert_eq!(within(log.closed()).await, LinkClosed::Abandoned, "{connected:?}");
    }
    (connected, log)
}

/// An offer of node 1 to node 2, for a snapshot of `length` bytes.
pub fn offer(length: u64) -> SnapshotOffer {
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index: 1, term: 1 },
        conf_state: Default::default(),
        members: Default::default(),
    };
    let message = Message { term: 1, ..Message::new(MessageKind::Snapshot, node_id(1), node_id(2)) };
    SnapshotOffer { message, meta: SnapshotMeta { head, length, content: ContentId([7; 16]) }, attempt: 1 }
}

/// Everything a listener refused, by itself or by its engine, in order.
pub type Refusals = Arc<Mutex<Vec<Refusal>>>;

/// A transport whose listener records every refusal, its own and those of its engine.
pub struct RecordingTransport {
    pub inner: Arc<dyn Transport>,
    pub refusals: Refusals,
}

struct RefusalRecorder {
    inner: Arc<dyn Inbound>,
    refusals: Refusals,
}

impl Inbound for RefusalRecorder {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let admitted = self.inner.admit(hello, cert);
        admitted.inspect_err(|refusal| self.refusals.lock().unwrap().push(refusal.clone()))
    }

    fn refused(&self, refusal: &Refusal) {
        // The engine counts first: a test that sees the refusal here may read the counter.
        self.inner.refused(refusal);
        self.refusals.lock().unwrap().push(refusal.clone());
    }
}

#[async_trait]
impl Transport for RecordingTransport {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn identity(&self) -> Option<NodeId> {
        self.inner.identity()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inner: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let recorder = RefusalRecorder { inner, refusals: self.refusals.clone() };
        self.inner.listen(at, Arc::new(recorder)).await
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
        self.inner.offer(to, hello, offer, deciding).await
    }
}
