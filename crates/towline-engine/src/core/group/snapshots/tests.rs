mod keeping;
mod pings;
mod receiver;
mod unreadable;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::core::{GroupLog, GroupSetup, Reject, ReplicaSetup, SendBudget, VoidCause};
use crate::ids::GroupId;
use crate::message::{ConfState, Entry, HardState, SnapshotRecord};
use crate::reporter::{Mailbox, Reporter as _, SnapshotStatus, SnapshotTicket};
use crate::snapshot_store::{ContentId, SnapshotHead};

/// A group, with what its driver keeps for it.
struct TestGroup {
    core: GroupCore<u64, u64>,
    mailbox: Arc<Mailbox>,
    /// Transfers at a time.
    slots: usize,
    /// What transfers that run hold a clone of.
    slot: Arc<()>,
}

/// Effects; those on attempts are carried out as the shard does it.
#[derive(Default)]
struct TestEffects {
    core: Effects<u64, u64>,
    snapshots: Vec<Sent>,
    /// Transfers that are of no use any more.
    cancelled: Vec<SnapshotAttempt>,
    /// Why attempts were disarmed.
    voided: Vec<VoidCause>,
}

/// A transfer that runs.
#[derive(Debug)]
struct Sent {
    ticket: SnapshotTicket,
    meta: SnapshotMeta,
    slot: Arc<()>,
}

impl Deref for TestGroup {
    type Target = GroupCore<u64, u64>;

    fn deref(&self) -> &Self::Target {
        &self.core
    }
}

impl DerefMut for TestGroup {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.core
    }
}

impl Deref for TestEffects {
    type Target = Effects<u64, u64>;

    fn deref(&self) -> &Self::Target {
        &self.core
    }
}

impl DerefMut for TestEffects {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.core
    }
}

impl TestGroup {
    fn new(setup: GroupSetup) -> Self {
        let mailbox = Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(())));
        Self { core: GroupCore::new(setup).unwrap(), mailbox, slots: 1, slot: Arc::new(()) }
    }

    fn lend(&mut self) {
        let taken = Arc::strong_count(&self.slot) - 1 + self.core.unsent_attempts();
        let budget = SendBudget { slots: self.slots.saturating_sub(taken), ..self.core.budget() };
        self.core.lend(budget);
    }

    fn tick(&mut self, fx: &mut TestEffects) {
        self.lend();
        self.core.tick(fx);
    }

    /// Of its own, so that a message may be made of the group that takes it.
    fn step(&mut self, from: NodeId, message: Message) -> Result<(), Reject> {
        self.core.step(from, message)
    }

    /// With the tickets of these attempts held.
    fn watch(&mut self, held: &[SnapshotAttempt], fx: &mut TestEffects) {
        let is_owed =
            |attempt: &SnapshotAttempt| held.contains(attempt) || self.mailbox.has_outcome(*attempt);
        self.core.watch(is_owed, fx);
        self.carry_out(fx);
    }

    fn carry_out(&mut self, fx: &mut TestEffects) {
        for effect in std::mem::take(&mut fx.core.attempts) {
            match effect {
                AttemptEffect::Arm(send) => {
                    let SnapshotSend { attempt, meta, .. } = *send;
                    self.mailbox.arm(attempt);
                    let ticket = SnapshotTicket::new(attempt, self.mailbox.clone());
                    fx.snapshots.push(Sent { ticket, meta, slot: self.slot.clone() });
                }
                AttemptEffect::Settle { attempt, cause } => {
                    self.mailbox.report_snapshot(attempt, SnapshotStatus::Failure(cause));
                    fx.cancelled.push(attempt);
                }
                AttemptEffect::Disarm { attempt, cause } => {
                    self.mailbox.disarm(attempt.group, attempt.peer);
                    fx.cancelled.push(attempt);
                    fx.voided.push(cause);
                }
            }
        }
    }
}

const HEARTBEAT: u64 = 2;
/// The log begins after it.
const TRUNCATED: u64 = 10;
const LAST: u64 = 12;

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

fn conf_state() -> ConfState {
    ConfState { voters: vec![id(1), id(2), id(3)], ..ConfState::default() }
}

fn meta(index: u64, term: u64) -> SnapshotMeta {
    let head = SnapshotHead {
        group: GroupId::DEFAULT,
        at: LogId { index, term },
        conf_state: conf_state(),
        members: Default::default(),
    };
    SnapshotMeta { head, length: 100, content: ContentId([index as u8; 16]) }
}

