//! The in-memory part of a group's log: every term, every unapplied entry, and as many applied entries as the cache allows.
//!
//! Raft reads the log inside its own steps, so all that it needs at once is here. Entries for a follower that lags far
//! behind are read from the log store outside of the shard thread (see [`Lookup::Cold`]).

use std::collections::VecDeque;

use crate::message::{Entry, LogId};

/// The memory of an entry beside its payload. The bounds count it, because empty entries need memory too.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Bytes of log between two marks. The log knows the cost of a range by its marks.
const MARK_BYTES: u64 = 256 << 10;

/// The cost of an entry in the bounds.
pub(crate) fn cost(entry: &Entry) -> usize {
    entry.payload_bytes() + ENTRY_OVERHEAD_BYTES
}

/// The in-memory part of one group's log.
#[derive(Debug)]
pub struct GroupLog {
    /// Entries up to here are truncated.
    truncated: LogId,
    /// The terms of all entries after `truncated`: the first index of each run, and its term.
    terms: VecDeque<(u64, u64)>,
    last_index: u64,
    /// Contiguous up to `last_index`.
    cached: VecDeque<Entry>,
    applied: u64,
    unapplied_bytes: usize,
    applied_bytes: usize,
    cache_bytes_max: usize,
    bytes_appended: u64,
    /// Indices with `bytes_appended` as of them, at least [`MARK_BYTES`] apart. The first is the oldest index from which the
    /// cost is known.
    marks: VecDeque<(u64, u64)>,
}

/// The result of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<T> {
    /// At least one entry, from the start of the range on.
    Here(Vec<T>),
    /// The entries are in the log store only.
    Cold,
    /// The range begins before the first entry.
    Compacted,
    /// The range ends past the last entry.
    Beyond,
}

impl GroupLog {
    /// Creates the log of a restarted group. `terms` covers all entries after `truncated`; `tail` has those after `applied`.
    pub fn new(
        truncated: LogId,
        terms: Vec<(u64, u64)>,
        last_index: u64,
        tail: Vec<Entry>,
        applied: u64,
        cache_bytes_max: usize,
    ) -> Self {
        let unapplied_bytes = tail.iter().map(cost).sum();
        Self {
            truncated,
            terms: terms.into(),
            last_index,
            cached: tail.into(),
            applied,
            unapplied_bytes,
            applied_bytes: 0,
            cache_bytes_max,
            bytes_appended: 0,
            marks: VecDeque::from([(last_index, 0)]),
        }
    }

    /// The index of the first entry.
    pub fn first_index(&self) -> u64 {
        self.truncated.index + 1
    }

