//! The contract of a [`LogStore`]: each sentence of its contract is a case.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::log_store::LogStoreFixture for Mine { .. }
//! towline_testkit::log_store_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` for each case.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs // the name of a case is its sentence
)]

use std::sync::Arc;

use towline_engine::ids::{FoundingHash, GroupId, Incarnation, NodeId};
use towline_engine::log_store::{
    ConfRecord, GroupWrite, Install, LogBatch, LogError, LogReadError, LogStore, Recovered,
};
use towline_engine::message::{ConfState, Entry, EntryKind, HardState, LogId, Member};
use towline_engine::snapshot_store::ContentId;

mod model;

pub use model::any_sequence_of_calls_matches_the_model;

/// A store under test and its disk.
pub trait LogStoreFixture {
    /// Opens the store on its disk. The previous store was dropped, and `crash` was called.
    fn open(&mut self) -> Arc<dyn LogStore>;

    /// Loses all that is not durable. No store is open.
    fn crash(&mut self);
}

/// Makes a module with one `#[test]` for each case of the suite. The second argument makes an empty fixture.
#[macro_export]
macro_rules! log_store_suite {
    ($module:ident, $new:expr) => {
        $crate::__suite!(log_store, $module, &mut || Box::new(($new)());
            an_unwritten_group_recovers_as_the_default
            an_append_survives_a_crash
            an_append_writes_all_its_groups
            a_batch_is_left_empty_when_it_is_durable
            an_empty_batch_and_an_empty_write_change_nothing
            overlapping_entries_replace_from_their_first_index
            hard_state_alone_keeps_the_entries
            a_read_stops_at_the_byte_limit_but_returns_one_entry
            a_read_appends_to_its_output
            an_empty_range_reads_nothing
            a_range_below_the_first_entry_is_compacted
            a_range_past_the_last_entry_is_beyond
            terms_are_known_from_the_truncation_point_to_the_last_entry
            compaction_removes_through_its_index
            compaction_is_never_undone
            compaction_past_the_end_keeps_its_index
            compaction_and_appends_go_on_across_crashes
            an_install_replaces_the_log
            an_install_keeps_hard_state_and_membership
            an_install_may_be_below_or_above_the_old_log
            an_install_that_is_installed_at_once_needs_no_restore
            installed_ends_the_installation
            remove_is_durable_and_concerns_one_group
            a_removed_group_starts_anew
            groups_lists_groups_with_stored_data
            every_group_number_is_valid
            a_gap_is_invalid_and_writes_nothing
            entries_out_of_order_are_invalid_and_write_nothing
            a_group_twice_in_a_batch_is_invalid_and_writes_nothing
            entries_at_the_truncation_point_are_invalid
            entries_that_do_not_follow_an_install_are_invalid
            an_invalid_batch_does_not_poison
            purge_loses_nothing
            reads_run_while_appends_do
            space_answers_while_appends_run_and_its_reserve_stays
            any_sequence_of_calls_matches_the_model
        );
    };
}

/// Makes an empty fixture.
pub type NewLogStore<'a> = &'a mut dyn FnMut() -> Box<dyn LogStoreFixture>;

const A: GroupId = GroupId::DEFAULT;
const B: GroupId = GroupId::new(77);

/// A fixture with the store open.
struct OpenLogStore {
    fixture: Box<dyn LogStoreFixture>,
    log: Option<Arc<dyn LogStore>>,
}

impl OpenLogStore {
    fn new(new: NewLogStore<'_>) -> Self {
        let mut fixture = new();
        let log = Some(fixture.open());
        Self { fixture, log }
    }

    fn log(&self) -> &dyn LogStore {
        self.log.as_deref().unwrap()
    }

    fn crash(&mut self) {
        self.log = None;
        self.fixture.crash();
        self.log = Some(self.fixture.open());
    }

    fn append(&self, writes: impl IntoIterator<Item = GroupWrite>) -> Result<(), LogError> {
        self.log().append(&mut LogBatch { writes: writes.into_iter().collect() })
    }

    fn put(&self, group: GroupId, entries: Vec<Entry>) {
        self.append([GroupWrite { entries, ..GroupWrite::new(group) }]).unwrap();
    }

    fn recover(&self, group: GroupId) -> Recovered {
        self.log().recover(group).unwrap()
    }

