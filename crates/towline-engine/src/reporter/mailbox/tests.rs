use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::reporter::SnapshotFailure;

const FINISH: SnapshotStatus = SnapshotStatus::Finish;
const FAILURE: SnapshotStatus = SnapshotStatus::Failure(SnapshotFailure::Transfer);

#[derive(Default)]
struct Counts(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl ReportCounter for Counts {
    fn count(&self, _: NodeId, kind: ReportKind, outcome: ReportOutcome, n: u64) {
        *self.0.lock().unwrap().entry((kind.as_str(), outcome.as_str())).or_default() += n;
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn node(n: u64) -> NodeId {
    NodeId::new(n).unwrap()
}

fn attempt(number: u64) -> SnapshotAttempt {
    SnapshotAttempt { group: GroupId::DEFAULT, peer: node(2), term: 1, index: 10, number }
}

/// A mailbox in which the default group of node 2 is registered.
struct TestMailbox {
    mailbox: Arc<Mailbox>,
    counts: Arc<Counts>,
    woken: Arc<Woken>,
}

impl std::ops::Deref for TestMailbox {
    type Target = Mailbox;

    fn deref(&self) -> &Mailbox {
        &self.mailbox
    }
}

impl TestMailbox {
    fn new() -> Self {
        let (counts, woken) = (Arc::new(Counts::default()), Arc::new(Woken::default()));
        let mailbox = Arc::new(Mailbox::new(woken.clone().into(), counts.clone()));
        mailbox.register(GroupId::DEFAULT, node(2));
        Self { mailbox, counts, woken }
    }

    fn drained(&self) -> Vec<Report> {
        let mut out = Vec::new();
        self.drain(&mut out);
        out
    }

    fn lose_link(&self) {
        self.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    }

    fn count(&self, kind: ReportKind, outcome: ReportOutcome) -> u64 {
        self.counts.0.lock().unwrap().get(&(kind.as_str(), outcome.as_str())).copied().unwrap_or_default()
    }

    fn wakes(&self) -> usize {
        self.woken.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_lost_link_is_reported_to_every_group_of_that_peer_and_no_other() {
    let mailbox = TestMailbox::new();
    mailbox.register(GroupId::new(7), node(2));
    mailbox.register(GroupId::new(7), node(3));
    mailbox.lose_link();
    let cause = UnreachableCause::LinkLost;
    let expected =
        [1, 7].map(|group| Report::Unreachable { group: GroupId::new(group), peer: node(2), cause });
    assert_eq!(mailbox.drained(), expected);
}

#[test]
fn only_stored_reports_wake_the_shard() {
    let mailbox = TestMailbox::new();
    mailbox.arm(attempt(1));
    let wakes = |post: &dyn Fn()| {
        let before = mailbox.wakes();
        post();
        mailbox.wakes() - before
    };
    let lose_link = || mailbox.lose_link();
    assert_eq!((wakes(&lose_link), wakes(&lose_link)), (1, 0));
    let finish = |number| mailbox.report_snapshot(attempt(number), FINISH);
    assert_eq!((wakes(&|| finish(7)), wakes(&|| finish(1)), wakes(&|| finish(1))), (0, 1, 0));
}

/// Mailbox and shard once counted such reports differently, so the outcomes did not add up to the posts.
#[test]
fn a_node_wide_report_counts_as_one_for_each_group() {
    let mailbox = TestMailbox::new();
    mailbox.register(GroupId::new(7), node(2));
    mailbox.register(GroupId::new(9), node(2));
    let coalesced = || mailbox.count(ReportKind::Unreachable, ReportOutcome::Coalesced);
    mailbox.report_unreachable(node(2), Scope::Group(GroupId::new(7)), UnreachableCause::QueueFull);
    mailbox.lose_link();
    assert_eq!(coalesced(), 1, "the one of group 7");
    mailbox.lose_link();
    assert_eq!((coalesced(), mailbox.drained().len()), (4, 3), "7 = 1 + 2 * 3 were posted");
}

#[test]
fn a_report_after_close_is_counted_and_dropped() {
    let mailbox = TestMailbox::new();
    mailbox.arm(attempt(1));
    mailbox.close();
    mailbox.report_snapshot(attempt(1), FAILURE);
    mailbox.lose_link();
    assert_eq!((mailbox.drained(), mailbox.wakes()), (vec![], 0));
    for kind in [ReportKind::SnapshotFailure, ReportKind::Unreachable] {
        assert_eq!(mailbox.count(kind, ReportOutcome::AfterClose), 1);
    }
}

/// Such reports once disappeared uncounted, so the counters did not add up to the posts.
#[test]
fn a_report_that_is_never_drained_is_counted() {
    let mailbox = TestMailbox::new();
    let finished = |outcome| mailbox.count(ReportKind::SnapshotFinish, outcome);
    let lost = |outcome| mailbox.count(ReportKind::Unreachable, outcome);
    let post = |number| {
        mailbox.arm(attempt(number));
        mailbox.report_snapshot(attempt(number), FINISH);
    };
    post(1);
    mailbox.disarm(GroupId::DEFAULT, node(2));
    assert_eq!(finished(ReportOutcome::Stale), 1);
    post(2);
    post(3);
    assert_eq!(finished(ReportOutcome::Stale), 2, "the next attempt replaced it");
    mailbox.lose_link();
    mailbox.forget(GroupId::DEFAULT, node(2));
    assert_eq!((finished(ReportOutcome::Stale), lost(ReportOutcome::Stale)), (3, 1));
    post(4);
    mailbox.lose_link();
    mailbox.close();
    assert_eq!((finished(ReportOutcome::AfterClose), lost(ReportOutcome::AfterClose)), (1, 1));
    assert_eq!(mailbox.drained(), []);
}

/// A peer that was removed and added again has no live attempt.
#[test]
fn a_report_for_a_removed_and_re_added_peer_changes_nothing() {
    let mailbox = TestMailbox::new();
    mailbox.arm(attempt(1));
    mailbox.forget(GroupId::DEFAULT, node(2));
    mailbox.report_snapshot(attempt(1), FINISH);
    mailbox.register(GroupId::DEFAULT, node(2));
    mailbox.report_snapshot(attempt(1), FINISH);
    assert_eq!(mailbox.drained(), []);
    for outcome in [ReportOutcome::UnknownPeer, ReportOutcome::Stale] {
        assert_eq!(mailbox.count(ReportKind::SnapshotFinish, outcome), 1);
    }
}
