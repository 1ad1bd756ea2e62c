//! Attempts to send a snapshot that meet: two at once to one peer, two leaders, a receiver that is gone for good.

use std::time::Duration;

use crate::common::bench::{Bench, TRANSFERS, config, load};
use crate::common::offers::Oddity;
use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::snapshot_store::SnapshotStore;
use towline_engine::status::{AttemptOutcome, PeerProgress};
use towline_engine::transport::{Chunk, SnapshotRefusal, TransferError};
use towline_testkit::cluster::{Plan, node_id, until, within};

/// Case 20: the very same attempt.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_equal_attempts_at_once_the_second_is_refused_and_the_first_goes_on() {
    let mut bench = Bench::new(config()).await;
    bench.offers.next(Oddity::Twice);
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Finished, "the first goes on");
    assert_eq!(bench.offers.second(), ["busy"]);
    bench.heals().await;
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=received", "outcome=refused"]), 1);
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=sent"]), 1);
}

/// Case 20: the sender has given the first one up, and the receiver does not know.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_attempts_at_once_the_later_wins_and_the_earlier_changes_nothing_more() {
    let mut bench = Bench::new(config()).await;
    let patient = Config { snapshot_progress_timeout_ms: 60_000, ..config() };
    bench.config_from_start(bench.behind, patient);
    bench.offers.next(Oddity::Haunts { after: 20 });
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    bench.heals().await;
    // The earlier one lost its seat, and nothing of what it had brought was sent again.
    let cut = bench.bytes("received", "cancelled");
    assert_eq!(cut, 20 * (16 << 10));
    let length = bench.bytes("sent", "finished") + cut;
    assert!(length > 700_000, "{length}");

    // It is dead: what it still sends goes nowhere.
    let before = bench.cluster.commands(bench.behind, 1).await;
    let (mut ghost, trailer) = bench.offers.ghost();
    let data = Bytes::from_static(b"late");
    let chunk = Chunk { offset: cut, crc32c: crc32c::crc32c(&data), data };
    let told = match within(ghost.send(chunk)).await {
        Ok(()) => within(ghost.finish(trailer)).await.map(|_| ()),
        refused => refused,
    };
    let superseded = matches!(told, Err(TransferError::Refused(SnapshotRefusal::Superseded)));
    assert!(superseded, "it is told the truth: {told:?}");
    assert_eq!(bench.cluster.commands(bench.behind, 1).await, before);
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=received", "outcome=finished"]), 1);
}

/// Case 21.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_changes_midway_leaves_its_report_at_the_fence_and_the_next_one_serves() {
    let mut bench = Bench::new(Config { snapshot_bytes_per_second: 400_000, ..config() }).await;
    let next = (1..=3).find(|node| ![bench.leader, bench.behind].contains(node)).unwrap();
    bench.cluster.restart(bench.behind).await;
    bench.midway().await;
    let old = bench.leader;
    bench.hands_over(next).await;
    assert_eq!(bench.cluster.leader(1).await, next);
    // The old leader's attempt ends with its leadership, and its report finds nobody.
    let of_old = |outcome: &str| {
        let labels = [format!("node={old}"), format!("outcome={outcome}")];
        ["kind=snapshot_finish", "kind=snapshot_failure"]
            .map(|kind| bench.counts.sum("towline_reports_total", &[kind, &labels[0], &labels[1]]))
    };
    until("the old report", || of_old("stale") == [0, 1]).await;
    assert_eq!(of_old("applied"), [0, 0]);
    let old_status = bench.cluster.group(old, 1).status().await.unwrap();
    assert!(old_status.peers.iter().all(|peer| peer.attempt.is_none()), "{old_status:?}");

    let commands = bench.cluster.settled(1).await;
    assert!(commands.len() >= 45);
    let sent = |node: u64, outcome: &str| {
        bench
            .counts
            .sum(TRANSFERS, &[&format!("node={node}"), "direction=sent", &format!("outcome={outcome}")])
    };
    assert_eq!((sent(old, "finished"), sent(old, "cancelled")), (0, 1));
    // Raft's own acknowledgement may be there, and appends behind it, before the receipt is.
    until("the next leader served it", || sent(next, "finished") == 1).await;
    assert_eq!(bench.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
}

/// Case 23: of five nodes two are behind; the one that is being served goes away for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_for_good_gives_slot_and_file_back() {
    let slow = Config { snapshot_sends_max: 1, snapshot_bytes_per_second: 400_000, ..config() };
    let mut cluster = Plan::new(5, 1).config(slow).start().await;
    let leader = cluster.leader(1).await;
    let behind: Vec<u64> = (1..=5).filter(|node| *node != leader).take(2).collect();
    behind.iter().for_each(|node| cluster.crash(*node));
    let group = cluster.group(leader, 1);
    load(&cluster, 45, 20_000).await;
    while group.status().await.unwrap().first_index <= 10 {
        load(&cluster, 1, 10).await;
    }
    let attempt = async |node: u64| {
        let status = within(group.status()).await.unwrap();
        let peer = status.peers.into_iter().find(|peer| peer.id == node_id(node)).unwrap();
        (peer.progress, peer.attempt, peer.last_attempt)
    };
    let (gone, other) = (behind[0], behind[1]);
    cluster.restart(gone).await;
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let number = loop {
        assert!(std::time::Instant::now() < end, "no attempt begins");
        if let Some(attempt) = attempt(gone).await.1.filter(|attempt| attempt.acked > 0) {
            break attempt.number;
        }
        tokio::task::yield_now().await;
    };
    let files = cluster.disks[&leader].snapshots.clone();
    let sent = files.latest(GroupId::DEFAULT).unwrap().unwrap();
    cluster.crash(gone);

    // The only slot is free: the other one is served.
    cluster.restart(other).await;
    let commands = cluster.settled(1).await;
    assert!(commands.len() >= 45);
    let (_, _, last) = attempt(gone).await;
    let last = last.expect("it has ended");
    assert!(last.number >= number && matches!(last.outcome, AttemptOutcome::Failed(_)), "{last:?}");
    let last = cluster.attempt_ended(leader, 1, other).await;
    assert_eq!(last.outcome, AttemptOutcome::Finished);
    // Raft probes from the snapshot on, until an append is answered.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while attempt(other).await.0 != PeerProgress::Replicate {
        assert!(std::time::Instant::now() < end, "it is not replicated to: {:?}", group.status().await);
        tokio::task::yield_now().await;
    }

    // The file and the end of the log that the transfer needed are free: both are forgotten behind the next snapshot.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let kept = files.find(GroupId::DEFAULT, sent.content).unwrap().is_some();
        if !kept && group.status().await.unwrap().first_index > sent.head.at.index {
            break;
        }
        assert!(std::time::Instant::now() < end, "kept for nobody: {:?}", group.status().await);
        load(&cluster, 1, 10).await;
    }
}
