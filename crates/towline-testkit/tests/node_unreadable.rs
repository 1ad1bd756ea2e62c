//! A leader whose disk cannot read a part of the log that a follower needs.

use crate::common::*;

/// Applied entries are read from the log store, and all of them stay there.
fn config() -> Config {
    Config {
        log_cache_bytes_max: ByteSize::bytes(1),
        snapshot_entries: 40,
        snapshot_trailing_entries: 100_000,
        ..quick()
    }
}

/// Three nodes with five entries.
async fn start() -> Cluster {
    let cluster = Plan::new(3, 1).config(config()).start().await;
    load(&cluster, 5, 10).await;
    cluster
}

/// The leader repeated the failed read at every heartbeat, with a warning each, and the follower stayed behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_a_snapshot_if_its_leader_cannot_read_the_log() {
    let mut cluster = start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 60, 10).await;
    let index = cluster.group(cluster.leader(1).await, 1).state().applied - 30;
    cluster.up.keys().for_each(|node| cluster.disks[node].log.spoil_entry(Some(index)));
    cluster.restart(behind).await;
    let commands = cluster.settled(1).await;
    assert!(commands.len() >= 65);
    let leader = cluster.leader(1).await;
    let last = cluster.attempt_ended(leader, 1, behind).await;
    assert!(matches!(last, LastAttempt { outcome: AttemptOutcome::Finished, .. }), "{last:?}");
    let status = cluster.group(behind, 1).status().await.unwrap();
    assert!(status.first_index > index, "the snapshot is past that entry: {status:?}");
    // Five reads fail at one index, and a probing leader may need several indexes.
    let failed: u64 = cluster.disks.values().map(|disk| disk.log.failed_reads()).sum();
    assert!((5..=50).contains(&failed), "{failed} reads failed");
    assert_eq!(status.node, node_id(behind));
}

/// A running node applies entries from memory. Only a start reads them from the log store.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_read_its_entries_fails_with_the_cause() {
    let mut cluster = start().await;
    let node = cluster.leader(1).await;
    cluster.crash(node);
    cluster.disks[&node].log.spoil_entry(Some(3));
    let error = cluster.try_restart(node).await.unwrap_err();
    assert!(matches!(&error, StartError::Log { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(cause.as_ref().is_some_and(|cause| cause.contains("a bad block")), "{error}: {cause:?}");
    cluster.disks[&node].log.spoil_entry(None);
    cluster.restart(node).await;
    assert_eq!(cluster.settled(1).await.len(), 5);
}