/// Node 1 of three, all of whose log, entries 11 and 12 of term 1, is applied.
fn group(change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    group_with_cache(1 << 20, change)
}

/// The same with this number of bytes of applied entries in memory.
fn group_with_cache(cache_bytes_max: usize, change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    let entries: Vec<_> = (TRUNCATED + 1..=LAST).map(|i| entry(i, 1)).collect();
    let mut log = GroupLog::new(
        LogId { index: TRUNCATED, term: 1 },
        vec![(11, 1)],
        LAST,
        entries,
        TRUNCATED,
        cache_bytes_max,
    );
    log.applied_to(LAST);
    let mut snapshots = SnapshotSetup { available: Some(meta(TRUNCATED, 1)), ..SnapshotSetup::default() };
    snapshots.policy.retry = RetryPolicy { wait_ticks_min: HEARTBEAT, wait_ticks_max: 100 };
    change(&mut snapshots);
    TestGroup::new(GroupSetup {
        replica: ReplicaSetup {
            node: id(1),
            group: GroupId::DEFAULT,
            log,
            hard_state: HardState { term: 1, vote: None, commit: LAST },
            conf_state: conf_state(),
            heartbeat_ticks: HEARTBEAT as usize,
            election_ticks: 20..21,
            election_ticks_min: 20,
            append_bytes_max: 1 << 20,
            append_inflight_max: 16,
            commit_broadcast: true,
            uncommitted_bytes_max: 1 << 20,
            committed_bytes_max: 1 << 20,
        },
        origin: [1; 16],
        quiet_ticks: 0,
        read_timeout_ticks: 200,
        read_retry_ticks: HEARTBEAT,
        unapplied_bytes_max: 1 << 20,
        conf: ConfRecord { conf_state: conf_state(), ..ConfRecord::default() },
        snapshots,
    })
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![1].into(), ..Entry::default() }
}

/// A turn in which everything written is durable and everything handed out is applied at once.
fn turn(group: &mut TestGroup, fx: &mut TestEffects) {
    group.lend();
    group.poll(fx);
    while let Some((number, _)) = fx.write.take() {
        group.written(number, fx);
        group.poll(fx);
    }
    let through = fx.apply.iter().rev().find_map(|task| match task {
        Apply::Entries { through, .. } => Some(through.index),
        _ => None,
    });
    if let Some(index) = through {
        group.applied(index);
        group.poll(fx);
    }
    group.carry_out(fx);
}

fn answer(group: &TestGroup, kind: MessageKind) -> Message {
    Message { term: group.state().term, ..Message::new(kind, id(2), id(1)) }
}

/// Makes node 1 the leader, and node 2, which has nothing, known to be behind.
fn leader(change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    lead(group(change), 0)
}

/// Makes node 1 the leader, and node 2 known to have the log up to `has`.
fn lead(mut group: TestGroup, has: u64) -> TestGroup {
    let mut fx = TestEffects::default();
    (0..20).for_each(|_| group.tick(&mut fx));
    turn(&mut group, &mut fx);
    let grant = Message { term: 2, ..Message::new(MessageKind::RequestPreVoteResponse, id(2), id(1)) };
    group.step(id(2), grant).unwrap();
    turn(&mut group, &mut fx);
    group.step(id(2), answer(&group, MessageKind::RequestVoteResponse)).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(group.state().role, crate::status::Role::Leader);
    let reject = Message {
        index: LAST,
        reject: true,
        reject_hint: has,
        log_term: u64::from(has > 0),
        ..answer(&group, MessageKind::AppendResponse)
    };
    group.step(id(2), reject).unwrap();
    group
}

/// What the leader sends node 2 within so many heartbeats and their answers.
fn heartbeats(group: &mut TestGroup, count: u64) -> TestEffects {
    ticks(group, count * HEARTBEAT)
}

fn ticks(group: &mut TestGroup, count: u64) -> TestEffects {
    let mut fx = TestEffects::default();
    for _ in 0..count {
        group.tick(&mut fx);
        turn(group, &mut fx);
        let beats = fx.messages.iter().filter(|m| m.kind == MessageKind::Heartbeat && m.to == id(2)).count();
        fx.messages.clear();
        for _ in 0..beats {
            group.step(id(2), answer(group, MessageKind::HeartbeatResponse)).unwrap();
        }
        turn(group, &mut fx);
    }
    fx
}

