//! Concurrent attempts to send a snapshot: two to one peer, two leaders, and a receiver that never returns.

use std::time::Duration;

use std::time::Instant;

use crate::common::load::{first_index, five_with_two_behind, peer_status};
use crate::common::offers::OfferFault;
use crate::common::{LaggingCluster, REPORTS, TRANSFERS, config, load};
use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::snapshot_store::SnapshotStore;
use towline_engine::status::{AttemptOutcome, PeerProgress};
use towline_engine::transport::{Chunk, SnapshotRefusal, TransferError};
use towline_engine::units::ByteSize;
use towline_testkit::cluster::{DEADLINE, until, within};

/// The same attempt is offered twice.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_equal_attempts_at_once_the_second_is_refused_and_the_first_goes_on() {
    let mut setup = LaggingCluster::new(config()).await;
    setup.offers.next(OfferFault::Twice);
    setup.restart_follower().await;
    let last = setup.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Finished, "the first goes on");
    assert_eq!(setup.offers.second(), ["busy"]);
    setup.assert_heals().await;
    assert_eq!(setup.counts.sum(TRANSFERS, &["direction=received", "outcome=refused"]), 1);
    assert_eq!(setup.counts.sum(TRANSFERS, &["direction=sent"]), 1);
}

/// The sender has given up the first attempt, and the receiver does not know.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_attempts_at_once_the_later_wins_and_the_earlier_changes_nothing_more() {
    let mut setup = LaggingCluster::new(config()).await;
    let patient = Config { snapshot_progress_timeout: Duration::from_secs(60), ..config() };
    setup.config_from_start(setup.behind, patient);
    setup.offers.next(OfferFault::Orphaned { after: 20 });
    setup.restart_follower().await;
    let first = setup.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    setup.assert_heals().await;
    // The earlier attempt lost its slot, and its bytes were not sent again.
    let cut = setup.bytes("received", "cancelled");
    assert_eq!(cut, 20 * (16 << 10));
    let length = setup.bytes("sent", "finished") + cut;
    assert!(length > 700_000, "{length}");

    // The receiver ignores what the earlier attempt still sends.
    let before = setup.cluster.commands(setup.behind, 1).await;
    let (mut orphan, trailer) = setup.offers.orphan();
    let data = Bytes::from_static(b"late");
    let chunk = Chunk { offset: cut, crc32c: crc32c::crc32c(&data), data };
    let told = match within(orphan.send(chunk)).await {
        Ok(()) => within(orphan.finish(trailer)).await.map(|_| ()),
        refused => refused,
    };
    let superseded = matches!(told, Err(TransferError::Refused(SnapshotRefusal::Superseded)));
    assert!(superseded, "{told:?}");
    assert_eq!(setup.cluster.commands(setup.behind, 1).await, before);
    assert_eq!(setup.counts.sum(TRANSFERS, &["direction=received", "outcome=finished"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_of_a_deposed_leader_is_stale_and_the_next_leader_serves() {
    let mut setup =
        LaggingCluster::new(Config { snapshot_bytes_per_second: ByteSize::bytes(400_000), ..config() }).await;
    let next = setup.third();
    setup.restart_follower().await;
    setup.midway().await;
    let old = setup.leader;
    setup.transfer_leadership(next).await;
    assert_eq!(setup.cluster.leader(1).await, next);
    // The old leader's attempt ends with its leadership, so Raft does not take its report.
    let of_old = |outcome: &str| {
        let labels = [format!("node={old}"), format!("outcome={outcome}")];
        ["kind=snapshot_finish", "kind=snapshot_failure"]
            .map(|kind| setup.counts.sum(REPORTS, &[kind, &labels[0], &labels[1]]))
    };
    until("the old report", || of_old("stale") == [0, 1]).await;
    assert_eq!(of_old("applied"), [0, 0]);
    let old_status = setup.cluster.group(old, 1).status().await.unwrap();
    assert!(old_status.peers.iter().all(|peer| peer.attempt.is_none()), "{old_status:?}");

    let commands = setup.cluster.settled(1).await;
    assert!(commands.len() >= 45);
    let sent = |node: u64, outcome: &str| {
        setup
            .counts
            .sum(TRANSFERS, &[&format!("node={node}"), "direction=sent", &format!("outcome={outcome}")])
    };
    assert_eq!((sent(old, "finished"), sent(old, "cancelled")), (0, 1));
    // Raft's acknowledgement and later appends may arrive before the receipt.
    until("the next leader served it", || sent(next, "finished") == 1).await;
    assert_eq!(setup.counts.sum(REPORTS, &["outcome=synthesized"]), 0);
}

/// The leader serves one of two followers, which goes down for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_returns_releases_slot_and_file() {
    let slow =
        Config { snapshot_sends_max: 1, snapshot_bytes_per_second: ByteSize::bytes(400_000), ..config() };
    let (mut cluster, leader, [gone, other]) = five_with_two_behind(|plan| plan.config(slow)).await;
    cluster.restart(gone).await;
    let end = Instant::now() + DEADLINE;
    let number = loop {
        assert!(Instant::now() < end, "no attempt begins");
        let attempt = peer_status(&cluster, leader, gone).await.attempt;
        if let Some(attempt) = attempt.filter(|attempt| attempt.acked > 0) {
            break attempt.number;
        }
        tokio::task::yield_now().await;
    };
    let files = cluster.disks[&leader].snapshots.clone();
    let sent = files.latest(GroupId::DEFAULT).unwrap().unwrap();
    cluster.crash(gone);

    // The only slot is free for the other follower.
    cluster.restart(other).await;
    assert!(cluster.settled(1).await.len() >= 45);
    let last = peer_status(&cluster, leader, gone).await.last_attempt.expect("it has ended");
    assert!(last.number >= number && matches!(last.outcome, AttemptOutcome::Failed(_)), "{last:?}");
    let last = cluster.attempt_ended(leader, 1, other).await;
    assert_eq!(last.outcome, AttemptOutcome::Finished);
    // Raft probes from the snapshot on, until an append is answered.
    let end = Instant::now() + DEADLINE;
    while peer_status(&cluster, leader, other).await.progress != PeerProgress::Replicate {
        assert!(Instant::now() < end, "no appends follow the snapshot");
        tokio::task::yield_now().await;
    }

    // The leader forgets the file and the log that the transfer needed once it has a newer snapshot.
    let end = Instant::now() + DEADLINE;
    while files.find(GroupId::DEFAULT, sent.content).unwrap().is_some()
        || first_index(&cluster, 1).await <= sent.head.at.index
    {
        assert!(Instant::now() < end, "the file or the log is still kept");
        load(&cluster, 1, 10).await;
    }
}
