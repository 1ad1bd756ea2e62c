//! The reads of the log store that failed, by their first index.

use std::collections::BTreeMap;

/// After this many failures in a row the log counts as compacted at the index: peers get a snapshot instead. A peer that
/// needs the entries asks about once a heartbeat interval.
const FAILURES_MAX: u32 = 5;

/// Ticks for which the log counts as compacted. Then one more read shows whether the entries have become readable.
const PAUSE_TICKS: u64 = 6_000;

/// The most indices remembered. At the bound the index with the oldest failure is forgotten.
const INDICES_MAX: usize = 64;

/// First indices of failed reads. Time is a number of ticks.
#[derive(Debug, Default)]
pub(super) struct FailedReads {
    by_index: BTreeMap<u64, FailedRead>,
}

#[derive(Debug)]
struct FailedRead {
    failures: u32,
    failed_tick: u64,
}

impl FailedRead {
    fn is_given_up(&self, now: u64) -> bool {
        self.failures >= FAILURES_MAX && now < self.failed_tick.saturating_add(PAUSE_TICKS)
    }
}

impl FailedReads {
    /// Records a failed read from `low` on. `true`: the log counts as compacted there from now on.
    pub(super) fn failed(&mut self, low: u64, now: u64) -> bool {
        if self.by_index.len() >= INDICES_MAX
            && !self.by_index.contains_key(&low)
            && let Some((&oldest, _)) = self.by_index.iter().min_by_key(|(_, read)| read.failed_tick)
        {
            self.by_index.remove(&oldest);
        }
        let read = self.by_index.entry(low).or_insert(FailedRead { failures: 0, failed_tick: now });
        read.failures = read.failures.saturating_add(1);
        read.failed_tick = now;
        read.failures == FAILURES_MAX
    }

    /// Records a successful read from `low` on.
    pub(super) fn succeeded(&mut self, low: u64) {
        self.by_index.remove(&low);
    }

    /// Whether the log counts as compacted at `low`.
    pub(super) fn is_given_up(&self, low: u64, now: u64) -> bool {
        self.by_index.get(&low).is_some_and(|read| read.is_given_up(now))
    }

    /// The last index at which the log counts as compacted. Only a snapshot that covers it helps a peer.
    pub(super) fn last_given_up(&self, now: u64) -> Option<u64> {
        self.by_index.iter().rev().find(|(_, read)| read.is_given_up(now)).map(|(&low, _)| low)
    }

    /// Forgets the indices up to `through`, whose entries were removed.
    pub(super) fn compacted(&mut self, through: u64) {
        self.by_index.retain(|&low, _| low > through);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_given_up_after_five_failures_in_a_row_and_tried_again_after_a_pause() {
        let mut reads = FailedReads::default();
        for tick in 1..u64::from(FAILURES_MAX) {
            assert!(!reads.failed(7, tick) && !reads.is_given_up(7, tick));
        }
        reads.succeeded(7);
        let reported: Vec<_> = (1..=10).filter(|&tick| reads.failed(7, tick)).collect();
        assert_eq!(reported, [u64::from(FAILURES_MAX)], "it is reported once");
        assert_eq!((reads.is_given_up(7, 10), reads.is_given_up(8, 10)), (true, false));
        assert_eq!(reads.last_given_up(10), Some(7));
        let later = 10 + PAUSE_TICKS;
        assert!(!reads.is_given_up(7, later));
        assert_eq!(reads.last_given_up(later), None);
        assert!(!reads.failed(7, later) && reads.is_given_up(7, later), "one failure is enough now");
        reads.compacted(7);
        assert!(!reads.is_given_up(7, later));
    }

    #[test]
    fn the_number_of_remembered_indices_is_bounded() {
        let mut reads = FailedReads::default();
        for low in 0..1_000 {
            reads.failed(low, low);
        }
        assert_eq!(reads.by_index.len(), INDICES_MAX);
        assert!(reads.by_index.contains_key(&999) && !reads.by_index.contains_key(&0));
    }
}
