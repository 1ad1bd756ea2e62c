//! The log as the raft crate reads it. Answers come from memory only; entries in the log store alone become a [`Fetch`].

use std::cell::RefCell;
use std::collections::BTreeMap;

use raft::eraftpb;
use raft::storage::GetEntriesContext;
use raft::{Error, RaftState, Storage, StorageError};

use super::convert;
use super::failed_reads::FailedReads;
use crate::core::attempts::Attempts;
use crate::core::log::{GroupLog, Lookup};
use crate::ids::NodeId;
use crate::message::{ConfState, Entry, HardState};

/// A range of the log that raft wants for a follower and that is in the log store only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The first index.
    pub low: u64,
    /// The end, exclusive.
    pub high: u64,
}

/// The most raft calls that wait for a fetch. More are dropped: raft asks again at the next heartbeat response.
const FETCH_CALLERS_MAX: usize = 16;

pub(super) struct LogView {
    pub(super) log: GroupLog,
    hard_state: HardState,
    conf_state: ConfState,
    /// The most bytes of committed entries in one ready. Raft has no limit, because it would measure each entry once more.
    committed_bytes_max: u64,
    fetches: RefCell<Fetches>,
    /// Raft asks for snapshots through a shared reference.
    pub(super) attempts: RefCell<Attempts>,
}

#[derive(Default)]
struct Fetches {
    /// Fetches since the last [`LogView::take_wanted`].
    wanted: Vec<Fetch>,
    /// The raft calls that wait for a fetch, by its first index.
    callers: BTreeMap<u64, Vec<GetEntriesContext>>,
    /// The entries of the last fetch, while raft repeats its calls.
    arrived: Vec<Entry>,
    failed: FailedReads,
}

impl LogView {
    pub(super) fn new(
        log: GroupLog,
        hard_state: HardState,
        conf_state: ConfState,
        committed_bytes_max: u64,
        attempts: Attempts,
    ) -> Self {
        let (fetches, attempts) = (RefCell::default(), RefCell::new(attempts));
        Self { log, hard_state, conf_state, committed_bytes_max, fetches, attempts }
    }

    /// Takes the fetches since the last call. [`fetched`](Self::fetched) or [`not_fetched`](Self::not_fetched) answers each.
    pub(super) fn take_wanted(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.fetches.get_mut().wanted)
    }

    /// Takes the entries of a fetch. Returns the raft calls to repeat.
    pub(super) fn fetched(&mut self, low: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let fetches = self.fetches.get_mut();
        fetches.failed.succeeded(low);
        fetches.arrived = entries;
        fetches.callers.remove(&low).unwrap_or_default()
    }

    /// Records a failed fetch. Returns the raft calls to repeat, and whether the log counts as compacted there from now on.
    /// No call is repeated before that: raft would ask again at once, for ever.
    pub(super) fn not_fetched(&mut self, low: u64) -> (Vec<GetEntriesContext>, bool) {
        let now = self.attempts.get_mut().now();
        let fetches = self.fetches.get_mut();
        let is_new = fetches.failed.failed(low, now);
        let callers = fetches.callers.remove(&low).unwrap_or_default();
        (if fetches.failed.is_given_up(low, now) { callers } else { Vec::new() }, is_new)
    }

    /// Removes the log up to `through`.
    pub(super) fn compact(&mut self, through: u64) {
        self.log.compact(through);
        self.fetches.get_mut().failed.compacted(self.log.first_index() - 1);
    }

    /// Drops the entries of the last fetch, after raft has repeated its calls.
    pub(super) fn forget_arrived(&mut self) {
        self.fetches.get_mut().arrived = Vec::new();
    }

    fn cold(
        &self,
        low: u64,
        high: u64,
        bytes_max: u64,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let mut fetches = self.fetches.borrow_mut();
        let here = fetches.arrived.iter().position(|e| e.index == low);
        if let Some(at) = here {
            let mut bytes = 0;
            let fits = |e: &&Entry| {
                let first = bytes == 0;
                bytes += crate::core::log::cost(e) as u64;
                e.index < high && (first || bytes <= bytes_max)
            };
            let entries = fetches.arrived.iter().skip(at).take_while(fits);
            return Ok(entries.cloned().map(convert::entry_to_raft).collect());
        }
        if !context.can_async() {
            // Raft reads only unapplied entries this way, and those never leave memory.
            return Err(Error::Store(StorageError::Unavailable));
        }
        if fetches.failed.is_given_up(low, self.attempts.borrow().now()) {
            return Err(Error::Store(StorageError::Compacted));
        }
        match fetches.callers.get_mut(&low) {
            Some(callers) if callers.len() >= FETCH_CALLERS_MAX => {}
            Some(callers) => callers.push(context),
            None => {
                fetches.callers.insert(low, vec![context]);
                fetches.wanted.push(Fetch { low, high });
            }
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            convert::hard_state_to_raft(self.hard_state),
            convert::conf_state_to_raft(&self.conf_state),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let bytes_max = match max_size.into() {
            // Only for entries to apply, see `committed_bytes_max`. Raft gives `None` where it needs the whole range.
            Some(raft::NO_LIMIT) => self.committed_bytes_max,
            limit => limit.unwrap_or(u64::MAX),
        };
        match self.log.entries(low, high, bytes_max, |entry| convert::entry_to_raft(entry.clone())) {
            Lookup::Here(entries) => Ok(entries),
            Lookup::Cold => self.cold(low, high, bytes_max, context),
            Lookup::Compacted => Err(Error::Store(StorageError::Compacted)),
            Lookup::Beyond => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.log.term(index).ok_or(Error::Store(if index < self.log.first_index() {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    // Raft panics on any other error. `core::inbound` refuses requests for a certain index, so `_request_index` is zero.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        let later = || Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        let to = NodeId::new(to).ok_or_else(later)?;
        let mut attempts = self.attempts.borrow_mut();
        // A peer whose next entry cannot be read needs a snapshot that covers this entry.
        let unreadable = self.fetches.borrow().failed.last_given_up(attempts.now());
        let truncated = (self.log.first_index() - 1).max(unreadable.unwrap_or(0));
        let meta = attempts.admit(to, truncated, self.log.bytes_appended()).ok_or_else(later)?;
        let at = meta.head.at;
        Ok(convert::snapshot_to_raft(at.index, at.term, &meta.head.conf_state))
    }
}
