//! Towline's transport over gRPC: one HTTP/2 connection with one bidirectional stream for each (peer, lane). A heartbeat
//! therefore never waits behind an append, not even in the kernel's send buffer.
//!
//! It implements the contract of [`towline_engine::transport`] and adds no queue beyond one frame, no retry and no decision.
//! Flow control is HTTP/2's: [`Link::dispatch`] waits while the peer's window is full. A dead connection is found within
//! [`GrpcConfig::keepalive_interval`] + [`GrpcConfig::keepalive_timeout`], also when it is idle.
//!
//! With a [`TlsConfig`] ([`GrpcTransport::with_tls`]) it speaks mutual TLS 1.3. Without one it speaks plain text and
//! authenticates no peer. It then refuses addresses beyond loopback, unless [`GrpcConfig::allow_plaintext_off_loopback`]
//! is set.
//!
//! No type of tonic, prost or rustls is public. Call everything inside a tokio runtime. Its tasks do the work; they end with
//! the link or the listener that they serve.
//!
//! ```
//! use towline_engine::transport::Transport;
//! use towline_grpc::{GrpcConfig, GrpcTransport};
//!
//! let transport = GrpcTransport::new(GrpcConfig::default());
//! assert_eq!(transport.scheme(), "grpc");
//! // Node::builder(id, cluster).transport(transport, "grpc://127.0.0.1:7001") does the rest.
//! ```
//!
//! [`Link::dispatch`]: towline_engine::transport::Link::dispatch
#![forbid(unsafe_code)]

mod address;
mod alive;
mod config;
mod connection;
mod dial;
mod listener;
mod secured;
mod stream;
mod tasks;

use std::sync::Arc;

use async_trait::async_trait;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, Connected, Hello, Inbound, LinkFeedback, Listener, OfferAnswer, Peer, ProgressCell,
    SnapshotOffer, TransferError, Transport, TransportError,
};
use towline_tls::TlsConfig;
use towline_wire::Purpose;
use towline_wire::streams::{self, link};

pub use config::GrpcConfig;

/// The gRPC transport of one node. Connections and listeners are independent of it.
#[derive(Debug)]
pub struct GrpcTransport {
    config: GrpcConfig,
    security: address::Security,
}

impl GrpcTransport {
    /// Creates a plain-text transport.
    pub fn new(config: GrpcConfig) -> Self {
        let security = address::Security::new(None, config.allow_plaintext_off_loopback);
        Self { config: config.bounded(), security }
    }

    /// Creates a transport with mutual TLS 1.3: certificates prove the node id of both sides before the first byte of the
    /// protocol. It neither speaks nor accepts plain text.
    pub fn with_tls(config: GrpcConfig, tls: TlsConfig) -> Self {
        let security = address::Security::new(Some(tls), false);
        Self { config: config.bounded(), security }
    }
}

impl Default for GrpcTransport {
    fn default() -> Self {
        Self::new(GrpcConfig::default())
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    fn scheme(&self) -> &'static str {
        address::SCHEME
    }

    fn identity(&self) -> Option<NodeId> {
        self.security.tls.as_ref().map(TlsConfig::node)
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        listener::listen(&self.config, &self.security, at, inbound).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let opened = dial::open(&self.config, &self.security, to, lane.into(), hello).await;
        opened.map(|(sink, source, welcome)| Connected { link: link(sink, source, feedback), welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let opened = dial::open(&self.config, &self.security, to, Purpose::Snapshot, hello).await;
        let (sink, source, _) = opened.map_err(TransferError::Connect)?;
        streams::offer(sink, source, offer, deciding).await
    }
}
