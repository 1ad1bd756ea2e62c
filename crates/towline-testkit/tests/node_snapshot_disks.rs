//! Disks of snapshots that are full or fail: the attempt pays for it, the node and its groups do not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod common;

use std::time::Duration;

use common::bench::{Bench, TRANSFERS, config, load};
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::AttemptOutcome;
use towline_testkit::cluster::{Cluster, Plan, node_id, until, within};
use towline_testkit::snapshots::{FaultySnapshots, SnapshotOp};

const FAILED: AttemptOutcome = AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false });

/// Case 17: full at the very last byte, and again at each attempt until somebody makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_disk_is_full_at_the_last_byte_fails_attempts_until_there_is_room() {
    let mut bench = Bench::new(config()).await;
    let last_byte = bench.latest(bench.leader).length - 1;
    bench.full_from_start(bench.behind, last_byte);
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, FAILED);
    let second = bench.next_end(first.number).await;
    assert_eq!(second.outcome, FAILED);
    let reports = |kind| bench.counts.sum("towline_reports_total", &[kind, "outcome=applied"]);
    assert_eq!(reports("kind=snapshot_finish"), 0);

    // Everybody goes on meanwhile: the leader serves, and the node behind is up.
    let before = bench.cluster.commands(bench.leader, 1).await.len();
    load(&bench.cluster, 3, 10).await;
    assert_eq!(bench.cluster.commands(bench.leader, 1).await.len(), before + 3);
    assert_eq!(bench.cluster.group(bench.behind, 1).state().down, None);
    assert!(bench.cluster.commands(bench.behind, 1).await.len() < 45, "nothing of it is restored");
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=received", "outcome=finished"]), 0);

    bench.store(bench.behind).full_at(None);
    bench.heals().await;
}

/// Damages the last byte of the newest file of the leader, for good.
fn rot(bench: &Bench) {
    let meta = bench.latest(bench.leader);
    assert!(bench.cluster.disks[&bench.leader].snapshots.damage(&meta, meta.length as usize - 1));
}

/// The leader offered such a file again and again, and nothing but new entries would have made it write another: on an idle
/// cluster the follower was never served.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_whose_file_has_rotted_fails_one_attempt_and_serves_the_next_from_a_new_file() {
    let mut bench = Bench::new(config()).await;
    rot(&bench);
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Storage));
    assert_eq!(bench.next_end(first.number).await.outcome, AttemptOutcome::Finished);
    bench.heals().await;
    let failures = bench.counts.sum("towline_reports_total", &["kind=snapshot_failure", "outcome=applied"]);
    assert_eq!(failures, 1);
}

/// The same while there is no room for the new file. A snapshot that could not be made was not tried again before as many
/// entries had come as for any other, and here none come.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_can_neither_read_its_file_nor_write_another_serves_as_soon_as_there_is_room() {
    let mut bench = Bench::new(config()).await;
    rot(&bench);
    let store = bench.store(bench.leader);
    let made = store.count(SnapshotOp::Create);
    store.full_at(Some(100));
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Storage));
    until("another file is tried", || store.count(SnapshotOp::Create) > made).await;
    store.full_at(None);
    assert_eq!(bench.next_end(first.number).await.outcome, AttemptOutcome::Finished);
    bench.heals().await;
}

async fn first_index(cluster: &Cluster, node: u64) -> u64 {
    within(cluster.group(node, 1).status()).await.unwrap().first_index
}

/// The disk is full while a node writes a snapshot of its own: it keeps the log instead, and serves from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_room_for_a_snapshot_of_its_own_keeps_its_log_until_there_is() {
    let stores: std::sync::Arc<std::sync::Mutex<Vec<FaultySnapshots>>> = Default::default();
    let made = stores.clone();
    let plan = Plan::new(3, 1).config(config()).storage(move |_, storage| {
        let store = FaultySnapshots::new(storage.snapshots);
        store.full_at(Some(100));
        made.lock().unwrap().push(store.clone());
        towline_engine::storage::Storage { snapshots: std::sync::Arc::new(store), ..storage }
    });
    let mut cluster = plan.start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 100, 100).await;
    let up: Vec<u64> = cluster.up.keys().copied().collect();
    // Twice: the second try stands past all that was loaded.
    until("snapshots were tried", || {
        stores.lock().unwrap().iter().filter(|store| store.count(SnapshotOp::Create) > 1).count() >= up.len()
    })
    .await;
    for node in &up {
        assert_eq!(first_index(&cluster, *node).await, 1, "the log is all there is");
        assert_eq!(cluster.disks[node].snapshots.files(), 0, "nothing is left of what was begun");
    }
    // Served from the log: nobody needs a snapshot.
    cluster.restart(behind).await;
    assert_eq!(cluster.settled(1).await.len(), 100);
    let status = cluster.group(cluster.leader(1).await, 1).status().await.unwrap();
    let peer = status.peers.iter().find(|peer| peer.id == node_id(behind)).unwrap();
    assert_eq!((peer.attempt, peer.last_attempt), (None, None));

    stores.lock().unwrap().iter().for_each(|store| store.full_at(None));
    // Nothing new is needed for another try: one that failed does not count as made.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while first_index(&cluster, cluster.leader(1).await).await == 1 {
        assert!(std::time::Instant::now() < end, "no snapshot is made though there is room");
        tokio::task::yield_now().await;
    }
    cluster.settled(1).await;
}
