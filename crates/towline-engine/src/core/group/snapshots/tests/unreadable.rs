//! A leader that cannot read entries that a follower needs.

use super::*;
use crate::core::Unreadable;

/// The failed reads after which the log counts as compacted.
const FAILURES: usize = 5;

/// The ticks after which unreadable entries are read again.
const PAUSE_TICKS: u64 = 6_000;

/// Entries 11 and 12 of the leader are in the log store alone, and node 2 needs them.
fn leader_with_cold_entries(available: SnapshotMeta) -> TestGroup {
    let group = group_with_cache(0, |setup| setup.available = Some(available));
    let mut group = lead(group, TRUNCATED);
    group.acknowledge(2, TRUNCATED);
    group
}

/// Heartbeats with their answers, where `read` answers each fetch. Returns the fetches, and the appends with entries.
fn beat(
    group: &mut TestGroup,
    count: usize,
    mut read: impl FnMut() -> Result<Vec<Entry>, String>,
) -> (usize, usize) {
    let (mut fetches, mut appends) = (0, 0);
    for _ in 0..count {
        group.heartbeats(1);
        while !group.fx.fetches.is_empty() {
            for fetch in std::mem::take(&mut group.fx.fetches) {
                assert_eq!(fetch.low, TRUNCATED + 1);
                fetches += 1;
                let mut fx = std::mem::take(&mut group.fx);
                group.fetched(fetch.low, read(), &mut fx);
                group.fx = fx;
            }
            group.turn();
        }
        let has_entries = |m: &&Message| m.kind == MessageKind::Append && !m.entries.is_empty();
        appends += group.fx.messages.drain(..).filter(|m| has_entries(&m)).count();
    }
    (fetches, appends)
}

fn fail() -> Result<Vec<Entry>, String> {
    Err("a bad block".into())
}

fn succeed() -> Result<Vec<Entry>, String> {
    Ok(vec![entry(11, 1), entry(12, 1)])
}

/// The reads were once repeated at every heartbeat for ever, and the follower got no snapshot although one was available.
#[test]
fn a_follower_that_needs_unreadable_entries_gets_a_snapshot() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    assert_eq!(beat(&mut group, 200, fail).0, FAILURES);
    let unreadable = Unreadable { index: TRUNCATED + 1, cause: "a bad block".into() };
    assert_eq!(group.fx.unreadable, [unreadable], "an operator sees it once");
    assert_eq!(group.take_transfer().meta.head.at.index, LAST);
}

/// The available snapshot ends before the unreadable entries, so it does not help the follower.
#[test]
fn a_snapshot_that_covers_the_unreadable_entries_is_made_if_there_is_none() {
    let mut group = leader_with_cold_entries(meta(TRUNCATED, 1));
    assert_eq!((beat(&mut group, 10, fail).0, group.transfers.len()), (FAILURES, 0));
    let at = group.take_orders()[0];
    group.make_snapshot(at);
    assert_eq!((beat(&mut group, 5, fail).0, group.take_transfer().meta.head.at), (0, at));
}

#[test]
fn a_read_that_succeeds_in_time_costs_no_snapshot() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    let mut reads = 0;
    let (fetches, appends) = beat(&mut group, 20, || {
        reads += 1;
        if reads < FAILURES { fail() } else { succeed() }
    });
    assert!(fetches >= FAILURES && appends > 0);
    assert_eq!((group.fx.unreadable.len(), group.transfers.len()), (0, 0));
}

#[test]
fn entries_that_become_readable_are_read_again_after_a_pause() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    assert_eq!((beat(&mut group, 10, fail).0, group.transfers.len()), (FAILURES, 1));
    let pause = PAUSE_TICKS / HEARTBEAT;
    for beats in 10..2 * pause {
        // Every transfer fails meanwhile.
        group.transfers.clear();
        group.drain();
        let (fetches, appends) = beat(&mut group, 1, succeed);
        if fetches > 0 {
            assert!(appends > 0 && (pause..pause + 120).contains(&beats), "{appends} after {beats}");
            return;
        }
    }
    panic!("they are never read again");
}

/// A follower whose disk is low refuses each probe. It cost its leader reads of several MiB in each heartbeat interval.
#[test]
fn a_probe_of_a_peer_whose_disk_is_low_reads_one_entry() {
    let mut group = leader_with_cold_entries(meta(LAST, 1));
    for (disk_low, high) in [(true, TRUNCATED + 2), (false, LAST + 2)] {
        let mut reads = Vec::new();
        for _ in 0..20 {
            let answer = group.answer(MessageKind::HeartbeatResponse);
            group.deliver(Message { disk_low, ..answer });
            let cause = UnreachableCause::Nack(NackCause::DiskFull);
            group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: id(2), cause });
            group.turn();
            for fetch in std::mem::take(&mut group.fx.fetches) {
                reads.push((fetch.low, fetch.high));
                let mut fx = std::mem::take(&mut group.fx);
                let entries = (fetch.low..fetch.high.min(LAST + 1)).map(|index| entry(index, 1)).collect();
                group.fetched(fetch.low, Ok(entries), &mut fx);
                group.fx = fx;
            }
            group.turn();
        }
        assert!(!reads.is_empty() && reads.len() <= 20, "{reads:?}");
        assert!(reads.iter().all(|&read| read == (TRUNCATED + 1, high)), "low: {disk_low}, {reads:?}");
    }
}
