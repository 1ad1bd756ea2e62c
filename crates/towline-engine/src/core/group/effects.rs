//! The outputs of a group.

use towline_metrics::labels::WaitKind;

use super::snapshots::SnapshotSend;
use crate::core::attempts::VoidCause;
use crate::core::explain::WaitNotice;
use crate::core::raft::Fetch;
use crate::core::stall::StallNotice;
use crate::errors::{ProposeError, ReadError};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{Entry, LogId, LostEntries, Message};
use crate::reporter::{SnapshotAttempt, SnapshotFailure};
use crate::snapshot_store::{ContentId, SnapshotMeta};

/// The outputs of a group, which the driver carries out. The driver clears and reuses them.
#[derive(Debug)]
pub struct Effects<W, R> {
    /// Messages to send now.
    pub messages: Vec<Message>,
    /// A write and its number. Make it durable, then call [`GroupCore::written`](super::GroupCore::written) with the number.
    pub write: Option<(u64, GroupWrite)>,
    /// Work for the state machine, in order.
    pub apply: Vec<Apply<W>>,
    /// Reads to answer now: everything they must see is applied.
    pub readable: Vec<R>,
    /// Proposals that failed.
    pub refused: Vec<(W, ProposeError)>,
    /// Reads that failed.
    pub unread: Vec<(R, ReadError)>,
    /// Ranges to read from the log store. Answer each by [`GroupCore::fetched`](super::GroupCore::fetched).
    pub fetches: Vec<Fetch>,
    /// Entries that now count as compacted, because the log store failed to read them several times in a row.
    pub unreadable: Vec<Unreadable>,
    /// Changes of attempts to send snapshots, in order: an attempt may end in the turn that begins it.
    pub attempts: Vec<AttemptEffect>,
    /// The log store may remove the entries up to this index.
    pub compact: Option<u64>,
    /// The group's snapshots in use. The store may remove all others.
    pub retain: Option<Vec<ContentId>>,
    /// Changes of stalls, for the operator.
    pub notices: Vec<StallNotice>,
    /// This node lost entries. Take the group out of service for good: from now on it takes and sends no message.
    pub lost: Option<LostEntries>,
    /// Waits that have lasted long, and their ends, for the operator.
    pub waits: Vec<WaitNotice>,
    /// The causes that the group waits for now, if they have changed.
    pub waiting: Option<Vec<WaitKind>>,
    /// Why the group must stop on this node.
    pub fatal: Option<String>,
}

/// A change of an attempt to send a snapshot.
#[derive(Debug)]
pub enum AttemptEffect {
    /// The attempt is live. Arm it in the mailbox, make its ticket, and send the snapshot.
    Arm(Box<SnapshotSend>),
    /// The attempt failed without an outcome from its ticket. Report `cause` as its outcome, and stop its transfer.
    Settle {
        /// The attempt.
        attempt: SnapshotAttempt,
        /// The cause to report.
        cause: SnapshotFailure,
    },
    /// Raft has forgotten the attempt. Disarm it in the mailbox, and stop its transfer.
    Disarm {
        /// The attempt.
        attempt: SnapshotAttempt,
        /// Why Raft has forgotten it.
        cause: VoidCause,
    },
}

/// Entries that the log store could not read.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The first index of the failed reads.
    pub index: u64,
    /// The error of the last read.
    pub cause: String,
}

/// Work for the state machine.
#[derive(Debug)]
pub enum Apply<W> {
    /// Apply committed entries.
    Entries {
        /// The entries, contiguous.
        entries: Vec<Entry>,
        /// The waiter of each command, if this node has one.
        waiters: Vec<Option<W>>,
        /// The log position of the last entry.
        through: LogId,
    },
    /// Restore the state machine from this durable snapshot, which replaces everything before it. Then call
    /// [`GroupCore::applied`](super::GroupCore::applied).
    Restore(SnapshotMeta),
    /// Make a snapshot of the state. Then call [`GroupCore::snapshot_made`](super::GroupCore::snapshot_made).
    Snapshot {
        /// The membership at that log position.
        conf: ConfRecord,
        /// The log position of the snapshot.
        at: LogId,
        /// The expected length of the snapshot: that of the last one. For the first one, the log bytes that it replaces.
        /// Halved after each failure.
        bytes_expected: u64,
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
            notices: Vec::new(),
            lost: None,
            waits: Vec::new(),
            waiting: None,
            fatal: None,
        }
    }
}
