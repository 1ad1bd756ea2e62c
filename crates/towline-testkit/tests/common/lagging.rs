//! A follower that was down until it needs a snapshot, for tests of what goes wrong on its way back.

use std::net::SocketAddr;

use super::*;

use super::addresses::{at_addresses, cut_memory_network, free_port};
use super::load::{load, peer_status};
use super::offers::Offers;
use super::{BYTES, Counts, REPORTS, TRANSFERS};

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

/// A change to the snapshot store of a node when the node starts.
type AtStart = Box<dyn Fn(&FaultySnapshots) + Send>;

type PerNode<T> = Arc<Mutex<BTreeMap<NodeId, T>>>;

/// A cluster with one follower that is down and needs a snapshot, with the hooks that break its return.
pub(crate) struct LaggingCluster {
    pub(crate) cluster: Cluster,
    /// The counters of all nodes.
    pub(crate) counts: Counts,
    pub(crate) offers: Offers,
    faults: PerNode<Faults>,
    later: PerNode<(Direction, SnapshotFaults)>,
    snapshots: PerNode<FaultySnapshots>,
    /// One proxy before each node, by its number, if the nodes reach each other over gRPC.
    pub(crate) proxies: Vec<TcpProxy>,
    at_start: PerNode<AtStart>,
    configs: PerNode<Config>,
    pub(crate) leader: u64,
    pub(crate) behind: u64,
}

/// The hooks in the transports of a cluster.
#[derive(Clone, Default)]
struct TransportHooks {
    offers: Offers,
    faults: PerNode<Faults>,
    later: PerNode<(Direction, SnapshotFaults)>,
}

impl TransportHooks {
    /// Wraps the transport of a node.
    fn around<T: Transport>(&self, id: NodeId, inner: Arc<T>) -> Arc<dyn Transport> {
        let (transport, faults) = FaultyTransport::new(inner, id.as_u64());
        if let Some((direction, later)) = self.later.lock().unwrap().get(&id) {
            faults.snapshots(*direction, *later);
        }
        self.faults.lock().unwrap().insert(id, faults);
        self.offers.around(id, transport)
    }
}

impl LaggingCluster {
    /// Three nodes in memory. The follower misses some 900 KB of state.
    pub(crate) async fn new(config: Config) -> Self {
        Self::with(Plan::new(3, 1).config(config)).await
    }

    /// The same for a plan that sets neither transport, storage nor metrics.
    pub(crate) async fn with(plan: Plan) -> Self {
        let hooks = TransportHooks::default();
        let around = hooks.clone();
        let plan = plan.transport(move |id, inner| around.around(id, inner));
        Self::left_behind(plan, hooks, Vec::new()).await
    }

    /// The same over gRPC alone, with a proxy before each node.
    pub(crate) async fn grpc(plan: Plan) -> Self {
        let ports = [(); 3].map(|()| free_port());
        let mut proxies = Vec::new();
        for port in ports {
            proxies.push(TcpProxy::to(port).await.unwrap());
        }
        let address = |at: SocketAddr| -> PeerAddr { format!("grpc://{at}").parse().unwrap() };
        let dialled: Vec<_> = proxies.iter().map(|proxy| address(proxy.local_addr())).collect();
        let hooks = TransportHooks::default();
        let around = hooks.clone();
        let plan = at_addresses(plan, ports.map(address), dialled, move |id| {
            around.around(id, Arc::new(GrpcTransport::new(GrpcConfig::default())))
        });
        Self::left_behind(plan, hooks, proxies).await
    }

