//! A leader whose disk cannot read a part of the log that a follower needs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towline_engine::config::Config;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::{LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::Entry;
use towline_engine::node::StartError;
use towline_engine::status::{AttemptOutcome, LastAttempt};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick};

/// A log with one entry that cannot be read.
struct BadBlock {
    log: Arc<dyn LogStore>,
    node: NodeId,
    bad: Arc<Bad>,
}

/// The entry, zero for none, and the node that can read it all the same.
#[derive(Default)]
struct Bad {
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
    Config { log_cache_bytes_max: 1, snapshot_entries: 40, snapshot_trailing_entries: 100_000, ..quick() }
}

async fn load(cluster: &Cluster, count: usize) {
    for n in 0..count {
        cluster.acked(1, format!("{n}").into_bytes()).await;
    }
}

/// Three nodes with five entries, on logs with the same bad block, which is none yet.
async fn start() -> (Cluster, Arc<Bad>) {
    let bad = Arc::new(Bad::default());
    let of_stores = bad.clone();
    let plan = Plan::new(3, 1).config(config()).storage(move |node, mut storage| {
        storage.log = Arc::new(BadBlock { log: storage.log, node, bad: of_stores.clone() });
        storage
    });
    let cluster = plan.start().await;
    load(&cluster, 5).await;
    (cluster, bad)
}

/// Failed reads were repeated at every heartbeat for ever, with a warning each, and the follower stayed behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_needs_what_its_leader_cannot_read_is_brought_back_by_a_snapshot() {
    let (mut cluster, bad) = start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 60).await;
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
    assert!(status.first_index > index, "it came by a snapshot past that entry: {status:?}");
    // Five at one index; a leader that probes may need more than one.
    let failed = bad.failed.load(Ordering::SeqCst);
    assert!((5..=50).contains(&failed), "{failed} reads failed");
    assert_eq!(status.node, node_id(behind));
}

/// What a node applies while it runs is in memory until it is applied. Only a start reads it from the log store, and says so
/// when that fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_read_what_it_has_to_apply_is_refused_with_the_cause() {
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