    fn all(&self, group: GroupId) -> Vec<Entry> {
        let Recovered { truncated, last_index, .. } = self.recover(group);
        self.read(group, truncated.index + 1, last_index + 1, usize::MAX).unwrap()
    }

    fn read(
        &self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        let mut out = Vec::new();
        self.log().entries(group, first..end, bytes_max, &mut out).map(|()| out)
    }

    /// Runs a check now and after a crash.
    fn now_and_after_a_crash(&mut self, check: impl Fn(&Self)) {
        check(self);
        self.crash();
        check(self);
    }
}

/// Ten bytes of payload each.
fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range
        .map(|index| Entry {
            kind: EntryKind::Normal,
            term,
            index,
            data: format!("{index:06}").into(),
            context: "ctxt".into(),
        })
        .collect()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: NodeId::new(2), commit }
}

fn conf(index: u64) -> ConfRecord {
    let id = |n| NodeId::new(n).unwrap();
    let member = Member { address: "grpc://h:1".parse().unwrap(), incarnation: Incarnation::new(index + 1) };
    ConfRecord {
        founding: FoundingHash::new(index + 1),
        conf_state: ConfState { voters: vec![id(1), id(2)], learners: vec![id(3)], ..ConfState::default() },
        index,
        members: [(id(1), member)].into(),
    }
}

fn install(index: u64, term: u64) -> Install {
    Install { at: LogId { index, term }, installing: ContentId([index as u8; 16]) }
}

/// A group with entries 1 to 9, hard state and membership.
fn filled(new: NewLogStore<'_>) -> OpenLogStore {
    let open = OpenLogStore::new(new);
    let write = GroupWrite {
        entries: entries(1..=9, 1),
        hard_state: Some(hard_state(1, 4)),
        conf: Some(conf(0)),
        ..GroupWrite::new(A)
    };
    open.append([write]).unwrap();
    open
}

pub fn an_unwritten_group_recovers_as_the_default(new: NewLogStore<'_>) {
    OpenLogStore::new(new).now_and_after_a_crash(|open| {
        assert_eq!(open.recover(A), Recovered::default());
        assert_eq!(open.log().term(A, 0).unwrap(), 0);
        assert!(matches!(open.log().term(A, 1), Err(LogReadError::Beyond { index: 1, last: 0 })));
    });
}

pub fn an_append_survives_a_crash(new: NewLogStore<'_>) {
    let mut all_kinds = entries(10..=12, 2);
    all_kinds[0].kind = EntryKind::ConfChange;
    all_kinds[1] =
        Entry { kind: EntryKind::ConfChangeV2, data: vec![0; 100_000].into(), ..all_kinds[1].clone() };
    all_kinds[2] = Entry { index: 12, term: 3, ..Entry::default() };
    let mut open = filled(new);
    open.put(A, all_kinds.clone());
    open.now_and_after_a_crash(|open| {
        assert_eq!(
            open.recover(A),
            Recovered {
                hard_state: Some(hard_state(1, 4)),
                conf: Some(conf(0)),
                truncated: LogId::NONE,
                last_index: 12,
                installing: None,
            }
        );
        assert_eq!(open.all(A), [entries(1..=9, 1), all_kinds.clone()].concat());
    });
}

pub fn an_append_writes_all_its_groups(new: NewLogStore<'_>) {
    let mut open = OpenLogStore::new(new);
    let write = |group, term| GroupWrite {
        entries: entries(1..=3, term),
        hard_state: Some(hard_state(term, 0)),
        ..GroupWrite::new(group)
    };
    open.append([write(A, 1), write(B, 2)]).unwrap();
    open.now_and_after_a_crash(|open| {
        for (group, term) in [(A, 1), (B, 2)] {
            assert_eq!(open.all(group), entries(1..=3, term));
            assert_eq!(open.recover(group).hard_state, Some(hard_state(term, 0)));
        }
    });
}

pub fn a_batch_is_left_empty_when_it_is_durable(new: NewLogStore<'_>) {
    let open = OpenLogStore::new(new);
    let mut batch = LogBatch::default();
    batch.merge(GroupWrite { entries: entries(1..=1, 1), ..GroupWrite::new(A) });
    open.log().append(&mut batch).unwrap();
    assert!(batch.is_empty());
}