fn take(fx: &mut TestEffects) -> Sent {
    assert_eq!(fx.snapshots.len(), 1, "{:?}", fx.snapshots);
    fx.snapshots.remove(0)
}

fn begin(group: &mut TestGroup) -> Sent {
    let mut fx = TestEffects::default();
    turn(group, &mut fx);
    take(&mut fx)
}

/// Carries what is in the mailbox to the group; how many reports Raft was told, and how many were stale.
fn drain(group: &mut TestGroup) -> (usize, usize) {
    let mut reports = Vec::new();
    group.mailbox.drain(&mut reports);
    let told = reports.iter().filter(|&&report| group.take_report(report)).count();
    (told, reports.len() - told)
}

fn progress(group: &TestGroup) -> PeerProgress {
    group.status().peers.iter().find(|peer| peer.id == id(2)).unwrap().progress
}

/// Case 1 with Towline.
#[test]
fn a_snapshot_that_was_lost_is_reported_and_sent_again_within_its_wait_and_two_heartbeats() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    assert_eq!((send.meta.head.at.index, progress(&group)), (TRUNCATED, PeerProgress::Snapshot));
    assert!(heartbeats(&mut group, 5).snapshots.is_empty(), "one at a time");
    let first = send.ticket.attempt();
    drop(send);
    assert_eq!(drain(&mut group), (1, 0));
    assert_eq!(progress(&group), PeerProgress::Probe);
    let again = take(&mut heartbeats(&mut group, 3)).ticket.attempt();
    assert!(again.number > first.number);
}

/// The control of the test above: with the report thrown away, and nobody who looks after it, the peer is latched.
#[test]
fn without_report_and_watchdog_the_peer_is_latched() {
    let mut group = leader(|_| ());
    drop(begin(&mut group));
    group.mailbox.drain(&mut Vec::new());
    assert!(heartbeats(&mut group, 200).snapshots.is_empty());
    assert_eq!(progress(&group), PeerProgress::Snapshot);
}

/// Case 2.
#[test]
fn a_finish_alone_moves_the_peer_on_when_its_own_answer_was_lost() {
    let mut group = leader(|_| ());
    begin(&mut group).ticket.finish();
    assert_eq!(drain(&mut group), (1, 0));
    assert_eq!(progress(&group), PeerProgress::Probe);
    let status = group.status();
    let peer = status.peers.iter().find(|peer| peer.id == id(2)).unwrap();
    assert_eq!(peer.next, TRUNCATED + 1);
}

/// Case 59: a receiver that this snapshot does not name, say, will not take it however often it is offered.
#[test]
fn a_lasting_refusal_is_not_followed_by_an_endless_resend() {
    let refuse = |lasting: bool| {
        let mut group = leader(|setup| setup.policy.retry.wait_ticks_max = 1_000);
        let mut attempts = 0;
        for _ in 0..1_000 / HEARTBEAT {
            for send in heartbeats(&mut group, 1).snapshots {
                send.ticket.fail(SnapshotFailure::Refused { lasting });
                attempts += 1;
            }
            drain(&mut group);
        }
        attempts
    };
    let (lasting, passing) = (refuse(true), refuse(false));
    assert!(lasting <= 6 && passing > lasting, "{lasting} of a lasting one, {passing} of one that passes");
}

/// Case 6: one message at a time, after each heartbeat response, until one is acknowledged.
#[test]
fn after_an_unreachable_report_a_peer_gets_at_most_one_append_until_it_answers_a_heartbeat() {
    let mut group = leader(|_| ());
    let third = |kind, group: &TestGroup| Message { from: id(3), ..answer(group, kind) };
    let appends = |fx: &mut TestEffects| {
        let to_third = fx.messages.iter().filter(|m| m.kind == MessageKind::Append && m.to == id(3)).count();
        fx.messages.clear();
        to_third
    };
    let propose = |group: &mut TestGroup, fx: &mut TestEffects| {
        for n in 0..5 {
            group.propose(vec![(vec![1].into(), n)], fx);
            turn(group, fx);
        }
    };
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    let ack = Message { index: group.last_index(), ..third(MessageKind::AppendResponse, &group) };
    group.step(id(3), ack).unwrap();
    turn(&mut group, &mut fx);
    appends(&mut fx);
    propose(&mut group, &mut fx);
    assert_eq!(appends(&mut fx), 5, "it streams");

    let cause = crate::reporter::UnreachableCause::LinkLost;
    group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: id(3), cause });
    assert_eq!(group.status().peers[1].progress, PeerProgress::Probe);
    propose(&mut group, &mut fx);
    assert_eq!(appends(&mut fx), 1);
    group.step(id(3), third(MessageKind::HeartbeatResponse, &group)).unwrap();
    propose(&mut group, &mut fx);
    assert_eq!(appends(&mut fx), 1);
    // Its answer makes it stream again.
    let ack = Message { index: group.last_index(), ..third(MessageKind::AppendResponse, &group) };
    group.step(id(3), ack).unwrap();
    turn(&mut group, &mut fx);
    appends(&mut fx);
    propose(&mut group, &mut fx);
    assert_eq!(appends(&mut fx), 5);
}

