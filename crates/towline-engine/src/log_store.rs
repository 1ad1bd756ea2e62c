//! The seam of the durable log.

use std::io;
use std::ops::Range;

use crate::ids::{FoundingHash, GroupId};
use crate::message::{ConfState, Entry, HardState, LogId, MemberTable};
use crate::snapshot_store::ContentId;

/// Stores the logs of all groups of a node. Blocking; knows no runtime.
///
/// One thread at a time calls [`append`](Self::append). Any thread may call the other methods at any time, also while an
/// append runs. The shard thread calls none of them after the start.
///
/// The conformance suite in `towline-testkit` tests every sentence here.
pub trait LogStore: Send + Sync + 'static {
    /// Returns what a group needs to start again, without its entries. A group that was never written gives
    /// [`Recovered::default`].
    ///
    /// # Errors
    /// [`LogError::Corrupt`] names the damaged place. The store repairs nothing that may belong to an acknowledged write.
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError>;

    /// Writes a batch for any number of groups. `Ok` means that the batch is durable. The batch is atomic over all its
    /// groups: after a crash either all of it is stored or nothing.
    ///
    /// Entries replace stored ones from their first index on. `Ok` leaves the batch empty, so that the caller can reuse its
    /// buffers.
    ///
    /// # Errors
    /// Any error poisons the store, because it leaves unknown whether the batch is durable. Every later append returns
    /// [`LogError::Poisoned`]. The store retries nothing: a retried fsync can report success for lost pages. Only a write that
    /// finds the disk full may wait here for room, because it has changed nothing.
    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError>;

    /// Appends the entries of `range` to `out`, in order, as many as fit in `bytes_max` payload bytes but at least one. An
    /// empty range appends nothing.
    ///
    /// # Errors
    /// [`LogReadError::Compacted`] or [`LogReadError::Beyond`] if a part of the range is not stored.
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError>;

    /// Returns the term of the entry at `index`, or of the truncation point just before the first entry.
    ///
    /// # Errors
    /// [`LogReadError::Compacted`] or [`LogReadError::Beyond`] for any other index.
    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError>;

    /// Removes the entries up to and including `through`, which becomes the truncation point. A `through` past the last
    /// entry removes all of them. A smaller `through` changes nothing: the truncation point never moves back. The removal need
    /// not be durable when this returns, so a crash may undo it. On a full disk the store may put it off until a
    /// [`purge`](Self::purge): it must not wait.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] after a failed write.
    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError>;

    /// Frees the disk space of removed entries. Returns the groups whose old entries hold the most space; the engine then
    /// compacts their logs, if their truncation floor allows it. The engine calls this about every ten seconds. It may take
    /// long, but must not wait for room on the disk.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    fn purge(&self) -> Result<Vec<GroupId>, LogError>;

    /// Returns every group that has stored data.
    ///
    /// # Errors
    /// As for [`recover`](Self::recover).
    fn groups(&self) -> Result<Vec<GroupId>, LogError>;

    /// Removes all data of a group. The removal is durable when this returns. On a full disk it may wait for room.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    fn remove(&self, group: GroupId) -> Result<(), LogError>;

    /// Returns the free space of the disk, and the part of it that this store may need for itself. `None` if the store knows
    /// neither; the engine then never counts the disk as low. Any thread may call it, and it must not wait for a write: a
    /// held write is why the engine asks.
    ///
    /// # Errors
    /// The error of the file system. The engine keeps its last answer then.
    fn space(&self) -> io::Result<Option<DiskSpace>> {
        Ok(None)
    }
}

/// The room on the disk of a [`LogStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that the file system reports as free for this process. Quotas, used-up inodes and reserved blocks can leave
    /// less than that. Then writes wait for room, but the disk does not count as low.
    pub free: u64,
    /// Bytes that the store may need itself: to write hard states, to purge, and to begin files.
    pub reserve: u64,
}

/// The stored state of a group, without its entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Term, vote and commit index. `None` if they were never written.
    pub hard_state: Option<HardState>,
    /// The membership, and the index of the entry that made it (zero for the initial one). `None` if the group never
    /// started here.
    pub conf: Option<ConfRecord>,
    /// The truncation point: entries up to here were removed. [`LogId::NONE`] while the log has all entries.
    pub truncated: LogId,
    /// The index of the last entry; `truncated.index` if there is none.
    pub last_index: u64,
    /// An unfinished install: the state machine must be restored from this snapshot before the group starts.
    pub installing: Option<ContentId>,
}

/// A membership and its position in the log. It is stored before the state machine's applied index passes `index`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfRecord {
    /// The ids of the members, by role.
    pub conf_state: ConfState,
    /// The index of the entry that made it; zero for the membership a cluster was bootstrapped with.
    pub index: u64,
    /// Addresses and incarnations.
    pub members: MemberTable,
    /// The list of founders of the group; never changes.
    pub founding: FoundingHash,
}

/// One durable write for any number of groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogBatch {
    /// At most one write for each group.
    pub writes: Vec<GroupWrite>,
}

impl LogBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Payload bytes of all entries.
    pub fn payload_bytes(&self) -> usize {
        self.writes.iter().flat_map(|w| &w.entries).map(Entry::payload_bytes).sum()
    }

    /// Adds a later write, so that the batch has the effect of both in turn. A second write to a group is merged into the
    /// first: it drops overwritten entries and replaces states, and an install drops everything before it.
    pub fn merge(&mut self, later: GroupWrite) {
        match self.writes.iter_mut().find(|w| w.group == later.group) {
            Some(earlier) => earlier.append(later),
            None => self.writes.push(later),
        }
    }
}

