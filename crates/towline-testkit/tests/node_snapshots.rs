//! Snapshots between nodes: made, sent, cut, resumed, installed, and the log forgotten behind them.

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::log_store::LogStore;
use towline_engine::status::{AttemptOutcome, PeerProgress, PeerStatus};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick, until};

use crate::common::lost;

/// A snapshot every 40 entries, of which hardly any stay.
fn config() -> Config {
    Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: 16 << 10,
        snapshot_offer_timeout_ms: 500,
        snapshot_progress_timeout_ms: 400,
        snapshot_backoff_max_ms: 200,
        ..quick()
    }
}

/// Commands of so many bytes.
async fn load(cluster: &Cluster, count: usize, bytes: usize) {
    for n in 0..count {
        let mut command = format!("{n} ").into_bytes();
        command.resize(bytes, b'.');
        cluster.acked(1, Bytes::from(command)).await;
    }
}

/// Waits until the leader has forgotten what the node that is down would need.
async fn compacted_past(cluster: &Cluster, index: u64) -> u64 {
    let leader = cluster.leader(1).await;
    let group = cluster.group(leader, 1);
    for _ in 0..2_000 {
        if group.status().await.unwrap().first_index > index + 1 {
            return leader;
        }
        load(cluster, 1, 10).await;
    }
    panic!("the log is not compacted: {:?}", group.status().await);
}

async fn peer(cluster: &Cluster, leader: u64, peer: u64) -> PeerStatus {
    let status = cluster.group(leader, 1).status().await.unwrap();
    status.peers.into_iter().find(|p| p.id == node_id(peer)).expect("a member")
}

fn follower_of(leader: u64) -> u64 {
    if leader == 1 { 2 } else { 1 }
}

/// A follower goes down, misses more than the log keeps, and comes back.
async fn left_behind(config: Config, bytes: usize) -> (Cluster, u64, u64) {
    left_behind_in(Plan::new(3, 1).config(config), bytes).await
}