/// It counted as applied, though Raft is told only on a leader: on two nodes of three the counter was not what it said.
#[test]
fn an_unreachable_report_on_a_follower_or_of_no_member_is_stale() {
    let mut group = leader(|_| ());
    let cause = crate::reporter::UnreachableCause::LinkLost;
    let of = |peer| Report::Unreachable { group: GroupId::DEFAULT, peer: id(peer), cause };
    assert!(group.take_report(of(3)));
    assert!(!group.take_report(of(9)));
    let higher = Message { term: 9, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), higher).unwrap();
    assert!(!group.take_report(of(3)));
}

/// Case 5.
#[test]
fn the_watchdog_reports_a_leaked_ticket_once() {
    let mut group = leader(|_| ());
    let Sent { ticket, slot, .. } = begin(&mut group);
    let attempt = ticket.attempt();
    let mut fx = TestEffects::default();
    group.watch(&[attempt], &mut fx);
    assert_eq!(drain(&mut group), (0, 0), "its ticket is held");
    std::mem::forget(ticket);
    drop(slot);
    group.watch(&[], &mut fx);
    let settled = fx.cancelled.len();
    group.watch(&[], &mut fx);
    assert_eq!((settled, fx.cancelled.len()), (1, 1), "its outcome waits in the mailbox");
    assert_eq!((drain(&mut group), progress(&group)), ((1, 0), PeerProgress::Probe));
    let outcome = group.status().peers[0].last_attempt.unwrap().outcome;
    assert_eq!(outcome, crate::status::AttemptOutcome::Failed(SnapshotFailure::Lost));
    group.watch(&[], &mut fx);
    assert_eq!((fx.cancelled.len(), drain(&mut group)), (1, (0, 0)), "it is over");
    assert!(take(&mut heartbeats(&mut group, 4)).ticket.attempt().number > attempt.number);
}

/// The peer has acknowledged its snapshot, so Raft does not wait. The next attempt to that peer would.
#[test]
fn the_watchdog_reports_a_leaked_ticket_also_when_raft_does_not_wait_for_it() {
    let mut group = leader(|_| ());
    std::mem::forget(begin(&mut group).ticket);
    let ack = Message { index: TRUNCATED, ..answer(&group, MessageKind::AppendResponse) };
    group.step(id(2), ack).unwrap();
    assert_ne!(progress(&group), PeerProgress::Snapshot);
    group.watch(&[], &mut TestEffects::default());
    assert_eq!(drain(&mut group), (1, 0));
    assert!(group.live_attempts().is_empty());
}

/// Case 61: Raft has decided on a snapshot, but its message has not left. No ticket exists yet.
#[test]
fn the_watchdog_is_silent_between_the_step_and_the_ready() {
    let mut group = leader(|_| ());
    assert_eq!(progress(&group), PeerProgress::Snapshot);
    let mut fx = TestEffects::default();
    group.watch(&[], &mut fx);
    assert_eq!(fx.cancelled, []);
    turn(&mut group, &mut fx);
    let send = take(&mut fx);
    group.watch(&[], &mut fx);
    assert_eq!(fx.cancelled, [send.ticket.attempt()], "the control: once it has left it is looked after");
}

/// Cases 4 and 60.
#[test]
fn a_report_of_attempt_1_during_attempt_2_is_stale_and_changes_nothing() {
    let mut group = leader(|_| ());
    let first = begin(&mut group).ticket.attempt();
    assert_eq!(drain(&mut group), (1, 0), "it was dropped");
    let second = take(&mut heartbeats(&mut group, 3));
    let late = Report::Snapshot { attempt: first, status: SnapshotStatus::Finish };
    assert!(!group.take_report(late));
    assert_eq!(progress(&group), PeerProgress::Snapshot);
    second.ticket.finish();
    assert_eq!(drain(&mut group), (1, 0));
}

