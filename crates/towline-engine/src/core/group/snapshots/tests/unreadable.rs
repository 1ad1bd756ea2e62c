//! What a leader does when it cannot read entries that a follower needs.

use super::*;
use crate::core::Unreadable;

/// Reads that fail before the place is given up.
const FAILURES: usize = 5;

/// The leader's entries 11 and 12 are in the log store alone, and node 2 needs them.
fn leader_with_cold_entries(available: SnapshotMeta) -> TestGroup {
    let group = group_with_cache(0, |setup| setup.available = Some(available));
    let mut group = lead(group, TRUNCATED);
    let has = Message { index: TRUNCATED, ..answer(&group, MessageKind::AppendResponse) };
    group.step(id(2), has).unwrap();
    group
}

/// Heartbeats and their answers, with each fetch answered by `read`. Gives the fetches, and everything else.
fn beat(
    group: &mut TestGroup,
    count: usize,
    mut read: impl FnMut() -> Result<Vec<Entry>, String>,
) -> (usize, TestEffects) {
    let (mut fetches, mut all) = (0, TestEffects::default());
    for _ in 0..count {
        let mut fx = heartbeats(group, 1);
        while !fx.fetches.is_empty() {
            for fetch in std::mem::take(&mut fx.fetches) {
                assert_eq!(fetch.low, TRUNCATED + 1);
                fetches += 1;
                group.fetched(fetch.low, read(), &mut fx);
            }
            turn(group, &mut fx);
        }
        all.unreadable.append(&mut fx.unreadable);
        all.snapshots.append(&mut fx.snapshots);
        all.messages.append(&mut fx.messages);
        all.apply.append(&mut fx.apply);
    }
    (fetches, all)
}

fn fail() -> Result<Vec<Entry>, String> {
    Err("a bad block".into())
}

/// The reads were repeated at every heartbeat for ever, and the follower never got a snapshot although one was there.
#[test]
fn a_follower_that_needs_entries_that_cannot_be_read_gets_a_snapshot() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    let (fetches, mut fx) = beat(&mut group, 200, fail);
    assert_eq!(fetches, FAILURES);
    let told = Unreadable { index: TRUNCATED + 1, cause: "a bad block".into() };
    assert_eq!(std::mem::take(&mut fx.unreadable), [told], "the operator hears of it once");
    assert_eq!(take(&mut fx).meta.head.at.index, LAST);
}

/// The newest snapshot ends before the entries that cannot be read: it would not lead past them.
#[test]
fn a_snapshot_that_leads_past_the_entries_that_cannot_be_read_is_made_if_there_is_none() {
    let mut group = leader_with_cold_entries(meta(TRUNCATED, 1));
    let (fetches, fx) = beat(&mut group, 10, fail);
    assert_eq!((fetches, fx.snapshots.len()), (FAILURES, 0));
    let ordered = fx.apply.iter().find_map(|task| match task {
        Apply::Snapshot { at, .. } => Some(*at),
        _ => None,
    });
    let at = ordered.expect("another one is ordered");
    group.snapshot_made(Some((meta(at.index, at.term), at)));
    let (fetches, mut fx) = beat(&mut group, 5, fail);
    assert_eq!((fetches, take(&mut fx).meta.head.at), (0, at));
}

#[test]
fn a_read_that_succeeds_in_time_costs_no_snapshot() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    let mut reads = 0;
    let (fetches, fx) = beat(&mut group, 20, || {
        reads += 1;
        if reads < FAILURES { fail() } else { Ok(vec![entry(11, 1), entry(12, 1)]) }
    });
    assert!(fetches >= FAILURES);
    assert_eq!((fx.unreadable.len(), fx.snapshots.len()), (0, 0));
    assert!(fx.messages.iter().any(|m| m.kind == MessageKind::Append && !m.entries.is_empty()));
}

/// The disk is well again, or the memory that it lacked is there.
#[test]
fn entries_that_become_readable_are_read_again_after_a_pause() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    let (fetches, fx) = beat(&mut group, 10, fail);
    assert_eq!((fetches, fx.snapshots.len()), (FAILURES, 1));
    drop(fx);
    let pause = crate::core::UNREADABLE_PAUSE_TICKS / HEARTBEAT;
    for beats in 10..2 * pause {
        // Every transfer fails meanwhile.
        drain(&mut group);
        let (fetches, fx) = beat(&mut group, 1, || Ok(vec![entry(11, 1), entry(12, 1)]));
        if fetches > 0 {
            assert!(fx.messages.iter().any(|m| m.kind == MessageKind::Append && !m.entries.is_empty()));
            assert!((pause..pause + 120).contains(&beats), "{beats}");
            return;
        }
    }
    panic!("they are never read again");
}
