//! Towline's transport over gRPC: one HTTP/2 connection and one bidirectional stream for each (peer, lane), so that a
//! heartbeat never waits behind an append, not even in the kernel's send buffer.
//!
//! It keeps the contract of [`towline_engine::transport`] and adds nothing to it: no queue beyond one frame, no retry,
//! no decision. Flow control is HTTP/2's: [`Link::dispatch`] waits while the peer does not take more. A dead connection
//! is found by keep-alive within [`GrpcConfig::keepalive_interval`] + [`GrpcConfig::keepalive_timeout`], also when idle.
//!
//! It speaks plain text and therefore refuses addresses that are not loopback, unless
//! [`GrpcConfig::allow_plaintext_off_loopback`] says otherwise. It authenticates nobody.
//!
//! No type of tonic or prost is visible. All calls must come from inside a tokio runtime, whose tasks then do the work;
//! they end with the link or the listener they serve.
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
mod codec;
mod config;
mod connection;
mod lane;
mod link;
mod listener;
mod snapshot;

/// The generated service.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, dead_code)]
mod service {
    include!("gen/towline.v1.rs");
}

use std::sync::Arc;

use async_trait::async_trait;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, Connected, Hello, Inbound, LinkFeedback, Listener, OfferAnswer, Peer, SnapshotOffer,
    TransferError, Transport, TransportError,
};

pub use config::GrpcConfig;

/// The transport. Cheap to make; connections and listeners are independent of it.
#[derive(Debug)]
pub struct GrpcTransport {
    config: GrpcConfig,
    plain_text: address::PlainText,
}

impl GrpcTransport {
    /// A transport with these settings.
    pub fn new(config: GrpcConfig) -> Self {
        let plain_text = address::PlainText::new(config.allow_plaintext_off_loopback);
        Self { config, plain_text }
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

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        listener::listen(&self.config, &self.plain_text, at, inbound).await
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        link::connect(&self.config, &self.plain_text, to, lane, hello, feedback).await
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
    ) -> Result<OfferAnswer, TransferError> {
        snapshot::offer(&self.config, &self.plain_text, to, hello, offer).await
    }
}
