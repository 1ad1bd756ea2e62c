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
    SnapshotMeta { head, length: 100, content: ContentId([index as u8; 32]) }
}

/// Node 1 of three, all of whose log, entries 11 and 12 of term 1, is applied.
fn group(change: impl FnOnce(&mut SnapshotSetup)) -> TestGroup {
    let entries: Vec<_> = (TRUNCATED + 1..=LAST).map(|i| entry(i, 1)).collect();
    let mut log = GroupLog::new(
        Applied { index: TRUNCATED, term: 1 },
        vec![(11, 1)],
        LAST,
        entries,
        TRUNCATED,
        1 << 20,
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
    let mut group = group(change);
    let mut fx = TestEffects::default();
    (0..20).for_each(|_| group.tick(&mut fx));
    turn(&mut group, &mut fx);
    let grant = Message { term: 2, ..Message::new(MessageKind::RequestPreVoteResponse, id(2), id(1)) };
    group.step(id(2), grant).unwrap();
    turn(&mut group, &mut fx);
    group.step(id(2), answer(&group, MessageKind::RequestVoteResponse)).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(group.state().role, crate::status::Role::Leader);
    let reject =
        Message { index: LAST, reject: true, reject_hint: 0, ..answer(&group, MessageKind::AppendResponse) };
    group.step(id(2), reject).unwrap();
    group
}

/// What the leader sends node 2 within so many heartbeats and their answers.
fn heartbeats(group: &mut TestGroup, count: u64) -> TestEffects {
    let mut fx = TestEffects::default();
    for _ in 0..count * HEARTBEAT {
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

/// Case 22.
#[test]
fn a_transfer_keeps_the_log_behind_it() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let mut fx = TestEffects::default();
    let durable = Applied { index: LAST, term: 1 };
    group.snapshot_made(Some((meta(LAST, 1), durable)));
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact, None, "entries after {TRUNCATED} are what the peer needs next");
    // Its file too: the transfer may not have opened it yet.
    assert_eq!(fx.retain.take(), Some(vec![meta(LAST, 1).content, meta(TRUNCATED, 1).content]));
    send.ticket.finish();
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(LAST, 1).content]));
    assert_eq!(fx.compact, None, "nobody has sent it to the peer yet");
    let has = |index| Message { index, ..answer(&group, MessageKind::AppendResponse) };
    let (some, all) = (has(LAST - 1), has(LAST));
    group.step(id(2), some).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact.take(), Some(LAST - 1), "what it has is not needed");
    group.step(id(2), all).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!((fx.compact, group.status().first_index), (Some(LAST), LAST + 1));
}

/// A newer snapshot made between two attempts had the follower begin again at the first byte: what a receiver keeps of a
/// transfer that broke is of use for that content only.
#[test]
fn the_attempt_after_one_that_broke_offers_the_same_snapshot_though_there_is_a_newer_one() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let (mut fx, at) = (TestEffects::default(), Applied { index: LAST, term: 1 });
    group.snapshot_made(Some((meta(LAST, 1), at)));
    send.ticket.fail(SnapshotFailure::Timeout);
    drop(send.slot);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(LAST, 1).content, meta(TRUNCATED, 1).content]));
    let mut fx = heartbeats(&mut group, 3);
    assert_eq!(fx.compact, None);
    let again = take(&mut fx);
    assert_eq!(again.meta, meta(TRUNCATED, 1));

    // Only a cause that leaves the receiver with a part of it is worth that.
    again.ticket.fail(SnapshotFailure::Refused { lasting: true });
    drop(again.slot);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!((fx.compact, fx.retain), (Some(LAST), Some(vec![meta(LAST, 1).content])));
    let mut fx = heartbeats(&mut group, 40);
    assert_eq!(take(&mut fx).meta, meta(LAST, 1));
}

