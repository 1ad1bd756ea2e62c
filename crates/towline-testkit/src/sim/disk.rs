use std::collections::VecDeque;

use towline_engine::log_store::GroupWrite;
use towline_engine::message::{Entry, HardState};

/// The log of one node. Unlike in [`MemLog`](crate::log::MemLog), the simulator decides for each write when it is durable.
#[derive(Debug, Default)]
pub(super) struct SimDisk {
    pub(super) hard_state: HardState,
    /// By index from 1, without gaps.
    pub(super) entries: Vec<Entry>,
    pending: VecDeque<(u64, GroupWrite)>,
}

impl SimDisk {
    pub(super) fn write(&mut self, number: u64, write: GroupWrite) {
        self.pending.push_back((number, write));
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The newest write that is not durable.
    pub(super) fn newest_pending(&self) -> Option<u64> {
        self.pending.back().map(|(number, _)| *number)
    }

    /// Makes the oldest `count` writes durable, as one sync would; returns the number of the last.
    pub(super) fn sync(&mut self, count: usize) -> Result<Option<u64>, String> {
        let mut last = None;
        for _ in 0..count {
            let Some((number, write)) = self.pending.pop_front() else { break };
            self.make_durable(write)?;
            last = Some(number);
        }
        Ok(last)
    }

    fn make_durable(&mut self, write: GroupWrite) -> Result<(), String> {
        if let Some(first) = write.entries.first().map(|e| e.index) {
            let keep = first.checked_sub(1).map(|keep| keep as usize);
            let Some(keep) = keep.filter(|&keep| keep <= self.entries.len()) else {
                return Err(format!("a write at {first} leaves a gap after {}", self.entries.len()));
            };
            self.entries.truncate(keep);
            self.entries.extend(write.entries);
        }
        if let Some(hard_state) = write.hard_state {
            if hard_state.term < self.hard_state.term {
                return Err(format!("the term fell from {} to {}", self.hard_state.term, hard_state.term));
            }
            self.hard_state = hard_state;
        }
        Ok(())
    }

    /// Drops the pending writes.
    pub(super) fn crash(&mut self) {
        self.pending.clear();
    }

    pub(super) fn last_index(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn term(&self, index: u64) -> u64 {
        let at = index.checked_sub(1).and_then(|at| self.entries.get(at as usize));
        at.map_or(0, |entry| entry.term)
    }

    /// The entries from `low` to `high`, exclusive.
    pub(super) fn range(&self, low: u64, high: u64) -> Vec<Entry> {
        let (low, high) = (low.saturating_sub(1) as usize, high.saturating_sub(1) as usize);
        self.entries.get(low..high.min(self.entries.len())).unwrap_or_default().to_vec()
    }

    /// Terms as runs of (first index, term).
    pub(super) fn terms(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|&(_, term)| term != entry.term) {
                runs.push((entry.index, entry.term));
            }
        }
        runs
    }
}
