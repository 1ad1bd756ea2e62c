//! Which snapshots are made, and which log entries and files are kept.

use super::*;

/// A leader whose first transfer, of the older snapshot, has ended with `cause`. A newer snapshot exists.
fn leader_after(cause: SnapshotFailure) -> TestGroup {
    let mut group = leader(|_| ());
    let transfer = group.begin();
    group.make_snapshot(LAST_ID);
    group.fail(transfer, cause);
    group
}

#[test]
fn a_transfer_keeps_its_file_and_the_log_behind_it() {
    let mut group = leader(|_| ());
    let transfer = group.begin();
    group.make_snapshot(LAST_ID);
    group.turn();
    assert_eq!(group.fx.compact, None, "the peer needs the entries after {TRUNCATED} next");
    assert_eq!(group.fx.retain.take(), Some(vec![content(LAST), content(TRUNCATED)]));
    transfer.ticket.finish();
    group.drain();
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(LAST)]));
    assert_eq!(group.fx.compact, None, "the peer does not have these entries yet");
    for has in [LAST - 1, LAST] {
        group.acknowledge(2, has);
        group.turn();
        assert_eq!((group.fx.compact.take(), group.status().first_index), (Some(has), has + 1));
    }
}

/// A newer snapshot between two attempts once made the follower start again at the first byte.
#[test]
fn the_attempt_after_a_broken_one_offers_the_same_snapshot_although_there_is_a_newer_one() {
    let mut group = leader_after(SnapshotFailure::Timeout);
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(LAST), content(TRUNCATED)]));
    let again = group.transfer_within(3);
    assert_eq!((group.fx.compact, &again.meta), (None, &meta(TRUNCATED, 1)));

    // After a lasting refusal the receiver has no part of the file.
    group.fail(again, SnapshotFailure::Refused { lasting: true });
    group.turn();
    assert_eq!((group.fx.compact, group.fx.retain.take()), (Some(LAST), Some(vec![content(LAST)])));
    assert_eq!(group.transfer_within(40).meta, meta(LAST, 1));
}

/// The leader once offered a file with a wrong digest again, as long as the log had room.
#[test]
fn a_snapshot_that_the_receiver_found_corrupt_is_not_offered_again_if_there_is_a_newer_one() {
    let mut group = leader_after(SnapshotFailure::Corrupt);
    assert_eq!(group.transfer_within(4).meta, meta(LAST, 1));
}

/// A leader that stepped down between two attempts once kept the file of the first, in an idle group for ever.
#[test]
fn a_file_kept_for_another_attempt_goes_with_the_leadership() {
    let mut group = leader_after(SnapshotFailure::Timeout);
    group.turn();
    assert_eq!(group.fx.retain.take(), Some(vec![content(LAST), content(TRUNCATED)]));
    group.step_down();
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(LAST)]));
}

#[test]
fn a_forced_compaction_drops_all_but_the_newest_snapshot() {
    let mut group = leader_after(SnapshotFailure::Timeout);
    group.force_compaction();
    group.turn();
    assert_eq!((group.fx.compact, group.take_orders()), (Some(LAST), vec![LAST_ID]));
    group.make_snapshot(LAST_ID);
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(LAST)]));
    assert_eq!(group.transfer_within(3).meta, meta(LAST, 1));
}

#[test]
fn a_transfer_whose_pinned_log_exceeds_its_bound_fails_once() {
    let mut group = leader(|setup| setup.policy.pin_bytes_max = 1_000);
    let transfer = group.begin();
    group.propose([vec![0; 2_000]]);
    group.turn();
    assert_eq!(group.cancelled[0], transfer.ticket.attempt());
    drop(transfer);
    assert_eq!(group.drain(), (1, 0));
    assert_eq!(group.outcome(), AttemptOutcome::Failed(SnapshotFailure::PinTooLarge));
}

#[test]
fn a_snapshot_is_ordered_after_enough_entries_and_compaction_keeps_the_trailing_entries() {
    for (bytes, kept) in [(u64::MAX, 2), (0, 0)] {
        check_trailing(bytes, kept);
    }
}

fn check_trailing(trailing_bytes: u64, kept: u64) {
    let mut group = leader(|setup| {
        setup.policy.every_entries = 5;
        setup.policy.trailing_entries = 2;
        setup.policy.trailing_bytes = trailing_bytes;
    });
    group.propose([vec![1], vec![1], vec![1], vec![1]]);
    group.turn();
    group.acknowledge(3, group.last_index());
    group.turn();
    let at = LogId { index: group.last_index(), term: group.state().term };
    assert_eq!(group.take_orders(), [at]);
    group.turn();
    assert_eq!(group.take_orders(), [], "not again while it is being made");
    group.make_snapshot(at);
    let transfer = group.take_transfer();
    group.fail(transfer, SnapshotFailure::NoRoute);
    group.turn();
    assert_eq!(group.fx.compact, Some(at.index - kept));
}