/// The control, and the way out for a log store that has no room for it.
#[test]
fn a_group_that_is_squeezed_offers_the_newest_snapshot_and_keeps_nothing_else() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let (mut fx, at) = (TestEffects::default(), Applied { index: LAST, term: 1 });
    group.snapshot_made(Some((meta(LAST, 1), at)));
    send.ticket.fail(SnapshotFailure::Timeout);
    drop(send.slot);
    drain(&mut group);
    group.squeeze();
    turn(&mut group, &mut fx);
    assert_eq!((fx.compact, ordered(&mut fx)), (Some(LAST), vec![at]));
    group.snapshot_made(Some((meta(LAST, 1), at)));
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(LAST, 1).content]));
    let mut fx = heartbeats(&mut group, 3);
    assert_eq!(take(&mut fx).meta, meta(LAST, 1));
}

#[test]
fn a_pin_that_became_too_dear_fails_the_transfer_once() {
    let mut group = leader(|setup| setup.policy.pin_bytes_max = 1_000);
    let send = begin(&mut group);
    let mut fx = TestEffects::default();
    group.propose(vec![(vec![0; 2_000].into(), 1)], &mut fx);
    turn(&mut group, &mut fx);
    assert_eq!(fx.cancelled[0], send.ticket.attempt());
    drop(send);
    assert_eq!(drain(&mut group), (1, 0));
    let outcome = group.status().peers[0].last_attempt.unwrap().outcome;
    assert_eq!(outcome, crate::status::AttemptOutcome::Failed(SnapshotFailure::PinTooLarge));
}

#[test]
fn a_snapshot_is_ordered_when_enough_was_applied_and_compaction_keeps_the_trailing_entries() {
    let mut group = leader(|setup| {
        setup.policy.every_entries = 5;
        setup.policy.trailing_entries = 2;
    });
    let mut fx = TestEffects::default();
    group.propose((0..4).map(|n| (vec![1].into(), n)).collect(), &mut fx);
    turn(&mut group, &mut fx);
    let matched =
        Message { index: group.last_index(), ..Message::new(MessageKind::AppendResponse, id(3), id(1)) };
    group.step(id(3), Message { term: group.state().term, ..matched }).unwrap();
    turn(&mut group, &mut fx);
    let orders = |fx: &TestEffects| fx.apply.iter().filter(|t| matches!(t, Apply::Snapshot { .. })).count();
    assert_eq!(orders(&fx), 1);
    turn(&mut group, &mut fx);
    assert_eq!(orders(&fx), 1, "not again while it is being made");
    let at = Applied { index: group.last_index(), term: group.state().term };
    group.snapshot_made(Some((meta(at.index, at.term), at)));
    take(&mut fx).ticket.fail(SnapshotFailure::NoRoute);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact, Some(at.index - 2));
}

fn ordered(fx: &mut TestEffects) -> Vec<Applied> {
    let places = |task| match task {
        Apply::Snapshot { at, .. } => Some(at),
        _ => None,
    };
    fx.apply.drain(..).filter_map(places).collect()
}

/// A removal that was ordered while a snapshot was being made took its file away as well: the group learns of the content
/// only when it is complete.
#[test]
fn no_file_is_forgotten_while_another_snapshot_is_being_made() {
    let mut group = leader(|setup| setup.policy.every_entries = 1);
    let mut fx = TestEffects::default();
    let send = begin(&mut group);
    turn(&mut group, &mut fx);
    let at = Applied { index: LAST, term: 1 };
    send.ticket.fail(SnapshotFailure::NoRoute);
    drain(&mut group);
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, None);
    group.snapshot_made(Some((meta(LAST, 1), at)));
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(LAST, 1).content]));
}

/// An order moved the place forward that the next one is counted from, also when it failed: on an idle group with a
/// follower that waited for a snapshot there was never another.
#[test]
fn a_snapshot_that_could_not_be_made_is_tried_again_without_new_entries_and_ever_less_often() {
    // The log begins after what there is.
    let mut group = leader(|setup| setup.available = Some(meta(TRUNCATED - 1, 1)));
    let mut fx = TestEffects::default();
    let mut waits = Vec::new();
    turn(&mut group, &mut fx);
    for _ in 0..9 {
        assert_eq!(ordered(&mut fx), [Applied { index: LAST, term: 1 }]);
        group.snapshot_made(None);
        let from = group.ticks;
        while fx.apply.is_empty() {
            assert!(group.ticks - from <= RETAKE_TICKS_MAX, "it is not tried again");
            fx = heartbeats(&mut group, 1);
        }
        waits.push(group.ticks - from);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 6_400, 6_400]);

    // One that was made ends it.
    assert_eq!(ordered(&mut fx).len(), 1);
    let at = Applied { index: LAST, term: 1 };
    group.snapshot_made(Some((meta(LAST, 1), at)));
    let mut fx = heartbeats(&mut group, RETAKE_TICKS);
    assert_eq!((ordered(&mut fx), take(&mut fx).meta), (vec![], meta(LAST, 1)));
    assert_eq!(group.snapshots.retake_ticks, RETAKE_TICKS);
}

