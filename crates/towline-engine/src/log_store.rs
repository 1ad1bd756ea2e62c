//! The durable log.

use std::io;
use std::ops::Range;

use crate::ids::GroupId;
use crate::message::{ConfState, Entry, HardState, MemberTable};
use crate::snapshot_store::ContentId;
use crate::state_machine::Applied;

/// Where the logs of all groups of a node are kept. Blocking; knows no runtime.
///
/// [`append`](Self::append) is called by one thread at a time. Everything else may be called from any thread at any
/// time, also while an append runs; the shard thread itself never calls it after start.
///
/// The conformance suite in `towline-testkit` holds every sentence here.
pub trait LogStore: Send + Sync + 'static {
    /// What is stored of a group: everything needed to start it again, without its entries. A group never written
    /// gives [`Recovered::default`].
    ///
    /// # Errors
    /// [`LogError::Corrupt`] names the place. Nothing is repaired here that an acknowledged write could be part of.
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError>;

    /// Writes a batch for any number of groups. `Ok` means durable, and atomic for all groups in it: after a crash
    /// either everything of the batch is there or nothing.
    ///
    /// Entries that overlap what is stored replace it from their first index on. The batch is left empty on `Ok`, so
    /// that its buffers can be used again.
    ///
    /// # Errors
    /// Any error poisons the store: whether the batch is durable is unknown, so every later append answers
    /// [`LogError::Poisoned`] and nothing is tried again (a retried fsync can report success for lost pages).
    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError>;

    /// Appends the entries of `range` to `out`, from its start on, as many as fit in `bytes_max` payload bytes but at
    /// least one. An empty range appends nothing.
    ///
    /// # Errors
    /// [`LogReadError::Compacted`] or [`LogReadError::Beyond`] if the range is not all there.
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError>;

    /// The term of the entry at `index`. The place just before the first entry is known too (the truncation point).
    ///
    /// # Errors
    /// [`LogReadError::Compacted`] or [`LogReadError::Beyond`] outside of that.
    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError>;

    /// Forgets the entries up to and including `through`. Past the last entry it forgets all of them and remembers
    /// the place. Never undone; need not be durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] after a failed write.
    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError>;

    /// Gives space of forgotten entries back, and names the groups whose old entries keep the most of it: they want a
    /// compaction, which the engine's truncation floor may refuse. Call it about every ten seconds; it may take long.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    fn purge(&self) -> Result<Vec<GroupId>, LogError>;

    /// Every group that has anything stored.
    ///
    /// # Errors
    /// As for [`recover`](Self::recover).
    fn groups(&self) -> Result<Vec<GroupId>, LogError>;

    /// Forgets a group entirely; durable when it returns.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    fn remove(&self, group: GroupId) -> Result<(), LogError>;
}

/// What a [`LogStore`] knows of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Term, vote and commit. `None`: never written.
    pub hard_state: Option<HardState>,
    /// The membership, and the index of the entry that made it (zero for the initial one). `None`: the group was
    /// never started here.
    pub conf: Option<ConfRecord>,
    /// The truncation point: entries up to here are gone; [`Applied::NONE`] while the log is whole.
    pub truncated: Applied,
    /// The index of the last entry; `truncated.index` if there is none.
    pub last_index: u64,
    /// A snapshot that was being installed: the state machine must be restored from it before the group starts.
    pub installing: Option<ContentId>,
}

/// A membership and where in the log it stands. Stored before the state machine's applied index may pass `index`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfRecord {
    /// Ids by role.
    pub conf_state: ConfState,
    /// The index of the entry that made it; zero for the membership a cluster was bootstrapped with.
    pub index: u64,
    /// Addresses and incarnations.
    pub members: MemberTable,
}

/// What one durable write carries, for any number of groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogBatch {
    /// One part a group; no group twice.
    pub writes: Vec<GroupWrite>,
}

impl LogBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of payload of all entries.
    pub fn payload_bytes(&self) -> usize {
        self.writes.iter().flat_map(|w| &w.entries).map(Entry::payload_bytes).sum()
    }

    /// Adds a later write, so that the batch has the effect of both in turn. A second write to a group is merged into
    /// the first: entries it overwrites are dropped, states are replaced, an install forgets what came before.
    pub fn merge(&mut self, later: GroupWrite) {
        match self.writes.iter_mut().find(|w| w.group == later.group) {
            Some(earlier) => earlier.append(later),
            None => self.writes.push(later),
        }
    }
}

/// What is written of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupWrite {
    /// The group.
    pub group: GroupId,
    /// Written first: forget the whole log and stand at this snapshot instead.
    pub install: Option<Install>,
    /// Entries, contiguous. They replace what is stored from their first index on.
    pub entries: Vec<Entry>,
    /// Term, vote and commit, if they changed.
    pub hard_state: Option<HardState>,
    /// The membership, if it changed.
    pub conf: Option<ConfRecord>,
    /// `true` once the state machine holds the snapshot named by [`Install::installing`] durably.
    pub installed: bool,
}

impl GroupWrite {
    /// An empty write.
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

    /// Makes this write have the effect of itself followed by `later`.
    pub fn append(&mut self, later: GroupWrite) {
        if later.install.is_some() {
            self.install = later.install;
            self.installed = false;
            self.entries.clear();
        }
        if let Some(first) = later.entries.first().map(|e| e.index) {
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

/// A received snapshot takes the place of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The place in the log the snapshot stands for: the new truncation point.
    pub at: Applied,
    /// The verified, durable file; kept until [`GroupWrite::installed`].
    pub installing: ContentId,
}

/// The log could not be written or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed. The store is poisoned: whether the last write is durable is unknown. Restart the process once
    /// the disk is well.
    #[error("log write failed during {during}")]
    Io {
        /// What was being done.
        during: &'static str,
        /// What the system said.
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
    #[error("log is corrupt at {place}: {detail}")]
    Corrupt {
        /// File and offset, or group and index.
        place: String,
        /// What is wrong there.
        detail: String,
    },
    /// The caller broke the contract: a gap between entries, two writes of a group in one batch. A bug; nothing was
    /// written.
    #[error("invalid write to group {group}: {detail}")]
    Invalid {
        /// The group.
        group: GroupId,
        /// What is wrong.
        detail: String,
    },
}

/// Entries could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogReadError {
    /// Below the first entry.
    #[error("entry {index} was compacted; the first is {first}")]
    Compacted {
        /// What was asked for.
        index: u64,
        /// The first entry there is.
        first: u64,
    },
    /// Past the last entry.
    #[error("entry {index} is beyond the last, {last}")]
    Beyond {
        /// What was asked for.
        index: u64,
        /// The last entry there is.
        last: u64,
    },
    /// The disk failed, or what is stored is not what was written.
    #[error("log read failed: {detail}")]
    Io {
        /// What happened.
        detail: String,
        /// What the system said, if it did.
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
        let install = Install { at: Applied { index: 9, term: 2 }, installing: ContentId([7; 16]) };
        batch.merge(GroupWrite {
            install: Some(install.clone()),
            entries: entries(10..11, 2),
            ..GroupWrite::new(GroupId::DEFAULT)
        });
        assert_eq!(batch.writes[0].install, Some(install));
        assert_eq!(batch.writes[0].entries, entries(10..11, 2));
    }
}
