//! Callers and transfers of a node that stops get an error, and none waits for ever.

use crate::common::*;

/// A request that reached the shard after its end stayed in its queue, and its caller waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_a_stopped_node_gets_an_error() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.leader(1).await;
    let group = cluster.group(1, 1);
    cluster.stop(1, Duration::from_secs(5)).await;
    let status = within(group.status()).await;
    assert!(matches!(status, Err(StatusError::Stopped { .. })), "{status:?}");
    let transferred = within(group.transfer(node_id(2))).await;
    assert!(matches!(transferred, Err(TransferLeaderError::Stopped { .. })), "{transferred:?}");
}

/// The node stopped while a receiver made its file durable. The receiver then asked the dead shard whether Raft takes the file
/// and never ended. It kept the store, the lock of the directory and the caller's runtime alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_commits_its_file_after_the_node_has_stopped_ends() {
    let mut setup =
        LaggingCluster::new(Config { snapshot_bytes_per_second: ByteSize::bytes(2_000_000), ..config() })
            .await;
    setup.restart_follower().await;
    let gate = setup.store(setup.behind).hold(SnapshotOp::Commit);
    until("the receiver commits", || gate.wait_held(Duration::ZERO)).await;
    setup.cluster.stop(setup.behind, Duration::ZERO).await;
    drop(gate);
    let ended = || setup.counts.sum(TRANSFERS, "direction=received outcome=failed");
    until("the receiver counts its end", || ended() == 1).await;
}

/// The leader serves two followers when it stops or crashes. Each report is counted once: as applied, as stale, or as
/// posted to a closed mailbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_down_posts_one_failure_for_each_transfer_it_sends() {
    for in_order in [true, false] {
        let counts = Counts::default();
        let slow = Config { snapshot_bytes_per_second: ByteSize::bytes(400_000), ..config() };
        let plan = |plan: Plan| plan.config(slow).customise(counts.on());
        let (mut cluster, leader, behind) = five_with_two_behind(plan).await;
        let group = cluster.group(leader, 1);
        for node in behind {
            cluster.restart(node).await;
        }
        eventually("the leader serves both", async || {
            let peers = within(group.status()).await.unwrap().peers;
            let is_midway = |peer: &&PeerStatus| peer.attempt.is_some_and(|attempt| attempt.acked > 0);
            if peers.iter().filter(is_midway).count() == 2 { Ok(()) } else { Err(peers) }
        })
        .await;
        let posted = |kind: &str| counts.sum(REPORTS, &format!("node={leader} kind=snapshot_{kind}"));
        assert_eq!(posted("failure") + posted("finish"), 0);
        match in_order {
            true => cluster.stop(leader, Duration::ZERO).await,
            false => cluster.crash(leader),
        }
        let of_leader = format!("node={leader}");
        let sent = |outcome| counts.sum(TRANSFERS, &format!("{of_leader} direction=sent {outcome}"));
        until("both have ended", || sent("outcome=cancelled") == 2 && posted("failure") >= 2).await;
        // Late reports have arrived once the others have settled.
        assert!(cluster.settled(1).await.len() >= 45);
        assert_eq!((posted("failure"), posted("finish")), (2, 0), "in order: {in_order}");
        assert_eq!(counts.sum(TRANSFERS, &format!("{of_leader} direction=sent")), 2);
        assert_eq!(counts.sum(REPORTS, "outcome=synthesized"), 0);
    }
}
