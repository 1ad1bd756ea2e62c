//! The seam of the network: moves frames to and from peers.
//!
//! A transport has no queue, retries nothing and decides nothing. The lanes above it do that for all transports: queues,
//! batches, backoff, drops, reports to Raft and metrics. A transport guarantees:
//!
//! * A [`Link`] is one ordered stream with its own flow control. Links of different lanes do not delay each other.
//! * When a link dies, the transport calls [`LinkFeedback::closed`] exactly once, or drops the feedback.
//! * No frame of a peer reaches [`PeerSession::deliver`] before [`Inbound::admit`] has accepted the peer's [`Hello`].
//!
//! The conformance suite in `towline-testkit` tests a transport.

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::ids::{ClusterId, FoundingHash, GroupId, Incarnation, NodeId, PeerAddr};
use crate::message::{Batch, Lane, LostEntries};

mod progress;
mod transfer;

pub use self::progress::{
    ACKED_BYTES_MAX, BytesTaken, PROGRESS_INTERVAL, ProgressCell, TransferPhase, TransferProgress,
};
pub use self::transfer::{
    Chunk, OfferAnswer, SinkAnswer, SnapshotOffer, SnapshotReceipt, SnapshotRefusal, SnapshotSink, Transfer,
    TransferError,
};

/// The protocol version of this build. The handshake refuses a peer with another version.
pub const PROTOCOL_VERSION: u32 = 1;

/// The error of the library below a transport.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// The most payload bytes of a snapshot chunk.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The most bytes of an encoded message. The engine makes no larger one, and every transport carries it.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Connects to peers and accepts their connections. Its futures run on the node's network runtime.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The scheme of its addresses, such as `grpc`; also a metric label.
    fn scheme(&self) -> &'static str;

    /// The node that this transport's own certificate names. A node refuses to start with another node's certificate. The
    /// default is for transports without certificates.
    fn identity(&self) -> Option<NodeId> {
        None
    }

    /// Accepts connections at `at` until the listener is shut down or dropped.
    ///
    /// # Errors
    /// [`TransportError::Bind`] names the address, for example if it is in use.
    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError>;

    /// Opens one lane to a peer. Returns when the peer has answered the handshake. The caller bounds the time. Dropping the
    /// future aborts the attempt. `feedback` belongs to the link from the call on.
    ///
    /// # Errors
    /// [`ConnectError::Refused`] carries the peer's own reason.
    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError>;

    /// Offers a snapshot to a peer, which answers before a payload byte moves. This can take long, because a peer with a
    /// partial file verifies it first. Meanwhile the transport updates `deciding`, by which the caller bounds the time. With
    /// the default, every attempt fails.
    ///
    /// # Errors
    /// [`TransferError`], but never [`TransferError::Refused`]: a refusal is an answer ([`OfferAnswer::Refused`]).
    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let _ = (to, hello, offer, deciding);
        Err(TransferError::Unsupported)
    }
}

/// A peer to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// The address on which it listens.
    pub address: PeerAddr,
}

/// The first frame of a dialler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The dialler's cluster.
    pub cluster: ClusterId,
    /// The dialler.
    pub from: NodeId,
    /// The node that the dialler wants to reach.
    pub to: NodeId,
    /// The dialler's incarnation.
    pub incarnation: Incarnation,
    /// The dialler's [`PROTOCOL_VERSION`].
    pub protocol: u32,
}

/// The answer to an accepted [`Hello`]. The engine compares the incarnation with the one it remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The answering node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its protocol version.
    pub protocol: u32,
}

/// The result of [`Transport::connect`].
pub struct Connected {
    /// The lane.
    pub link: Box<dyn Link>,
    /// The answer of the peer.
    pub welcome: Welcome,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("welcome", &self.welcome).finish_non_exhaustive()
    }
}

/// One lane to one peer.
#[async_trait]
pub trait Link: Send {
    /// Passes a batch to the link, in order. `Ok` means that flow control has taken it, not that it was delivered. May wait for
    /// the peer to make room. The caller bounds the time.
    ///
    /// Not cancel-safe: after an error, or after dropping the future, the caller drops the link. All that the link had
    /// accepted then counts as lost.
    ///
    /// # Errors
    /// [`DispatchError`].
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError>;

    /// The bytes of batches that flow control has taken, also while [`dispatch`](Self::dispatch) waits. While the count grows
    /// the caller goes on waiting, because the link is slow and not stuck. Some flow control makes room in steps that take
    /// seconds over a slow link. The count must then also grow with the peer's acknowledgements. The default counts nothing.
    fn taken(&self) -> BytesTaken {
        BytesTaken::default()
    }
}

/// Reports the events of a link to the engine. Its calls never block. Dropping it reports [`LinkClosed::Abandoned`].
pub struct LinkFeedback {
    events: Option<Arc<dyn LinkEvents>>,
}

impl LinkFeedback {
    /// Creates a feedback for `events`. The engine and tests of transports call this.
    pub fn new(events: Arc<dyn LinkEvents>) -> Self {
        Self { events: Some(events) }
    }

