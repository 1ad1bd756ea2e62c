//! A follower that was left behind, for tests of what goes wrong on its way back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::snapshot_store::{SnapshotMeta, SnapshotStore};
use towline_engine::status::{AttemptStatus, LastAttempt, PeerStatus};
use towline_engine::storage::Storage;
use towline_engine::transport::Transport;
use towline_testkit::cluster::{Cluster, DEADLINE, Plan, node_id, quick};
use towline_testkit::fault::{Direction, Faults, FaultyTransport, SnapshotFaults};
use towline_testkit::snapshots::FaultySnapshots;

use super::Counts;

pub(crate) const BYTES: &str = "towline_snapshot_payload_bytes_total";
pub(crate) const TRANSFERS: &str = "towline_snapshot_transfers_total";

pub(crate) fn config() -> Config {
    Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: 16 << 10,
        snapshot_offer_timeout_ms: 500,
        snapshot_progress_timeout_ms: 300,
        snapshot_backoff_max_ms: 400,
        ..quick()
    }
}

/// Nodes of which one was left behind, with what can be made to go wrong and what everybody counts.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) counts: Counts,
    pub(crate) faults: Arc<Mutex<BTreeMap<NodeId, Faults>>>,
    /// What goes wrong on a node from its next start on.
    pub(crate) later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>>,
    /// What a node keeps its snapshots in, from its last start on.
    pub(crate) snapshots: Arc<Mutex<BTreeMap<NodeId, FaultySnapshots>>>,
    filled: Arc<Mutex<BTreeMap<NodeId, u64>>>,
    pub(crate) leader: u64,
    pub(crate) behind: u64,
}

impl Bench {
    /// A follower of three goes down and misses more than the log keeps: some 800 KB of state.
    pub(crate) async fn new(config: Config) -> Self {
        Self::with(Plan::new(3, 1).config(config)).await
    }

    /// The same of a plan whose transport, storage and metrics are still to be chosen.
    pub(crate) async fn with(plan: Plan) -> Self {
        Self::over(plan, |_, transport| transport).await
    }

