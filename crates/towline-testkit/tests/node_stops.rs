//! What comes too late for a node that stops is told so, and keeps nobody waiting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod common;

use std::time::Duration;

use common::bench::{Bench, TRANSFERS, config};
use towline_engine::config::Config;
use towline_engine::errors::{ReadError, TransferLeaderError};
use towline_testkit::cluster::{Cluster, node_id, until, within};
use towline_testkit::snapshots::SnapshotOp;

/// A question that reached the shard after its end stayed in its mail for ever, and so did whoever waited for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_outlives_its_node_is_told_that_it_has_stopped() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.leader(1).await;
    let group = cluster.group(1, 1);
    cluster.stop(1, Duration::from_secs(5)).await;
    let status = within(group.status()).await;
    assert!(matches!(status, Err(ReadError::Stopped { .. })), "{status:?}");
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
