//! How frames reach a peer and how they come in.
//!
//! A transport moves frames. It keeps no queue of its own, retries nothing and decides nothing: queues, batching,
//! backoff, drop policy, reports to Raft and metrics live once, above it, in the lanes. What a transport owes:
//!
//! * a [`Link`] is one ordered stream with its own flow control; links of different lanes do not delay each other;
//! * when a link dies, [`LinkFeedback::closed`] is called exactly once (dropping the feedback does it too);
//! * nobody's frames reach [`PeerSession::deliver`] before [`Inbound::admit`] accepted that peer's [`Hello`].
//!
//! The suite in `towline-testkit` proves an implementation.

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use crate::message::{Batch, Lane};

mod progress;
mod transfer;

pub use self::progress::{
    ACKED_BYTES_MAX, BytesTaken, PROGRESS_INTERVAL, ProgressCell, TransferPhase, TransferProgress,
};
pub use self::transfer::{
    Chunk, OfferAnswer, SinkAnswer, SnapshotOffer, SnapshotReceipt, SnapshotRefusal, SnapshotSink, Transfer,
    TransferError,
};

/// The version of the protocol this build speaks; a peer with another one is refused in the handshake.
pub const PROTOCOL_VERSION: u32 = 1;

/// The cause behind a transport's error, of whatever library it is built on.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// Payload bytes of one snapshot chunk at most.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The largest encoded message every transport carries, in bytes. The engine never makes a larger one.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A way to reach peers. Its futures run on the node's network runtime.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The scheme of the addresses it serves, such as `grpc`; also a metric label.
    fn scheme(&self) -> &'static str;

    /// Accepts connections at `at` until the listener is shut down or dropped.
    ///
    /// # Errors
    /// [`TransportError::Bind`] names the address, for instance when it is in use.
    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError>;

    /// Opens one lane to a peer. Returns once the peer has answered the handshake; the caller bounds the time.
    /// Dropping the future gives the attempt up. `feedback` belongs to the link from the moment of the call.
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

    /// Offers a snapshot to a peer, which answers before a byte of it moves. That can take long: a peer that has a part
    /// of it reads that again first. The transport keeps `deciding` current meanwhile, and the caller bounds the time by
    /// it. A transport without snapshot transfer keeps this default; the attempt then fails and is reported as every
    /// other failure.
    ///
    /// # Errors
    /// [`TransferError`]; never [`TransferError::Refused`], which is an answer ([`OfferAnswer::Refused`]).
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
    /// Where it listens.
    pub address: PeerAddr,
}

/// The first thing a dialler says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The dialler's cluster.
    pub cluster: ClusterId,
    /// The dialler.
    pub from: NodeId,
    /// Whom it means to reach.
    pub to: NodeId,
    /// The dialler's incarnation.
    pub incarnation: Incarnation,
    /// The protocol it speaks: [`PROTOCOL_VERSION`].
    pub protocol: u32,
}

/// The answer to a [`Hello`] that was accepted. The engine compares the incarnation with the one it remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Who answered.
    pub node: NodeId,
    /// The answering node's incarnation.
    pub incarnation: Incarnation,
    /// The protocol it speaks.
    pub protocol: u32,
}

/// What [`Transport::connect`] gives.
pub struct Connected {
    /// The lane.
    pub link: Box<dyn Link>,
    /// Who answered.
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
    /// Hands a batch to the lane. `Ok` means that flow control took it, in order; it does not mean delivered. May wait
    /// for the peer to make room: the caller bounds the time.
    ///
    /// Not cancel-safe: after an error, or when the future is dropped before it ended, the link is of no further use
    /// and the caller drops it. Whatever it had accepted counts as lost.
    ///
    /// # Errors
    /// [`DispatchError`].
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError>;

    /// Grows with what flow control takes of the batches, also while [`dispatch`](Self::dispatch) waits. While it moves the
    /// caller goes on waiting: the link is slow, and not stuck. Where flow control makes room in steps that take seconds over
    /// a slow link, it grows with what the peer says it has taken, too. A link that does not count keeps this default.
    fn taken(&self) -> BytesTaken {
        BytesTaken::default()
    }
}