pub fn an_empty_batch_and_an_empty_write_change_nothing(new: NewLogStore<'_>) {
    let mut open = OpenLogStore::new(new);
    open.append([]).unwrap();
    open.append([GroupWrite::new(A)]).unwrap();
    open.now_and_after_a_crash(|open| assert_eq!(open.log().groups().unwrap(), []));
}

pub fn overlapping_entries_replace_from_their_first_index(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.put(A, entries(5..=6, 2));
    open.now_and_after_a_crash(|open| {
        assert_eq!(open.recover(A).last_index, 6);
        assert_eq!(open.all(A), [entries(1..=4, 1), entries(5..=6, 2)].concat());
        assert!(matches!(open.log().term(A, 7), Err(LogReadError::Beyond { index: 7, last: 6 })));
    });
    open.put(A, entries(1..=1, 3));
    open.now_and_after_a_crash(|open| assert_eq!(open.all(A), entries(1..=1, 3)));
}

pub fn hard_state_alone_keeps_the_entries(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.append([GroupWrite { hard_state: Some(hard_state(5, 9)), ..GroupWrite::new(A) }]).unwrap();
    open.now_and_after_a_crash(|open| {
        assert_eq!(open.recover(A).hard_state, Some(hard_state(5, 9)));
        assert_eq!(open.recover(A).conf, Some(conf(0)));
        assert_eq!(open.all(A), entries(1..=9, 1));
    });
}

pub fn a_read_stops_at_the_byte_limit_but_returns_one_entry(new: NewLogStore<'_>) {
    filled(new).now_and_after_a_crash(|open| {
        for (bytes_max, expected) in [(0, 1), (1, 1), (10, 1), (19, 1), (20, 2), (59, 5), (60, 6), (1000, 8)]
        {
            let read = open.read(A, 2, 10, bytes_max).unwrap();
            assert_eq!(read, entries(2..=1 + expected, 1), "{bytes_max} bytes");
        }
    });
}

pub fn a_read_appends_to_its_output(new: NewLogStore<'_>) {
    let open = filled(new);
    let mut out = entries(1..=2, 9);
    // Entries that are already in the output do not count against the limit.
    open.log().entries(A, 3..6, 30, &mut out).unwrap();
    assert_eq!(out, [entries(1..=2, 9), entries(3..=5, 1)].concat());
}

pub fn an_empty_range_reads_nothing(new: NewLogStore<'_>) {
    let open = filled(new);
    for at in [0, 1, 5, 10, 99] {
        assert_eq!(open.read(A, at, at, 100).unwrap(), []);
    }
}

pub fn a_range_below_the_first_entry_is_compacted(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.log().compact(A, 4).unwrap();
    open.put(A, entries(10..=10, 1));
    open.now_and_after_a_crash(|open| {
        for first in [0, 1, 4] {
            let refused = open.read(A, first, 7, 100).unwrap_err();
            assert!(
                matches!(refused, LogReadError::Compacted { index, first: 5 } if index == first),
                "{refused}"
            );
        }
        assert_eq!(open.read(A, 5, 7, 100).unwrap(), entries(5..=6, 1));
    });
}

pub fn a_range_past_the_last_entry_is_beyond(new: NewLogStore<'_>) {
    filled(new).now_and_after_a_crash(|open| {
        for (first, end) in [(5, 11), (10, 11), (50, 60)] {
            let refused = open.read(A, first, end, 100).unwrap_err();
            assert!(
                matches!(refused, LogReadError::Beyond { index, last: 9 } if index == end - 1),
                "{refused}"
            );
        }
    });
}

pub fn terms_are_known_from_the_truncation_point_to_the_last_entry(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.put(A, entries(10..=12, 3));
    open.log().compact(A, 8).unwrap();
    open.append([GroupWrite { hard_state: Some(hard_state(3, 8)), ..GroupWrite::new(A) }]).unwrap();
    open.now_and_after_a_crash(|open| {
        let term = |index| open.log().term(A, index);
        for (index, expected) in [(8, 1), (9, 1), (10, 3), (12, 3)] {
            assert_eq!(term(index).unwrap(), expected, "term of {index}");
        }
        assert!(matches!(term(7), Err(LogReadError::Compacted { index: 7, first: 9 })));
        assert!(matches!(term(13), Err(LogReadError::Beyond { index: 13, last: 12 })));
        assert!(matches!(term(u64::MAX), Err(LogReadError::Beyond { .. })));
    });
}

