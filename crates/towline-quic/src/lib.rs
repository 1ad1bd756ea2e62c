//! Towline's transport over QUIC. There is one connection for each dialled peer, with a long-lived bidirectional stream for
//! each lane and one stream for each snapshot transfer. Stream priorities send control before append before snapshot. No
//! stream waits for another stream's lost packet.
//!
//! It implements the contract of [`towline_engine::transport`] and adds no queue, no retry and no decision. Flow control is
//! QUIC's: [`Link::dispatch`] waits while the peer's window is full. A dead connection is found within
//! [`QuicConfig::keepalive_interval`] + [`QuicConfig::idle_timeout`], also when it is idle.
//!
//! Connections always use mutual TLS 1.3: [`TlsConfig`] proves the node id of both ends before the first byte of the
//! protocol. The application protocol is `towline/1`, so TLS itself refuses another version.
//!
//! These features of QUIC are switched off:
//! * 0-RTT: a replayed hello would open a session.
//! * Session resumption: a renewed authority takes effect with the next connection.
//! * Datagrams and one-way streams: nothing uses them.
//! * Connection migration: a node's address stands in the table of members. If a NAT changes a node's port, the node
//!   reconnects.
//!
//! Two nodes that dial each other have two connections, one for each direction: a lane belongs to its sender.
//!
//! No type of quinn or rustls is public. Call everything inside a tokio runtime. Its tasks do the work; they end with the
//! link or the listener that they serve.
//!
//! ```no_run
//! use towline_engine::transport::Transport;
//! use towline_quic::{QuicConfig, QuicTransport};
//! use towline_tls::{TlsConfig, TlsFiles};
//!
//! # fn main() -> Result<(), towline_tls::TlsError> {
//! let files = TlsFiles { ca: "ca.pem".into(), cert: "node-1.pem".into(), key: "node-1.key".into() };
//! let transport = QuicTransport::new(QuicConfig::default(), TlsConfig::from_files(files)?);
//! assert_eq!(transport.scheme(), "quic");
//! // Node::builder(id, cluster).transport(transport, "quic://10.0.0.1:7001") does the rest.
//! # Ok(())
//! # }
//! ```
//!
//! [`Link::dispatch`]: towline_engine::transport::Link::dispatch
#![forbid(unsafe_code)]

mod codes;
mod config;
mod connection;
mod dial;
mod listener;
mod runtime;
mod stream;

use std::fmt;
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

pub use config::QuicConfig;

/// The QUIC transport of one node. Links to the same peer share a connection. Listeners are independent of the transport.
pub struct QuicTransport {
    config: QuicConfig,
    tls: TlsConfig,
    dials: Arc<dial::Dials>,
}

impl QuicTransport {
    /// Creates a transport with these settings. `tls` holds this node's certificate and the trusted authorities.
    pub fn new(config: QuicConfig, tls: TlsConfig) -> Self {
        Self { config, tls, dials: Arc::default() }
    }
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport")
            .field("config", &self.config)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn scheme(&self) -> &'static str {
        dial::SCHEME
    }

    fn identity(&self) -> Option<NodeId> {
        Some(self.tls.node())
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        listener::listen(&self.config, &self.tls, at, inbound).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let dialled = self.dials.of_lane(&self.config, &self.tls, to).await?;
        let (sink, source, welcome) = stream::open(dialled, to, lane.into(), hello).await?;
        Ok(Connected { link: link(sink, source, feedback), welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let dialled = self.dials.of_snapshot(&self.config, &self.tls, to).await;
        let dialled = dialled.map_err(TransferError::Connect)?;
        let opened = stream::open(dialled, to, Purpose::Snapshot, hello).await;
        let (sink, source, _) = opened.map_err(TransferError::Connect)?;
        streams::offer(sink, source, offer, deciding).await
    }
}
