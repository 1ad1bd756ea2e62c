use towline_engine::ids::IdError;

/// Bytes or a message that are not of the protocol.
///
/// An error about one message concerns its group alone ([`Received::rejected`](crate::Received)); every other one
/// concerns the whole stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no frame: garbage, another protocol, or a truncation.
    #[error("malformed frame: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// A frame is longer than its kind may be.
    #[error("a frame of {bytes} bytes is above the limit of {bytes_max}")]
    FrameTooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// One message cannot be sent: settings of the sender allow more than a frame holds.
    #[error("a message of {bytes} bytes is above the limit of {bytes_max}")]
    MessageTooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A frame holds too many of something.
    #[error("more than {count_max} {what} in a frame")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        count_max: usize,
    },
    /// Another kind of frame was expected here.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// A field that must be set is not.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A number that names something is zero.
    #[error("`{field}` is zero")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// The cluster's name is not of its form.
    #[error("`cluster`: {0}")]
    Cluster(#[source] IdError),
    /// The lane is not one this version knows.
    #[error("unknown lane {number}")]
    UnknownLane {
        /// Its number.
        number: i32,
    },
    /// The message is of a kind this version does not know.
    #[error("unknown message kind {number}")]
    UnknownKind {
        /// Its number.
        number: i32,
    },
    /// The message is of a kind that no peer may send: a proposal, a transfer request or a local event.
    #[error("a message of kind {kind} may not cross the network")]
    ForbiddenKind {
        /// The kind's name in the schema.
        kind: &'static str,
    },
    /// An entry is of a kind this version does not know.
    #[error("unknown entry kind {number}")]
    UnknownEntryKind {
        /// Its number.
        number: i32,
    },
    /// Indexes of entries leave the range of 64 bits.
    #[error("index {index} and {entries} entries leave the range of an index")]
    IndexOverflow {
        /// The message's index, or an entry's.
        index: u64,
        /// How many entries follow it.
        entries: usize,
    },
    /// A snapshot's bytes are inside a message; they travel as a transfer.
    #[error("a snapshot of {bytes} bytes inside a message")]
    InlineSnapshot {
        /// How many bytes.
        bytes: usize,
    },
    /// The peer refused for a reason this version does not know.
    #[error("refused with the unknown code {code}: {detail}")]
    UnknownRefusal {
        /// The code.
        code: i32,
        /// What the peer says about it.
        detail: String,
    },
}
