//! What a group wants done: its outputs.

use super::snapshots::SnapshotSend;
use crate::core::attempts::VoidCause;
use crate::core::raft::Fetch;
use crate::errors::{ProposeError, ReadError};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{Entry, LogId, Message};
use crate::reporter::{SnapshotAttempt, SnapshotFailure};
use crate::snapshot_store::{ContentId, SnapshotMeta};

/// What a group wants done. Cleared and used again by the driver.
#[derive(Debug)]
pub struct Effects<W, R> {
    /// To be sent now.
    pub messages: Vec<Message>,
    /// To be made durable, then answered by [`GroupCore::written`](super::GroupCore::written) with the number.
    pub write: Option<(u64, GroupWrite)>,
    /// For the state machine, in order.
    pub apply: Vec<Apply<W>>,
    /// Reads that may be answered now: everything they must see is applied.
    pub readable: Vec<R>,
    /// Proposals that failed.
    pub refused: Vec<(W, ProposeError)>,
    /// Reads that failed.
    pub unread: Vec<(R, ReadError)>,
    /// Ranges to be read from the log store, each answered by [`GroupCore::fetched`](super::GroupCore::fetched).
    pub fetches: Vec<Fetch>,
    /// Places of the log that count as compacted, because the log store failed to read them several times in a row.
    pub unreadable: Vec<Unreadable>,
    /// What becomes of attempts to send snapshots, in order: an attempt may be over in the turn that begins it.
    pub attempts: Vec<AttemptEffect>,
    /// The log store may forget the entries up to here.
    pub compact: Option<u64>,
    /// The snapshots that are still of use; all others of the group may go.
    pub retain: Option<Vec<ContentId>>,
    /// The group cannot go on on this node.
    pub fatal: Option<String>,
}

/// What becomes of an attempt to send a snapshot, and why.
#[derive(Debug)]
pub enum AttemptEffect {
    /// It is live, and its message leaves: to be armed in the mailbox, given a ticket, and sent.
    Arm(Box<SnapshotSend>),
    /// It failed, and no ticket says so. To be reported like the outcome of a ticket; a transfer that still runs is of no
    /// use.
    Settle {
        /// Which one.
        attempt: SnapshotAttempt,
        /// What to report.
        cause: SnapshotFailure,
    },
    /// Raft has forgotten it: to be disarmed in the mailbox. Its transfer is of no use.
    Disarm {
        /// Which one.
        attempt: SnapshotAttempt,
        /// Why Raft has forgotten it.
        cause: VoidCause,
    },
}

/// A place of the log that could not be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The first index of the reads that failed.
    pub index: u64,
    /// What the last one failed with.
    pub cause: String,
}

/// Work for the state machine.
#[derive(Debug)]
pub enum Apply<W> {
    /// Committed entries with whoever waits for them.
    Entries {
        /// Contiguous.
        entries: Vec<Entry>,
        /// One place a command.
        waiters: Vec<Option<W>>,
        /// The place reached once they are applied.
        through: LogId,
    },
    /// The state machine is to be restored from this snapshot, which is durable and takes the place of everything
    /// before; answered by [`GroupCore::applied`](super::GroupCore::applied).
    Restore(SnapshotMeta),
    /// A snapshot of the state as of `at` is to be made; answered by [`GroupCore::snapshot_made`](super::GroupCore::snapshot_made).
    Snapshot {
        /// The membership there.
        conf: ConfRecord,
        /// What is applied by then.
        at: LogId,
    },
}

impl<W, R> Default for Effects<W, R> {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            write: None,
            apply: Vec::new(),
            readable: Vec::new(),
            refused: Vec::new(),
            unread: Vec::new(),
            fetches: Vec::new(),
            unreadable: Vec::new(),
            attempts: Vec::new(),
            compact: None,
            retain: None,
            fatal: None,
        }
    }
}
