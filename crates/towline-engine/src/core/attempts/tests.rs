use super::*;
use crate::message::{ConfState, LogId, MemberTable};
use crate::snapshot_store::SnapshotHead;

const HEARTBEAT: u64 = 10;

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

fn meta(index: u64) -> SnapshotMeta {
    let conf_state = ConfState { voters: vec![id(1), id(2), id(3)], ..ConfState::default() };
    let at = LogId { index, term: 1 };
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at,
        conf_state,
        members: MemberTable::new(),
    };
    SnapshotMeta { head, length: 100, content: ContentId([index as u8; 16]) }
}

fn attempts(slots: usize, available: Option<u64>) -> Attempts {
    let policy = RetryPolicy { wait_ticks_min: HEARTBEAT, wait_ticks_max: 1_000 };
    let mut attempts = Attempts::new(GroupId::DEFAULT, policy, available.map(meta), 7);
    attempts.budget = SendBudget { slots, attempts: 0 };
    attempts
}

fn begin(attempts: &mut Attempts, to: u64) -> Option<(SnapshotAttempt, SnapshotMeta)> {
    let index = attempts.admit(id(to), 5, 0)?.head.at.index;
    attempts.emit(id(to), 3, index)
}

fn free_a_slot(attempts: &mut Attempts) {
    attempts.budget.slots += 1;
}

fn fail(attempts: &mut Attempts, attempt: SnapshotAttempt, cause: SnapshotFailure) {
    assert!(attempts.settle(attempt, SnapshotStatus::Failure(cause), HEARTBEAT));
}

/// The number of ticks until a peer is due.
fn wait(attempts: &mut Attempts) -> u64 {
    (1..10_000).find(|_| attempts.tick()).expect("it becomes due")
}

