//! What snapshots are made, and what of the log and of their files is kept.

use super::*;

/// Case 22.
#[test]
fn a_transfer_keeps_the_log_behind_it() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let mut fx = TestEffects::default();
    let durable = LogId { index: LAST, term: 1 };
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
    let (mut fx, at) = (TestEffects::default(), LogId { index: LAST, term: 1 });
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
    assert_eq!((fx.compact, fx.retain.take()), (Some(LAST), Some(vec![meta(LAST, 1).content])));
    let mut fx = heartbeats(&mut group, 40);
    assert_eq!(take(&mut fx).meta, meta(LAST, 1));
}

/// A file whose digest does not hold, though its checksums do, was offered again for as long as the log had room, whatever
/// newer one there was: the receiver keeps nothing of it.
#[test]
fn what_the_receiver_found_corrupt_is_not_offered_again_where_there_is_a_newer_one() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    group.snapshot_made(Some((meta(LAST, 1), LogId { index: LAST, term: 1 })));
    send.ticket.fail(SnapshotFailure::Corrupt);
    drop(send.slot);
    drain(&mut group);
    let mut fx = heartbeats(&mut group, 4);
    assert_eq!(take(&mut fx).meta, meta(LAST, 1));
}

/// A leader that stepped down between two attempts kept the file of the first until its next snapshot, and in an idle
/// group for good.
#[test]
fn what_was_kept_for_another_attempt_goes_with_the_leadership() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let (mut fx, at) = (TestEffects::default(), LogId { index: LAST, term: 1 });
    group.snapshot_made(Some((meta(LAST, 1), at)));
    send.ticket.fail(SnapshotFailure::Timeout);
    drop(send.slot);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain.take(), Some(vec![meta(LAST, 1).content, meta(TRUNCATED, 1).content]));
    let beat = Message { term: group.state().term + 1, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    group.step(id(2), beat).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(fx.retain, Some(vec![meta(LAST, 1).content]));
}

/// The control, and the way out for a log store that has no room for it.
#[test]
fn a_group_with_a_forced_compaction_offers_the_newest_snapshot_and_keeps_nothing_else() {
    let mut group = leader(|_| ());
    let send = begin(&mut group);
    let (mut fx, at) = (TestEffects::default(), LogId { index: LAST, term: 1 });
    group.snapshot_made(Some((meta(LAST, 1), at)));
    send.ticket.fail(SnapshotFailure::Timeout);
    drop(send.slot);
    drain(&mut group);
    group.force_compaction();
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
    let at = LogId { index: group.last_index(), term: group.state().term };
    group.snapshot_made(Some((meta(at.index, at.term), at)));
    take(&mut fx).ticket.fail(SnapshotFailure::NoRoute);
    drain(&mut group);
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact, Some(at.index - 2));
}

fn ordered(fx: &mut TestEffects) -> Vec<LogId> {
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
    let at = LogId { index: LAST, term: 1 };
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
        assert_eq!(ordered(&mut fx), [LogId { index: LAST, term: 1 }]);
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
    let at = LogId { index: LAST, term: 1 };
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
    let at = LogId { index: group.state().applied, term: 1 };
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
    let at = LogId { index: LAST, term: 1 };
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
    group.snapshot_made(Some((meta(LAST, 1), LogId { index: 11, term: 1 })));
    turn(&mut group, &mut fx);
    assert_eq!(fx.compact, Some(11));
}