/// Case 60, and its control: with one slot for whatever was posted last, the late failure of the first takes the place of the
/// success of the second, is stale by then, and the peer waits for ever.
#[test]
fn a_late_report_in_the_place_of_an_unread_outcome_would_latch_the_peer() {
    let after = |one_slot: bool| {
        let mut group = leader(|_| ());
        let first = begin(&mut group).ticket.attempt();
        drain(&mut group);
        let second = take(&mut heartbeats(&mut group, 3)).ticket;
        let posted = [
            (second.attempt(), SnapshotStatus::Finish),
            (first, SnapshotStatus::Failure(SnapshotFailure::Transfer)),
        ];
        std::mem::forget(second);
        match one_slot {
            true => {
                let [.., (attempt, status)] = posted;
                assert!(!group.take_report(Report::Snapshot { attempt, status }));
            }
            false => {
                let mailbox = group.mailbox.clone();
                posted.into_iter().for_each(|(attempt, status)| mailbox.report_snapshot(attempt, status));
                assert_eq!(drain(&mut group), (1, 0));
            }
        }
        assert!(heartbeats(&mut group, 50).snapshots.is_empty());
        progress(&group)
    };
    assert_eq!(after(false), PeerProgress::Probe, "it goes on behind the second");
    assert_eq!(after(true), PeerProgress::Snapshot, "the control");
}

/// Case 23. No membership changes in this version; what the core does about a peer that is no member any more is ready.
#[test]
fn a_peer_that_is_removed_while_it_receives_leaves_no_attempt_no_latch_and_no_slot_taken() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let attempt = send.ticket.attempt();
    group.replica.change_member(id(2), false);
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!((&fx.cancelled[..], &fx.voided[..]), (&[attempt][..], &[VoidCause::NotMember][..]));
    assert!(fx.retain.is_some() && group.live_attempts().is_empty(), "nothing is kept for it");
    // Its task ends, and says so.
    send.ticket.fail(SnapshotFailure::Abandoned);
    drop(send.slot);
    assert_eq!(drain(&mut group), (0, 0), "its report is of no use to anybody: Raft has forgotten");

    // The same id as another member: the only slot is free, and no wait is left of before.
    group.replica.change_member(id(2), true);
    let mut fx = heartbeats(&mut group, 1);
    let reject =
        Message { index: LAST, reject: true, reject_hint: 0, ..answer(&group, MessageKind::AppendResponse) };
    group.step(id(2), reject).unwrap();
    turn(&mut group, &mut fx);
    fx.snapshots.extend(heartbeats(&mut group, 2).snapshots);
    assert!(take(&mut fx).ticket.attempt().number > attempt.number);
}

#[test]
fn a_report_after_the_leader_stepped_down_is_stale_and_the_transfer_is_cancelled() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let higher = Message { term: 9, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), higher).unwrap();
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!(
        (&fx.cancelled[..], &fx.voided[..]),
        (&[send.ticket.attempt()][..], &[VoidCause::LeadershipOver][..])
    );
    drop(send);
    assert_eq!(drain(&mut group), (0, 0), "it never got into the mailbox");
}

/// Case 4: the report is drained in the very turn in which the leader steps down.
#[test]
fn a_report_that_comes_before_the_turn_in_which_its_leadership_ends_is_stale() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let attempt = send.ticket.attempt();
    let higher = Message { term: 9, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), higher).unwrap();
    send.ticket.finish();
    assert_eq!(drain(&mut group), (0, 1));
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!(fx.cancelled, [attempt]);
}

/// Case 10.
#[test]
fn a_wrong_finish_converges_by_another_snapshot() {
    let mut group = leader(|_| ());
    begin(&mut group).ticket.finish();
    drain(&mut group);
    // The peer has nothing, and says so when the next entries are probed.
    let mut fx = heartbeats(&mut group, 2);
    assert!(fx.snapshots.is_empty());
    let reject = Message {
        index: TRUNCATED,
        reject: true,
        reject_hint: 0,
        ..answer(&group, MessageKind::AppendResponse)
    };
    group.step(id(2), reject).unwrap();
    turn(&mut group, &mut fx);
    fx.snapshots.extend(heartbeats(&mut group, 2).snapshots);
    take(&mut fx);
}