pub fn compaction_removes_through_its_index(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.log().compact(A, 6).unwrap();
    // The next append makes the compaction durable.
    open.put(A, entries(10..=10, 1));
    open.now_and_after_a_crash(|open| {
        let recovered = open.recover(A);
        assert_eq!((recovered.truncated, recovered.last_index), (LogId { index: 6, term: 1 }, 10));
        assert_eq!(recovered.hard_state, Some(hard_state(1, 4)));
        assert_eq!(open.all(A), entries(7..=10, 1));
    });
}

pub fn compaction_is_never_undone(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.log().compact(A, 6).unwrap();
    open.log().compact(A, 3).unwrap();
    open.put(A, entries(10..=10, 1));
    open.now_and_after_a_crash(|open| assert_eq!(open.recover(A).truncated.index, 6));
}

pub fn compaction_past_the_end_keeps_its_index(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.log().compact(A, 20).unwrap();
    open.append([GroupWrite { hard_state: Some(hard_state(2, 20)), ..GroupWrite::new(A) }]).unwrap();
    open.now_and_after_a_crash(|open| {
        let recovered = open.recover(A);
        assert_eq!((recovered.truncated.index, recovered.last_index), (20, 20));
        assert!(matches!(open.log().term(A, 9), Err(LogReadError::Compacted { first: 21, .. })));
        assert!(matches!(open.log().term(A, 21), Err(LogReadError::Beyond { last: 20, .. })));
    });
    open.put(A, entries(21..=22, 2));
    open.now_and_after_a_crash(|open| assert_eq!(open.all(A), entries(21..=22, 2)));
}

pub fn compaction_and_appends_go_on_across_crashes(new: NewLogStore<'_>) {
    let mut open = OpenLogStore::new(new);
    for round in 0..10 {
        open.put(A, entries(round * 5 + 1..=round * 5 + 5, round));
        open.log().compact(A, round * 5 + 3).unwrap();
        open.put(A, entries(round * 5 + 5..=round * 5 + 5, round));
        open.now_and_after_a_crash(|open| {
            let recovered = open.recover(A);
            assert_eq!(recovered.truncated, LogId { index: round * 5 + 3, term: round });
            assert_eq!(open.all(A), entries(round * 5 + 4..=round * 5 + 5, round));
        });
    }
}

pub fn an_install_replaces_the_log(new: NewLogStore<'_>) {
    let mut open = filled(new);
    let write = GroupWrite {
        install: Some(install(30, 4)),
        entries: entries(31..=33, 5),
        hard_state: Some(hard_state(5, 30)),
        conf: Some(conf(28)),
        ..GroupWrite::new(A)
    };
    open.append([write]).unwrap();
    open.now_and_after_a_crash(|open| {
        assert_eq!(
            open.recover(A),
            Recovered {
                hard_state: Some(hard_state(5, 30)),
                conf: Some(conf(28)),
                truncated: LogId { index: 30, term: 4 },
                last_index: 33,
                installing: Some(install(30, 4).installing),
            }
        );
        assert_eq!(open.all(A), entries(31..=33, 5));
        assert_eq!(open.log().term(A, 30).unwrap(), 4);
    });
}

pub fn an_install_keeps_hard_state_and_membership(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.append([GroupWrite { install: Some(install(30, 4)), ..GroupWrite::new(A) }]).unwrap();
    open.now_and_after_a_crash(|open| {
        let recovered = open.recover(A);
        assert_eq!((recovered.hard_state, recovered.conf), (Some(hard_state(1, 4)), Some(conf(0))));
        assert_eq!((recovered.truncated.index, recovered.last_index), (30, 30));
    });
}

pub fn an_install_may_be_below_or_above_the_old_log(new: NewLogStore<'_>) {
    let mut open = filled(new);
    // No old entry stays, also not above the snapshot: it may be of another leader.
    for (index, term) in [(5, 2), (100, 3), (9, 4)] {
        open.append([GroupWrite { install: Some(install(index, term)), ..GroupWrite::new(A) }]).unwrap();
        open.now_and_after_a_crash(|open| {
            assert_eq!(
                (open.recover(A).truncated, open.recover(A).last_index),
                (LogId { index, term }, index)
            );
        });
        open.put(A, entries(index + 1..=index + 3, term));
        open.now_and_after_a_crash(|open| assert_eq!(open.all(A), entries(index + 1..=index + 3, term)));
    }
}

