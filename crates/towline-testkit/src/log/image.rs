use std::collections::BTreeMap;
use std::ops::Range;

use towline_engine::ids::GroupId;
use towline_engine::log_store::{GroupWrite, LogBatch, LogError, LogReadError, Recovered};
use towline_engine::message::{Entry, LogId};

/// The content of a log at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct LogImage {
    groups: BTreeMap<GroupId, StoredGroup>,
}

#[derive(Debug, Clone, Default)]
struct StoredGroup {
    recovered: Recovered,
    /// By index, without gaps, above the truncation point.
    entries: BTreeMap<u64, Entry>,
}

impl LogImage {
    /// Refuses a batch that breaks the contract.
    pub(super) fn check(&self, batch: &LogBatch) -> Result<(), LogError> {
        for (at, write) in batch.writes.iter().enumerate() {
            let invalid = |detail: &str| LogError::Invalid { group: write.group, detail: detail.into() };
            if batch.writes.iter().take(at).any(|earlier| earlier.group == write.group) {
                return Err(invalid("the batch has two writes of this group"));
            }
            let stored = self.groups.get(&write.group).map(|s| &s.recovered);
            let (truncated, last) = match &write.install {
                Some(install) => (install.at.index, install.at.index),
                None => stored.map_or((0, 0), |r| (r.truncated.index, r.last_index)),
            };
            let Some(first) = write.entries.first().map(|e| e.index) else { continue };
            if first <= truncated {
                return Err(invalid("an entry is not above the truncation point"));
            }
            if first > last + 1 {
                return Err(invalid("there is a gap before the first entry"));
            }
            if !write.entries.iter().zip(first..).all(|(entry, index)| entry.index == index) {
                return Err(invalid("the entries are not contiguous"));
            }
        }
        Ok(())
    }

    /// Applies a checked batch.
    pub(super) fn apply(&mut self, batch: &LogBatch) {
        for write in batch.writes.iter().filter(|w| !w.is_empty()) {
            self.groups.entry(write.group).or_default().apply(write);
        }
    }

    pub(super) fn recover(&self, group: GroupId) -> Recovered {
        self.groups.get(&group).map(|s| s.recovered.clone()).unwrap_or_default()
    }

    pub(super) fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        if range.is_empty() {
            return Ok(());
        }
        let Recovered { truncated, last_index: last, .. } = self.recover(group);
        if range.start <= truncated.index {
            return Err(LogReadError::Compacted { index: range.start, first: truncated.index + 1 });
        }
        if range.end - 1 > last {
            return Err(LogReadError::Beyond { index: range.end - 1, last });
        }
        let mut bytes = 0_usize;
        let stored = self.groups.get(&group).into_iter().flat_map(|s| s.entries.range(range.clone()));
        for (number, (_, entry)) in stored.enumerate() {
            bytes = bytes.saturating_add(entry.payload_bytes());
            if number > 0 && bytes > bytes_max {
                break;
            }
            out.push(entry.clone());
        }
        Ok(())
    }

    pub(super) fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        let Recovered { truncated, last_index: last, .. } = self.recover(group);
        if index == truncated.index {
            return Ok(truncated.term);
        }
        if index < truncated.index {
            return Err(LogReadError::Compacted { index, first: truncated.index + 1 });
        }
        let entry = self.groups.get(&group).and_then(|s| s.entries.get(&index));
        entry.map(|e| e.term).ok_or(LogReadError::Beyond { index, last })
    }

    pub(super) fn compact(&mut self, group: GroupId, through: u64) {
        let Some(stored) = self.groups.get_mut(&group) else { return };
        if through <= stored.recovered.truncated.index {
            return;
        }
        let term = stored.entries.range(..=through).next_back().map(|(_, e)| e.term);
        let term = term.unwrap_or(stored.recovered.truncated.term);
        stored.recovered.truncated = LogId { index: through, term };
        stored.recovered.last_index = stored.recovered.last_index.max(through);
        stored.entries.retain(|&index, _| index > through);
    }

    pub(super) fn lose_last(&mut self, group: GroupId, count: u64) {
        let Some(StoredGroup { recovered, entries }) = self.groups.get_mut(&group) else { return };
        let last = recovered.last_index.saturating_sub(count).max(recovered.truncated.index);
        entries.retain(|&index, _| index <= last);
        recovered.last_index = last;
        if let Some(hard_state) = &mut recovered.hard_state {
            hard_state.commit = hard_state.commit.min(last);
        }
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    pub(super) fn remove(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }
}

impl StoredGroup {
    fn apply(&mut self, write: &GroupWrite) {
        if let Some(install) = &write.install {
            self.entries.clear();
            self.recovered.truncated = install.at;
            self.recovered.last_index = install.at.index;
            self.recovered.installing = Some(install.installing);
        }
        if let Some(first) = write.entries.first() {
            self.entries.split_off(&first.index);
        }
        for entry in &write.entries {
            self.recovered.last_index = entry.index;
            self.entries.insert(entry.index, entry.clone());
        }
        self.recovered.hard_state = write.hard_state.or(self.recovered.hard_state);
        if write.conf.is_some() {
            self.recovered.conf.clone_from(&write.conf);
        }
        if write.installed {
            self.recovered.installing = None;
        }
    }
}
