use towline_engine::ids::IdError;

/// Bytes or a message that violate the protocol.
///
/// An error about one message affects only its group ([`Received::rejected`](crate::Received)). Every other error affects
/// the whole stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no frame: garbage, another protocol, or a truncated frame.
    #[error("malformed frame: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// A frame is longer than the limit for its kind.
    #[error("a frame of {bytes} bytes is above the limit of {bytes_max}")]
    FrameTooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A message is too long to be sent: the sender's settings allow more than fits in a frame.
    #[error("a message of {bytes} bytes is above the limit of {bytes_max}")]
    MessageTooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A frame holds more elements of one kind than the limit.
    #[error("more than {count_max} {what} in a frame")]
    TooMany {
        /// The kind of element, in the plural.
        what: &'static str,
        /// The limit.
        count_max: usize,
    },
    /// Another kind of frame was expected here.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// The expected kind.
        expected: &'static str,
        /// The received kind.
        got: &'static str,
    },
    /// A required field is missing.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// An identifier is zero.
    #[error("`{field}` is zero")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// The cluster's name is invalid.
    #[error("`cluster`: {0}")]
    Cluster(#[source] IdError),
    /// This version does not know the number of a lane, a message kind or an entry kind.
    #[error("unknown {what} {number}")]
    Unknown {
        /// What has the number.
        what: &'static str,
        /// The number.
        number: i32,
    },
    /// The message is of a kind that no peer may send: a proposal, a transfer request or a local event.
    #[error("a message of kind {kind} may not cross the network")]
    ForbiddenKind {
        /// The kind's name in the schema.
        kind: &'static str,
    },
    /// The indexes of the entries exceed 64 bits.
    #[error("index {index} and {entries} entries leave the range of an index")]
    IndexOverflow {
        /// The message's index, or an entry's.
        index: u64,
        /// How many entries follow it.
        entries: usize,
    },
    /// A message contains the bytes of a snapshot; snapshots travel as transfers.
    #[error("a snapshot of {bytes} bytes inside a message")]
    InlineSnapshot {
        /// The length of the snapshot's bytes.
        bytes: usize,
    },
    /// The peer refused for a reason this version does not know.
    #[error("refused with the unknown code {code}: {detail}")]
    UnknownRefusal {
        /// The code.
        code: i32,
        /// The peer's explanation.
        detail: String,
    },
}
