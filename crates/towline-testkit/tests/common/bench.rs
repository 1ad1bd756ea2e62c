//! A follower that was left behind, for tests of what goes wrong on its way back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::{GroupId, NodeId, PeerAddr};
use towline_engine::snapshot_store::{SnapshotMeta, SnapshotStore};
use towline_engine::status::{AttemptStatus, LastAttempt, PeerStatus};
use towline_engine::storage::Storage;
use towline_engine::transport::Transport;
use towline_engine::units::ByteSize;
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_testkit::cluster::{Cluster, DEADLINE, Plan, node_id, quick, until, within};
use towline_testkit::fault::{Direction, Faults, FaultyTransport, SnapshotFaults};
use towline_testkit::proxy::TcpProxy;
use towline_testkit::snapshots::FaultySnapshots;

use super::Counts;
use super::offers::Offers;
use super::ports::free_port;

pub(crate) const BYTES: &str = "towline_snapshot_payload_bytes_total";
pub(crate) const TRANSFERS: &str = "towline_snapshot_transfers_total";

pub(crate) fn config() -> Config {
    Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: ByteSize::kib(16),
        snapshot_offer_timeout: Duration::from_millis(500),
        snapshot_progress_timeout: Duration::from_millis(300),
        snapshot_backoff_max: Duration::from_millis(400),
        ..quick()
    }
}

/// What a node does to its snapshot store when it starts.
type AtStart = Box<dyn Fn(&FaultySnapshots) + Send>;

/// Nodes of which one was left behind, with what can be made to go wrong and what everybody counts.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) counts: Counts,
    pub(crate) offers: Offers,
    pub(crate) faults: Arc<Mutex<BTreeMap<NodeId, Faults>>>,
    /// What goes wrong on a node from its next start on.
    pub(crate) later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>>,
    /// What a node keeps its snapshots in, from its last start on.
    pub(crate) snapshots: Arc<Mutex<BTreeMap<NodeId, FaultySnapshots>>>,
    /// Before each node in turn, if they reach each other over gRPC.
    pub(crate) proxies: Vec<TcpProxy>,
    at_start: Arc<Mutex<BTreeMap<NodeId, AtStart>>>,
    configs: Arc<Mutex<BTreeMap<NodeId, Config>>>,
    pub(crate) leader: u64,
    pub(crate) behind: u64,
}

/// The switches of a bench that its plan needs.
#[derive(Clone, Default)]
struct Switches {
    offers: Offers,
    faults: Arc<Mutex<BTreeMap<NodeId, Faults>>>,
    later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>>,
}

impl Switches {
    /// The transport of a node, with all that may go wrong in it.
    fn around<T: Transport>(&self, id: NodeId, inner: Arc<T>) -> Arc<dyn Transport> {
        let (transport, switch) = FaultyTransport::new(inner, id.as_u64());
        if let Some((direction, faults)) = self.later.lock().unwrap().get(&id) {
            switch.snapshots(*direction, *faults);
        }
        self.faults.lock().unwrap().insert(id, switch);
        self.offers.around(id, transport)
    }
}

impl Bench {
    /// A follower of three goes down and misses more than the log keeps: some 900 KB of state.
    pub(crate) async fn new(config: Config) -> Self {
        Self::with(Plan::new(3, 1).config(config)).await
    }

    /// The same of a plan whose transport, storage and metrics are still to be chosen.
    pub(crate) async fn with(plan: Plan) -> Self {
        let switches = Switches::default();
        let around = switches.clone();
        let plan = plan.transport(move |id, inner| around.around(id, inner));
        Self::left_behind(plan, switches, Vec::new()).await
    }

    /// The same, but nodes reach each other over gRPC and nothing else, through a proxy each.
    pub(crate) async fn grpc(plan: Plan) -> Self {
        let (proxies, ports) = proxies().await;
        let called: Vec<PeerAddr> = proxies.iter().map(|proxy| grpc(proxy.local_addr())).collect();
        let switches = Switches::default();
        let around = switches.clone();
        let plan = plan.customise(move |id, mut builder| {
            for (other, address) in (1..).zip(&called) {
                builder = builder.peer_address(node_id(other), address.clone());
            }
            let transport = around.around(id, Arc::new(GrpcTransport::new(GrpcConfig::default())));
            builder.transport(transport, grpc(ports[id.as_u64() as usize - 1]))
        });
        Self::left_behind(plan, switches, proxies).await
    }