pub fn an_install_that_is_installed_at_once_needs_no_restore(new: NewLogStore<'_>) {
    let mut open = filled(new);
    let write = GroupWrite { install: Some(install(30, 4)), installed: true, ..GroupWrite::new(A) };
    open.append([write]).unwrap();
    open.now_and_after_a_crash(|open| {
        assert_eq!((open.recover(A).installing, open.recover(A).last_index), (None, 30));
    });
}

pub fn installed_ends_the_installation(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.append([GroupWrite { install: Some(install(30, 4)), ..GroupWrite::new(A) }]).unwrap();
    open.append([GroupWrite { hard_state: Some(hard_state(5, 30)), ..GroupWrite::new(A) }]).unwrap();
    open.crash();
    assert_eq!(open.recover(A).installing, Some(install(30, 4).installing));
    open.append([GroupWrite { installed: true, ..GroupWrite::new(A) }]).unwrap();
    open.now_and_after_a_crash(|open| {
        let recovered = open.recover(A);
        assert_eq!((recovered.installing, recovered.truncated), (None, LogId { index: 30, term: 4 }));
        assert_eq!(recovered.hard_state, Some(hard_state(5, 30)));
    });
}

pub fn remove_is_durable_and_concerns_one_group(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.put(B, entries(1..=3, 7));
    open.log().remove(A).unwrap();
    open.log().remove(GroupId::new(999)).unwrap();
    open.now_and_after_a_crash(|open| {
        assert_eq!(open.recover(A), Recovered::default());
        assert!(matches!(open.log().term(A, 1), Err(LogReadError::Beyond { last: 0, .. })));
        assert_eq!(open.all(B), entries(1..=3, 7));
        assert_eq!(open.log().groups().unwrap(), [B]);
    });
}

pub fn a_removed_group_starts_anew(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.log().compact(A, 5).unwrap();
    open.log().remove(A).unwrap();
    open.put(A, entries(1..=2, 8));
    open.now_and_after_a_crash(|open| {
        assert_eq!(open.recover(A), Recovered { last_index: 2, ..Recovered::default() });
        assert_eq!(open.all(A), entries(1..=2, 8));
    });
}

pub fn groups_lists_groups_with_stored_data(new: NewLogStore<'_>) {
    let mut open = OpenLogStore::new(new);
    let (c, d) = (GroupId::new(3), GroupId::new(4));
    let writes = [
        GroupWrite { entries: entries(1..=1, 1), ..GroupWrite::new(A) },
        GroupWrite { hard_state: Some(hard_state(1, 0)), ..GroupWrite::new(B) },
        GroupWrite { conf: Some(conf(0)), ..GroupWrite::new(c) },
        GroupWrite { install: Some(install(5, 1)), ..GroupWrite::new(d) },
    ];
    open.append(writes).unwrap();
    open.now_and_after_a_crash(|open| {
        let mut groups = open.log().groups().unwrap();
        groups.sort_unstable();
        assert_eq!(groups, [A, c, d, B]);
    });
}

pub fn every_group_number_is_valid(new: NewLogStore<'_>) {
    let mut open = OpenLogStore::new(new);
    let numbers = [0, 1, u64::from(u32::MAX) + 1, u64::MAX];
    for number in numbers {
        open.put(GroupId::new(number), entries(1..=2, number.max(1)));
    }
    open.now_and_after_a_crash(|open| {
        for number in numbers {
            assert_eq!(open.all(GroupId::new(number)), entries(1..=2, number.max(1)));
        }
    });
}

/// Checks that a batch with an invalid last part is refused as a whole.
fn refused(new: NewLogStore<'_>, bad: impl IntoIterator<Item = GroupWrite>) {
    let mut open = filled(new);
    open.log().compact(A, 3).unwrap();
    let good = GroupWrite { entries: entries(1..=1, 1), ..GroupWrite::new(B) };
    let refused = open.append([good].into_iter().chain(bad)).unwrap_err();
    assert!(matches!(refused, LogError::Invalid { group: A, .. }), "{refused}");
    open.put(A, entries(10..=10, 1));
    open.now_and_after_a_crash(|open| {
        assert_eq!(open.recover(B), Recovered::default());
        assert_eq!(open.all(A), entries(4..=10, 1));
        assert_eq!(open.recover(A).hard_state, Some(hard_state(1, 4)));
    });
}

