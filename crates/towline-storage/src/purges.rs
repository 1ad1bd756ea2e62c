//! Purges that raft-engine may turn into a large write.
//!
//! A purge names the groups with many entries in the oldest files, so that they compact. When raft-engine has named a group
//! in [`NAMED_MAX`] purges in a row, the next purge writes its entries again before it removes a file. raft-engine does not
//! tell, so this module counts as raft-engine does.

use std::collections::BTreeMap;

use towline_engine::ids::GroupId;

use crate::config::LogConfig;

/// The oldest part of the append queue that a purge clears, as in raft-engine.
const REWRITE_RATIO: f64 = 0.7;
/// The purges in a row that name a group before the next one writes its entries again, as in raft-engine.
pub(crate) const NAMED_MAX: u32 = 9;
/// One in six held purges is logged: about one in a minute.
const HELD_PURGES_LOGGED: u32 = 6;

/// Whether a purge clears an append queue of `files`: as raft-engine decides, which counts whole files.
pub(crate) fn clears_append_queue(files: u64, config: &LogConfig) -> bool {
    files > 1 && files.saturating_mul(config.file_bytes.as_u64()) > config.purge_bytes.as_u64()
}

/// The groups that the last purges named.
#[derive(Debug, Default)]
pub(crate) struct NamedGroups {
    groups: BTreeMap<GroupId, NamedGroup>,
    /// Purges that were not begun for lack of room, since the last one that was.
    held: u32,
}

#[derive(Debug, Clone, Copy)]
struct NamedGroup {
    /// In how many purges in a row.
    times: u32,
    /// Once truncated up to here, the group has few entries in the files that a purge clears.
    through: u64,
}

impl NamedGroups {
    /// Returns the groups whose entries the next purge would write again, if `free` bytes may not be enough for that.
    pub(crate) fn hold(
        &mut self,
        free: u64,
        append_bytes: u64,
        reserve: u64,
        truncated: impl Fn(GroupId) -> Option<u64>,
    ) -> Option<Vec<GroupId>> {
        let due = self.groups.iter().filter(|(group, named)| {
            named.times >= NAMED_MAX && truncated(**group).is_some_and(|index| index < named.through)
        });
        let due: Vec<_> = due.map(|(&group, _)| group).collect();
        let needed = reserve.saturating_add((append_bytes as f64 * REWRITE_RATIO) as u64);
        if due.is_empty() || free >= needed {
            self.held = 0;
            return None;
        }
        self.held = self.held.saturating_add(1);
        if self.held % HELD_PURGES_LOGGED == 1 {
            tracing::error!(free, needed, groups = ?due, "a purge of the log waits for room on its disk");
        }
        Some(due)
    }

    /// Counts what a purge of the append queue named. A group that was due has been written again. `span` returns the
    /// truncation point of a group and its last index.
    pub(crate) fn note(&mut self, groups: &[GroupId], span: impl Fn(GroupId) -> Option<(u64, u64)>) {
        let counted = groups.iter().filter_map(|&group| {
            let times = self.groups.get(&group).map_or(0, |named| named.times);
            let (truncated, last) = span(group).filter(|_| times < NAMED_MAX)?;
            let oldest = (last.saturating_sub(truncated) as f64 * REWRITE_RATIO).ceil();
            let through = truncated.saturating_add(oldest as u64);
            Some((group, NamedGroup { times: times + 1, through }))
        });
        self.groups = counted.collect();
    }
}
