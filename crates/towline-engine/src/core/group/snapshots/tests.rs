mod explain;
mod installs;
mod pings;
mod retention;
mod unreadable;

use super::*;
use crate::core::group::tests::fixture::*;
use crate::core::{GroupLog, Reject, VoidCause};
use crate::ids::GroupId;
use crate::message::{Entry, SnapshotRecord};
use crate::reporter::{Reporter as _, SnapshotStatus};
use crate::snapshot_store::{ContentId, SnapshotHead};
use crate::status::{AttemptOutcome, Role};

/// The log begins after this index.
const TRUNCATED: u64 = 10;
const LAST: u64 = 12;
const LAST_ID: LogId = LogId { index: LAST, term: 1 };

fn meta(index: u64, term: u64) -> SnapshotMeta {
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index, term },
        conf_state: setup(3, empty_log(), 1).replica.conf_state,
        members: Default::default(),
    };
    SnapshotMeta { head, length: 100, content: content(index) }
}

fn content(index: u64) -> ContentId {
    ContentId([index as u8; 16])
}

fn empty_log() -> GroupLog {
    GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, 0)
}

/// Node 1 of three, whose log, entries 11 and 12 of term 1, is applied.
fn group(change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    group_with_cache(1 << 20, change)
}

/// The same with this number of bytes of applied entries in memory.
fn group_with_cache(cache_bytes_max: usize, change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    let entries: Vec<_> = (TRUNCATED + 1..=LAST).map(|i| entry(i, 1)).collect();
    let truncated = LogId { index: TRUNCATED, term: 1 };
    let mut log = GroupLog::new(truncated, vec![(11, 1)], LAST, entries, TRUNCATED, cache_bytes_max);
    log.applied_to(LAST);
    let mut setup = setup(3, log, 20);
    setup.snapshots.available = Some(meta(TRUNCATED, 1));
    setup.snapshots.policy.retry = RetryPolicy { wait_ticks_min: HEARTBEAT, wait_ticks_max: 100 };
    change(&mut setup.snapshots);
    TestGroup::new(setup)
}

/// Makes node 1 the leader, and node 2, which has nothing, known to be behind.
fn leader(change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    lead(group(change), 0)
}

/// Makes node 1 the leader, and node 2 known to have the log up to `has`.
fn lead(mut group: TestGroup, has: u64) -> TestGroup {
    group.lead();
    group.reject(LAST, has);
    group
}

impl TestGroup {
    /// Node 2 rejects entries behind `index`, because its log ends at `has`.
    fn reject(&mut self, index: u64, has: u64) {
        let answer = self.answer(MessageKind::AppendResponse);
        let log_term = u64::from(has > 0);
        self.deliver(Message { index, reject: true, reject_hint: has, log_term, ..answer });
    }

    /// Heartbeats, which node 2 answers.
    fn heartbeats(&mut self, count: u64) {
        self.turns(count * HEARTBEAT);
    }

    /// Ticks in which node 2 answers heartbeats.
    fn turns(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.tick();
            self.turn();
            let to_node_2 = |m: &&Message| m.kind == MessageKind::Heartbeat && m.to == id(2);
            let beats = self.fx.messages.iter().filter(to_node_2).count();
            self.fx.messages.clear();
            (0..beats).for_each(|_| self.deliver(self.answer(MessageKind::HeartbeatResponse)));
            self.turn();
        }
    }

    fn begin(&mut self) -> RunningTransfer {
        self.turn();
        self.take_transfer()
    }

    /// The transfer that starts within this number of heartbeats.
    fn transfer_within(&mut self, heartbeats: u64) -> RunningTransfer {
        self.heartbeats(heartbeats);
        self.take_transfer()
    }

    /// The group's own snapshot at `at` is made.
    fn make_snapshot(&mut self, at: LogId) {
        self.snapshot_made(Some((meta(at.index, at.term), at)));
    }

    /// Takes the orders to make snapshots.
    fn take_orders(&mut self) -> Vec<LogId> {
        let at = |task| match task {
            Apply::Snapshot { at, .. } => Some(at),
            _ => None,
        };
        self.fx.apply.drain(..).filter_map(at).collect()
    }

    fn progress(&self) -> PeerProgress {
        self.status().peers[0].progress
    }

    /// The outcome of the last attempt.
    fn outcome(&self) -> AttemptOutcome {
        self.status().peers[0].last_attempt.unwrap().outcome
    }

    /// A leader of a higher term ends the leadership.
    fn step_down(&mut self) {
        self.deliver(message(MessageKind::Heartbeat, 3, 9));
    }
}

