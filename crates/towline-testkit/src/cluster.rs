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
//! All waits are for a condition and panic at [`DEADLINE`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
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

/// The bound of each wait.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The poll interval.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Settings for tests: elections take less than a second and bear a machine under load.
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
///
/// # Panics
/// If the number is zero.
pub fn node_id(raw: u64) -> NodeId {
    NodeId::new(raw).expect("nodes are numbered from 1")
}

/// The id of every cluster of this module.
pub fn cluster_id() -> ClusterId {
    ClusterId::new("test").expect("a valid name")
}

/// What a node stores.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Logs.
    pub log: MemLog,
    /// Snapshot files.
    pub snapshots: MemSnapshots,
    /// Identity.
    pub identity: MemIdentity,
}

impl Disk {
    /// The argument for `NodeBuilder::storage`.
    pub fn storage(&self) -> Storage {
        let (log, identity): (Arc<dyn LogStore>, Arc<dyn IdentityStore>) =
            (Arc::new(self.log.clone()), Arc::new(self.identity.clone()));
        Storage { log, snapshots: Arc::new(self.snapshots.clone()), identity }
    }

    /// What a power loss leaves.
    #[must_use]
    pub fn crash(&self) -> Self {
        Self { log: self.log.crash(), snapshots: self.snapshots.crash(), identity: self.identity.clone() }
    }
}

type Customise = Arc<dyn Fn(NodeId, NodeBuilder) -> NodeBuilder + Send + Sync>;
type WrapTransport = Arc<dyn Fn(NodeId, Arc<MemTransport>) -> Arc<dyn Transport> + Send + Sync>;
type WrapStorage = Arc<dyn Fn(NodeId, Storage) -> Storage + Send + Sync>;
type MakeMachine<M> = Arc<dyn Fn(NodeId, GroupId) -> M + Send + Sync>;

/// Describes a [`Cluster`].
#[must_use = "nothing happens before `start`"]
pub struct Plan<M = ListMachine> {
    nodes: u64,
    groups: u64,
    config: Config,
    customise: Customise,
    wrap: WrapTransport,
    store: WrapStorage,
    machine: MakeMachine<M>,
}

impl Plan {
    /// A cluster of `nodes` nodes, all with the groups 1 to `groups`.
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
    /// Replaces the settings, [`quick`] by default.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes each node before it starts, after the changes of earlier calls.
    pub fn customise(
        mut self,
        change: impl Fn(NodeId, NodeBuilder) -> NodeBuilder + Send + Sync + 'static,
    ) -> Self {
        let earlier = self.customise;
        self.customise = Arc::new(move |id, builder| change(id, earlier(id, builder)));
        self
    }

