//! What a user replicates.

use std::fmt;
use std::io;

use bytes::Bytes;

use crate::message::Entry;
use crate::snapshot_store::SnapshotMeta;

/// A deterministic state machine: the same commands in the same order give the same state on every node.
///
/// It is called from an apply worker thread, one call at a time, and may block: no heartbeat waits for it. An
/// `Err(Fatal)` or a panic takes this group, and only this group, out of service (quarantine) on this node.
///
/// The conformance suite in `towline-testkit` holds what a test can see of the sentences here.
pub trait StateMachine: Send + 'static {
    /// What a command answers to its proposer. A business failure ("insufficient funds") is a response too.
    type Response: Send + 'static;

    /// What readers query after a read barrier: a handle that sees every command applied so far.
    type View: Clone + Send + Sync + 'static;

    /// A handle for readers. Called once when the group starts; it must see what later [`apply`](Self::apply) calls do.
    fn view(&self) -> Self::View;

    /// The newest place in the log whose effect would survive a power loss now; [`Applied::NONE`] if the state is
    /// volatile. After a restart the engine applies from the next index on.
    fn durable(&self) -> Applied;

    /// Applies commands in order and pushes exactly one reply for each, in the same order.
    ///
    /// A durable state machine stores [`ApplyBatch::through`] atomically with the data, so that no command is applied
    /// twice. Must not look at clocks, random numbers or anything that differs between nodes.
    ///
    /// # Errors
    /// [`Fatal`] if the state can no longer be trusted. Too few or too many replies are treated the same.
    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Self::Response>) -> Result<(), Fatal>;

    /// Makes everything applied durable and says how far that is. Called before the log is truncated and at shutdown.
    ///
    /// # Errors
    /// [`Fatal`] if that failed; it is not tried again.
    fn flush(&mut self) -> Result<Applied, Fatal> {
        Ok(self.durable())
    }

    /// A consistent view of the state as of the last applied command. Cheap: it is written out on another thread.
    ///
    /// # Errors
    /// [`Fatal`] if the state cannot be read.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal>;

    /// Replaces the whole state by `body`, all or nothing across a crash, and durable (together with its place,
    /// `meta.head.at`) when it returns.
    ///
    /// # Errors
    /// [`Fatal`] if `body` is not a state of this machine or could not be stored.
    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal>;
}

/// Writes a consistent state out; made by [`StateMachine::snapshot`].
pub trait SnapshotSource: Send {
    /// Writes the state. Runs once, on a thread of its own, while the state machine goes on.
    ///
    /// # Errors
    /// Whatever `out` returned, or an error of its own; the snapshot is then given up and counted.
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()>;
}

/// A small state, as bytes.
impl SnapshotSource for Vec<u8> {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self)
    }
}

/// A place in the log: an index and the term of the entry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Applied {
    /// The index; zero for nothing.
    pub index: u64,
    /// The term of the entry at `index`.
    pub term: u64,
}

impl Applied {
    /// Before the first entry.
    pub const NONE: Self = Self { index: 0, term: 0 };
}

/// Committed entries that were not applied yet.
#[derive(Debug, Clone, Copy)]
pub struct ApplyBatch<'a> {
    entries: &'a [Entry],
    through: Applied,
}

impl<'a> ApplyBatch<'a> {
    /// A batch of committed entries, contiguous, that ends at `through`. The engine makes these; it is public so that
    /// state machines can be tested without one.
    pub fn new(entries: &'a [Entry], through: Applied) -> Self {
        Self { entries, through }
    }

    /// The commands, in order. Entries that carry none (a new leader's first entry, membership changes) are left out.
    pub fn commands(&self) -> impl Iterator<Item = Command<'a>> + use<'a> {
        self.entries.iter().filter(|e| is_command(e)).map(|e| Command {
            index: e.index,
            term: e.term,
            data: &e.data,
        })
    }

    /// How many commands there are: so many replies are expected.
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|e| is_command(e)).count()
    }

    /// Whether the batch only moves [`through`](Self::through).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place in the log that is reached once this batch is applied. It may lie past the last command.
    pub fn through(&self) -> Applied {
        self.through
    }
}

/// An entry is a command if it is normal and not empty; proposals of zero bytes are refused for this reason.
pub(crate) fn is_command(entry: &Entry) -> bool {
    entry.kind == crate::message::EntryKind::Normal && !entry.data.is_empty()
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// Its place in the log.
    pub index: u64,
    /// The term of its entry.
    pub term: u64,
    /// The bytes that were proposed, never empty.
    pub data: &'a Bytes,
}

/// Where [`StateMachine::apply`] puts its replies, one a command, in order.
#[derive(Debug)]
pub struct Replies<R> {
    replies: Vec<R>,
}

impl<R> Replies<R> {
    /// Room for the replies of `commands` commands.
    pub fn with_capacity(commands: usize) -> Self {
        Self { replies: Vec::with_capacity(commands) }
    }

    /// The reply to the next command.
    pub fn push(&mut self, reply: R) {
        self.replies.push(reply);
    }

    /// How many replies there are so far.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// The replies, in order.
    pub fn into_vec(self) -> Vec<R> {
        self.replies
    }
}

/// The state of a group can no longer be trusted on this node. The group is quarantined here; others go on.
pub struct Fatal {
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl Fatal {
    /// With its cause.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { cause: cause.into() }
    }
}

impl fmt::Debug for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fatal").field(&self.cause).finish()
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state machine failed: {}", self.cause)
    }
}

// Not `std::error::Error` itself, so that every error converts into it with `?`.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for Fatal {
    fn from(cause: E) -> Self {
        Self::new(cause)
    }
}

impl AsRef<dyn std::error::Error + Send + Sync + 'static> for Fatal {
    fn as_ref(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self.cause.as_ref()
    }
}