/// A leader offered a snapshot whose file it could not read again and again: another one was only made after new entries,
/// and an idle group has none.
#[test]
fn a_snapshot_that_cannot_be_read_is_not_offered_again_and_another_is_made_without_new_entries() {
    let mut group = leader(|_| ());
    let mut fx = TestEffects::default();
    let send = begin(&mut group);
    let at = Applied { index: group.state().applied, term: 1 };
    send.ticket.fail(SnapshotFailure::Storage);
    assert_eq!(drain(&mut group), (1, 0));
    turn(&mut group, &mut fx);
    assert_eq!((ordered(&mut fx), group.status().snapshot_index), (vec![at], 0));
    // Meanwhile it is the only file there is.
    group.snapshot_made(None);
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, None);
    let mut fx = heartbeats(&mut group, RETAKE_TICKS / HEARTBEAT);
    assert_eq!(ordered(&mut fx), [at]);
    // It is the same place again, and of the same content.
    group.snapshot_made(Some((meta(at.index, at.term), at)));
    drop(send.slot);
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(at.index, at.term).content]));
    let fx = &mut heartbeats(&mut group, 4);
    let send = take(fx);
    assert_eq!((send.meta.head.at, ordered(fx)), (at, vec![]));

    // Once more, at a place that was snapshotted already.
    send.ticket.fail(SnapshotFailure::Storage);
    drain(&mut group);
    turn(&mut group, fx);
    assert_eq!(ordered(fx), [at]);
}

#[test]
fn a_failure_to_read_an_older_snapshot_does_not_condemn_the_one_there_is_now() {
    let mut group = leader(|_| ());
    let mut fx = TestEffects::default();
    let send = begin(&mut group);
    let at = Applied { index: LAST, term: 1 };
    group.snapshot_made(Some((meta(LAST, 1), at)));
    send.ticket.fail(SnapshotFailure::Storage);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!((ordered(&mut fx), group.status().snapshot_index), (vec![], LAST));
}

#[test]
fn the_log_is_not_forgotten_past_what_the_state_machine_holds_durably() {
    let mut group = group(|_| ());
    let mut fx = TestEffects::default();
    group.snapshot_made(Some((meta(LAST, 1), Applied { index: 11, term: 1 })));
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact, Some(11));
}

// The receiver.

fn offer(index: u64, term: u64) -> SnapshotOffer {
    let meta = meta(index, 1);
    let record = SnapshotRecord { index, term: 1, conf_state: conf_state() };
    let message =
        Message { term, snapshot: Some(record), ..Message::new(MessageKind::Snapshot, id(2), id(1)) };
    SnapshotOffer { message, meta, attempt: 1 }
}

fn receive(group: &mut TestGroup, offer: &SnapshotOffer) -> Result<u64, SnapshotRefusal> {
    group.receive(id(2), offer.message.clone(), offer.meta.clone())
}

#[test]
fn a_received_snapshot_is_written_before_it_is_restored_and_acknowledged_after() {
    let mut group = group(|_| ());
    let offer = offer(50, 3);
    assert_eq!(group.offer(id(2), &offer), Ok(OfferVerdict::Wanted));
    assert_eq!(receive(&mut group, &offer), Ok(50));
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    let (number, write) = fx.write.take().unwrap();
    let install = write.install.unwrap();
    assert_eq!((install.at.index, install.installing), (50, offer.meta.content));
    assert_eq!(write.hard_state.map(|h| (h.term, h.commit)), Some((3, 50)));
    assert_eq!(write.conf.map(|c| c.index), Some(50));
    assert!(fx.apply.is_empty() && fx.messages.is_empty(), "nothing before the write is durable");
    group.written(number, &mut fx);
    assert!(matches!(&fx.apply[..], [Apply::Restore(meta)] if *meta == offer.meta));
    assert!(fx.messages.iter().any(|m| m.kind == MessageKind::AppendResponse && m.index == 50));
    group.applied(50);
    group.poll(&mut fx);
    assert_eq!(fx.retain, Some(vec![offer.meta.content]));
    assert!(fx.write.take().unwrap().1.installed);
    assert_eq!((group.state().applied, group.status().snapshot_index), (50, 50));
}

