//! The transfer of one snapshot: offer, answer, chunks, receipt, and how it fails.

use async_trait::async_trait;
use bytes::Bytes;

use super::{ConnectError, ProgressCell};
use crate::message::Message;
use crate::snapshot_store::{SnapshotMeta, Trailer};

/// A snapshot a leader wants to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// Raft's message, without the body: the receiver steps it once the body is durable.
    pub message: Message,
    /// What the body is.
    pub meta: SnapshotMeta,
    /// The sender's attempt number.
    pub attempt: u64,
}

/// The peer's answer to an offer.
pub enum OfferAnswer {
    /// It wants the bytes from `offset` on.
    Accepted {
        /// Where to start.
        offset: u64,
        /// Takes the bytes.
        transfer: Box<dyn Transfer>,
    },
    /// It has that much already, and has told its Raft: a success.
    AlreadyHave {
        /// Its commit index.
        commit: u64,
    },
    /// It does not want it.
    Refused(SnapshotRefusal),
}

/// The sending side of a transfer. Dropping it aborts: the peer must see a reset, never an ordinary end of stream.
#[async_trait]
pub trait Transfer: Send {
    /// Sends a chunk; may wait for flow control.
    ///
    /// # Errors
    /// [`TransferError`]; the transfer is over.
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError>;

    /// Ends the transfer and waits until the peer has the snapshot durable, verified and taken by Raft. The caller bounds
    /// the time; dropping the future aborts.
    ///
    /// # Errors
    /// [`TransferError`].
    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError>;

    /// What the peer has acknowledged so far. The transport keeps it current, also while [`send`](Self::send) and
    /// [`finish`](Self::finish) wait, and [closes](ProgressCell::close) it when the stream ends: a sender that waits for an
    /// acknowledgement must hear of that.
    fn progress(&self) -> ProgressCell;
}

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its place in the body.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// Their checksum.
    pub crc32c: u32,
}

/// The receiver has the snapshot: durable, verified, taken by Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotReceipt {
    /// The receiver's commit index.
    pub commit: u64,
}

/// What a receiver answers to an offer it does not refuse.
pub enum SinkAnswer {
    /// It wants the bytes from `offset` on.
    Accept {
        /// Where to start.
        offset: u64,
        /// Takes the bytes.
        sink: Box<dyn SnapshotSink>,
    },
    /// It has that much already.
    AlreadyHave {
        /// Its commit index.
        commit: u64,
    },
}

/// The receiving side of a transfer, fed by the transport. Dropping it keeps the verified prefix for a resume.
#[async_trait]
pub trait SnapshotSink: Send {
    /// Takes a chunk.
    ///
    /// # Errors
    /// A typed refusal; the transfer is over.
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal>;

    /// Ends it: verifies, makes durable, steps Raft and looks whether Raft took it. May take long: the transport keeps
    /// sending progress meanwhile. Dropping the future gives the transfer up.
    ///
    /// # Errors
    /// A typed refusal; the attempt failed.
    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal>;

    /// How far it is; the engine keeps it current, also while [`finish`](Self::finish) runs. The transport sends it to
    /// the peer at least every [`PROGRESS_INTERVAL`](super::PROGRESS_INTERVAL) while it changes, and as soon as
    /// [`ACKED_BYTES_MAX`](super::ACKED_BYTES_MAX) more are acknowledged, or an eighth of what was acknowledged before. It
    /// never holds chunks back for it.
    fn progress(&self) -> ProgressCell;
}

/// A receiver does not want a snapshot, or could not take it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// As many transfers as allowed are running. Passes by itself.
    #[error("busy with other snapshots")]
    Busy,
    /// Larger than the receiver allows. Lasting.
    #[error("snapshot of {length} bytes is larger than {length_max}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The limit.
        length_max: u64,
    },
    /// Not for this node or group.
    #[error("not for this node or group")]
    WrongNode,
    /// The sender's term is old.
    #[error("stale term: {theirs} below {ours}")]
    StaleTerm {
        /// The receiver's term.
        ours: u64,
        /// The sender's term.
        theirs: u64,
    },
    /// The bytes are not what the trailer says.
    #[error("corrupt: {detail}")]
    Corrupt {
        /// What is wrong.
        detail: String,
    },
    /// The receiver's disk failed or is full.
    #[error("receiver cannot store it: {detail}")]
    Storage {
        /// What happened.
        detail: String,
    },
    /// Raft ignored it, or is not there to take it.
    #[error("not taken by Raft: {detail}")]
    NotTaken {
        /// Why, as far as is known.
        detail: String,
    },
    /// Nothing came for too long.
    #[error("no chunk came for {millis} ms")]
    Stalled {
        /// How long the receiver waited.
        millis: u64,
    },
    /// A later attempt, or a later leader, has taken its place.
    #[error("a later attempt has taken its place")]
    Superseded,
    /// This version of the receiver does not take snapshots.
    #[error("snapshots are not supported")]
    Unsupported,
}

impl SnapshotRefusal {
    /// Whether the receiver will refuse the same offer again until an operator changes something.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::WrongNode | Self::Unsupported)
    }
}

/// A transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// No connection, before anything moved.
    #[error("cannot offer the snapshot")]
    Connect(#[source] ConnectError),
    /// The receiver gave up, with its reason.
    #[error("the receiver gave up: {0}")]
    Refused(#[source] SnapshotRefusal),
    /// The stream broke.
    #[error("the transfer broke: {detail}")]
    Broken {
        /// What the library said.
        detail: String,
    },
    /// The transport does not carry snapshots.
    #[error("this transport does not carry snapshots")]
    Unsupported,
}
