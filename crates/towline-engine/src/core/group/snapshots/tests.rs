mod keeping;
mod pings;
mod receiver;
mod unreadable;

use super::*;
use crate::core::{GroupLog, GroupSetup, Reject, ReplicaSetup};
use crate::ids::GroupId;
use crate::message::{ConfState, Entry, HardState, SnapshotRecord};
use crate::reporter::RaftDoor;
use crate::snapshot_store::{ContentId, SnapshotHead};

type TestGroup = Group<u64, u64>;
type TestEffects = Effects<u64, u64>;

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
        at: Applied { index, term },
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
        Applied { index: TRUNCATED, term: 1 },
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
    Group::new(GroupSetup {
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
    .unwrap()
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![1].into(), ..Entry::default() }
}

/// A turn in which everything written is durable and everything handed out is applied at once.
fn turn(group: &mut TestGroup, fx: &mut TestEffects) {
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

fn take(fx: &mut TestEffects) -> SnapshotSend {
    assert_eq!(fx.snapshots.len(), 1, "{:?}", fx.snapshots);
    fx.snapshots.remove(0)
}

fn begin(group: &mut TestGroup) -> SnapshotSend {
    let mut fx = TestEffects::default();
    turn(group, &mut fx);
    take(&mut fx)
}

/// Carries what is in the mailbox to the group; how many reports Raft was told, and how many were stale.
fn drain(group: &mut TestGroup) -> (usize, usize) {
    let mut reports = Vec::new();
    group.snapshots.mailbox.drain(&mut reports);
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
    let mut group = leader(|setup| setup.policy.watchdog = false);
    let attempt = begin(&mut group).ticket.attempt();
    group.snapshots.mailbox.drain(&mut Vec::new());
    group.disown(attempt, &mut TestEffects::default());
    assert!(heartbeats(&mut group, 200).snapshots.is_empty());
    assert_eq!(progress(&group), PeerProgress::Snapshot);
}

/// Records what passes on its way to Raft.
#[derive(Clone, Default)]
struct Recording(Arc<std::sync::Mutex<Vec<Passed>>>);

#[derive(Debug, PartialEq, Eq)]
enum Passed {
    Emitted(u64),
    Unreachable,
    Snapshot(SnapshotStatus),
}

impl RaftDoor for Recording {
    fn emitted(&mut self, _peer: NodeId, _term: u64, index: u64) {
        self.0.lock().unwrap().push(Passed::Emitted(index));
    }

    fn unreachable(&mut self, peer: NodeId, raft: &mut dyn RaftReports) {
        self.0.lock().unwrap().push(Passed::Unreachable);
        raft.report_unreachable(peer);
    }

    fn snapshot(&mut self, peer: NodeId, status: SnapshotStatus, raft: &mut dyn RaftReports) {
        self.0.lock().unwrap().push(Passed::Snapshot(status));
        raft.report_snapshot(peer, status);
    }
}

/// Each way there is to tell Raft something: a posted report, a leaked ticket, and the second line.
#[test]
fn whatever_raft_is_told_comes_through_one_door() {
    let mut group = leader(|_| ());
    let seen = Recording::default();
    group.set_door(Box::new(seen.clone()));
    let mut fx = TestEffects::default();
    begin(&mut group).ticket.fail(SnapshotFailure::Timeout);
    drain(&mut group);
    let leaked = take(&mut heartbeats(&mut group, 3));
    group.disown(leaked.ticket.attempt(), &mut fx);
    drop(leaked);
    let lost = take(&mut heartbeats(&mut group, 8));
    group.replica.attempts().lose(lost.ticket.attempt());
    turn(&mut group, &mut fx);
    let cause = crate::reporter::UnreachableCause::Nack;
    group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: id(2), cause });

    let failure = |cause| Passed::Snapshot(SnapshotStatus::Failure(cause));
    let passed = [
        Passed::Emitted(TRUNCATED),
        failure(SnapshotFailure::Timeout),
        Passed::Emitted(TRUNCATED),
        failure(SnapshotFailure::Lost),
        Passed::Emitted(TRUNCATED),
        failure(SnapshotFailure::Lost),
        Passed::Unreachable,
    ];
    assert_eq!(*seen.0.lock().unwrap(), passed);
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
fn the_watchdog_fires_once_for_a_leaked_ticket() {
    let mut group = leader(|_| ());
    let SnapshotSend { ticket, slot, .. } = begin(&mut group);
    let attempt = ticket.attempt();
    std::mem::forget(ticket);
    drop(slot);
    assert_eq!(heartbeats(&mut group, 3).latched, [], "as far as the group knows somebody works on it");
    let mut fx = TestEffects::default();
    group.disown(attempt, &mut fx);
    group.disown(attempt, &mut fx);
    turn(&mut group, &mut fx);
    assert_eq!(fx.latched, [id(2)]);
    let mut fx = heartbeats(&mut group, 4);
    assert_eq!(fx.latched, [], "once");
    assert!(take(&mut fx).ticket.attempt().number > attempt.number);
}

