//! A cluster in one process: nodes over a [`MemNet`] and [`MemLog`]s, with [`ListMachine`]s.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use towline_testkit::cluster::Cluster;
//!
//! let mut cluster = Cluster::start(3, 1).await;
//! let leader = cluster.leader(1).await;
//! cluster.group(leader, 1).propose("hello").await?;
//! cluster.crash(leader);
//! cluster.acked(1, "world").await;
//! # Ok::<(), towline_engine::errors::ProposeError>(())
//! # }).unwrap();
//! ```
//!
//! Nothing here sleeps for a guess: everything waits for a condition until [`DEADLINE`] and panics then.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::errors::{Outcome, ProposeError};
use towline_engine::identity::IdentityStore;
use towline_engine::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use towline_engine::log_store::LogStore;
use towline_engine::node::{Consistency, Group, Node, NodeBuilder, Start, StartError};
use towline_engine::state_machine::StateMachine;
use towline_engine::status::{GroupState, LastAttempt, Role};
use towline_engine::storage::Storage;
use towline_engine::transport::Transport;

use crate::list::ListMachine;
use crate::log::{MemIdentity, MemLog};
use crate::mem::{MemNet, MemTransport};
use crate::snapshots::MemSnapshots;

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long a condition waits between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Settings for tests: elections within a second, yet not thrown over by a machine under load.
pub fn quick() -> Config {
    Config {
        tick: Duration::from_millis(10),
        heartbeat_interval: Duration::from_millis(40),
        election_timeout_min: Duration::from_millis(400),
        election_timeout_max: Duration::from_millis(800),
        read_timeout: Duration::from_secs(2),
        lane_dispatch_timeout: Duration::from_millis(500),
        lane_connect_timeout: Duration::from_millis(300),
        lane_backoff_min: Duration::from_millis(5),
        lane_backoff_max: Duration::from_millis(100),
        network_workers: 1,
        ..Config::default()
    }
}

/// The node with this number.
pub fn node_id(raw: u64) -> NodeId {
    NodeId::new(raw).expect("nodes are numbered from 1")
}

/// The cluster all of this belongs to.
pub fn cluster_id() -> ClusterId {
    ClusterId::new("test").expect("a valid name")
}

/// What a node keeps while it is down.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// The logs.
    pub log: MemLog,
    /// Snapshot files.
    pub snapshots: MemSnapshots,
    /// Who it is.
    pub identity: MemIdentity,
}

impl Disk {
    /// As a node takes it.
    pub fn storage(&self) -> Storage {
        let (log, identity): (Arc<dyn LogStore>, Arc<dyn IdentityStore>) =
            (Arc::new(self.log.clone()), Arc::new(self.identity.clone()));
        Storage { log, snapshots: Arc::new(self.snapshots.clone()), identity }
    }

    /// What a power loss would leave.
    #[must_use]
    pub fn crash(&self) -> Self {
        Self { log: self.log.crash(), snapshots: self.snapshots.crash(), identity: self.identity.clone() }
    }
}

type Customise = Arc<dyn Fn(NodeId, NodeBuilder) -> NodeBuilder + Send + Sync>;
type Wrap = Arc<dyn Fn(NodeId, Arc<MemTransport>) -> Arc<dyn Transport> + Send + Sync>;
type Store = Arc<dyn Fn(NodeId, Storage) -> Storage + Send + Sync>;
type MakeMachine<M> = Arc<dyn Fn(NodeId, GroupId) -> M + Send + Sync>;

/// Describes a [`Cluster`].
#[must_use = "nothing happens before `start`"]
pub struct Plan<M = ListMachine> {
    nodes: u64,
    groups: u64,
    config: Config,
    customise: Customise,
    wrap: Wrap,
    store: Store,
    machine: MakeMachine<M>,
}

impl Plan {
    /// So many nodes, with groups from 1 to `groups` on all of them.
    pub fn new(nodes: u64, groups: u64) -> Self {
        Self {
            nodes,
            groups,
            config: quick(),
            customise: Arc::new(|_, builder| builder),
            wrap: Arc::new(|_, transport| transport),
            store: Arc::new(|_, storage| storage),
            machine: Arc::new(|_, _| ListMachine::new()),
        }
    }
}