    /// The same over the transports that `wrap` makes of those with faults.
    pub(crate) async fn over(
        plan: Plan,
        wrap: impl Fn(NodeId, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Self {
        let counts = Counts::default();
        let faults: Arc<Mutex<BTreeMap<NodeId, Faults>>> = Arc::default();
        let later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>> = Arc::default();
        let snapshots: Arc<Mutex<BTreeMap<NodeId, FaultySnapshots>>> = Arc::default();
        let (made, wanted, stores) = (faults.clone(), later.clone(), snapshots.clone());
        let plan = plan.customise(counts.on()).transport(move |id, inner| {
            let (transport, switch) = FaultyTransport::new(inner, id.as_u64());
            if let Some((direction, faults)) = wanted.lock().unwrap().get(&id) {
                switch.snapshots(*direction, *faults);
            }
            made.lock().unwrap().insert(id, switch);
            wrap(id, transport)
        });
        let full: Arc<Mutex<BTreeMap<NodeId, u64>>> = Arc::default();
        let filled = full.clone();
        let plan = plan.storage(move |id, storage| {
            let store = FaultySnapshots::new(storage.snapshots);
            store.full_at(full.lock().unwrap().get(&id).copied());
            stores.lock().unwrap().insert(id, store.clone());
            Storage { snapshots: Arc::new(store), ..storage }
        });
        let mut cluster = plan.start().await;
        let leader = cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = cluster.group(behind, 1).state().applied;
        cluster.crash(behind);
        load(&cluster, 45, 20_000).await;
        let group = cluster.group(leader, 1);
        let end = Instant::now() + Duration::from_secs(20);
        while group.status().await.unwrap().first_index <= applied + 1 {
            assert!(Instant::now() < end, "the log is not compacted");
            load(&cluster, 1, 10).await;
        }
        assert_eq!(cluster.leader(1).await, leader, "the leader changed under no fault at all");
        Self { cluster, counts, faults, later, snapshots, filled, leader, behind }
    }

    /// From its next start on a node's disk is full once a snapshot has that many bytes.
    pub(crate) fn full_from_start(&self, node: u64, bytes: u64) {
        self.filled.lock().unwrap().insert(node_id(node), bytes);
    }

    /// The store of a node.
    pub(crate) fn store(&self, node: u64) -> FaultySnapshots {
        self.snapshots.lock().unwrap()[&node_id(node)].clone()
    }

    /// The newest snapshot a node has.
    pub(crate) fn latest(&self, node: u64) -> SnapshotMeta {
        let latest = self.cluster.disks[&node].snapshots.latest(GroupId::DEFAULT).unwrap();
        latest.expect("a snapshot")
    }

    /// Waits until an attempt of the leader is under way and its receiver has something of it.
    pub(crate) async fn midway(&self) -> AttemptStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(attempt) = self.peer().await.attempt.filter(|a| a.acked > 0) {
                assert!(attempt.acked < attempt.bytes, "too late: {attempt:?}");
                return attempt;
            }
            assert!(Instant::now() < end, "no attempt begins");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn fault(&self, node: u64, direction: Direction, faults: SnapshotFaults) {
        self.faults.lock().unwrap()[&node_id(node)].snapshots(direction, faults);
    }

    pub(crate) async fn peer(&self) -> PeerStatus {
        let status = self.cluster.group(self.leader, 1).status().await.unwrap();
        status.peers.into_iter().find(|p| p.id == node_id(self.behind)).expect("a member")
    }

    /// Waits for an attempt after `number` to end.
    pub(crate) async fn next_end(&self, number: u64) -> LastAttempt {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(last) = self.peer().await.last_attempt.filter(|last| last.number > number) {
                return last;
            }
            assert!(Instant::now() < end, "no attempt ended after {number}: {:?}", self.peer().await);
            tokio::task::yield_now().await;
        }
    }

    /// Everything heals: the follower is brought back, and exactly one transfer finishes on both sides.
    pub(crate) async fn heals(&self) {
        self.faults.lock().unwrap().values().for_each(Faults::clear);
        assert!(self.cluster.settled(1).await.len() >= 45);
        // The sender hears last that a follower has what the follower may have applied already.
        let sent = |outcome| self.counts.sum(TRANSFERS, &["direction=sent", outcome]);
        let told = || self.counts.sum("towline_reports_total", &["kind=snapshot_finish", "outcome=applied"]);
        let end = Instant::now() + DEADLINE;
        while sent("outcome=finished") == 0 || told() < sent("outcome=finished") + sent("outcome=already_had")
        {
            assert!(Instant::now() < end, "the sender has heard of no end");
            tokio::task::yield_now().await;
        }
        for direction in ["direction=sent", "direction=received"] {
            assert_eq!(self.counts.sum(TRANSFERS, &[direction, "outcome=finished"]), 1, "{direction}");
        }
        let reported = |kind| self.counts.sum("towline_reports_total", &[kind, "outcome=applied"]);
        let ended = |outcome| self.counts.sum(TRANSFERS, &["direction=sent", outcome]);
        assert_eq!(
            reported("kind=snapshot_finish"),
            ended("outcome=finished") + ended("outcome=already_had")
        );
        assert_eq!(
            reported("kind=snapshot_failure"),
            ended("outcome=failed") + ended("outcome=refused") + ended("outcome=cancelled"),
            "a report for each attempt, and no more"
        );
        assert_eq!(self.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
    }

    pub(crate) fn bytes(&self, direction: &str, outcome: &str) -> u64 {
        self.counts.sum(BYTES, &[&format!("direction={direction}"), &format!("outcome={outcome}")])
    }
}

pub(crate) async fn load(cluster: &Cluster, count: usize, bytes: usize) {
    for n in 0..count {
        let mut command = format!("{n} ").into_bytes();
        command.resize(bytes, b'.');
        cluster.acked(1, Bytes::from(command)).await;
    }
}
