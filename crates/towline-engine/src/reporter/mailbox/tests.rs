use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::reporter::SnapshotFailure;

#[derive(Default)]
struct Counts(Mutex<BTreeMap<(u64, &'static str, &'static str), u64>>);

impl ReportCounter for Counts {
    fn count(&self, peer: NodeId, kind: ReportKind, outcome: ReportOutcome, n: u64) {
        *self.0.lock().unwrap().entry((peer.as_u64(), kind.as_str(), outcome.as_str())).or_default() += n;
    }
}

impl Counts {
    fn of(&self, kind: ReportKind, outcome: ReportOutcome) -> u64 {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|((_, k, o), _)| *k == kind.as_str() && *o == outcome.as_str())
            .map(|(_, n)| n)
            .sum()
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

fn mailbox() -> (Arc<Mailbox>, Arc<Counts>, Arc<Woken>) {
    let (counts, woken) = (Arc::new(Counts::default()), Arc::new(Woken::default()));
    let mailbox = Arc::new(Mailbox::new(woken.clone().into(), counts.clone()));
    mailbox.register(GroupId::DEFAULT, node(2));
    (mailbox, counts, woken)
}

fn drained(mailbox: &Mailbox) -> Vec<Report> {
    let mut out = Vec::new();
    mailbox.drain(&mut out);
    out
}

/// Case 60.
#[test]
fn a_late_report_of_attempt_1_does_not_touch_the_unread_outcome_of_attempt_2() {
    let (mailbox, counts, _) = mailbox();
    mailbox.arm(attempt(1));
    mailbox.arm(attempt(2));
    mailbox.report_snapshot(attempt(2), SnapshotStatus::Finish);
    mailbox.report_snapshot(attempt(1), SnapshotStatus::Failure(SnapshotFailure::Transfer));
    assert_eq!(drained(&mailbox), [Report::Snapshot { attempt: attempt(2), status: SnapshotStatus::Finish }]);
    assert_eq!(counts.of(ReportKind::SnapshotFailure, ReportOutcome::Stale), 1);
}

#[test]
fn a_lost_link_is_reported_to_every_group_of_that_peer_and_no_other() {
    let (mailbox, ..) = mailbox();
    mailbox.register(GroupId::new(7), node(2));
    mailbox.register(GroupId::new(7), node(3));
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    let groups: Vec<_> = drained(&mailbox)
        .into_iter()
        .map(|r| match r {
            Report::Unreachable { group, peer, .. } => (group.as_u64(), peer.as_u64()),
            Report::Snapshot { .. } => panic!("no snapshot was reported"),
        })
        .collect();
    assert_eq!(groups, [(1, 2), (7, 2)]);
}

#[test]
fn the_shard_is_woken_for_what_is_stored_and_for_nothing_else() {
    let (mailbox, _, woken) = mailbox();
    mailbox.arm(attempt(1));
    let lost = || mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    let wakes = |post: &dyn Fn()| {
        let before = woken.0.load(Ordering::SeqCst);
        post();
        woken.0.load(Ordering::SeqCst) - before
    };
    assert_eq!((wakes(&lost), wakes(&lost)), (1, 0));
    let ended = |number| mailbox.report_snapshot(attempt(number), SnapshotStatus::Finish);
    assert_eq!((wakes(&|| ended(7)), wakes(&|| ended(1)), wakes(&|| ended(1))), (0, 1, 0));
}

/// They were counted by the call when all cells were full, by the cell when they were drained, and not at all when some cells
/// were full, so that the outcomes did not add up to anything.
#[test]
fn a_node_wide_report_counts_as_one_for_each_group() {
    let (mailbox, counts, _) = mailbox();
    mailbox.register(GroupId::new(7), node(2));
    mailbox.register(GroupId::new(9), node(2));
    let lost = |outcome| counts.of(ReportKind::Unreachable, outcome);
    mailbox.report_unreachable(node(2), Scope::Group(GroupId::new(7)), UnreachableCause::QueueFull);
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    assert_eq!(lost(ReportOutcome::Coalesced), 1, "that of group 7");
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    assert_eq!(lost(ReportOutcome::Coalesced), 4);
    assert_eq!(drained(&mailbox).len(), 3, "one and two times three were posted");
}

/// Case 9.
#[test]
fn a_report_after_close_is_counted_and_dropped() {
    let (mailbox, counts, woken) = mailbox();
    mailbox.arm(attempt(1));
    mailbox.close();
    mailbox.report_snapshot(attempt(1), SnapshotStatus::Failure(SnapshotFailure::Transfer));
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    assert_eq!(drained(&mailbox), []);
    assert_eq!(counts.of(ReportKind::SnapshotFailure, ReportOutcome::AfterClose), 1);
    assert_eq!(counts.of(ReportKind::Unreachable, ReportOutcome::AfterClose), 1);
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
}

/// They were stored as live and then thrown away without a word, so that the counters did not add up to what was posted.
#[test]
fn a_report_that_is_not_drained_any_more_is_counted_too() {
    let (mailbox, counts, _) = mailbox();
    let finished = |outcome| counts.of(ReportKind::SnapshotFinish, outcome);
    let lost = |outcome| counts.of(ReportKind::Unreachable, outcome);
    let post = |number| {
        mailbox.arm(attempt(number));
        mailbox.report_snapshot(attempt(number), SnapshotStatus::Finish);
    };
    post(1);
    mailbox.disarm(GroupId::DEFAULT, node(2));
    assert_eq!(finished(ReportOutcome::Stale), 1);
    post(2);
    post(3);
    assert_eq!(finished(ReportOutcome::Stale), 2, "the next attempt took its place");
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    mailbox.forget(GroupId::DEFAULT, node(2));
    assert_eq!((finished(ReportOutcome::Stale), lost(ReportOutcome::Stale)), (3, 1));
    post(4);
    mailbox.report_unreachable(node(2), Scope::Node, UnreachableCause::LinkLost);
    mailbox.close();
    assert_eq!((finished(ReportOutcome::AfterClose), lost(ReportOutcome::AfterClose)), (1, 1));
    assert_eq!(drained(&mailbox), []);
}

/// Case 4, the removed and re-added id: a cell that was forgotten has no live attempt.
#[test]
fn a_report_for_a_removed_and_re_added_peer_changes_nothing() {
    let (mailbox, counts, _) = mailbox();
    mailbox.arm(attempt(1));
    mailbox.forget(GroupId::DEFAULT, node(2));
    mailbox.report_snapshot(attempt(1), SnapshotStatus::Finish);
    mailbox.register(GroupId::DEFAULT, node(2));
    mailbox.report_snapshot(attempt(1), SnapshotStatus::Finish);
    assert_eq!(drained(&mailbox), []);
    assert_eq!(counts.of(ReportKind::SnapshotFinish, ReportOutcome::UnknownPeer), 1);
    assert_eq!(counts.of(ReportKind::SnapshotFinish, ReportOutcome::Stale), 1);
}

/// Case 8. Nobody drains: the loop is stalled. The same of a node that runs: `node/tests/reports.rs`.
#[test]
fn ten_thousand_reports_from_eight_threads_against_a_stalled_loop_stay_bounded_and_keep_the_outcome() {
    let (mailbox, counts, _) = mailbox();
    mailbox.arm(attempt(1));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1_250 {
                    mailbox.report_unreachable(
                        node(2),
                        Scope::Group(GroupId::DEFAULT),
                        UnreachableCause::QueueFull,
                    );
                    mailbox.report_snapshot(attempt(9), SnapshotStatus::Failure(SnapshotFailure::Transfer));
                }
            });
        }
        mailbox.report_snapshot(attempt(1), SnapshotStatus::Finish);
    });
    assert_eq!(mailbox.lock().by_peer.len(), 1);
    assert_eq!(
        drained(&mailbox),
        [
            Report::Unreachable {
                group: GroupId::DEFAULT,
                peer: node(2),
                cause: UnreachableCause::QueueFull
            },
            Report::Snapshot { attempt: attempt(1), status: SnapshotStatus::Finish },
        ]
    );
    assert_eq!(counts.of(ReportKind::Unreachable, ReportOutcome::Coalesced), 9_999);
    assert_eq!(counts.of(ReportKind::SnapshotFailure, ReportOutcome::Stale), 10_000);
}
