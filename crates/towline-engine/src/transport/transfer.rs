//! The transfer of one snapshot: offer, answer, chunks, receipt and errors.

use async_trait::async_trait;
use bytes::Bytes;

use super::{ConnectError, ProgressCell};
use crate::message::Message;
use crate::snapshot_store::{SnapshotMeta, Trailer};

/// The question to a peer whether it wants a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// Raft's message, without the body. The receiver steps it once the body is durable.
    pub message: Message,
    /// The description of the snapshot.
    pub meta: SnapshotMeta,
    /// The sender's attempt number.
    pub attempt: u64,
}

/// The peer's answer to an offer.
pub enum OfferAnswer {
    /// The peer wants the bytes from `offset` on.
    Accepted {
        /// The offset in the body.
        offset: u64,
        /// Sends the bytes.
        transfer: Box<dyn Transfer>,
    },
    /// The peer has the snapshot's entries already, and its Raft has acknowledged them: a success.
    AlreadyHave {
        /// The peer's commit index.
        commit: u64,
    },
    /// The peer refuses the snapshot.
    Refused(SnapshotRefusal),
}

/// The sending side of a transfer. Dropping it aborts: the peer must see a reset, never an ordinary end of stream.
#[async_trait]
pub trait Transfer: Send {
    /// Sends a chunk. May wait for flow control.
    ///
    /// # Errors
    /// [`TransferError`]; the transfer is over.
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError>;

    /// Ends the transfer, and waits until the snapshot is durable, verified and accepted by the peer's Raft. The caller
    /// bounds the time. Dropping the future aborts.
    ///
    /// # Errors
    /// [`TransferError`].
    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError>;

    /// The progress of the peer. The transport updates it, also while [`send`](Self::send) and [`finish`](Self::finish) wait,
    /// and [closes](ProgressCell::close) it when the stream ends: a sender may wait for an acknowledgement.
    fn progress(&self) -> ProgressCell;
}

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its offset in the body.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// Their checksum.
    pub crc32c: u32,
}

/// Proof that the receiver has the snapshot: durable, verified and accepted by Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotReceipt {
    /// The receiver's commit index.
    pub commit: u64,
}

/// The answer of a receiver to an offer that it does not refuse.
pub enum SinkAnswer {
    /// The receiver wants the bytes from `offset` on.
    Accept {
        /// The offset in the body.
        offset: u64,
        /// Takes the bytes.
        sink: Box<dyn SnapshotSink>,
    },
    /// The receiver has the snapshot's entries already.
    AlreadyHave {
        /// The receiver's commit index.
        commit: u64,
    },
}

/// The receiving side of a transfer. The transport calls it. Dropping it keeps the verified prefix for a resume.
#[async_trait]
pub trait SnapshotSink: Send {
    /// Takes a chunk.
    ///
    /// # Errors
    /// [`SnapshotRefusal`]; the transfer is over.
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal>;

    /// Ends the transfer: verifies the file, makes it durable and steps Raft. May take long: the transport keeps sending
    /// progress meanwhile. Dropping the future aborts.
    ///
    /// # Errors
    /// [`SnapshotRefusal`]; the attempt failed.
    async fn finish(self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal>;

    /// The progress of the receiver. The engine updates it, also while [`finish`](Self::finish) runs. While the progress
    /// changes, the transport sends it to the peer at least every [`PROGRESS_INTERVAL`](super::PROGRESS_INTERVAL). It also
    /// sends the progress after [`ACKED_BYTES_MAX`](super::ACKED_BYTES_MAX) further bytes, or an eighth of the bytes so far.
    /// Sending progress delays no chunk.
    fn progress(&self) -> ProgressCell;
}

/// Why a receiver refused a snapshot, or failed to take it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// All receive slots are taken. Passes by itself.
    #[error("busy with other snapshots")]
    Busy,
    /// The snapshot is larger than the receiver allows. Lasting.
    #[error("snapshot of {length} bytes is larger than {length_max}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The limit.
        length_max: u64,
    },
    /// The snapshot is for another node or group. Lasting.
    #[error("not for this node or group")]
    WrongNode,
    /// The sender's term is lower than the receiver's.
    #[error("stale term: {theirs} below {ours}")]
    StaleTerm {
        /// The receiver's term.
        ours: u64,
        /// The sender's term.
        theirs: u64,
    },
    /// The bytes do not match the trailer.
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
    /// Raft ignored the snapshot, or the group does not run.
    #[error("not taken by Raft: {detail}")]
    NotTaken {
        /// The reason, as far as it is known.
        detail: String,
    },
    /// No chunk came for too long.
    #[error("no chunk came for {millis} ms")]
    Stalled {
        /// How long the receiver waited.
        millis: u64,
    },
    /// A later attempt, or a later leader, has replaced this attempt.
    #[error("a later attempt superseded this one")]
    Superseded,
    /// This version of the receiver does not take snapshots. Lasting.
    #[error("snapshots are not supported")]
    Unsupported,
}

impl SnapshotRefusal {
    /// Whether the receiver will refuse the same offer again until an operator changes something.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::WrongNode | Self::Unsupported)
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// There was no connection for the offer.
    #[error("cannot offer the snapshot")]
    Connect(#[source] ConnectError),
    /// The receiver stopped the transfer.
    #[error("the receiver gave up: {0}")]
    Refused(#[source] SnapshotRefusal),
    /// The stream broke.
    #[error("the transfer broke: {detail}")]
    Broken {
        /// The error of the transport.
        detail: String,
    },
    /// The transport does not carry snapshots.
    #[error("this transport does not carry snapshots")]
    Unsupported,
}