#[test]
fn attempts_are_bounded_by_one_for_each_peer_and_by_the_slots() {
    let mut attempts = attempts(2, Some(9));
    begin(&mut attempts, 2).unwrap();
    assert!(begin(&mut attempts, 2).is_none(), "one is under way");
    begin(&mut attempts, 3).unwrap();
    assert!(attempts.admit(id(1), 5, 0).is_none(), "no slot is free");
    free_a_slot(&mut attempts);
    assert!(attempts.admit(id(1), 5, 0).is_some());
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_and_another_is_missing() {
    let mut attempts = attempts(2, Some(9));
    // At once the peer was due again, and all peers got a ping in every tick.
    for _ in 0..100 {
        assert!(attempts.admit(id(2), 10, 0).is_none(), "the log begins after it");
        assert!(!attempts.tick(), "not due before there is another");
    }
    assert!(attempts.is_missing());
    assert!(attempts.admit(id(4), 5, 0).is_none(), "its membership lacks the peer");
    attempts.make_available(meta(12));
    attempts.make_available(meta(11));
    assert!(!attempts.is_missing());
    assert_eq!(attempts.available().unwrap().head.at.index, 12, "an older one changes nothing");
    assert!(attempts.tick() && attempts.admit(id(2), 10, 0).is_some());
}

#[test]
fn only_the_live_attempt_can_be_settled() {
    let mut attempts = attempts(4, Some(9));
    let first = begin(&mut attempts, 2).unwrap().0;
    let forged = SnapshotAttempt { term: first.term + 1, ..first };
    assert!(!attempts.settle(forged, SnapshotStatus::Finish, HEARTBEAT));
    fail(&mut attempts, first, SnapshotFailure::Transfer);
    assert!(!attempts.settle(first, SnapshotStatus::Finish, HEARTBEAT), "it has ended");
    wait(&mut attempts);
    let second = begin(&mut attempts, 2).unwrap().0;
    assert_ne!(first.number, second.number);
    assert!(!attempts.settle(first, SnapshotStatus::Finish, HEARTBEAT), "another one is live");
    assert_eq!(attempts.live_attempts().collect::<Vec<_>>(), [second]);
}

#[test]
fn the_wait_after_a_failure_begins_at_a_heartbeat_doubles_and_has_jitter_and_a_bound() {
    let mut attempts = attempts(1, Some(9));
    let mut waits = Vec::new();
    for _ in 0..12 {
        let attempt = begin(&mut attempts, 2).unwrap().0;
        fail(&mut attempts, attempt, SnapshotFailure::Transfer);
        free_a_slot(&mut attempts);
        assert!(begin(&mut attempts, 2).is_none(), "not during the wait");
        waits.push(wait(&mut attempts));
    }
    let bound = |n: u32| (HEARTBEAT << n).min(1_000);
    for (n, &waited) in waits.iter().enumerate() {
        let least = bound(n as u32);
        assert!((least..=least + least / 4).contains(&waited), "wait {n} was {waited} in {waits:?}");
    }
    assert!(waits.iter().enumerate().any(|(n, &waited)| waited > bound(n as u32)), "some jitter: {waits:?}");
    let attempt = begin(&mut attempts, 2).unwrap().0;
    assert!(attempts.settle(attempt, SnapshotStatus::Finish, HEARTBEAT));
    free_a_slot(&mut attempts);
    assert_eq!(wait(&mut attempts), HEARTBEAT, "a success forgets the failures");

    let attempt = begin(&mut attempts, 2).unwrap().0;
    fail(&mut attempts, attempt, SnapshotFailure::Refused { lasting: true });
    free_a_slot(&mut attempts);
    assert!(wait(&mut attempts) >= HEARTBEAT * LASTING_REFUSAL_FACTOR, "a lasting refusal waits longer");
}

#[test]
fn stepping_down_voids_attempts_before_and_after_their_message_leaves() {
    let mut attempts = attempts(2, Some(9));
    let (sent, _) = begin(&mut attempts, 2).unwrap();
    assert!(attempts.admit(id(3), 5, 0).is_some());
    assert_eq!((attempts.unsent(), attempts.budget.slots), (1, 0));
    assert!(attempts.void_stale(Some(3), |_| true).is_empty(), "the leader still leads");
    let unsent = SnapshotAttempt { peer: id(3), term: 0, number: 2, ..sent };
    let voided = attempts.void_stale(None, |_| true);
    assert_eq!(voided, [sent, unsent].map(|attempt| (attempt, VoidCause::LeadershipOver)));
    assert!(attempts.emit(id(3), 3, 9).is_none(), "its message does not leave");
    assert!(!attempts.settle(sent, SnapshotStatus::Finish, HEARTBEAT));
    assert_eq!((attempts.unsent(), attempts.budget.slots), (0, 1), "the transfer of the other may still run");
}

#[test]
fn a_peer_that_is_no_member_voids_its_attempt_alone() {
    let mut attempts = attempts(2, Some(9));
    let (removed, _) = begin(&mut attempts, 2).unwrap();
    let (stays, _) = begin(&mut attempts, 3).unwrap();
    let voided = attempts.void_stale(Some(3), |peer| peer != id(2));
    assert_eq!(voided, [(removed, VoidCause::NotMember)]);
    assert_eq!(attempts.live_attempts().collect::<Vec<_>>(), [stays]);
}

#[test]
fn the_snapshot_of_a_broken_attempt_is_offered_again_until_the_peer_has_it_or_it_pins_too_much() {
    let broken = || {
        let mut attempts = attempts(2, Some(9));
        let attempt = begin(&mut attempts, 2).unwrap().0;
        attempts.make_available(meta(20));
        fail(&mut attempts, attempt, SnapshotFailure::Transfer);
        free_a_slot(&mut attempts);
        attempts
    };
    let mut again = broken();
    assert_eq!(again.follow(18, 1_000, 1_000, |_| 0), []);
    assert_eq!((again.pinned(), again.contents().count()), (Some(9), 2));
    wait(&mut again);
    assert_eq!(again.admit(id(3), 5, 900), Some(&meta(20)), "for the one peer only");
    assert_eq!(again.admit(id(2), 5, 900), Some(&meta(9)));
    assert_eq!(again.overdue(1_001, 1_000), [], "it has not left, so there is nothing to report");
    again.emit(id(2), 3, 9).unwrap();
    let overdue: Vec<_> = again.overdue(1_001, 1_000).iter().map(|attempt| attempt.peer).collect();
    assert_eq!(overdue, [id(2)], "its pin counts from the first attempt on");

    let mut has_snapshot = broken();
    assert_eq!(has_snapshot.follow(18, 0, 1_000, |_| 12), [], "it needs the log behind the snapshot");
    assert_eq!((has_snapshot.pinned(), has_snapshot.contents().count()), (Some(12), 1));
    assert_eq!(has_snapshot.follow(18, 0, 1_000, |_| 18), [id(2)]);
    assert_eq!(has_snapshot.pinned(), None);

    let silent_for = |ticks| {
        let mut silent = broken();
        for _ in 0..ticks {
            silent.tick();
        }
        silent
    };
    let mut answers_at_last = silent_for(1_000);
    assert_eq!(answers_at_last.follow(18, 0, 1_000, |_| 0), []);
    assert!(begin(&mut answers_at_last, 2).is_some());

    let (mut too_large, mut silent, mut deposed) = (broken(), silent_for(1_001), broken());
    assert_eq!(too_large.follow(18, 1_001, 1_000, |_| 0), [id(2)]);
    assert_eq!(silent.follow(18, 0, 1_000, |_| 0), [id(2)]);
    deposed.void_stale(None, |_| true);
    for forgotten in [&too_large, &silent, &deposed] {
        assert_eq!((forgotten.pinned(), forgotten.contents().count()), (None, 1));
    }
    wait(&mut too_large);
    assert_eq!(begin(&mut too_large, 2).unwrap().1, meta(20));
}

#[test]
fn an_attempt_pins_the_log_up_to_a_bound() {
    let mut attempts = attempts(2, Some(9));
    assert_eq!(attempts.pinned(), None);
    let attempt = begin(&mut attempts, 2).unwrap().0;
    attempts.make_available(meta(20));
    assert_eq!(attempts.pinned(), Some(9));
    assert_eq!(attempts.contents().collect::<Vec<_>>(), [meta(20).content, meta(9).content]);
    assert!(attempts.overdue(1_000, 1_000).is_empty());
    assert_eq!(attempts.overdue(1_001, 1_000), [attempt]);
}