/// The part of a batch for one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupWrite {
    /// The group.
    pub group: GroupId,
    /// Applied first: replaces the whole log by this snapshot's position.
    pub install: Option<Install>,
    /// Contiguous entries. They replace stored ones from their first index on.
    pub entries: Vec<Entry>,
    /// Term, vote and commit, if they changed.
    pub hard_state: Option<HardState>,
    /// The membership, if it changed.
    pub conf: Option<ConfRecord>,
    /// `true` once the state machine holds the snapshot named by [`Install::installing`] durably.
    pub installed: bool,
}

impl GroupWrite {
    /// Creates an empty write.
    pub fn new(group: GroupId) -> Self {
        Self { group, install: None, entries: Vec::new(), hard_state: None, conf: None, installed: false }
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.install.is_none()
            && self.entries.is_empty()
            && self.hard_state.is_none()
            && self.conf.is_none()
            && !self.installed
    }

    /// Merges `later` into this write, as if both were applied in turn.
    pub fn append(&mut self, later: GroupWrite) {
        if later.install.is_some() {
            self.install = later.install;
            self.installed = false;
            self.entries.clear();
        }
        if self.entries.is_empty() {
            self.entries = later.entries;
        } else if let Some(first) = later.entries.first().map(|e| e.index) {
            let keep = self.entries.partition_point(|e| e.index < first);
            self.entries.truncate(keep);
            self.entries.extend(later.entries);
        }
        self.hard_state = later.hard_state.or(self.hard_state);
        if later.conf.is_some() {
            self.conf = later.conf;
        }
        self.installed |= later.installed;
    }
}

/// Replaces the log by a received snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The snapshot's position in the log: the new truncation point.
    pub at: LogId,
    /// The verified, durable snapshot file. The engine keeps it until [`GroupWrite::installed`].
    pub installing: ContentId,
}

/// Why the log could not be written or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed. The store is poisoned, because it is unknown whether the last write is durable. Repair the disk, then
    /// restart the process.
    #[error("log write failed during {during}")]
    Io {
        /// The step that failed.
        during: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed.
    #[error("log is poisoned by an earlier failure: {cause}")]
    Poisoned {
        /// The earlier failure.
        cause: String,
    },
    /// What is stored is not what was written: a file of the log is damaged, missing, or an older copy of itself. Put the
    /// right file back if it was only moved. Otherwise keep this node stopped; the other members go on without it. Never
    /// restore an older copy of the directory: it does not know the later votes of this node, so the node could vote
    /// twice.
    #[error(
        "log is corrupt at {place}: {detail}; put the right file back if it was only moved, otherwise keep this node \
         stopped: with an older copy of its directory it could vote twice"
    )]
    Corrupt {
        /// File and offset, or group and index.
        place: String,
        /// What is wrong there.
        detail: String,
    },
    /// The caller broke the contract, with a gap between entries or two writes of a group in one batch. This is a bug.
    /// Nothing was written.
    #[error("invalid write to group {group}: {detail}")]
    Invalid {
        /// The group.
        group: GroupId,
        /// What is wrong.
        detail: String,
    },
}

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogReadError {
    /// The index is below the first entry.
    #[error("entry {index} was compacted; the first is {first}")]
    Compacted {
        /// The requested index.
        index: u64,
        /// The index of the first stored entry.
        first: u64,
    },
    /// The index is past the last entry.
    #[error("entry {index} is beyond the last, {last}")]
    Beyond {
        /// The requested index.
        index: u64,
        /// The index of the last stored entry.
        last: u64,
    },
    /// The disk failed, or the stored data is damaged.
    #[error("log read failed: {detail}")]
    Io {
        /// A description of the failure.
        detail: String,
        /// The system's error, if there is one.
        #[source]
        source: Option<io::Error>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: Range<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { index, term, ..Entry::default() }).collect()
    }

    fn write(entries: Vec<Entry>) -> GroupWrite {
        GroupWrite { entries, ..GroupWrite::new(GroupId::DEFAULT) }
    }

    #[test]
    fn merging_two_writes_has_the_effect_of_both_in_turn() {
        let mut batch = LogBatch::default();
        batch.merge(GroupWrite {
            hard_state: Some(HardState { term: 1, ..Default::default() }),
            ..write(entries(1..6, 1))
        });
        batch.merge(write(entries(4..8, 2)));
        assert_eq!(batch.writes.len(), 1);
        let merged = &batch.writes[0];
        assert_eq!(
            merged.entries.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(),
            [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]
        );
        assert_eq!(merged.hard_state.map(|h| h.term), Some(1));
    }

    #[test]
    fn an_install_forgets_what_was_merged_before_it() {
        let mut batch = LogBatch::default();
        batch.merge(write(entries(1..6, 1)));
        let install = Install { at: LogId { index: 9, term: 2 }, installing: ContentId([7; 16]) };
        batch.merge(GroupWrite {
            install: Some(install.clone()),
            entries: entries(10..11, 2),
            ..GroupWrite::new(GroupId::DEFAULT)
        });
        assert_eq!(batch.writes[0].install, Some(install));
        assert_eq!(batch.writes[0].entries, entries(10..11, 2));
    }
}
