//! What comes too late for a node that stops is told so, and keeps nobody waiting.

use std::time::{Duration, Instant};

use crate::common::Counts;
use crate::common::bench::{Bench, TRANSFERS, config, load};
use towline_engine::config::Config;
use towline_engine::errors::{StatusError, TransferLeaderError};
use towline_testkit::cluster::{Cluster, DEADLINE, Plan, node_id, until, within};
use towline_testkit::snapshots::SnapshotOp;

/// A question that reached the shard after its end stayed in its mail for ever, and so did whoever waited for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_outlives_its_node_is_told_that_it_has_stopped() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.leader(1).await;
    let group = cluster.group(1, 1);
    cluster.stop(1, Duration::from_secs(5)).await;
    let status = within(group.status()).await;
    assert!(matches!(status, Err(StatusError::Stopped { .. })), "{status:?}");
    let transferred = within(group.transfer(node_id(2))).await;
    assert!(matches!(transferred, Err(TransferLeaderError::Stopped { .. })), "{transferred:?}");
}

/// A receiver that was still making its file durable when the node stopped asked a shard that was gone whether Raft takes
/// it. Its thread never ended, and with it the store, the lock on the directory, and the drop of a caller's runtime.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_commits_its_file_after_the_node_has_stopped_ends() {
    let mut bench = Bench::new(Config { snapshot_bytes_per_second: 2_000_000, ..config() }).await;
    bench.cluster.restart(bench.behind).await;
    let gate = bench.store(bench.behind).hold(SnapshotOp::Commit);
    until("the receiver commits", || gate.wait_held(Duration::ZERO)).await;
    bench.cluster.stop(bench.behind, Duration::ZERO).await;
    drop(gate);
    let ended = || bench.counts.sum(TRANSFERS, &["direction=received", "outcome=failed"]);
    until("the receiver has closed its books", || ended() == 1).await;
}

/// Case 3: of five nodes two are being served when their leader goes down, in order or not. Each report is counted where it
/// ends: carried to Raft, stale, or posted when nobody drains any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_down_posts_one_failure_for_each_transfer_it_sends() {
    for in_order in [true, false] {
        let counts = Counts::default();
        let slow = Config { snapshot_bytes_per_second: 400_000, ..config() };
        let mut cluster = Plan::new(5, 1).config(slow).customise(counts.on()).start().await;
        let leader = cluster.leader(1).await;
        let behind: Vec<u64> = (1..=5).filter(|node| *node != leader).take(2).collect();
        behind.iter().for_each(|node| cluster.crash(*node));
        load(&cluster, 45, 20_000).await;
        let group = cluster.group(leader, 1);
        while within(group.status()).await.unwrap().first_index <= 10 {
            load(&cluster, 1, 10).await;
        }
        for node in &behind {
            cluster.restart(*node).await;
        }
        let end = Instant::now() + DEADLINE;
        let midway = async || {
            let peers = within(group.status()).await.unwrap().peers;
            peers.iter().filter(|peer| peer.attempt.is_some_and(|attempt| attempt.acked > 0)).count()
        };
        while midway().await < 2 {
            assert!(Instant::now() < end, "not both are served");
            tokio::task::yield_now().await;
        }
        let posted = |kind: &str| {
            let labels = [format!("node={leader}"), format!("kind=snapshot_{kind}")];
            counts.sum("towline_reports_total", &[&labels[0], &labels[1]])
        };
        assert_eq!(posted("failure") + posted("finish"), 0);
        match in_order {
            true => cluster.stop(leader, Duration::ZERO).await,
            false => cluster.crash(leader),
        }
        let of_leader = format!("node={leader}");
        let sent = |outcome| counts.sum(TRANSFERS, &[&of_leader, "direction=sent", outcome]);
        until("both have ended", || sent("outcome=cancelled") == 2 && posted("failure") >= 2).await;
        // Whatever else was under way has come to its end by then.
        assert!(cluster.settled(1).await.len() >= 45);
        assert_eq!((posted("failure"), posted("finish")), (2, 0), "in order: {in_order}");
        assert_eq!(counts.sum(TRANSFERS, &[&of_leader, "direction=sent"]), 2);
        assert_eq!(counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
    }
}