pub fn a_gap_is_invalid_and_writes_nothing(new: NewLogStore<'_>) {
    refused(new, [GroupWrite { entries: entries(11..=12, 1), ..GroupWrite::new(A) }]);
}

pub fn entries_out_of_order_are_invalid_and_write_nothing(new: NewLogStore<'_>) {
    for order in [[10, 12], [10, 10], [10, 9]] {
        let entries = order.map(|index| Entry { index, term: 1, ..Entry::default() }).into();
        refused(new, [GroupWrite { entries, ..GroupWrite::new(A) }]);
    }
}

pub fn a_group_twice_in_a_batch_is_invalid_and_writes_nothing(new: NewLogStore<'_>) {
    let write = |commit| GroupWrite { hard_state: Some(hard_state(9, commit)), ..GroupWrite::new(A) };
    refused(new, [write(5), write(6)]);
}

pub fn entries_at_the_truncation_point_are_invalid(new: NewLogStore<'_>) {
    for first in [0, 2, 3] {
        refused(new, [GroupWrite { entries: entries(first..=12, 1), ..GroupWrite::new(A) }]);
    }
}

pub fn entries_that_do_not_follow_an_install_are_invalid(new: NewLogStore<'_>) {
    for first in [5, 30, 32] {
        let write = GroupWrite {
            install: Some(install(30, 4)),
            entries: entries(first..=first + 1, 4),
            ..GroupWrite::new(A)
        };
        refused(new, [write]);
    }
}

pub fn an_invalid_batch_does_not_poison(new: NewLogStore<'_>) {
    let open = filled(new);
    let gap = GroupWrite { entries: entries(20..=20, 1), ..GroupWrite::new(A) };
    assert!(open.append([gap]).is_err());
    open.put(A, entries(10..=10, 1));
    open.log().compact(A, 2).unwrap();
    open.log().purge().unwrap();
    open.log().remove(A).unwrap();
}

pub fn purge_loses_nothing(new: NewLogStore<'_>) {
    let mut open = filled(new);
    open.put(B, entries(1..=9, 2));
    for last in (10..200).step_by(10) {
        open.put(A, entries(last..=last + 9, 1));
        open.log().compact(A, last).unwrap();
        open.log().purge().unwrap();
        // Makes the compaction durable.
        open.append([GroupWrite { hard_state: Some(hard_state(2, last)), ..GroupWrite::new(A) }]).unwrap();
        open.now_and_after_a_crash(|open| {
            assert_eq!(open.recover(A).truncated.index, last);
            assert_eq!(open.all(A), entries(last + 1..=last + 9, 1));
            assert_eq!(open.all(B), entries(1..=9, 2));
        });
    }
}

pub fn reads_run_while_appends_do(new: NewLogStore<'_>) {
    const LAST: u64 = 200;
    let open = filled(new);
    let log = open.log();
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for index in 10..=LAST {
                let write = GroupWrite { entries: entries(index..=index, 1), ..GroupWrite::new(A) };
                log.append(&mut LogBatch { writes: vec![write] }).unwrap();
            }
        });
        let mut seen = 9;
        while seen < LAST {
            let last = log.recover(A).unwrap().last_index;
            assert!(last >= seen, "the log went from {seen} back to {last}");
            seen = last;
            let mut out = Vec::new();
            log.entries(A, 1..last + 1, usize::MAX, &mut out).unwrap();
            assert_eq!(out, entries(1..=last, 1));
            assert!(seen == LAST || !writer.is_finished() || log.recover(A).unwrap().last_index == LAST);
        }
    });
}

pub fn space_answers_while_appends_run_and_its_reserve_stays(new: NewLogStore<'_>) {
    let open = filled(new);
    let log = open.log();
    let Some(before) = log.space().unwrap() else { return };
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for index in 10..60 {
                let write = GroupWrite { entries: entries(index..=index, 1), ..GroupWrite::new(A) };
                log.append(&mut LogBatch { writes: vec![write] }).unwrap();
            }
        });
        while !writer.is_finished() {
            let now = log.space().unwrap().expect("it was known before");
            assert_eq!(now.reserve, before.reserve);
        }
    });
}
