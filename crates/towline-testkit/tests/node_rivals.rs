//! Concurrent attempts to send a snapshot: two to one peer, two leaders, and a receiver that never returns.

use crate::common::*;

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
    assert_eq!(setup.counts.sum(TRANSFERS, "direction=received outcome=refused"), 1);
    assert_eq!(setup.counts.sum(TRANSFERS, "direction=sent"), 1);
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
    assert_eq!(setup.counts.sum(TRANSFERS, "direction=received outcome=finished"), 1);
}

/// The leader serves one of two followers, which goes down for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_returns_releases_slot_and_file() {
    let slow =
        Config { snapshot_sends_max: 1, snapshot_bytes_per_second: ByteSize::bytes(400_000), ..config() };
    let (mut cluster, leader, [gone, other]) = five_with_two_behind(|plan| plan.config(slow)).await;
    cluster.restart(gone).await;
    let number = eventually("an attempt begins", async || {
        let peer = peer_status(&cluster, leader, gone).await;
        peer.attempt.filter(|attempt| attempt.acked > 0).map(|attempt| attempt.number).ok_or(peer)
    })
    .await;
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
    eventually("appends follow the snapshot", async || {
        let peer = peer_status(&cluster, leader, other).await;
        if peer.progress == PeerProgress::Replicate { Ok(()) } else { Err(peer) }
    })
    .await;

    // The leader forgets the file and the log that the transfer needed once it has a newer snapshot.
    eventually("file and log are gone", async || {
        load(&cluster, 1, 10).await;
        let (file, first) =
            (files.find(GroupId::DEFAULT, sent.content).unwrap(), first_index(&cluster, 1).await);
        if file.is_none() && first > sent.head.at.index { Ok(()) } else { Err((file, first)) }
    })
    .await;
}