/// Where a link tells the engine what comes back. Its calls never block.
///
/// Dropping it means [`LinkClosed::Abandoned`], so no path forgets to say that a link is gone.
pub struct LinkFeedback {
    events: Option<Arc<dyn LinkEvents>>,
}

impl LinkFeedback {
    /// A feedback that tells `events`. The engine makes these, and tests of transports.
    pub fn new(events: Arc<dyn LinkEvents>) -> Self {
        Self { events: Some(events) }
    }

    /// The peer refused messages of one group; the link itself is well.
    pub fn nack(&self, nack: Nack) {
        if let Some(events) = &self.events {
            events.nack(nack);
        }
    }

    /// The link is gone.
    pub fn closed(mut self, cause: LinkClosed) {
        if let Some(events) = self.events.take() {
            events.closed(cause);
        }
    }
}

impl Drop for LinkFeedback {
    fn drop(&mut self) {
        if let Some(events) = self.events.take() {
            events.closed(LinkClosed::Abandoned);
        }
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

/// A peer could not take messages of one group. Other groups on the same lane are not concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nack {
    /// The group.
    pub group: GroupId,
    /// Why.
    pub cause: NackCause,
}

/// Why messages of a group were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NackCause {
    /// The group's inbox, or its part of memory, is full.
    InboxFull,
    /// The group is not on that node (yet).
    UnknownGroup,
    /// The group is quarantined there.
    GroupDown,
    /// The message was not one this peer may send: wrong sender or receiver, a kind that is not allowed, or fields
    /// that would damage the receiver's log.
    Rejected,
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkClosed {
    /// The peer ended it.
    ByPeer {
        /// What the peer or the library said.
        detail: String,
    },
    /// The connection broke, or keep-alive found it dead.
    Broken {
        /// Which of them, in words for the log.
        detail: String,
    },
    /// The peer sent something that is not of the protocol.
    Violation {
        /// What it was.
        detail: String,
    },
    /// Our side gave it up.
    Abandoned,
}

/// The listening side of a transport. Dropping it stops accepting and closes what was accepted.
#[async_trait]
pub trait Listener: Send + Sync {
    /// Where it listens: with the real port if port 0 was asked for.
    fn local_addr(&self) -> SocketAddr;
    /// Stops accepting, closes what was accepted and returns when both are done.
    async fn shutdown(self: Box<Self>);
}

/// The way in. A session exists only after its handshake, so having one *is* being authenticated.
pub trait Inbound: Send + Sync + 'static {
    /// Decides whether a dialler may come in. Never blocks for long (it may read a small table).
    ///
    /// `cert` is what the dialler's certificate says, where the transport checked one.
    ///
    /// # Errors
    /// [`Refusal`], which the transport sends to the dialler before it closes.
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal>;

    /// A connection that never got as far as a valid [`Hello`]: for counters and the log.
    fn refused(&self, refusal: &Refusal) {
        let _ = refusal;
    }
}

/// What a verified certificate says about its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertIdentity {
    /// The node it was issued to.
    pub node: NodeId,
}

/// A peer that passed the handshake.
#[async_trait]
pub trait PeerSession: Send + Sync {
    /// Who it is.
    fn peer(&self) -> NodeId;

    /// What the transport answers to its hello.
    fn welcome(&self) -> Welcome;

    /// Takes a batch that arrived on a lane. Never blocks. Groups that could not take theirs come back as nacks, at
    /// most one a group, which the transport sends to the peer.
    ///
    /// # Errors
    /// [`Violation`]: the transport closes the lane. Nothing that concerns one group alone does that.
    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation>;

    /// The transport could not send `count` nacks that [`deliver`](Self::deliver) gave it, because the peer does not
    /// read what goes back: for counters.
    fn nacks_dropped(&self, lane: Lane, count: usize) {
        let _ = (lane, count);
    }

    /// Takes a snapshot offer. May take long, and keeps `deciding` current meanwhile: the transport tells the peer of it
    /// as it does of [`SnapshotSink::progress`]. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// A typed refusal, before any payload.
    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal>;
}