    async fn left_behind(plan: Plan, hooks: TransportHooks, proxies: Vec<TcpProxy>) -> Self {
        let counts = Counts::default();
        let snapshots = PerNode::<FaultySnapshots>::default();
        let at_start = PerNode::<AtStart>::default();
        let configs = PerNode::<Config>::default();
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
            cut_memory_network(&cluster);
        }
        let leader = cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = cluster.group(behind, 1).state().applied;
        cluster.crash(behind);
        load(&cluster, 45, 20_000).await;
        let group = cluster.group(leader, 1);
        let entries = config().snapshot_entries;
        let store = cluster.disks[&leader].snapshots.clone();
        eventually("a snapshot, a compacted log, and no newer snapshot due soon", async || {
            let status = group.status().await.unwrap();
            let latest = store.latest(GroupId::DEFAULT).unwrap().map_or(0, |latest| latest.head.at.index);
            let since = status.state.applied.saturating_sub(latest);
            if status.first_index > applied + 1 && since <= entries / 2 {
                return Ok(());
            }
            if since <= entries {
                load(&cluster, 1, 10).await;
            }
            Err((latest, status))
        })
        .await;
        assert_eq!(cluster.leader(1).await, leader, "the leader changed under no fault at all");
        let TransportHooks { offers, faults, later } = hooks;
        Self { cluster, counts, offers, faults, later, snapshots, proxies, at_start, configs, leader, behind }
    }

    /// Starts the follower.
    pub(crate) async fn restart_follower(&mut self) {
        self.cluster.restart(self.behind).await;
        if !self.proxies.is_empty() {
            self.cluster.net.kill(node_id(self.behind));
        }
    }

    /// Sets the configuration of a node from its next start on.
    pub(crate) fn config_from_start(&self, node: u64, config: Config) {
        self.configs.lock().unwrap().insert(node_id(node), config);
    }

    /// Changes the snapshot store of a node at each later start.
    pub(crate) fn store_from_start(&self, node: u64, change: impl Fn(&FaultySnapshots) + Send + 'static) {
        self.at_start.lock().unwrap().insert(node_id(node), Box::new(change));
    }

    /// Fills the disk of a node once a snapshot has `bytes` bytes, from the next start on.
    pub(crate) fn full_from_start(&self, node: u64, bytes: u64) {
        self.store_from_start(node, move |store| store.full_at(Some(bytes)));
    }

    /// The snapshot store of a node, as of its last start.
    pub(crate) fn store(&self, node: u64) -> FaultySnapshots {
        self.snapshots.lock().unwrap()[&node_id(node)].clone()
    }

    /// Damages the last byte of the leader's newest file.
    pub(crate) fn damage_leader_file(&self) {
        let meta = self.latest(self.leader);
        assert!(self.cluster.disks[&self.leader].snapshots.damage(&meta, meta.length as usize - 1));
    }

    /// The newest snapshot of a node.
    pub(crate) fn latest(&self, node: u64) -> SnapshotMeta {
        let latest = self.cluster.disks[&node].snapshots.latest(GroupId::DEFAULT).unwrap();
        latest.expect("a snapshot")
    }

    /// Waits until the receiver has acknowledged a part of an attempt.
    pub(crate) async fn midway(&self) -> AttemptStatus {
        let attempt = self.attempt("a part is acknowledged", |a| a.acked > 0).await;
        assert!(attempt.acked < attempt.bytes, "too late: {attempt:?}");
        attempt
    }

    /// Waits for an attempt under way with this property.
    pub(crate) async fn attempt(&self, what: &str, is: impl Fn(&AttemptStatus) -> bool) -> AttemptStatus {
        eventually(what, async || {
            let peer = self.peer().await;
            peer.attempt.filter(&is).ok_or(peer)
        })
        .await
    }

    /// The faults of the transport of a node.
    pub(crate) fn faults(&self, node: u64) -> Faults {
        self.faults.lock().unwrap()[&node_id(node)].clone()
    }

    /// Breaks the snapshots that the leader sends.
    pub(crate) fn break_sent(&self, faults: SnapshotFaults) {
        self.faults(self.leader).snapshots(Direction::Out, faults);
    }

    /// Starts the follower, and stalls the first transfer once `chunks` chunks have arrived. While the gate exists, no later
    /// attempt gets beyond its offer, however late the test removes its faults. Needs long timeouts.
    pub(crate) async fn stall_after(&mut self, chunks: u64, chunk_bytes: u64) -> SnapshotGate {
        self.break_sent(SnapshotFaults { stall_at_chunk: Some(chunks), ..Default::default() });
        self.restart_follower().await;
        let had = self.latest(self.leader).length.min(chunks * chunk_bytes);
        let arrived = |a: &AttemptStatus| (a.phase, a.acked) == (Some(TransferPhase::Receiving), had);
        self.attempt("the chunks arrive", arrived).await;
        self.store(self.behind).hold(SnapshotOp::Receive)
    }

    /// Breaks the snapshots that the follower receives, from its next start on.
    pub(crate) fn break_received(&self, faults: SnapshotFaults) {
        self.later.lock().unwrap().insert(node_id(self.behind), (Direction::In, faults));
    }

    /// The node that neither leads nor is behind.
    pub(crate) fn third(&self) -> u64 {
        6 - self.leader - self.behind
    }

    /// The leader's status of the follower.
    pub(crate) async fn peer(&self) -> PeerStatus {
        peer_status(&self.cluster, self.leader, self.behind).await
    }

    /// Commits the leader's newest snapshot to the follower's store.
    pub(crate) fn copy_latest(&self) -> SnapshotMeta {
        let meta = self.latest(self.leader);
        let mut body = self.cluster.disks[&self.leader].snapshots.open(&meta, 0).unwrap();
        let mut writer = self.cluster.disks[&self.behind].snapshots.receive(&meta).unwrap();
        while let Some(part) = body.next_part(1 << 20).unwrap() {
            writer.write_part(&part.bytes, part.crc32c).unwrap();
        }
        writer.verify(Some(&Trailer { length: meta.length, content: meta.content })).unwrap();
        writer.commit().unwrap()
    }

    /// Waits for the end of an attempt after `number`.
    pub(crate) async fn next_end(&self, number: u64) -> LastAttempt {
        eventually("a later attempt ends", async || {
            let peer = self.peer().await;
            peer.last_attempt.filter(|last| last.number > number).ok_or((number, peer))
        })
        .await
    }

    /// Transfers leadership. Retries, because at each election timeout Raft forgets which peers are active until they answer
    /// the next heartbeat.
    pub(crate) async fn transfer_leadership(&self, to: u64) {
        let group = self.cluster.group(self.leader, 1);
        eventually("leadership moves", async || within(group.transfer(node_id(to))).await).await;
    }

    /// Ends all faults of transports and proxies.
    pub(crate) fn clear_faults(&self) {
        self.faults.lock().unwrap().values().for_each(Faults::clear);
        self.proxies.iter().for_each(TcpProxy::clear);
    }

    /// Ends all faults. The follower must catch up, exactly one transfer must finish on both sides, and each attempt must have
    /// one report.
    pub(crate) async fn assert_heals(&self) {
        self.clear_faults();
        assert!(self.cluster.settled(1).await.len() >= 45);
        let reported = |kind| self.counts.sum(REPORTS, &format!("{kind} outcome=applied"));
        let ended = |outcome| self.counts.sum(TRANSFERS, &format!("direction=sent {outcome}"));
        let well = || ended("outcome=finished") + ended("outcome=already_had");
        // Raft's acknowledgement may arrive before the receipt, and the transfer is counted before its report.
        until("the transfer that finished is reported", || {
            ended("outcome=finished") > 0 && reported("kind=snapshot_finish") >= well()
        })
        .await;
        for direction in ["direction=sent", "direction=received"] {
            assert_eq!(
                self.counts.sum(TRANSFERS, &format!("{direction} outcome=finished")),
                1,
                "{direction}"
            );
        }
        assert_eq!(reported("kind=snapshot_finish"), well());
        assert_eq!(
            reported("kind=snapshot_failure"),
            ended("outcome=failed") + ended("outcome=refused") + ended("outcome=cancelled"),
            "a report for each attempt, and no more"
        );
        assert_eq!(self.counts.sum(REPORTS, "outcome=synthesized"), 0);
    }

    /// Counted payload bytes of transfers.
    pub(crate) fn bytes(&self, direction: &str, outcome: &str) -> u64 {
        self.counts.sum(BYTES, &format!("direction={direction} outcome={outcome}"))
    }
}