    /// The index of the last entry; the truncation point if there is none.
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// The highest applied index.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The cost of the unapplied entries, which `unapplied_bytes_max` bounds.
    pub(crate) fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// The term at `index`; `None` below the truncation point and past the end.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index < self.truncated.index || index > self.last_index {
            return None;
        }
        let run = self.terms.partition_point(|&(first, _)| first <= index).checked_sub(1)?;
        self.terms.get(run).map(|&(_, term)| term)
    }

    fn cached_first(&self) -> u64 {
        self.last_index + 1 - self.cached.len() as u64
    }

    /// Looks up `low..high`: as many entries as fit in `bytes_max`, but at least one. Copies them with `copy`.
    pub(crate) fn entries<T>(
        &self,
        low: u64,
        high: u64,
        bytes_max: u64,
        copy: impl Fn(&Entry) -> T,
    ) -> Lookup<T> {
        if low <= self.truncated.index {
            return Lookup::Compacted;
        }
        if high > self.last_index + 1 {
            return Lookup::Beyond;
        }
        let Some(start) = low.checked_sub(self.cached_first()) else {
            return Lookup::Cold;
        };
        let (start, count) = (start as usize, high.saturating_sub(low) as usize);
        let mut bytes = 0u64;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += cost(entry) as u64;
            first || bytes <= bytes_max
        };
        let cached = self.cached.range(start.min(self.cached.len())..);
        let fitting = cached.clone().take(count).take_while(fits).count();
        Lookup::Here(cached.take(fitting).map(copy).collect())
    }

    /// Appends contiguous entries, from any index after the applied one. They replace the entries that they overlap.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|e| e.index) else { return };
        debug_assert!(first > self.applied && first <= self.last_index + 1, "append at {first} leaves a gap");
        self.truncate_from(first);
        let mut last_term = self.terms.back().map(|&(_, term)| term);
        let mut next_mark = self.marks.back().map_or(0, |(_, bytes)| bytes + MARK_BYTES);
        let mut bytes = self.bytes_appended;
        for entry in entries {
            if last_term != Some(entry.term) {
                last_term = Some(entry.term);
                self.terms.push_back((entry.index, entry.term));
            }
            bytes += cost(entry) as u64;
            if bytes >= next_mark {
                self.marks.push_back((entry.index, bytes));
                next_mark = bytes + MARK_BYTES;
            }
        }
        self.unapplied_bytes += (bytes - self.bytes_appended) as usize;
        self.bytes_appended = bytes;
        self.last_index += entries.len() as u64;
        self.cached.extend(entries.iter().cloned());
    }

    /// Replaces the whole log by a received snapshot. The applied index stays until the state machine is restored.
    pub(crate) fn install(&mut self, at: LogId) {
        self.truncated = at;
        self.terms.clear();
        self.last_index = at.index;
        self.cached.clear();
        (self.unapplied_bytes, self.applied_bytes) = (0, 0);
        self.marks = VecDeque::from([(at.index, self.bytes_appended)]);
    }

    /// Removes entries up to `through`, but no unapplied one: raft would then skip committed entries.
    pub(crate) fn compact(&mut self, through: u64) {
        let through = through.min(self.applied).min(self.last_index);
        let Some(term) = self.term(through).filter(|_| through > self.truncated.index) else { return };
        while self.cached_first() <= through {
            let Some(gone) = self.cached.pop_front() else { break };
            self.applied_bytes -= cost(&gone);
        }
        let runs_gone = self.terms.partition_point(|&(first, _)| first <= through + 1);
        self.terms.drain(..runs_gone.saturating_sub(1));
        if through == self.last_index {
            self.terms.clear();
        } else if let Some(first) = self.terms.front_mut() {
            first.0 = first.0.max(through + 1);
        }
        self.truncated = LogId { index: through, term };
        while self.marks.get(1).is_some_and(|&(index, _)| index <= through) {
            self.marks.pop_front();
        }
    }

    /// The cost of all entries appended in this generation. Its growth is the growth of the log.
    pub(crate) fn bytes_appended(&self) -> u64 {
        self.bytes_appended
    }

    /// The lowest index after which the entries up to `at` cost at most `bytes`; zero if those of this generation do, since
    /// the cost of earlier ones is not known. Exact to [`MARK_BYTES`]; what it errs by makes the range shorter.
    pub(crate) fn start_of_last(&self, bytes: u64, at: u64) -> u64 {
        let after = self.marks.partition_point(|&(index, _)| index < at);
        let end = self.marks.get(after).map_or(self.bytes_appended, |&(_, bytes)| bytes);
        let start = self.marks.partition_point(|&(_, mark)| end - mark.min(end) > bytes);
        match start {
            0 => 0,
            _ => self.marks.get(start).map_or(at, |&(index, _)| index.min(at)),
        }
    }

    fn truncate_from(&mut self, first: u64) {
        while self.last_index >= first {
            if let Some(gone) = self.cached.pop_back() {
                self.unapplied_bytes -= cost(&gone);
            }
            self.last_index -= 1;
        }
        while self.marks.len() > 1 && self.marks.back().is_some_and(|&(index, _)| index >= first) {
            self.marks.pop_back();
        }
        if let Some((index, _)) = self.marks.front_mut() {
            *index = (*index).min(first - 1);
        }
        while self.terms.back().is_some_and(|&(start, _)| start >= first) {
            self.terms.pop_back();
        }
    }

    /// Records that entries up to `index` are applied. They leave memory, oldest first, once the cache is full.
    pub(crate) fn applied_to(&mut self, index: u64) {
        let start = (self.applied + 1).saturating_sub(self.cached_first()) as usize;
        let end = (index + 1).saturating_sub(self.cached_first()) as usize;
        let newly = end.saturating_sub(start);
        let bytes: usize = self.cached.iter().skip(start).take(newly).map(cost).sum();
        self.unapplied_bytes -= bytes;
        self.applied_bytes += bytes;
        self.applied = self.applied.max(index);
        while self.applied_bytes > self.cache_bytes_max && self.cached_first() <= self.applied {
            let Some(gone) = self.cached.pop_front() else { break };
            self.applied_bytes -= cost(&gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 4].into(), ..Entry::default() }
    }

    fn log(cache_bytes_max: usize) -> GroupLog {
        GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, cache_bytes_max)
    }

    impl GroupLog {
        fn entries_here(&self, low: u64, high: u64, bytes_max: u64) -> Lookup<Entry> {
            self.entries(low, high, bytes_max, Entry::clone)
        }
    }

    fn indices(lookup: Lookup<Entry>) -> Vec<u64> {
        match lookup {
            Lookup::Here(entries) => entries.iter().map(|e| e.index).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_overlapping_append_replaces_entries_and_terms() {
        let mut log = log(0);
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        log.append(&[entry(2, 3)]);
        assert_eq!((log.last_index(), log.term(1), log.term(2), log.term(3)), (2, Some(1), Some(3), None));
        assert_eq!(log.unapplied_bytes(), 2 * cost(&entry(1, 1)));
    }

    #[test]
    fn entries_that_are_not_applied_are_never_evicted() {
        let mut log = log(0);
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 2)]);
        log.applied_to(2);
        assert_eq!(log.entries_here(1, 3, 1000), Lookup::Cold);
        assert_eq!(indices(log.entries_here(3, 4, 1000)), [3]);
        assert_eq!((log.term(1), log.term(2)), (Some(1), Some(1)), "terms stay");
        assert_eq!(log.unapplied_bytes(), cost(&entry(3, 2)));
    }

    #[test]
    fn applied_entries_stay_up_to_the_bound() {
        let mut log = log(2 * cost(&entry(1, 1)));
        log.append(&(1..=5).map(|i| entry(i, 1)).collect::<Vec<_>>());
        log.applied_to(5);
        assert_eq!(log.entries_here(3, 6, 1000), Lookup::Cold);
        assert_eq!(indices(log.entries_here(4, 6, 1000)), [4, 5]);
    }

    #[test]
    fn a_lookup_gives_at_least_one_entry_and_no_more_than_fit() {
        let mut log = log(0);
        log.append(&(1..=5).map(|i| entry(i, 1)).collect::<Vec<_>>());
        assert_eq!(indices(log.entries_here(2, 6, 0)), [2]);
        assert_eq!(indices(log.entries_here(2, 6, 2 * cost(&entry(1, 1)) as u64)), [2, 3]);
        assert_eq!(log.entries_here(2, 7, 1000), Lookup::Beyond);
        assert_eq!(log.entries_here(0, 2, 1000), Lookup::Compacted);
    }

    #[test]
    fn compaction_keeps_the_term_at_the_truncation_point_and_never_passes_what_is_applied() {
        let mut log = log(1 << 20);
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 2), entry(4, 2), entry(5, 4)]);
        log.applied_to(4);
        log.compact(3);
        let terms: Vec<_> = (2..=5).map(|i| log.term(i)).collect();
        assert_eq!(terms, [None, Some(2), Some(2), Some(4)]);
        assert_eq!((log.first_index(), log.entries_here(3, 6, 1000)), (4, Lookup::Compacted));
        log.compact(5);
        assert_eq!((log.first_index(), log.term(4), log.term(5)), (5, Some(2), Some(4)));
        assert_eq!((log.unapplied_bytes(), log.applied_bytes), (cost(&entry(5, 4)), 0));
        log.applied_to(5);
        log.compact(5);
        assert_eq!((log.first_index(), log.last_index(), log.term(5), log.term(6)), (6, 5, Some(4), None));
        log.append(&[entry(6, 5)]);
        assert_eq!((log.term(5), log.term(6)), (Some(4), Some(5)));
    }

    #[test]
    fn an_installed_snapshot_replaces_the_log_and_later_entries_do_not_count_as_applied() {
        let mut log = log(1 << 20);
        log.append(&[entry(1, 1), entry(2, 1)]);
        log.applied_to(1);
        log.install(LogId { index: 10, term: 3 });
        log.append(&[entry(11, 3)]);
        assert_eq!((log.first_index(), log.last_index(), log.term(10), log.term(2)), (11, 11, Some(3), None));
        log.applied_to(10);
        assert_eq!((log.applied(), log.unapplied_bytes()), (10, cost(&entry(11, 3))));
        assert_eq!(indices(log.entries_here(11, 12, 1000)), [11]);
    }

    #[test]
    fn the_last_entries_of_so_much_cost_are_found_and_entries_of_an_earlier_run_are_not_counted() {
        let large = |index| Entry { data: vec![0; MARK_BYTES as usize].into(), ..entry(index, 1) };
        let mut log = GroupLog::new(LogId::NONE, vec![(1, 1)], 10, Vec::new(), 10, 0);
        assert_eq!(log.start_of_last(0, 10), 0, "the cost of what was recovered is not known");
        log.append(&(11..=20).map(large).collect::<Vec<_>>());
        let each = cost(&large(1)) as u64;
        let starts = [0, each - 1, each, 3 * each, u64::MAX].map(|bytes| log.start_of_last(bytes, 20));
        assert_eq!(starts, [20, 20, 19, 17, 0]);
        assert_eq!(log.start_of_last(2 * each, 15), 13);
        log.append(&[large(16)]);
        assert_eq!(log.start_of_last(each, 16), 16, "what was replaced counts too");
        log.applied_to(14);
        log.compact(14);
        assert_eq!((log.marks.len(), log.start_of_last(u64::MAX, 16)), (3, 0));
        log.install(LogId { index: 30, term: 2 });
        assert_eq!(log.start_of_last(u64::MAX, 30), 0);
    }

    #[test]
    fn a_recovered_log_knows_the_terms_below_its_cache() {
        let tail = vec![entry(7, 4)];
        let log = GroupLog::new(LogId { index: 2, term: 1 }, vec![(3, 1), (5, 4)], 7, tail, 6, 0);
        let terms: Vec<_> = (1..=8).map(|i| log.term(i)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(4), Some(4), Some(4), None]);
        assert_eq!(log.entries_here(3, 8, 1000), Lookup::Cold);
    }
}