    /// Reports that the peer refused messages of one group. The link stays open.
    pub fn nack(&self, nack: Nack) {
        if let Some(events) = &self.events {
            events.nack(nack);
        }
    }

    /// Reports the end of the link.
    pub fn closed(mut self, cause: LinkClosed) {
        self.close(cause);
    }

    fn close(&mut self, cause: LinkClosed) {
        if let Some(events) = self.events.take() {
            events.closed(cause);
        }
    }
}

impl Drop for LinkFeedback {
    fn drop(&mut self) {
        self.close(LinkClosed::Abandoned);
    }
}

impl fmt::Debug for LinkFeedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkFeedback").finish_non_exhaustive()
    }
}

/// The receiving end of a [`LinkFeedback`]. Its methods never block and never panic.
pub trait LinkEvents: Send + Sync + 'static {
    /// See [`LinkFeedback::nack`].
    fn nack(&self, nack: Nack);
    /// Called exactly once. See [`LinkFeedback::closed`].
    fn closed(&self, cause: LinkClosed);
}

/// A refusal of messages of one group. Other groups on the lane are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nack {
    /// The group.
    pub group: GroupId,
    /// Why.
    pub cause: NackCause,
}

/// Why a peer refused messages of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NackCause {
    /// The group's inbox, or its part of memory, is full.
    InboxFull,
    /// The group is not on that node, or not yet.
    UnknownGroup,
    /// The group is quarantined there.
    GroupDown,
    /// The peer may not send such a message, or its fields would damage the receiver's log.
    Rejected,
    /// That node lost entries of the group that it had acknowledged. The group is out of service there for good.
    EntriesLost(LostEntries),
    /// The group was founded with another list of founders there.
    FoundedDifferently,
    /// The disk of that node is low: it takes no commands.
    DiskFull,
}

impl fmt::Display for NackCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InboxFull => "its inbox of the group is full",
            Self::UnknownGroup => "the group does not run there",
            Self::GroupDown => "the group is out of service there",
            Self::Rejected => "it rejects a message that would damage its log",
            Self::EntriesLost(lost) => {
                return write!(f, "{lost}; the group is out of service there for good");
            }
            Self::FoundedDifferently => "the group was founded with another list of founders there",
            Self::DiskFull => "its disk is low, so it takes no commands",
        })
    }
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkClosed {
    /// The peer closed the link.
    ByPeer {
        /// The reason of the peer or the library.
        detail: String,
    },
    /// The connection broke, or keep-alive found it dead.
    Broken {
        /// The cause, for the log.
        detail: String,
    },
    /// The peer broke the protocol.
    Violation {
        /// What it sent.
        detail: String,
    },
    /// This node dropped the link.
    Abandoned,
}

/// The listening side of a transport. Dropping it stops accepting and closes all accepted connections.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The bound address, with the real port if the request was for port 0.
    fn local_addr(&self) -> SocketAddr;
    /// Stops accepting, and returns when all accepted connections are closed.
    async fn shutdown(self: Box<Self>);
}

/// Admits dialling peers. A session exists only after its handshake, so each session is authenticated.
pub trait Inbound: Send + Sync + 'static {
    /// Decides whether to admit a dialler. `cert` is the identity in the dialler's verified certificate, if the transport
    /// uses certificates. Never blocks for long, but may read a small table.
    ///
    /// # Errors
    /// [`Refusal`], which the transport sends to the dialler before it closes the connection.
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal>;

    /// Counts and logs a connection that sent no valid [`Hello`].
    fn refused(&self, refusal: &Refusal) {
        let _ = refusal;
    }
}

/// The identity in a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertIdentity {
    /// The node that it was issued to.
    pub node: NodeId,
}

/// An accepted connection whose peer has passed the handshake.
#[async_trait]
pub trait PeerSession: Send + Sync {
    /// The peer.
    fn peer(&self) -> NodeId;

    /// The answer to the peer's hello.
    fn welcome(&self) -> Welcome;

    /// Takes a batch from a lane. Never blocks. Returns at most one nack for each group that refused its messages. The
    /// transport sends the nacks to the peer.
    ///
    /// # Errors
    /// [`Violation`]: the transport closes the lane. A fault of one group alone is no violation.
    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation>;

    /// Counts nacks of [`deliver`](Self::deliver) that the transport could not send, because the peer does not read them.
    fn nacks_dropped(&self, lane: Lane, count: usize) {
        let _ = (lane, count);
    }

    /// Takes a snapshot offer. May take long, and updates `deciding` meanwhile. The transport sends that to the peer like
    /// [`SnapshotSink::progress`]. Dropping the future aborts the attempt.
    ///
    /// # Errors
    /// [`SnapshotRefusal`], before any payload.
    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal>;
}

/// The most groups in a [`Refusal::UnknownPeer`].
pub const FOUNDED_MAX: usize = 64;

/// A group of a node, and its list of founders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founded {
    /// The group.
    pub group: GroupId,
    /// The list of founders.
    pub founding: FoundingHash,
}