    async fn left_behind(plan: Plan, switches: Switches, proxies: Vec<TcpProxy>) -> Self {
        let counts = Counts::default();
        let snapshots: Arc<Mutex<BTreeMap<NodeId, FaultySnapshots>>> = Arc::default();
        let at_start: Arc<Mutex<BTreeMap<NodeId, AtStart>>> = Arc::default();
        let configs: Arc<Mutex<BTreeMap<NodeId, Config>>> = Arc::default();
        let (stores, start, settings) = (snapshots.clone(), at_start.clone(), configs.clone());
        let plan = plan.customise(counts.on()).customise(move |id, builder| {
            match settings.lock().unwrap().get(&id).cloned() {
                Some(config) => builder.config(config),
                None => builder,
            }
        });
        let plan = plan.storage(move |id, storage| {
            let store = FaultySnapshots::new(storage.snapshots);
            if let Some(change) = start.lock().unwrap().get(&id) {
                change(&store);
            }
            stores.lock().unwrap().insert(id, store.clone());
            Storage { snapshots: Arc::new(store), ..storage }
        });
        let mut cluster = plan.start().await;
        if !proxies.is_empty() {
            cluster.nodes().into_iter().for_each(|node| cluster.net.kill(node_id(node)));
        }
        let leader = cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = cluster.group(behind, 1).state().applied;
        cluster.crash(behind);
        load(&cluster, 45, 20_000).await;
        let group = cluster.group(leader, 1);
        let end = Instant::now() + Duration::from_secs(20);
        // The newest snapshot is to remain so: none is under way, and none is due soon.
        let entries = config().snapshot_entries;
        let store = cluster.disks[&leader].snapshots.clone();
        loop {
            let status = group.status().await.unwrap();
            let latest = store.latest(GroupId::DEFAULT).unwrap().map_or(0, |latest| latest.head.at.index);
            let since = status.state.applied.saturating_sub(latest);
            if status.first_index > applied + 1 && since <= entries / 2 {
                break;
            }
            assert!(Instant::now() < end, "no snapshot, or the log is not compacted: {latest}, {status:?}");
            match since > entries {
                true => tokio::task::yield_now().await,
                false => load(&cluster, 1, 10).await,
            }
        }
        assert_eq!(cluster.leader(1).await, leader, "the leader changed under no fault at all");
        let Switches { offers, faults, later } = switches;
        Self { cluster, counts, offers, faults, later, snapshots, proxies, at_start, configs, leader, behind }
    }

    /// The node that is behind comes back, from wherever it is.
    pub(crate) async fn comes_back(&mut self) {
        self.cluster.restart(self.behind).await;
        if !self.proxies.is_empty() {
            self.cluster.net.kill(node_id(self.behind));
        }
    }

    /// A node has these settings from its next start on.
    pub(crate) fn config_from_start(&self, node: u64, config: Config) {
        self.configs.lock().unwrap().insert(node_id(node), config);
    }

    /// Changes the store of a node at its next starts.
    pub(crate) fn store_from_start(&self, node: u64, change: impl Fn(&FaultySnapshots) + Send + 'static) {
        self.at_start.lock().unwrap().insert(node_id(node), Box::new(change));
    }

    /// From its next start on a node's disk is full once a snapshot has that many bytes.
    pub(crate) fn full_from_start(&self, node: u64, bytes: u64) {
        self.store_from_start(node, move |store| store.full_at(Some(bytes)));
    }

    /// The store of a node.
    pub(crate) fn store(&self, node: u64) -> FaultySnapshots {
        self.snapshots.lock().unwrap()[&node_id(node)].clone()
    }

    /// Damages the last byte of the newest file of the leader, for good.
    pub(crate) fn rot(&self) {
        let meta = self.latest(self.leader);
        assert!(self.cluster.disks[&self.leader].snapshots.damage(&meta, meta.length as usize - 1));
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

    /// The leader hands over. Raft forgets with each election timeout whom it has heard of, until the next heartbeat is
    /// answered: then it is asked again.
    pub(crate) async fn hands_over(&self, to: u64) {
        let (group, end) = (self.cluster.group(self.leader, 1), Instant::now() + DEADLINE);
        while let Err(error) = within(group.transfer(node_id(to))).await {
            assert!(Instant::now() < end, "{error}");
            tokio::task::yield_now().await;
        }
    }

    /// Nothing goes wrong any more on the wires.
    pub(crate) fn clear(&self) {
        self.faults.lock().unwrap().values().for_each(Faults::clear);
        self.proxies.iter().for_each(TcpProxy::clear);
    }

    /// Everything heals: the follower is brought back, and exactly one transfer finishes on both sides.
    pub(crate) async fn heals(&self) {
        self.clear();
        assert!(self.cluster.settled(1).await.len() >= 45);
        let reported = |kind| self.counts.sum("towline_reports_total", &[kind, "outcome=applied"]);
        let ended = |outcome| self.counts.sum(TRANSFERS, &["direction=sent", outcome]);
        let well = || ended("outcome=finished") + ended("outcome=already_had");
        // Raft's own acknowledgement may come before the receipt, and the books close before the report is carried.
        until("the transfer that finished is reported", || {
            ended("outcome=finished") > 0 && reported("kind=snapshot_finish") >= well()
        })
        .await;
        for direction in ["direction=sent", "direction=received"] {
            assert_eq!(self.counts.sum(TRANSFERS, &[direction, "outcome=finished"]), 1, "{direction}");
        }
        assert_eq!(reported("kind=snapshot_finish"), well());
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

fn grpc(at: SocketAddr) -> PeerAddr {
    format!("grpc://{at}").parse().unwrap()
}

/// A proxy before each of three nodes, and where those listen.
async fn proxies() -> (Vec<TcpProxy>, Vec<SocketAddr>) {
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let mut proxies = Vec::new();
    for port in &ports {
        proxies.push(TcpProxy::to(*port).await.unwrap());
    }
    (proxies, ports)
}
