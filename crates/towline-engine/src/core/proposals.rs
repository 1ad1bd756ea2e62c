//! The waiters of proposed entries.
//!
//! A waiter belongs to an index *and* a term: another leader's entry may be committed at the same index.

use std::collections::VecDeque;

use crate::message::Entry;
use crate::state_machine::is_command;

/// The waiters of this node's term of leadership, in log order.
#[derive(Debug)]
pub(super) struct Proposals<W> {
    term: u64,
    waiting: VecDeque<(u64, W)>,
}

/// The waiters of a run of committed entries.
#[derive(Debug)]
pub(super) struct Matched<W> {
    /// The waiter of each command among the entries, in order.
    pub(super) waiters: Vec<Option<W>>,
    /// Waiters at whose index another leader's entry was committed.
    pub(super) superseded: Vec<W>,
}

impl<W> Proposals<W> {
    pub(super) fn new() -> Self {
        Self { term: 0, waiting: VecDeque::new() }
    }

    /// Adds the waiters of entries appended in `term` from `first_index` on. No waiter of an earlier term may be left.
    pub(super) fn appended(&mut self, term: u64, first_index: u64, waiters: impl IntoIterator<Item = W>) {
        debug_assert!(self.waiting.is_empty() || self.term == term);
        self.term = term;
        self.waiting.extend((first_index..).zip(waiters));
    }

    /// Whether there are waiters of another term.
    pub(super) fn is_of_other_term(&self, term: u64) -> bool {
        !self.waiting.is_empty() && self.term != term
    }

    /// Takes the waiters of committed entries, which come in log order.
    pub(super) fn committed(&mut self, entries: &[Entry]) -> Matched<W> {
        let mut matched = Matched { waiters: Vec::with_capacity(entries.len()), superseded: Vec::new() };
        for entry in entries {
            let mut waiter = None;
            while self.waiting.front().is_some_and(|&(index, _)| index <= entry.index) {
                let Some((index, w)) = self.waiting.pop_front() else { break };
                if index == entry.index && self.term == entry.term && is_command(entry) {
                    waiter = Some(w);
                } else {
                    matched.superseded.push(w);
                }
            }
            if is_command(entry) {
                matched.waiters.push(waiter);
            }
        }
        matched
    }

    /// Takes all waiters.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = W> + use<'_, W> {
        self.waiting.drain(..).map(|(_, w)| w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![1].into(), ..Entry::default() }
    }

    #[test]
    fn waiters_are_matched_with_their_entries_in_order() {
        let mut proposals = Proposals::new();
        proposals.appended(2, 5, ["a", "b", "c"]);
        let matched = proposals.committed(&[command(4, 1), command(5, 2), command(6, 2)]);
        assert_eq!(matched.waiters, [None, Some("a"), Some("b")]);
        assert_eq!(proposals.take_all().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn an_entry_of_another_leader_at_the_same_index_is_no_acknowledgement() {
        let mut proposals = Proposals::new();
        proposals.appended(2, 5, ["a"]);
        let matched = proposals.committed(&[command(5, 3)]);
        assert_eq!(matched.waiters, [None]);
        assert_eq!(matched.superseded, ["a"]);
    }
}