/// Why a node refused a connection. It crosses the wire with its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The dialler belongs to another cluster.
    #[error("wrong cluster: this node belongs to `{ours}`")]
    WrongCluster {
        /// The cluster of the node that refused.
        ours: String,
    },
    /// The dialler wanted another node: an address points to the wrong machine.
    #[error("wrong node: this is node {ours}")]
    WrongNode {
        /// The node that refused.
        ours: u64,
    },
    /// The dialler is no member of any group here.
    #[error("{}", match .founded.is_empty() {
        true => format!("no group has started here yet, so node {peer} cannot be checked"),
        false => format!("node {peer} is not a member of a group that has started here"),
    })]
    UnknownPeer {
        /// The dialler.
        peer: u64,
        /// The groups that have started here, at most [`FOUNDED_MAX`]; empty before the first one. If the dialler founded one of them too, it did so with another list.
        founded: Vec<Founded>,
    },
    /// The dialler's id is known with another data directory: its disk was emptied, or two nodes use one id.
    #[error("node {peer} came with another incarnation: its data directory is not the one that joined")]
    WrongIncarnation {
        /// The dialler.
        peer: u64,
    },
    /// The dialler has another protocol version.
    #[error("this node speaks protocol version {ours}, not {theirs}")]
    Version {
        /// The version of the node that refused; 0 if unknown.
        ours: u32,
        /// The version of the dialler.
        theirs: u32,
    },
    /// The certificate is missing, or does not belong to the node id in the hello.
    #[error("not authenticated: {detail}")]
    Unauthenticated {
        /// What is wrong.
        detail: String,
    },
    /// The dialler's certificate was refused, before any hello.
    #[error("the dialler's certificate was refused: {0}")]
    Certificate(#[source] CertRefusal),
    /// The dialler refused this node's certificate, before any hello. Only for counters and the log.
    #[error("the dialler refused this node's certificate: {0}")]
    OwnCertificate(#[source] CertRefusal),
    /// The first frame was not a hello.
    #[error("malformed hello: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// The node has the most connections that it allows, from this peer or in total.
    #[error("too many connections")]
    TooManyConnections,
    /// A newer connection of the same, admitted peer took the place of this one. Usual after the peer was killed and restarted:
    /// its old connection is dead.
    #[error("a newer connection of the same peer replaced this one")]
    Displaced,
    /// No hello came in time.
    #[error("no hello within the handshake timeout")]
    HandshakeTimeout,
    /// The node is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

/// Why a node refused a certificate. Sent as a TLS alert, it may lose numbers and details.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertRefusal {
    /// There is no certificate.
    #[error("no certificate")]
    Missing,
    /// No trusted authority has signed the certificate.
    #[error("signed by an unknown authority")]
    UnknownAuthority,
    /// The certificate has expired. Likely it was not renewed, or a clock is wrong.
    #[error("expired")]
    Expired,
    /// The certificate is not valid yet. Likely a clock is wrong.
    #[error("not valid yet")]
    NotYetValid,
    /// The certificate names no node, or several.
    #[error("names no node")]
    NoNode,
    /// The certificate belongs to another node than the dialled one.
    #[error("belongs to node {node}")]
    OtherNode {
        /// The node that it names.
        node: u64,
    },
    /// Any other fault, such as bytes that are no certificate.
    #[error("not acceptable: {detail}")]
    Invalid {
        /// What is wrong.
        detail: String,
    },
}

/// Why a transport could not start to listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen at {address}")]
    Bind {
        /// The address.
        address: PeerAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The transport cannot or may not listen at the address.
    #[error("cannot listen at {address}: {detail}")]
    Address {
        /// The address.
        address: PeerAddr,
        /// The reason, and what is allowed.
        detail: String,
    },
}

/// Why a lane could not be opened. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer refused the connection.
    #[error("refused by the peer: {0}")]
    Refused(#[source] Refusal),
    /// Another node, or another version, answered.
    #[error("the wrong peer answered: {detail}")]
    WrongPeer {
        /// The node or version that answered.
        detail: String,
    },
    /// The dialled node has an invalid certificate.
    #[error("the certificate of {address} was refused: {refusal}")]
    Certificate {
        /// The address.
        address: PeerAddr,
        /// What is wrong with it.
        #[source]
        refusal: CertRefusal,
    },
    /// No node answered.
    #[error("cannot reach {address}")]
    Unreachable {
        /// The address.
        address: PeerAddr,
        /// The error of the library.
        #[source]
        source: BoxError,
    },
    /// The answer was not of the protocol.
    #[error("{address} does not speak the protocol: {detail}")]
    Protocol {
        /// The address.
        address: PeerAddr,
        /// The answer.
        detail: String,
    },
    /// The transport cannot or may not dial the address.
    #[error("cannot dial {address}: {detail}")]
    Address {
        /// The address.
        address: PeerAddr,
        /// The reason.
        detail: String,
    },
}

/// Why a link did not take a batch. The batch, and all that the link accepted but did not deliver, counts as lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// The link is gone.
    #[error("the link is closed")]
    Closed,
    /// One message is larger than a frame may be.
    #[error("a message of {bytes} bytes does not fit in a frame of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// The peer broke the protocol in a way that concerns the whole connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: {detail}")]
pub struct Violation {
    /// What it did.
    pub detail: String,
}
