//! The driver: the threads around the core, and the public handles.
//!
//! One shard thread runs all groups, one thread writes the log, one reads cold entries from it, apply workers run state
//! machines, and a small runtime moves bytes. Each knows the others only as queues.

mod applier;
mod apply;
mod builder;
mod call_size;
mod call_watch;
mod clock;
mod counters;
mod deadlines;
mod handle;
mod inbox;
mod ingress;
mod peers;
mod reader;
mod recover;
mod refusals;
mod runtimes;
mod shard;
mod shutdown;
mod snapshots;
mod start;
mod target;
mod waiter;
mod writer;

pub use self::builder::{NodeBuilder, StartError};
pub use self::handle::{Consistency, Group, Proposal};
pub use self::shutdown::{SHUTDOWN_MARGIN, ShutdownReport};
pub use self::start::{GroupBuilder, Start};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::watch;
use towline_metrics::NodeMetrics;

use self::apply::ApplyWorker;
use self::inbox::ShardSender;
use self::peers::{Peers, Registry};
use self::reader::LogReader;
use self::runtimes::Runtimes;
use self::writer::Writer;
use crate::config::ValidConfig;
use crate::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use crate::lanes::Lanes;
use crate::log_store::LogStore;
use crate::snapshot_store::SnapshotStore;
use crate::snapshots::{Sends, SnapshotWorker};
use crate::state_machine::StateMachine;
use crate::status::GroupState;
use crate::transport::Listener;

/// One process's part in a cluster. Hosts any number of groups.
///
/// [`shutdown`](Self::shutdown) ends it in order. Dropping it ends it as a crash would, but joins its threads, and lets
/// go of its storage and its ports before the drop returns. On a runtime of the caller the tasks of the node notice a
/// little later, and hold both until then; [`shutdown`](Self::shutdown) waits for them. A thread whose call of a state
/// machine, a store or a transport does not return within 10 s is left, and named in the log.
pub struct Node {
    inner: Arc<Inner>,
    listeners: Mutex<Vec<Box<dyn Listener>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    runtimes: Runtimes,
}

struct Inner {
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
    writer: Writer,
    reader: LogReader,
    appliers: Vec<ApplyWorker>,
    metrics: NodeMetrics,
    addresses: BTreeMap<NodeId, PeerAddr>,
    runtime: Handle,
    lives: AtomicU64,
    /// Groups that run or ran, to follow their state at shutdown.
    states: Mutex<BTreeMap<GroupId, watch::Receiver<GroupState>>>,
    /// Groups whose start is under way.
    starting: Mutex<BTreeSet<GroupId>>,
}

impl Node {
    /// Describes a node of a cluster.
    pub fn builder(id: NodeId, cluster: ClusterId) -> NodeBuilder {
        NodeBuilder::new(id, cluster)
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// Where the node listens, with real ports where port 0 was asked for.
    pub fn listen_addrs(&self) -> Vec<std::net::SocketAddr> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|l| l.local_addr()).collect()
    }

    /// Whether something is stored for a group: then it is to be restarted, else bootstrapped.
    ///
    /// # Errors
    /// [`StartError::Log`] if the log cannot say.
    pub fn has_group(&self, group: GroupId) -> Result<bool, StartError> {
        let recovered = self.inner.store.recover(group).map_err(|error| StartError::log(group, error))?;
        Ok(recovered.conf.is_some())
    }

    /// Describes a group to be started on this node, with its state machine.
    pub fn group<S: StateMachine>(&self, id: GroupId, machine: S) -> GroupBuilder<'_, S> {
        GroupBuilder::new(self, id, machine)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl Inner {
    fn applier(&self, group: GroupId) -> &ApplyWorker {
        // There is at least one, by the validation of the settings.
        let number = group.as_u64() as usize % self.appliers.len().max(1);
        self.appliers.get(number).unwrap_or_else(|| unreachable!("the settings ask for an apply worker"))
    }

    fn next_generation(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