/// Its file was once removed as well: the group knows the content id only when the snapshot is complete.
#[test]
fn no_file_is_removed_while_another_snapshot_is_being_made() {
    let mut group = leader(|setup| setup.policy.every_entries = 1);
    let transfer = group.begin();
    group.settle();
    group.fail(transfer, SnapshotFailure::NoRoute);
    group.turn();
    assert_eq!(group.fx.retain, None);
    group.make_snapshot(LAST_ID);
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(LAST)]));
}

/// On an idle group with a latched follower there once was no second try.
#[test]
fn a_failed_snapshot_is_tried_again_without_new_entries_at_growing_intervals() {
    // The log begins after the available snapshot.
    let mut group = leader(|setup| setup.available = Some(meta(TRUNCATED - 1, 1)));
    let mut waits = Vec::new();
    group.turn();
    for _ in 0..9 {
        assert_eq!(group.take_orders(), [LAST_ID]);
        group.snapshot_made(None);
        let from = group.ticks;
        while group.fx.apply.is_empty() {
            assert!(group.ticks - from <= RETAKE_TICKS_MAX, "it is not tried again");
            group.heartbeats(1);
        }
        waits.push(group.ticks - from);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 6_400, 6_400]);

    assert_eq!(group.take_orders().len(), 1);
    group.make_snapshot(LAST_ID);
    assert_eq!(group.transfer_within(RETAKE_TICKS).meta, meta(LAST, 1));
    assert_eq!((group.take_orders(), group.snapshots.retake_ticks), (vec![], RETAKE_TICKS));
}

/// A leader of an idle group once offered an unreadable snapshot again and again.
#[test]
fn an_unreadable_snapshot_is_not_offered_again_and_another_is_made_without_new_entries() {
    let mut group = leader(|_| ());
    let transfer = group.begin();
    let at = LogId { index: group.state().applied, term: 1 };
    group.fx.retain = None;
    group.fail(transfer, SnapshotFailure::Storage);
    group.turn();
    assert_eq!((group.take_orders(), group.status().snapshot_index), (vec![at], 0));
    group.snapshot_made(None);
    group.turn();
    assert_eq!(group.fx.retain, None, "there is no other file yet");
    group.heartbeats(RETAKE_TICKS / HEARTBEAT);
    assert_eq!(group.take_orders(), [at]);
    group.make_snapshot(at);
    group.turn();
    assert_eq!(group.fx.retain, Some(vec![content(at.index)]));
    group.heartbeats(4);
    let transfer = group.take_transfer();
    assert_eq!((transfer.meta.head.at, group.take_orders()), (at, vec![]));

    // Again, at an index that has a snapshot already.
    group.fail(transfer, SnapshotFailure::Storage);
    group.turn();
    assert_eq!(group.take_orders(), [at]);
}

#[test]
fn a_failure_to_read_an_older_snapshot_leaves_the_newest_available() {
    let mut group = leader_after(SnapshotFailure::Storage);
    group.turn();
    assert_eq!((group.take_orders(), group.status().snapshot_index), (vec![], LAST));
}

#[test]
fn the_log_is_not_truncated_past_the_durable_state_of_the_state_machine() {
    let mut group = group(|_| ());
    group.snapshot_made(Some((meta(LAST, 1), LogId { index: 11, term: 1 })));
    group.turn();
    assert_eq!(group.fx.compact, Some(11));
}

#[test]
fn a_snapshot_is_expected_to_be_as_long_as_the_last_one_or_as_the_log_that_it_replaces() {
    let expected = |available, every_entries| {
        let mut group = group(|setup| {
            setup.policy.every_entries = every_entries;
            setup.available = available;
        });
        group.lead();
        group.propose([vec![1; 1_000], vec![1; 1_000], vec![1; 1_000], vec![1; 1_000]]);
        group.turn();
        group.acknowledge(3, group.last_index());
        group.turn();
        let mut orders = group.fx.apply.drain(..);
        orders.find_map(|order| match order {
            Apply::Snapshot { bytes_expected, .. } => Some(bytes_expected),
            _ => None,
        })
    };
    let last = SnapshotMeta { length: 77, ..meta(LAST, 1) };
    assert_eq!(expected(Some(last), 5), Some(77));
    let log = expected(None, LAST + 5).unwrap();
    assert!((4_000..6_000).contains(&log), "{log}");
}

/// The state may have shrunk since. An expectation that stayed would keep a node from a snapshot that fits.
#[test]
fn the_expected_length_halves_with_each_failure_down_to_a_64th() {
    let mut group =
        leader(|setup| setup.available = Some(SnapshotMeta { length: 6_400, ..meta(TRUNCATED - 1, 1) }));
    let mut expected = Vec::new();
    group.turn();
    for _ in 0..8 {
        let orders = group.fx.apply.drain(..);
        expected.extend(orders.filter_map(|order| match order {
            Apply::Snapshot { bytes_expected, .. } => Some(bytes_expected),
            _ => None,
        }));
        group.snapshot_made(None);
        group.heartbeats(RETAKE_TICKS_MAX / HEARTBEAT);
    }
    assert_eq!(expected, [6_400, 3_200, 1_600, 800, 400, 200, 100, 100]);
}