/// The node closed the group in the turn in which a snapshot was received, and wrote the commit index of that snapshot, but
/// nothing of the snapshot itself. It refused to start again.
#[test]
fn a_group_that_is_closed_before_a_received_snapshot_is_in_a_write_does_not_write_its_commit_index() {
    let mut group = group(|_| ());
    receive(&mut group, &offer(50, 3)).unwrap();
    assert_eq!(group.unwritten_hard_state().map(|h| (h.term, h.commit)), Some((3, LAST)));
    group.poll(&mut TestEffects::default());
    assert_eq!(group.unwritten_hard_state(), None, "it is in a write");
}

/// Case 55.
#[test]
fn neither_an_election_timeout_nor_a_call_to_campaign_disturbs_a_snapshot_that_is_not_applied() {
    let mut group = group(|_| ());
    let offer = offer(50, 3);
    receive(&mut group, &offer).unwrap();
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    (0..200).for_each(|_| group.tick(&mut fx));
    let call = Message { term: 3, ..Message::new(MessageKind::TimeoutNow, id(2), id(1)) };
    assert_eq!(group.step(id(2), call), Err(Reject::Installing));
    turn(&mut group, &mut fx);
    assert_eq!((group.state().term, group.state().role), (3, crate::status::Role::Follower));
    // It goes on answering heartbeats meanwhile.
    fx.messages.clear();
    let beat = Message { term: 3, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    group.step(id(2), beat).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(fx.messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [MessageKind::HeartbeatResponse]);
}

/// Case 54: the answer to a snapshot that is not needed any more is an acknowledgement, and the offer is a success.
#[test]
fn an_offer_of_what_is_committed_here_is_had_already_and_raft_acknowledges_it() {
    let mut group = group(|_| ());
    assert_eq!(group.offer(id(2), &offer(TRUNCATED, 3)), Ok(OfferVerdict::Have { commit: LAST }));
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    let ack = fx.messages.iter().find(|m| m.kind == MessageKind::AppendResponse).unwrap();
    assert_eq!((ack.index, ack.reject), (LAST, false));
}

/// Case 59.
#[test]
fn a_snapshot_of_a_lower_term_or_that_does_not_name_this_node_is_refused_by_type() {
    let mut group = group(|_| ());
    let beat = Message { term: 7, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), beat).unwrap();
    let stale = Err(SnapshotRefusal::StaleTerm { ours: 7, theirs: 3 });
    assert_eq!(group.offer(id(2), &offer(50, 3)), stale);
    assert_eq!(receive(&mut group, &offer(50, 3)).map(|_| OfferVerdict::Wanted), stale);
    let mut others = offer(50, 7);
    others.meta.head.conf_state.voters.remove(0);
    others.message.snapshot.as_mut().unwrap().conf_state.voters.remove(0);
    assert_eq!(receive(&mut group, &others), Err(SnapshotRefusal::WrongNode));
    let mut contradiction = offer(50, 7);
    contradiction.meta.head.at.index = 51;
    assert!(matches!(receive(&mut group, &contradiction), Err(SnapshotRefusal::Corrupt { .. })));
    assert_eq!(group.state().commit, LAST);
}

#[test]
fn another_snapshot_has_to_wait_until_the_first_is_installed() {
    let mut group = group(|_| ());
    receive(&mut group, &offer(50, 3)).unwrap();
    assert_eq!(group.offer(id(2), &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(receive(&mut group, &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(group.offer(id(2), &offer(50, 3)), Ok(OfferVerdict::Have { commit: 50 }));
}
