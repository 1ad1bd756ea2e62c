//! The state machine that a user replicates.

use std::array::TryFromSliceError;
use std::error::Error;
use std::io;

use bytes::Bytes;

use crate::message::{Entry, LogId};
use crate::snapshot_store::SnapshotMeta;

/// A deterministic state machine: the same commands in the same order give the same state on every node.
///
/// An apply worker thread calls it, one call at a time. Calls may block: no heartbeat waits for them. `Err(Fatal)` or a
/// panic quarantines this group on this node; the node's other groups go on.
///
/// The conformance suite in `towline-testkit` tests what a test can observe of the sentences here.
pub trait StateMachine: Send + 'static {
    /// The reply to a command's proposer. A business failure ("insufficient funds") is a reply too.
    type Response: Send + 'static;

    /// A handle for readers. After a linearizable read it shows every command acknowledged before
    /// the read began.
    type View: Clone + Send + Sync + 'static;

    /// Makes a handle for readers. Called once, when the group starts. The handle must show the effect of later
    /// [`apply`](Self::apply) calls.
    fn view(&self) -> Self::View;

    /// The newest log position whose effect would survive a power loss now; [`LogId::NONE`] if the state is volatile. After
    /// a restart the engine applies from the next index on.
    fn durable(&self) -> LogId;

    /// Applies commands in order and pushes exactly one reply for each, in the same order.
    ///
    /// A durable state machine stores [`ApplyBatch::through`] atomically with the data, so that no command is applied
    /// twice. `apply` must not use clocks, random numbers or anything else that differs between nodes.
    ///
    /// # Errors
    /// [`Fatal`] if the state can no longer be trusted. Too few or too many replies have the same effect.
    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Self::Response>) -> Result<(), Fatal>;

    /// Makes everything applied so far durable and returns its log position. The engine calls this before it truncates the
    /// log, and at shutdown.
    ///
    /// # Errors
    /// [`Fatal`] if that failed. The engine does not retry.
    fn flush(&mut self) -> Result<LogId, Fatal> {
        Ok(self.durable())
    }

    /// Takes a consistent view of the state after the last applied command. Must be cheap; another thread writes the view
    /// out.
    ///
    /// # Errors
    /// [`Fatal`] if the state cannot be read.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal>;

    /// Replaces the whole state by `body`. The replacement is atomic across a crash. It is durable when this returns,
    /// together with its log position `meta.head.at`.
    ///
    /// # Errors
    /// [`Fatal`] if `body` is no state of this machine, or could not be stored.
    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal>;
}

/// A consistent view of the state, made by [`StateMachine::snapshot`] and written out later.
pub trait SnapshotSource: Send {
    /// Writes the state to `out`. Runs once, on a separate thread, while the state machine goes on.
    ///
    /// # Errors
    /// An error of `out` or of the source. The engine then gives the snapshot up and counts it.
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()>;
}

/// A small state that was already serialised.
impl SnapshotSource for Vec<u8> {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self)
    }
}

/// Committed entries to apply, in order.
#[derive(Debug, Clone, Copy)]
pub struct ApplyBatch<'a> {
    entries: &'a [Entry],
    through: LogId,
}

impl<'a> ApplyBatch<'a> {
    /// Creates a batch of contiguous committed entries that ends at `through`. The engine makes batches; this is public for
    /// tests of state machines.
    pub fn new(entries: &'a [Entry], through: LogId) -> Self {
        Self { entries, through }
    }

    /// The commands, in order. Entries without a command (a new leader's first entry, membership changes) are left out.
    pub fn commands(&self) -> impl Iterator<Item = Command<'a>> + use<'a> {
        self.entries.iter().filter(|e| is_command(e)).map(|e| Command {
            index: e.index,
            term: e.term,
            data: &e.data,
        })
    }

    /// The number of commands, which is also the number of expected replies.
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|e| is_command(e)).count()
    }

    /// Whether the batch has no command and only moves [`through`](Self::through).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The log position reached by applying this batch. It may lie past the last command.
    pub fn through(&self) -> LogId {
        self.through
    }
}

/// Whether an entry is a command: normal and not empty. The engine therefore refuses empty proposals.
pub(crate) fn is_command(entry: &Entry) -> bool {
    entry.kind == crate::message::EntryKind::Normal && !entry.data.is_empty()
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// Its log index.
    pub index: u64,
    /// The term of its entry.
    pub term: u64,
    /// The bytes that were proposed, never empty.
    pub data: &'a Bytes,
}

/// Collects the replies of [`StateMachine::apply`]: one for each command, in order.
#[derive(Debug)]
pub struct Replies<R> {
    replies: Vec<R>,
}

impl<R> Replies<R> {
    /// Creates an empty list with room for `commands` replies.
    pub fn with_capacity(commands: usize) -> Self {
        Self { replies: Vec::with_capacity(commands) }
    }

    /// Adds the reply to the next command.
    pub fn push(&mut self, reply: R) {
        self.replies.push(reply);
    }

    /// The number of replies so far.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether there is no reply yet.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// The replies, in order.
    pub fn into_vec(self) -> Vec<R> {
        self.replies
    }
}

/// The state of a group can no longer be trusted on this node. The group is quarantined here; others go on.
///
/// `?` converts an [`io::Error`], a [`TryFromSliceError`] and a boxed error. An application adds its own error type by
/// `impl From<MyError> for Fatal`, with [`Fatal::new`]. `map_err(Fatal::new)` converts every other error.
#[derive(Debug, thiserror::Error)]
#[error("state machine failed")]
pub struct Fatal {
    source: Box<dyn Error + Send + Sync>,
}

impl Fatal {
    /// Creates an error whose [`source`](Error::source) is `cause`.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: cause.into() }
    }
}

macro_rules! fatal_from {
    ($($cause:ty),*) => {$(
        impl From<$cause> for Fatal {
            fn from(cause: $cause) -> Self {
                Self::new(cause)
            }
        }
    )*};
}

fatal_from!(io::Error, TryFromSliceError, Box<dyn Error + Send + Sync>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_keeps_its_cause_as_its_source() {
        let cause = |fatal: Fatal| fatal.source().map(ToString::to_string);
        assert_eq!(cause(io::Error::other("bad block").into()).as_deref(), Some("bad block"));
        assert_eq!(cause(Fatal::new("a test")).as_deref(), Some("a test"));
        let fatal = Fatal::from(io::Error::from_raw_os_error(5));
        let kept = fatal.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(kept.and_then(io::Error::raw_os_error), Some(5));
    }
}