/// A connection-level refusal; it crosses the wire with its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The dialler belongs to another cluster.
    #[error("wrong cluster: this node belongs to `{ours}`")]
    WrongCluster {
        /// The cluster of the node that refused.
        ours: String,
    },
    /// The dialler wanted another node; an address points to the wrong machine.
    #[error("wrong node: this is node {ours}")]
    WrongNode {
        /// The node that refused.
        ours: u64,
    },
    /// The dialler is no member of any group here.
    #[error("node {peer} is not a member")]
    UnknownPeer {
        /// Who called.
        peer: u64,
    },
    /// The dialler's id is known with another data directory: its disk was emptied, or two nodes use one id.
    #[error("node {peer} came with another incarnation: its data directory is not the one that joined")]
    WrongIncarnation {
        /// Who called.
        peer: u64,
    },
    /// The dialler speaks another version of the protocol.
    #[error("protocol version {theirs} is not spoken here, but {ours}")]
    Version {
        /// Of the node that refused; 0 if it could not say.
        ours: u32,
        /// Of the dialler.
        theirs: u32,
    },
    /// The certificate does not belong to the node id in the hello, or there is none where one is required.
    #[error("not authenticated: {detail}")]
    Unauthenticated {
        /// What is wrong.
        detail: String,
    },
    /// The dialler's certificate was refused, before any hello.
    #[error("the dialler's certificate was refused: {0}")]
    Certificate(#[source] CertRefusal),
    /// The dialler refused the certificate of the node it called, before any hello. For counters and the log of that
    /// node: it never crosses the wire as a refusal.
    #[error("the dialler refused this node's certificate: {0}")]
    OwnCertificate(#[source] CertRefusal),
    /// The first frame was not a hello.
    #[error("malformed hello: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// The node has as many connections as it allows, from this peer or in all.
    #[error("too many connections")]
    TooManyConnections,
    /// No hello came in time.
    #[error("no hello within the handshake timeout")]
    HandshakeTimeout,
    /// The node is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

/// Why a certificate proves nothing. Where it crosses the wire as a TLS alert, numbers and details may be lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertRefusal {
    /// There is none.
    #[error("no certificate")]
    Missing,
    /// No authority that is trusted here has signed it.
    #[error("signed by an unknown authority")]
    UnknownAuthority,
    /// Its time is over. Likely it was not renewed, or a clock is wrong.
    #[error("expired")]
    Expired,
    /// Its time has not come. Likely a clock is wrong.
    #[error("not valid yet")]
    NotYetValid,
    /// It names no node, or several.
    #[error("names no node")]
    NoNode,
    /// It names another node than the one that was called.
    #[error("belongs to node {node}")]
    OtherNode {
        /// The node it names.
        node: u64,
    },
    /// Anything else that makes it worthless, such as bytes that are no certificate.
    #[error("not acceptable: {detail}")]
    Invalid {
        /// What is wrong.
        detail: String,
    },
}

/// A transport could not start to listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen at {address}")]
    Bind {
        /// Where.
        address: PeerAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The address is not one this transport can listen at or may not, with the reason.
    #[error("cannot listen at {address}: {detail}")]
    Address {
        /// Where.
        address: PeerAddr,
        /// Why not, and what is allowed.
        detail: String,
    },
}

/// A lane could not be opened. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer answered, and refused.
    #[error("refused by the peer: {0}")]
    Refused(#[source] Refusal),
    /// Another node, or another version, answered than was expected.
    #[error("the wrong peer answered: {detail}")]
    WrongPeer {
        /// Who answered.
        detail: String,
    },
    /// What answered has a certificate that proves nothing.
    #[error("the certificate of {address} was refused: {refusal}")]
    Certificate {
        /// Where.
        address: PeerAddr,
        /// What is wrong with it.
        #[source]
        refusal: CertRefusal,
    },
    /// Nobody answered.
    #[error("cannot reach {address}")]
    Unreachable {
        /// Where.
        address: PeerAddr,
        /// What the library said.
        #[source]
        source: BoxError,
    },
    /// What answered does not speak the protocol.
    #[error("{address} does not speak the protocol: {detail}")]
    Protocol {
        /// Where.
        address: PeerAddr,
        /// What it said.
        detail: String,
    },
    /// The address is not one this transport can or may dial.
    #[error("cannot dial {address}: {detail}")]
    Address {
        /// Where.
        address: PeerAddr,
        /// Why not.
        detail: String,
    },
}

/// A batch could not be handed over. It, and all that the link accepted before and did not deliver, counts as lost.
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
