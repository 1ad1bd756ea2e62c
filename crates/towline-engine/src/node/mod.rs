//! The driver: the threads around the core, and the public handles.
//!
//! One shard thread runs all groups, one thread writes the log, one reads cold entries from it, and apply workers run state
//! machines. Small runtimes move bytes. They know one another only as queues.

mod apply;
mod builder;
mod clock;
mod counters;
mod deadlines;
mod disk_watch;
mod founder_lines;
mod handle;
mod inbox;
mod ingress;
mod peers;
mod reader;
mod recover;
mod refusals;
mod refused_by;
mod runtimes;
mod shard;
mod shutdown;
mod snapshots;
mod stall_lines;
mod start;
mod wait_lines;
mod waiter;
mod writer;

pub use self::builder::{NodeBuilder, StartError};
pub use self::handle::{Consistency, Group, Proposal};
pub use self::shutdown::{SHUTDOWN_MARGIN, ShutdownReport};
pub use self::start::{GroupBuilder, Start};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::watch;
use towline_metrics::NodeMetrics;

use self::apply::ApplyWorker;
use self::disk_watch::DiskWatch;
use self::inbox::ShardSender;
use self::peers::{Peers, Registry};
use self::reader::LogReader;
use self::runtimes::Runtimes;
use self::writer::LogWriter;
use crate::config::ValidConfig;
use crate::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use crate::lanes::Lanes;
use crate::log_store::LogStore;
use crate::snapshot_store::SnapshotStore;
use crate::snapshots::{Sends, SnapshotWorker};
use crate::state_machine::StateMachine;
use crate::status::GroupState;
use crate::sync::lock;
use crate::transport::Listener;

/// One member of a cluster. Hosts any number of groups.
///
/// [`shutdown`](Self::shutdown) ends it in order. A drop ends it as a crash would, but joins its threads, and releases its
/// storage and ports before it returns. On a caller's runtime the tasks of the node end a little later and hold both until
/// then; [`shutdown`](Self::shutdown) waits for them. A thread whose call of a state machine, a store or a transport does
/// not return within 10 s is left running, and the log names it.
pub struct Node {
    inner: Arc<NodeInner>,
    listeners: Mutex<Vec<Box<dyn Listener>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    runtimes: Runtimes,
}

struct NodeInner {
    id: NodeId,
    config: ValidConfig,
    store: Arc<dyn LogStore>,
    peers: Arc<Peers>,
    registry: Registry,
    shard: ShardSender,
    scheduled: Arc<ingress::Scheduled>,
    lanes: Lanes,
    snapshots: Arc<dyn SnapshotStore>,
    sends: Sends,
    worker: SnapshotWorker,
    writer: LogWriter,
    reader: LogReader,
    disk: DiskWatch,
    apply_workers: Vec<ApplyWorker>,
    metrics: NodeMetrics,
    addresses: BTreeMap<NodeId, PeerAddr>,
    runtime: Handle,
    generations: AtomicU64,
    /// The states of groups that run or ran.
    states: Mutex<BTreeMap<GroupId, watch::Receiver<GroupState>>>,
    /// Groups that are starting.
    starting: Mutex<BTreeSet<GroupId>>,
}

impl Node {
    /// Describes a node.
    pub fn builder(id: NodeId, cluster: ClusterId) -> NodeBuilder {
        NodeBuilder::new(id, cluster)
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// The addresses on which the node listens, with the real port where port 0 was requested.
    pub fn listen_addrs(&self) -> Vec<std::net::SocketAddr> {
        lock(&self.listeners).iter().map(|l| l.local_addr()).collect()
    }

    /// Whether the group is stored here. If so, restart it; else bootstrap it.
    ///
    /// # Errors
    /// [`StartError::Log`] if the log cannot be read.
    pub fn has_group(&self, group: GroupId) -> Result<bool, StartError> {
        let recovered = self.inner.store.recover(group).map_err(|error| StartError::log(group, error))?;
        Ok(recovered.conf.is_some())
    }

    /// Describes a group on this node, with its state machine.
    pub fn group<S: StateMachine>(&self, id: GroupId, machine: S) -> GroupBuilder<'_, S> {
        GroupBuilder::new(self, id, machine)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl NodeInner {
    fn apply_worker(&self, group: GroupId) -> &ApplyWorker {
        let number = group.as_u64() as usize % self.apply_workers.len().max(1);
        self.apply_workers.get(number).unwrap_or_else(|| unreachable!("`apply_workers` is at least one"))
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