#[test]
fn a_lost_snapshot_is_reported_and_sent_again_within_its_wait_and_two_heartbeats() {
    let mut group = leader(|_| ());
    let lost = group.begin();
    assert_eq!((lost.meta.head.at.index, group.progress()), (TRUNCATED, PeerProgress::Snapshot));
    group.heartbeats(5);
    assert!(group.transfers.is_empty(), "one at a time");
    let first = lost.ticket.attempt();
    drop(lost);
    assert_eq!((group.drain(), group.progress()), ((1, 0), PeerProgress::Probe));
    assert!(group.transfer_within(3).ticket.attempt().number > first.number);
}

/// A receiver that the snapshot does not name, for example, refuses every offer of it.
#[test]
fn a_lasting_refusal_is_not_followed_by_endless_resends() {
    let refused = |lasting: bool| {
        let mut group = leader(|setup| setup.policy.retry.wait_ticks_max = 1_000);
        let mut attempts = 0;
        for _ in 0..1_000 / HEARTBEAT {
            group.heartbeats(1);
            while let Some(transfer) = group.transfers.pop() {
                group.fail(transfer, SnapshotFailure::Refused { lasting });
                attempts += 1;
            }
        }
        attempts
    };
    let (lasting, passing) = (refused(true), refused(false));
    assert!(lasting <= 6 && passing > lasting, "{lasting} lasting, {passing} passing");
}

/// One message at a time, after each heartbeat response, until one is acknowledged.
#[test]
fn after_an_unreachable_report_a_peer_gets_at_most_one_append_until_it_answers_a_heartbeat() {
    let mut group = leader(|_| ());
    let acknowledge = |group: &mut TestGroup| {
        group.acknowledge(3, group.last_index());
        group.settle();
    };
    let appends = |group: &mut TestGroup| {
        for _ in 0..5 {
            group.propose([vec![1]]);
            group.turn();
        }
        let to_node_3 = |m: &&Message| m.kind == MessageKind::Append && m.to == id(3);
        group.settle().messages.iter().filter(to_node_3).count()
    };
    group.settle();
    acknowledge(&mut group);
    assert_eq!(appends(&mut group), 5, "it streams");

    let cause = UnreachableCause::LinkLost;
    group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: id(3), cause });
    assert_eq!(group.status().peers[1].progress, PeerProgress::Probe);
    assert_eq!(appends(&mut group), 1);
    let answer = group.answer(MessageKind::HeartbeatResponse);
    group.deliver(Message { from: id(3), ..answer });
    assert_eq!(appends(&mut group), 1);
    acknowledge(&mut group);
    assert_eq!(appends(&mut group), 5, "it streams again");
}

/// Such a report once counted as applied, on two nodes of three.
#[test]
fn an_unreachable_report_on_a_follower_or_about_no_member_is_stale() {
    let mut group = leader(|_| ());
    let cause = UnreachableCause::LinkLost;
    let about = |peer| Report::Unreachable { group: GroupId::DEFAULT, peer: id(peer), cause };
    assert!(group.take_report(about(3)) && !group.take_report(about(9)));
    group.step_down();
    assert!(!group.take_report(about(3)));
}

#[test]
fn the_watchdog_reports_a_leaked_ticket_once() {
    let mut group = leader(|_| ());
    let RunningTransfer { ticket, .. } = group.begin();
    let attempt = ticket.attempt();
    group.watch(&[attempt]);
    assert_eq!(group.drain(), (0, 0), "its ticket is held");
    std::mem::forget(ticket);
    group.watch(&[]);
    group.watch(&[]);
    assert_eq!(group.cancelled, [attempt], "once: its outcome waits in the mailbox");
    assert_eq!((group.drain(), group.progress()), ((1, 0), PeerProgress::Probe));
    assert_eq!(group.outcome(), AttemptOutcome::Failed(SnapshotFailure::Lost));
    group.watch(&[]);
    assert_eq!((group.cancelled.len(), group.drain()), (1, (0, 0)), "it has ended");
    assert!(group.transfer_within(4).ticket.attempt().number > attempt.number);
}