impl<M: StateMachine> Plan<M> {
    /// Other settings than [`quick`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes each node before it starts, after what earlier calls change.
    pub fn customise(
        mut self,
        change: impl Fn(NodeId, NodeBuilder) -> NodeBuilder + Send + Sync + 'static,
    ) -> Self {
        let earlier = self.customise;
        self.customise = Arc::new(move |id, builder| change(id, earlier(id, builder)));
        self
    }

    /// Puts something around the transport of each node, such as a
    /// [`FaultyTransport`](crate::fault::FaultyTransport).
    pub fn transport(
        mut self,
        wrap: impl Fn(NodeId, Arc<MemTransport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Self {
        self.wrap = Arc::new(wrap);
        self
    }

    /// Puts something around what each node stores, or something else in its place; asked at every start of a node.
    pub fn storage(mut self, wrap: impl Fn(NodeId, Storage) -> Storage + Send + Sync + 'static) -> Self {
        self.store = Arc::new(wrap);
        self
    }

    /// Other machines than plain ones.
    pub fn machine<N>(self, make: impl Fn(NodeId, GroupId) -> N + Send + Sync + 'static) -> Plan<N> {
        let Self { nodes, groups, config, customise, wrap, store, machine: _ } = self;
        Plan { nodes, groups, config, customise, wrap, store, machine: Arc::new(make) }
    }

    /// Bootstraps it.
    pub async fn start(self) -> Cluster<M> {
        let mut cluster =
            Cluster { plan: self, net: MemNet::new(), disks: BTreeMap::new(), up: BTreeMap::new() };
        for node in cluster.nodes() {
            cluster.disks.insert(node, Disk::default());
        }
        for node in cluster.nodes() {
            cluster.restart(node).await;
        }
        cluster
    }
}

/// A node that runs, with its groups.
#[derive(Debug)]
pub struct Up<M: StateMachine = ListMachine> {
    /// The node.
    pub node: Node,
    /// Its groups.
    pub groups: BTreeMap<u64, Group<M>>,
}

/// Nodes numbered from 1, on one network.
pub struct Cluster<M: StateMachine = ListMachine> {
    plan: Plan<M>,
    /// The network.
    pub net: MemNet,
    /// What each node keeps, also while it is down.
    pub disks: BTreeMap<u64, Disk>,
    /// The nodes that run.
    pub up: BTreeMap<u64, Up<M>>,
}

impl Cluster {
    /// Bootstraps so many nodes, with groups from 1 to `groups` on all of them.
    pub async fn start(nodes: u64, groups: u64) -> Self {
        Plan::new(nodes, groups).start().await
    }

    /// The commands a node has applied.
    pub async fn commands(&self, node: u64, group: u64) -> Vec<Bytes> {
        let list = self.group(node, group).read(Consistency::Local).await;
        list.unwrap_or_else(|error| panic!("node {node}: {error}")).commands()
    }

    /// Waits until every node that runs has applied the same commands of the group, and gives them.
    pub async fn settled(&self, group: u64) -> Vec<Bytes> {
        self.acked(group, "settled").await;
        let until = Instant::now() + DEADLINE;
        let mut all = Vec::new();
        while Instant::now() < until {
            all.clear();
            for node in self.up.keys() {
                all.push(self.commands(*node, group).await);
            }
            if all.windows(2).all(|two| two[0] == two[1]) && !all[0].is_empty() {
                let mut commands = all.remove(0);
                commands.retain(|c| c != "settled");
                return commands;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        panic!("the nodes differ in group {group}: {all:?}");
    }
}

impl<M: StateMachine> Cluster<M> {
    /// The numbers of all nodes, also of those that are down.
    pub fn nodes(&self) -> Vec<u64> {
        (1..=self.plan.nodes).collect()
    }

    /// Where a node listens.
    pub fn address(&self, node: u64) -> PeerAddr {
        format!("mem://n{node}:1").parse().expect("a valid address")
    }

    /// Who founds every group.
    pub fn members(&self) -> Vec<(NodeId, PeerAddr)> {
        self.nodes().into_iter().map(|node| (node_id(node), self.address(node))).collect()
    }

    /// Waits until the leader of a group has heard how its attempt to send `peer` a snapshot ended. It hears it last: the peer
    /// may have applied the state by then.
    pub async fn attempt_ended(&self, leader: u64, group: u64, peer: u64) -> LastAttempt {
        let (group, end) = (self.group(leader, group), Instant::now() + DEADLINE);
        loop {
            let status = within(group.status()).await.expect("it runs");
            let peer = status.peers.iter().find(|p| p.id == node_id(peer)).expect("a member");
            if let (None, Some(last)) = (peer.attempt, peer.last_attempt) {
                return last;
            }
            assert!(Instant::now() < end, "no attempt ends: {peer:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A group on a node that runs.
    pub fn group(&self, node: u64, group: u64) -> Group<M> {
        self.up[&node].groups[&group].clone()
    }

    /// Starts a node that is down on what its disk has; an empty disk is bootstrapped.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn try_restart(&mut self, node: u64) -> Result<(), StartError> {
        self.net.revive(node_id(node));
        let id = node_id(node);
        let builder = Node::builder(id, cluster_id())
            .config(self.plan.config.clone())
            .storage((self.plan.store)(id, self.disks[&node].storage()))
            .transport((self.plan.wrap)(id, self.net.transport()), self.address(node));
        let running = (self.plan.customise)(id, builder).start().await?;
        let mut groups = BTreeMap::new();
        for number in 1..=self.plan.groups {
            let group = GroupId::new(number);
            let start = match running.has_group(group)? {
                true => Start::Restart,
                false => Start::Bootstrap(self.members()),
            };
            let machine = (self.plan.machine)(id, group);
            groups.insert(number, running.group(group, machine).start(start).await?);
        }
        self.up.insert(node, Up { node: running, groups });
        Ok(())
    }

    /// Starts a node that is down.
    pub async fn restart(&mut self, node: u64) {
        self.try_restart(node).await.unwrap_or_else(|error| panic!("node {node} does not start: {error}"));
    }

    /// The machine of a node loses its power: nobody hears of it any more, and its disk has what was durable.
    pub fn crash(&mut self, node: u64) {
        self.net.kill(node_id(node));
        let disk = self.disks[&node].crash();
        self.disks.insert(node, disk);
        drop(self.up.remove(&node));
    }

    /// Stops a node in order.
    pub async fn stop(&mut self, node: u64, deadline: Duration) {
        if let Some(up) = self.up.remove(&node) {
            up.node.shutdown(deadline).await;
        }
    }

    /// Waits until a node that runs leads the group and has committed in its term, so that it serves at once.
    pub async fn leader(&self, group: u64) -> u64 {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            for (node, up) in &self.up {
                let Some(group) = up.groups.get(&group) else { continue };
                let led = group.state().role == Role::Leader;
                if led && group.read(Consistency::Linearizable).await.is_ok() {
                    return *node;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        panic!("group {group} has no leader: {:?}", self.states(group));
    }

    /// How the group looks on every node that runs.
    pub fn states(&self, group: u64) -> Vec<(u64, GroupState)> {
        self.up.iter().filter_map(|(n, up)| Some((*n, up.groups.get(&group)?.state()))).collect()
    }

    /// Proposes once, wherever the leader is; tries again for as long as nothing happened.
    ///
    /// # Errors
    /// The first error after which the command may have been applied.
    pub async fn propose(&self, group: u64, command: impl Into<Bytes>) -> Result<M::Response, ProposeError> {
        let command = command.into();
        let until = Instant::now() + DEADLINE;
        loop {
            let leader = self.leader(group).await;
            match self.group(leader, group).propose(command.clone()).await {
                Err(error) if error.outcome() == Outcome::NeverHappened && Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// Proposes until it is acknowledged; it may then be there more than once.
    pub async fn acked(&self, group: u64, command: impl Into<Bytes>) {
        let command = command.into();
        let until = Instant::now() + DEADLINE;
        while let Err(error) = self.propose(group, command.clone()).await {
            assert!(Instant::now() < until, "not acknowledged: {error}");
        }
    }
}

/// Waits until something holds; panics with `what` at [`DEADLINE`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "still not so: {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits for a future; panics at [`DEADLINE`].
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}
