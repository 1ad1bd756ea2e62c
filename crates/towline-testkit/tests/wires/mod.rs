//! gRPC and QUIC behind one face, for tests that both must pass, and peers that say what they like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

mod raw;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{
    CertIdentity, ConnectError, Connected, Hello, Inbound, LinkFeedback, Listener, OfferAnswer, Peer,
    PeerSession, ProgressCell, Refusal, SnapshotOffer, TransferError, Transport, TransportError,
};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_quic::{QuicConfig, QuicTransport};
use towline_testkit::cluster::node_id;
use towline_tls::TlsConfig;
use towline_tls::dev::{DevAuthority, DevCert};

pub use raw::{First, Heard};

/// Whom everybody trusts.
pub static AUTHORITY: LazyLock<DevAuthority> = LazyLock::new(|| DevAuthority::new().unwrap());

pub fn identity(trusts: &DevAuthority, cert: &DevCert) -> TlsConfig {
    TlsConfig::from_pem(trusts.ca_pem().as_bytes(), cert.cert.as_bytes(), cert.key.as_bytes()).unwrap()
}

pub fn of_node(id: u64) -> TlsConfig {
    identity(&AUTHORITY, &AUTHORITY.issue(node_id(id)).unwrap())
}

/// What both transports bound, in the words of this test.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections_max: usize,
    pub per_peer_max: usize,
    pub per_second_max: u32,
    pub handshake_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 256,
            per_peer_max: 16,
            per_second_max: 10_000,
            handshake_timeout: Duration::from_millis(400),
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
                    // Not what is asked here: it would end lanes before connections are too many.
                    streams_per_lane_max: 64,
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
                    // Not what is asked here: it would end lanes before connections are too many.
                    streams_per_lane_max: 64,
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

    /// Connects with `cert`, if any, says one thing and gives what comes back.
    pub async fn say(self, at: SocketAddr, cert: Option<&DevCert>, first: First) -> Heard {
        match self {
            Self::Grpc => raw::grpc(at, raw::client(cert, self.alpn()), first).await,
            Self::Quic => raw::quic(at, raw::client(cert, self.alpn()), first).await,
        }
    }
}

/// Everything a listener refused, by itself or by its engine, in order.
pub type Refusals = Arc<Mutex<Vec<Refusal>>>;

/// A transport whose listener writes down whom it and its engine refuse.
pub struct Recording {
    pub inner: Arc<dyn Transport>,
    pub refusals: Refusals,
}

struct Ledger {
    inner: Arc<dyn Inbound>,
    refusals: Refusals,
}

impl Inbound for Ledger {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let admitted = self.inner.admit(hello, cert);
        admitted.inspect_err(|refusal| self.refusals.lock().unwrap().push(refusal.clone()))
    }

    fn refused(&self, refusal: &Refusal) {
        // What is counted is counted before a test sees it here.
        self.inner.refused(refusal);
        self.refusals.lock().unwrap().push(refusal.clone());
    }
}

#[async_trait]
impl Transport for Recording {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inner: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let ledger = Ledger { inner, refusals: self.refusals.clone() };
        self.inner.listen(at, Arc::new(ledger)).await
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