/// The peer has acknowledged its snapshot, so Raft does not wait. The next attempt to that peer would.
#[test]
fn the_watchdog_reports_a_leaked_ticket_even_if_raft_does_not_wait_for_it() {
    let mut group = leader(|_| ());
    std::mem::forget(group.begin().ticket);
    group.acknowledge(2, TRUNCATED);
    assert_ne!(group.progress(), PeerProgress::Snapshot);
    group.watch(&[]);
    assert_eq!((group.drain(), group.live_attempts()), ((1, 0), vec![]));
}

/// Raft has decided on a snapshot, but its message has not left. No ticket exists yet.
#[test]
fn the_watchdog_is_silent_between_the_step_and_the_ready() {
    let mut group = leader(|_| ());
    assert_eq!(group.progress(), PeerProgress::Snapshot);
    group.watch(&[]);
    assert_eq!(group.cancelled, []);
    let transfer = group.begin();
    group.watch(&[]);
    assert_eq!(group.cancelled, [transfer.ticket.attempt()], "the control: its message has left");
}

/// Also if the shard drains the report in the very turn in which the leader steps down.
#[test]
fn stepping_down_cancels_the_transfer_and_makes_its_report_stale() {
    for is_reported_first in [false, true] {
        let mut group = leader(|_| ());
        let ticket = group.begin().ticket;
        let attempt = ticket.attempt();
        group.step_down();
        let mut ticket = Some(ticket);
        if is_reported_first {
            drop(ticket.take());
            assert_eq!(group.drain(), (0, 1));
        }
        group.turn();
        assert_eq!(
            (&group.cancelled[..], &group.voided[..]),
            (&[attempt][..], &[VoidCause::LeadershipOver][..])
        );
        drop(ticket);
        assert_eq!(group.drain(), (0, 0), "the attempt is disarmed");
    }
}

/// The control: in a mailbox that kept only the last post, the late failure of the first attempt would
/// replace the success of the second. The failure is stale, so the peer would be latched.
#[test]
fn a_late_report_does_not_replace_the_outcome_of_the_next_attempt() {
    let progress_after = |keeps_only_last: bool| {
        let mut group = leader(|_| ());
        let first = group.begin().ticket.attempt();
        group.drain();
        let second = group.transfer_within(3).ticket;
        let attempt = second.attempt();
        std::mem::forget(second);
        let failure = SnapshotStatus::Failure(SnapshotFailure::Transfer);
        if keeps_only_last {
            assert!(!group.take_report(Report::Snapshot { attempt: first, status: failure }));
        } else {
            group.mailbox.report_snapshot(attempt, SnapshotStatus::Finish);
            group.mailbox.report_snapshot(first, failure);
            assert_eq!(group.drain(), (1, 0));
        }
        group.heartbeats(50);
        assert!(group.transfers.is_empty());
        group.progress()
    };
    assert_eq!(progress_after(false), PeerProgress::Probe);
    assert_eq!(progress_after(true), PeerProgress::Snapshot, "the control");
}

/// This version changes no membership, but the core is ready for it.
#[test]
fn a_peer_removed_during_a_transfer_leaves_no_attempt_no_latch_and_no_taken_slot() {
    let mut group = leader(|_| ());
    let transfer = group.begin();
    let attempt = transfer.ticket.attempt();
    group.replica.change_member(id(2), false);
    group.turn();
    assert_eq!((&group.cancelled[..], &group.voided[..]), (&[attempt][..], &[VoidCause::NotMember][..]));
    assert!(group.fx.retain.is_some() && group.live_attempts().is_empty(), "nothing is kept for it");
    transfer.fail(SnapshotFailure::Abandoned);
    assert_eq!(group.drain(), (0, 0), "the attempt is disarmed");

    // The id joins again: the only slot is free, and no wait is left.
    group.replica.change_member(id(2), true);
    group.heartbeats(1);
    group.reject(LAST, 0);
    group.turn();
    assert!(group.transfer_within(2).ticket.attempt().number > attempt.number);
}
