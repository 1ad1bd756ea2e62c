//! The disk of a node: its log after the truncation point, its snapshot files, and the position of its state machine.

use std::collections::BTreeSet;

use towline_engine::ids::GroupId;
use towline_engine::log_store::GroupWrite;
use towline_engine::message::{ConfState, Entry, HardState, LogId, MemberTable};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta};

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) truncated: LogId,
    entries: Vec<Entry>,
    pub(crate) installing: Option<ContentId>,
    pub(crate) files: Vec<SnapshotMeta>,
    /// Unreadable files.
    pub(crate) rotten: BTreeSet<ContentId>,
    /// The partial file of the last received content, and the number of missing chunks.
    pub(crate) partial: Option<(ContentId, u8)>,
    pub(crate) machine: LogId,
}

/// The snapshot at a log position, whose content is derived from it.
pub(crate) fn meta_at(at: LogId, conf_state: ConfState) -> SnapshotMeta {
    let mut content = [0; 16];
    content[..8].copy_from_slice(&at.index.to_be_bytes());
    content[8..16].copy_from_slice(&at.term.to_be_bytes());
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at,
        conf_state,
        members: MemberTable::new(),
    };
    SnapshotMeta { head, length: 3, content: ContentId(content) }
}

impl Disk {
    /// Adds a complete file, or replaces the one with that content.
    pub(crate) fn add(&mut self, meta: SnapshotMeta) {
        self.rotten.remove(&meta.content);
        if !self.files.contains(&meta) {
            self.files.push(meta);
        }
    }

    pub(crate) fn write(&mut self, write: GroupWrite) {
        if let Some(install) = write.install {
            assert!(
                self.files.iter().any(|m| m.content == install.installing),
                "installed before it was durable"
            );
            self.truncated = install.at;
            self.entries.clear();
            self.installing = Some(install.installing);
        }
        if let Some(first) = write.entries.first().map(|e| e.index) {
            assert!(first > self.truncated.index && first <= self.last_index() + 1, "a hole at {first}");
            self.entries.truncate((first - self.truncated.index - 1) as usize);
            self.entries.extend(write.entries);
        }
        if let Some(hard_state) = write.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "the term fell");
            self.hard_state = hard_state;
        }
        if write.installed {
            self.installing = None;
        }
    }

    pub(crate) fn compact(&mut self, through: u64) {
        let Some(gone) = through.checked_sub(self.truncated.index).filter(|&gone| gone > 0) else { return };
        assert!(through <= self.machine.index, "compaction past what is applied");
        let gone = (gone as usize).min(self.entries.len());
        if let Some(last) = self.entries.drain(..gone).next_back() {
            self.truncated = LogId { index: last.index, term: last.term };
        }
    }

    /// The newest file whose position is in the log or at its truncation point.
    pub(crate) fn available(&self) -> Option<SnapshotMeta> {
        let known = |at: LogId| {
            at == self.truncated
                || self.range(at.index, at.index + 1).iter().any(|entry| entry.term == at.term)
        };
        self.files.iter().filter(|meta| known(meta.head.at)).max_by_key(|meta| meta.head.at).cloned()
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    pub(crate) fn range(&self, low: u64, high: u64) -> Vec<Entry> {
        let wanted = |e: &&Entry| (low..high).contains(&e.index);
        self.entries.iter().filter(wanted).cloned().collect()
    }

    pub(crate) fn terms(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|&(_, term)| term != entry.term) {
                runs.push((entry.index, entry.term));
            }
        }
        runs
    }
}