async fn left_behind_in(plan: Plan, bytes: usize) -> (Cluster, u64, u64) {
    let mut cluster = plan.start().await;
    let leader = cluster.leader(1).await;
    let behind = follower_of(leader);
    let applied = cluster.group(behind, 1).state().applied;
    cluster.crash(behind);
    load(&cluster, 60, bytes).await;
    let leader = compacted_past(&cluster, applied).await;
    (cluster, leader, behind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_the_log_has_left_behind_is_brought_back_by_a_snapshot() {
    let (mut cluster, leader, behind) = left_behind(config(), 100).await;
    cluster.restart(behind).await;
    let commands = cluster.settled(1).await;
    assert!(commands.len() >= 60);
    let status = cluster.group(behind, 1).status().await.unwrap();
    assert!(status.first_index > 1, "it holds the snapshot's place: {status:?}");
    let last = cluster.attempt_ended(leader, 1, behind).await;
    assert_eq!(last.outcome, AttemptOutcome::Finished);
    // It is served by appends again.
    load(&cluster, 3, 10).await;
    assert_eq!(cluster.settled(1).await.len(), commands.len() + 3);
    let seen = peer(&cluster, leader, behind).await;
    assert_eq!(seen.progress, PeerProgress::Replicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volatile_state_machine_over_a_compacted_log_is_restored_from_the_snapshot_file() {
    let mut cluster = Plan::new(3, 1).config(config()).start().await;
    load(&cluster, 60, 100).await;
    let leader = compacted_past(&cluster, 10).await;
    // The group forgets at once what the store forgets on another thread, and for good with its next write.
    let log = cluster.disks[&leader].log.clone();
    until("the store has forgotten", || log.recover(GroupId::new(1)).unwrap().truncated.index > 10).await;
    load(&cluster, 1, 10).await;
    let before = cluster.settled(1).await;
    for node in cluster.nodes() {
        cluster.crash(node);
    }
    // Its file gone, a node says so instead of starting with half a state.
    let disk = cluster.disks[&leader].clone();
    cluster.disks.get_mut(&leader).unwrap().snapshots = Default::default();
    let error = cluster.try_restart(leader).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("there is no snapshot to restore"), "{error}");
    cluster.disks.insert(leader, disk);
    for node in cluster.nodes() {
        cluster.restart(node).await;
    }
    assert_eq!(cluster.settled(1).await, before);
}

/// Slow enough to be cut midway: 60 commands of 20 KB at 1 MB/s.
fn slow() -> Config {
    Config { snapshot_bytes_per_second: 1_000_000, ..config() }
}

async fn midway(cluster: &Cluster, leader: u64, behind: u64) -> (u64, u64) {
    let group = cluster.group(leader, 1);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        assert!(std::time::Instant::now() < end, "no attempt gets midway");
        let status = group.status().await.unwrap();
        let attempt = status.peers.iter().find(|p| p.id == node_id(behind)).and_then(|p| p.attempt);
        if let Some(attempt) = attempt.filter(|a| a.acked > a.bytes / 4) {
            assert!(attempt.acked < attempt.bytes, "too late to be cut: {attempt:?}");
            return (attempt.number, attempt.acked);
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_was_cut_is_reported_and_resumed_where_it_was_cut() {
    is_resumed(slow(), 0).await;
}

/// The follower began again at the first byte: what it had was of another content than the one it was offered.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_was_cut_is_resumed_though_the_leader_has_a_newer_snapshot_by_then() {
    is_resumed(Config { snapshot_backoff_max_ms: 5_000, ..slow() }, 45).await;
}

/// Cuts a transfer midway, applies so many commands before the link is back, and sees it go on where it was.
async fn is_resumed(config: Config, meanwhile: usize) {
    let (mut cluster, leader, behind) = left_behind(config, 20_000).await;
    cluster.restart(behind).await;
    let (first, acked) = midway(&cluster, leader, behind).await;
    let (a, b) = (node_id(leader), node_id(behind));
    cluster.net.cut(a, b);
    let mut last = None;
    let group = cluster.group(leader, 1);
    for _ in 0..100_000 {
        let seen = peer(&cluster, leader, behind).await;
        last = seen.last_attempt;
        if last.is_some_and(|last| last.number >= first) {
            break;
        }
        tokio::task::yield_now().await;
    }
    let last = last.expect("the attempt ended");
    assert!(matches!(last.outcome, AttemptOutcome::Failed(_)), "{last:?}");
    let sent = group.status().await.unwrap().snapshot_index;
    load(&cluster, meanwhile, 10).await;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while meanwhile > 0 && group.status().await.unwrap().snapshot_index == sent {
        assert!(std::time::Instant::now() < end, "no newer snapshot is made");
        tokio::task::yield_now().await;
    }
    cluster.net.heal(a, b);
    let mut offset = 0;
    for _ in 0..1_000_000 {
        let status = group.status().await.unwrap();
        let attempt = status.peers.iter().find(|p| p.id == b).and_then(|p| p.attempt);
        if let Some(attempt) = attempt.filter(|a| a.offset > 0) {
            offset = attempt.offset;
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(offset >= acked, "it begins at {offset}, and {acked} were acknowledged before");
    assert!(cluster.settled(1).await.len() >= 60);
    assert_eq!(cluster.attempt_ended(leader, 1, behind).await.outcome, AttemptOutcome::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_dies_midway_is_sent_the_snapshot_again_when_it_is_back() {
    let (mut cluster, leader, behind) = left_behind(slow(), 20_000).await;
    cluster.restart(behind).await;
    midway(&cluster, leader, behind).await;
    cluster.crash(behind);
    load(&cluster, 5, 10).await;
    cluster.restart(behind).await;
    assert!(cluster.settled(1).await.len() >= 65);
}

/// The control: a leader whose reports get lost, those of its watchdog too, never serves the follower again.
#[tokio::test(flavor = "multi_thread")]
async fn with_lost_reports_the_follower_is_latched() {
    let plan = Plan::new(3, 1).config(slow()).customise(lost::outcomes);
    let (mut cluster, leader, behind) = left_behind_in(plan, 20_000).await;
    cluster.restart(behind).await;
    let (first, _) = midway(&cluster, leader, behind).await;
    cluster.crash(behind);
    cluster.restart(behind).await;
    // Far longer than a retry takes: the leader goes on, and so do its heartbeats.
    load(&cluster, 100, 10).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // not synchronisation: nothing is to happen in this time
    let seen = peer(&cluster, leader, behind).await;
    assert_eq!((seen.progress, seen.attempt.map(|a| a.number)), (PeerProgress::Snapshot, Some(first)));
    assert!(cluster.commands(behind, 1).await.len() < 60);
}