    /// Wraps the transport of each node, for example in a [`FaultyTransport`](crate::fault::FaultyTransport).
    pub fn transport(
        mut self,
        wrap: impl Fn(NodeId, Arc<MemTransport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Self {
        self.wrap = Arc::new(wrap);
        self
    }

    /// Wraps or replaces the storage of each node at each start.
    pub fn storage(mut self, wrap: impl Fn(NodeId, Storage) -> Storage + Send + Sync + 'static) -> Self {
        self.store = Arc::new(wrap);
        self
    }

    /// Replaces the state machines, [`ListMachine`] by default.
    pub fn machine<N>(self, make: impl Fn(NodeId, GroupId) -> N + Send + Sync + 'static) -> Plan<N> {
        let Self { nodes, groups, config, customise, wrap, store, machine: _ } = self;
        Plan { nodes, groups, config, customise, wrap, store, machine: Arc::new(make) }
    }

    /// Bootstraps the cluster.
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

/// A running node.
#[derive(Debug)]
pub struct RunningNode<M: StateMachine = ListMachine> {
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
    /// The disks of all nodes.
    pub disks: BTreeMap<u64, Disk>,
    /// The running nodes.
    pub up: BTreeMap<u64, RunningNode<M>>,
}

impl Cluster {
    /// Bootstraps `nodes` nodes, all with the groups 1 to `groups`.
    pub async fn start(nodes: u64, groups: u64) -> Self {
        Plan::new(nodes, groups).start().await
    }

    /// The commands a node has applied.
    pub async fn commands(&self, node: u64, group: u64) -> Vec<Bytes> {
        let list = self.group(node, group).read(Consistency::Local).await;
        list.unwrap_or_else(|error| panic!("node {node}: {error}")).commands()
    }

    /// Waits until all running nodes have applied the same commands of a group, and returns them.
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
    /// The numbers of all nodes, also of stopped ones.
    pub fn nodes(&self) -> Vec<u64> {
        (1..=self.plan.nodes).collect()
    }

    /// The address of a node.
    pub fn address(&self, node: u64) -> PeerAddr {
        format!("mem://n{node}:1").parse().expect("a valid address")
    }

    /// The first members of each group.
    pub fn members(&self) -> Vec<(NodeId, PeerAddr)> {
        self.nodes().into_iter().map(|node| (node_id(node), self.address(node))).collect()
    }

    /// Waits until the leader of a group knows how its snapshot attempt to `peer` ended.
    pub async fn attempt_ended(&self, leader: u64, group: u64, peer: u64) -> LastAttempt {
        let group = self.group(leader, group);
        eventually("an attempt ends", async || {
            let status = within(group.status()).await.expect("it runs");
            let peer = status.peers.into_iter().find(|p| p.id == node_id(peer)).expect("a member");
            if peer.attempt.is_none() { peer.last_attempt.ok_or(peer) } else { Err(peer) }
        })
        .await
    }

    /// A group of a running node.
    pub fn group(&self, node: u64, group: u64) -> Group<M> {
        self.up[&node].groups[&group].clone()
    }

    /// Starts a stopped node. An empty disk is bootstrapped.
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
        self.up.insert(node, RunningNode { node: running, groups });
        Ok(())
    }

    /// Starts a stopped node.
    pub async fn restart(&mut self, node: u64) {
        self.try_restart(node).await.unwrap_or_else(|error| panic!("node {node} does not start: {error}"));
    }

    /// Crashes a node: its links break, and its disk keeps only what was durable.
    pub fn crash(&mut self, node: u64) {
        self.net.kill(node_id(node));
        let disk = self.disks[&node].crash();
        self.disks.insert(node, disk);
        drop(self.up.remove(&node));
    }

    /// Shuts a node down.
    pub async fn stop(&mut self, node: u64, deadline: Duration) {
        if let Some(up) = self.up.remove(&node) {
            up.node.shutdown(deadline).await;
        }
    }

    /// Waits for a leader of a group that has committed an entry of its term.
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

    /// Transfers leadership until `node` leads the group.
    pub async fn lead(&self, group: u64, node: u64) {
        eventually("leadership moves", async || {
            let leader = self.leader(group).await;
            if leader == node {
                return Ok(());
            }
            Err(self.group(leader, group).transfer(node_id(node)).await)
        })
        .await;
    }

    /// The state of a group on each running node.
    pub fn states(&self, group: u64) -> Vec<(u64, GroupState)> {
        self.up.iter().filter_map(|(n, up)| Some((*n, up.groups.get(&group)?.state()))).collect()
    }

    /// Proposes to the leader, and again after errors that say the command never happened.
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

    /// Proposes until an acknowledgement. The command may be applied more than once.
    pub async fn acked(&self, group: u64, command: impl Into<Bytes>) {
        let command = command.into();
        let until = Instant::now() + DEADLINE;
        while let Err(error) = self.propose(group, command.clone()).await {
            assert!(Instant::now() < until, "not acknowledged: {error}");
        }
    }
}

/// Waits until a condition holds; panics with `what` at [`DEADLINE`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, async || if holds() { Ok(()) } else { Err(()) }).await;
}

/// Looks until there is a result; panics with `what` and the last error at [`DEADLINE`].
pub async fn eventually<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}: {error:?}"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether a future, polled once, is ready.
pub async fn is_ready<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

/// Waits for a future; panics at [`DEADLINE`].
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}
