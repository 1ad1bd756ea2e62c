//! A leader whose disk cannot read a part of the log that a follower needs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::load;
use towline_engine::config::Config;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::{LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::Entry;
use towline_engine::node::StartError;
use towline_engine::status::{AttemptOutcome, LastAttempt};
use towline_engine::units::ByteSize;
use towline_testkit::cluster::{Cluster, Plan, node_id, quick};

/// A log with one entry that cannot be read.
struct BadBlock {
    log: Arc<dyn LogStore>,
    node: NodeId,
    bad: Arc<BadEntry>,
}

/// The unreadable entry, zero for none, and the node that can read it.
#[derive(Default)]
struct BadEntry {
    index: AtomicU64,
    spared: AtomicU64,
    failed: AtomicU64,
}

impl LogStore for BadBlock {
    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        let spared = self.bad.spared.load(Ordering::SeqCst) == self.node.as_u64();
        if !spared && range.contains(&self.bad.index.load(Ordering::SeqCst)) {
            self.bad.failed.fetch_add(1, Ordering::SeqCst);
            return Err(LogReadError::Io { detail: "a bad block".into(), source: None });
        }
        self.log.entries(group, range, bytes_max, out)
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        self.log.recover(group)
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        self.log.append(batch)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        self.log.term(group, index)
    }

    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError> {
        self.log.compact(group, through)
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.log.purge()
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        self.log.groups()
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        self.log.remove(group)
    }
}

/// Applied entries are read from the log store, and all of them stay there.
fn config() -> Config {
    Config {
        log_cache_bytes_max: ByteSize::bytes(1),
        snapshot_entries: 40,
        snapshot_trailing_entries: 100_000,
        ..quick()
    }
}

/// Three nodes with five entries, whose logs share a bad block that is not set yet.
async fn start() -> (Cluster, Arc<BadEntry>) {
    let bad = Arc::new(BadEntry::default());
    let of_stores = bad.clone();
    let plan = Plan::new(3, 1).config(config()).storage(move |node, mut storage| {
        storage.log = Arc::new(BadBlock { log: storage.log, node, bad: of_stores.clone() });
        storage
    });
    let cluster = plan.start().await;
    load(&cluster, 5, 10).await;
    (cluster, bad)
}

/// The leader repeated the failed read at every heartbeat, with a warning each, and the follower stayed behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_a_snapshot_if_its_leader_cannot_read_the_log() {
    let (mut cluster, bad) = start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 60, 10).await;
    let index = cluster.group(cluster.leader(1).await, 1).state().applied - 30;
    bad.spared.store(behind, Ordering::SeqCst);
    bad.index.store(index, Ordering::SeqCst);
    cluster.restart(behind).await;
    let commands = cluster.settled(1).await;
    assert!(commands.len() >= 65);
    let leader = cluster.leader(1).await;
    let last = cluster.attempt_ended(leader, 1, behind).await;
    assert!(matches!(last, LastAttempt { outcome: AttemptOutcome::Finished, .. }), "{last:?}");
    let status = cluster.group(behind, 1).status().await.unwrap();
    assert!(status.first_index > index, "the snapshot is past that entry: {status:?}");
    // Five reads fail at one index, and a probing leader may need several indexes.
    let failed = bad.failed.load(Ordering::SeqCst);
    assert!((5..=50).contains(&failed), "{failed} reads failed");
    assert_eq!(status.node, node_id(behind));
}

/// A running node applies entries from memory. Only a start reads them from the log store.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_read_its_entries_fails_with_the_cause() {
    let (mut cluster, bad) = start().await;
    let node = cluster.leader(1).await;
    cluster.crash(node);
    bad.index.store(3, Ordering::SeqCst);
    let error = cluster.try_restart(node).await.unwrap_err();
    assert!(matches!(&error, StartError::Log { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(cause.as_ref().is_some_and(|cause| cause.contains("a bad block")), "{error}: {cause:?}");
    bad.index.store(0, Ordering::SeqCst);
    cluster.restart(node).await;
    assert_eq!(cluster.settled(1).await.len(), 5);
}
