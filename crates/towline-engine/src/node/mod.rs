//! The driver: the threads around the core, and the public handles.
//!
//! One shard thread runs all groups, one thread writes the log, one reads cold entries from it, apply workers run state
//! machines, and a small runtime moves bytes. Each knows the others only as queues.

mod answer;
mod applier;
mod apply;
mod builder;
mod call_size;
mod call_watch;
mod clock;
mod counters;
mod deadlines;
mod handle;
mod ingress;
mod mail;
mod peers;
mod reader;
mod recover;
mod refusals;
mod runtimes;
mod shard;
mod snapshots;
mod start;
mod target;
mod waiter;
mod writer;

pub use self::builder::{NodeBuilder, StartError};
pub use self::handle::{Consistency, Group, Proposal};
pub use self::start::{GroupBuilder, Start};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use towline_metrics::NodeMetrics;

use self::apply::ApplyWorker;
use self::mail::{Control, ShardEvent, ShardSender};
use self::peers::{Peers, Registry};
use self::reader::LogReader;
use self::runtimes::Runtimes;
use self::writer::Writer;
use crate::config::ValidConfig;
use crate::core::SendSlots;
use crate::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use crate::lanes::Lanes;
use crate::log_store::LogStore;
use crate::reporter::Mailbox;
use crate::snapshot_store::SnapshotStore;
use crate::snapshots::{Keeper, Sends};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, Role};
use crate::transport::Listener;

/// One process's part in a cluster. Hosts any number of groups.
///
/// [`shutdown`](Self::shutdown) ends it in order. Dropping it ends it as a crash would, but joins its threads, and lets
/// go of its storage and its ports before the drop returns. On a runtime of the caller the tasks of the node notice a
/// little later, and hold both until then; [`shutdown`](Self::shutdown) waits for them.
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
    mailbox: Arc<Mailbox>,
    lanes: Lanes,
    snapshots: Arc<dyn SnapshotStore>,
    sends: Sends,
    keeper: Keeper,
    slots: SendSlots,
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
        let recovered = self.inner.store.recover(group);
        let recovered =
            recovered.map_err(|error| StartError::Log { group, cause: writer::describe(&error).into() })?;
        Ok(recovered.conf.is_some())
    }

    /// Describes a group to be started on this node, with its state machine.
    pub fn group<S: StateMachine>(&self, id: GroupId, machine: S) -> GroupBuilder<'_, S> {
        GroupBuilder::new(self, id, machine)
    }

    /// Ends the node in order, within `deadline`: hands leadership over, answers who still waits, flushes the state
    /// machines, stops listening, and joins every thread. With a deadline of zero nothing is handed over or flushed, as
    /// in a crash; what was acknowledged is durable either way. A call of a state machine that is running is waited for,
    /// however long it takes.
    pub async fn shutdown(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        if !deadline.is_zero() {
            // A part of the time: the rest is for flushing.
            self.hand_over(deadline / 2).await;
        }
        let groups: Vec<_> =
            self.inner.states.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        let cause: Arc<str> = "the node was shut down".into();
        for group in groups {
            let (answer, answered) = answer::answer();
            let control = Control::Close { group, cause: cause.clone(), answer };
            if Instant::now() < until {
                // The state machine first: closing the group lets go of it.
                let left = until.saturating_duration_since(Instant::now());
                match tokio::time::timeout(left, self.inner.applier(group).flush(group)).await {
                    Ok(Err(error)) => tracing::warn!(%group, %error, "the state machine was not flushed"),
                    Ok(Ok(_)) => {}
                    Err(_) => tracing::warn!(%group, "the state machine was not flushed in time"),
                }
            }
            self.inner.shard.post(ShardEvent::Control(control));
            if let Ok(Some(last)) = answered.await
                && !deadline.is_zero()
                && let Err(error) = self.inner.writer.barrier(Some(last)).await
            {
                tracing::warn!(%group, %error, "the last commit index was not written");
            }
        }
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        for listener in listeners {
            listener.shutdown().await;
        }
        self.inner.lanes.shutdown().await;
        let ending = self.begin_end();
        let (done, ended) = oneshot::channel();
        // On a thread of its own: joining would hold up the caller's runtime, and a runtime must not be dropped inside
        // another one.
        std::thread::spawn(move || {
            ending.wait();
            let _ = done.send(());
        });
        let _ = ended.await;
    }

    async fn hand_over(&self, within: Duration) {
        let states = self.inner.states.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (group, mut state) in states {
            if state.borrow().role != Role::Leader {
                continue;
            }
            let (answer, answered) = answer::answer();
            self.inner.shard.post(ShardEvent::Control(Control::Transfer {
                group,
                target: None,
                answer,
                room: None,
            }));
            match answered.await {
                Ok(Ok(())) => {
                    let _ = tokio::time::timeout(within, state.wait_for(|s| s.role != Role::Leader)).await;
                }
                Ok(Err(error)) => tracing::debug!(%group, %error, "leadership is not handed over"),
                Err(_) => {}
            }
        }
    }

    /// Tells everything to stop, and gives what is to be waited for.
    fn begin_end(&mut self) -> Ending {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.inner.lanes.close();
        self.inner.peers.close();
        self.inner.sends.close();
        self.inner.shard.post(ShardEvent::Control(Control::Stop));
        self.inner.writer.stop();
        self.inner.reader.stop();
        self.inner.keeper.stop();
        self.inner.appliers.iter().for_each(ApplyWorker::stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        Ending { node: self.inner.id, threads, runtimes: std::mem::take(&mut self.runtimes) }
    }
}

/// What a node leaves to be waited for.
struct Ending {
    node: NodeId,
    threads: Vec<JoinHandle<()>>,
    runtimes: Runtimes,
}

impl Ending {
    /// Blocks until threads and tasks have ended. Not to be called inside a runtime.
    fn wait(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!(node = %self.node, "a thread of the node had panicked");
            }
        }
        // Their tasks hold the data directory.
        self.runtimes.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ending = self.begin_end();
        if !ending.threads.is_empty() || !ending.runtimes.is_empty() {
            // On a thread of its own, because this may be inside a runtime.
            let _ = std::thread::spawn(move || ending.wait()).join();
        }
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

    fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