/// The second line: whatever lost the attempt, a peer for which none stands is not left waiting.
#[test]
fn a_peer_that_waits_for_no_attempt_is_looked_after_within_the_turn() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    group.replica.attempts().lose(send.ticket.attempt());
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!((fx.latched, progress(&group)), (vec![id(2)], PeerProgress::Probe));
    drop(send);
    assert_eq!(drain(&mut group), (0, 1), "its own report is stale by then");
}

/// Case 61.
#[test]
fn the_watchdog_is_silent_between_the_step_and_the_ready() {
    let mut group = leader(|_| ());
    // Raft has decided on a snapshot, which has not left.
    assert_eq!(progress(&group), PeerProgress::Snapshot);
    let mut fx = TestEffects::default();
    group.keep_house(&mut fx);
    assert_eq!(fx.latched, []);
}

/// The control: if an attempt counted only from when its message leaves, the watchdog would take what Raft has just decided
/// for something that was lost, and what leaves then belongs to no attempt.
#[test]
fn an_attempt_that_began_only_with_its_message_would_wake_the_watchdog() {
    let mut group = leader(|_| ());
    let unsent =
        SnapshotAttempt { group: GroupId::DEFAULT, peer: id(2), term: 0, index: TRUNCATED, number: 1 };
    group.replica.attempts().lose(unsent);
    let mut fx = TestEffects::default();
    group.keep_house(&mut fx);
    assert_eq!(fx.latched, [id(2)]);
    turn(&mut group, &mut fx);
    assert!(fx.snapshots.is_empty(), "nobody sends it");
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
        let mut group = leader(|setup| setup.policy.watchdog = false);
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
                let mailbox = group.snapshots.mailbox.clone();
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
    let seen = Recording::default();
    group.set_door(Box::new(seen.clone()));
    let send = begin(&mut group);
    let attempt = send.ticket.attempt();
    group.replica.change_member(id(2), false);
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!((&fx.cancelled[..], &fx.latched[..]), (&[attempt][..], &[][..]));
    assert!(fx.retain.is_some() && group.live_attempts().is_empty(), "nothing is kept for it");
    // Its task ends, and says so.
    send.ticket.fail(SnapshotFailure::Abandoned);
    drop(send.slot);
    assert_eq!(drain(&mut group), (0, 0), "its report is of no use to anybody");
    assert_eq!(
        *seen.0.lock().unwrap(),
        [Passed::Emitted(TRUNCATED)],
        "and Raft, which has forgotten, hears nothing"
    );

    // The same id as another member: the only slot is free, and no wait is left of before.
    group.replica.change_member(id(2), true);
    let mut fx = heartbeats(&mut group, 1);
    let reject =
        Message { index: LAST, reject: true, reject_hint: 0, ..answer(&group, MessageKind::AppendResponse) };
    group.step(id(2), reject).unwrap();
    turn(&mut group, &mut fx);
    fx.snapshots.extend(heartbeats(&mut group, 2).snapshots);
    assert!(take(&mut fx).ticket.attempt().number > attempt.number);
    assert_eq!(fx.latched, []);
}

#[test]
fn a_report_after_the_leader_stepped_down_is_stale_and_the_transfer_is_cancelled() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let higher = Message { term: 9, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), higher).unwrap();
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!(fx.cancelled, [send.ticket.attempt()]);
    drop(send);
    assert_eq!(drain(&mut group), (0, 0), "it never got into the mailbox");
}

/// Case 4: the report is drained in the very turn in which the leader steps down.
#[test]
fn a_report_that_comes_before_the_turn_in_which_its_leadership_ends_is_stale() {
    let mut group = leader(|_| ());
    let seen = Recording::default();
    let send = begin(&mut group);
    let attempt = send.ticket.attempt();
    group.set_door(Box::new(seen.clone()));
    let higher = Message { term: 9, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), higher).unwrap();
    send.ticket.finish();
    assert_eq!((drain(&mut group), seen.0.lock().unwrap().len()), ((0, 1), 0));
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
