//! Describing and starting a node.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::panic::catch_unwind;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use towline_metrics::NodeMetrics;

use super::applier::{self, ApplierDeps};
use super::counters::Counters;
use super::inbox::{ShardEvent, ShardInbox};
use super::peers::{NodeInbound, Peers, Registry};
use super::reader::LogReader;
use super::runtimes::Runtimes;
use super::shard::{self, ShardDeps};
use super::snapshots::{NodeGroups, sent};
use super::writer::Writer;
use super::{Inner, Node};
use crate::cause::panic_text;
use crate::config::{Config, ConfigError};
use crate::identity::{IdentityError, IdentityStore};
use crate::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use crate::lanes::{LaneSettings, Lanes, LanesDeps};
use crate::log_store::LogStore;
use crate::reporter::{Mailbox, Reporter};
use crate::snapshot_store::SnapshotStoreError;
use crate::snapshots::{Receives, ReceivesDeps, Sends, SendsDeps, SnapshotWorker, TransferSettings};
use crate::storage::Storage;
use crate::transport::{Hello, Transport, TransportError};

/// Makes the reporter that everybody reports to out of the node's own.
type WrapReporter = Box<dyn FnOnce(Arc<dyn Reporter>) -> Arc<dyn Reporter> + Send>;

/// Describes a node; [`start`](Self::start) runs it.
#[must_use = "nothing happens before `start`"]
pub struct NodeBuilder {
    id: NodeId,
    cluster: ClusterId,
    config: Config,
    storage: Option<Storage>,
    transports: Vec<(Arc<dyn Transport>, PeerAddr)>,
    diallers: Vec<Arc<dyn Transport>>,
    addresses: BTreeMap<NodeId, PeerAddr>,
    metrics: Option<NodeMetrics>,
    runtime: Option<Handle>,
    reporter: Option<WrapReporter>,
}

impl NodeBuilder {
    pub(super) fn new(id: NodeId, cluster: ClusterId) -> Self {
        Self {
            id,
            cluster,
            config: Config::default(),
            storage: None,
            transports: Vec::new(),
            diallers: Vec::new(),
            addresses: BTreeMap::new(),
            metrics: None,
            runtime: None,
            reporter: None,
        }
    }

    /// Settings; the defaults are meant for production.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where to keep what must survive.
    pub fn storage(mut self, storage: impl Into<Storage>) -> Self {
        self.storage = Some(storage.into());
        self
    }

    /// A transport, and where this node listens with it. May be called once for each scheme: the scheme of a peer's
    /// address picks the transport it is called with.
    pub fn transport(mut self, transport: Arc<dyn Transport>, listen: PeerAddr) -> Self {
        self.transports.push((transport, listen));
        self
    }

    /// A transport to call peers with whose addresses have its scheme, without listening with it: in a cluster that
    /// mixes transports each node listens with one and calls with all.
    pub fn dialler(mut self, transport: Arc<dyn Transport>) -> Self {
        self.diallers.push(transport);
        self
    }

    /// Calls a peer at another address than the one it was bootstrapped with.
    pub fn peer_address(mut self, peer: NodeId, address: PeerAddr) -> Self {
        self.addresses.insert(peer, address);
        self
    }

    /// What counts. Without it the recorder of the process is used, if one is installed by the time of the start.
    pub fn metrics(mut self, metrics: NodeMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Counts into the recorder of `exporter`, with the names described there and the label `node` of this node.
    #[cfg(feature = "prometheus")]
    pub fn prometheus(self, exporter: &towline_metrics::exporter::Exporter) -> Self {
        let metrics = NodeMetrics::new(self.id.as_u64(), Some(exporter.recorder()));
        self.metrics(metrics)
    }

    /// Moves bytes, snapshots too, on the caller's runtime instead of two of the node's own. Work that blocks that runtime
    /// then delays heartbeats, and snapshots have the priority of everything else.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Places a reporter in front of the node's own, which `wrap` is given: lanes, tickets and the watchdog report to what
    /// `wrap` returns. A report that is not passed on is lost, and a peer may then wait for ever. For tests, and for
    /// experiments that show what lost reports do.
    pub fn reporter(
        mut self,
        wrap: impl FnOnce(Arc<dyn Reporter>) -> Arc<dyn Reporter> + Send + 'static,
    ) -> Self {
        self.reporter = Some(Box::new(wrap));
        self
    }

    /// Starts the threads and listens. No group runs yet.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong, and nothing runs.
    pub async fn start(self) -> Result<Node, StartError> {
        let config = self.config.validate()?;
        let storage = self.storage.ok_or(StartError::Incomplete { missing: "storage" })?;
        if self.transports.is_empty() {
            return Err(StartError::Incomplete { missing: "transport" });
        }
        self.runtime.as_ref().map_or(Ok(()), check_timers)?;
        check_identity(self.id, &self.cluster, &*storage.identity)?;
        check_groups(&*storage.identity, &*storage.log)?;
        let started = Runtimes::start(&config, self.runtime);
        let (runtimes, handles) = started.map_err(|source| StartError::Thread { source })?;
        let runtime = handles.net;

        let metrics = self.metrics.unwrap_or_else(|| NodeMetrics::new(self.id.as_u64(), None));
        let counters = Arc::new(Counters::new(metrics.clone()));
        let registry: Registry = Arc::new(RwLock::default());
        let io = |source| StartError::Thread { source };
        let inbox = ShardInbox::new();
        let (sender, scheduled) = (inbox.sender.clone(), inbox.scheduled.clone());
        let made = sender.clone();
        let (worker, keeping) = SnapshotWorker::start(storage.snapshots.clone(), move |done| {
            made.post(ShardEvent::SnapshotMade(done))
        })
        .map_err(io)?;
        let receives = Receives::new(ReceivesDeps {
            node: self.id,
            settings: TransferSettings::from(&config),
            store: storage.snapshots.clone(),
            worker: worker.clone(),
            groups: Arc::new(NodeGroups { node: self.id, registry: registry.clone(), shard: sender.clone() }),
            runtime: handles.bulk.clone(),
        });
        let peers = Peers::load(
            self.id,
            self.cluster,
            storage.identity,
            registry.clone(),
            counters.clone(),
            receives,
            config.election_timeout_max,
        )?;
        let peers = Arc::new(peers);
        let mailbox = Arc::new(Mailbox::new(inbox.waker(), counters.clone()));
        let reporter: Arc<dyn Reporter> = match self.reporter {
            Some(wrap) => wrap(mailbox.clone()),
            None => mailbox.clone(),
        };
        let hello_of = peers.clone();
        let transports = self.diallers.iter().chain(self.transports.iter().map(|(transport, _)| transport));
        let transports: BTreeMap<_, _> = transports.map(|t| (t.scheme().to_owned(), t.clone())).collect();
        let hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync> = Arc::new(move |to| hello_of.hello(to));
        let sends = Sends::new(SendsDeps {
            node: self.id,
            settings: TransferSettings::from(&config),
            store: storage.snapshots.clone(),
            transports: transports.clone(),
            hello: hello.clone(),
            runtime: handles.bulk,
            tally: sent(counters.clone()),
        });
        let deps = LanesDeps {
            reporter: reporter.clone(),
            gate: peers.clone(),
            counters: counters.clone(),
            transports,
            runtime: runtime.clone(),
            hello,
        };
        let lanes = Lanes::new(LaneSettings::from(&config), deps);

        let (writer, writing) =
            Writer::start(storage.log.clone(), sender.clone(), metrics.clone()).map_err(io)?;
        let (reader, reading) = LogReader::start(storage.log.clone(), sender.clone()).map_err(io)?;
        let (mut appliers, mut threads) = (Vec::new(), vec![writing, reading, keeping]);
        for number in 0..config.apply_workers {
            let deps = ApplierDeps {
                shard: sender.clone(),
                store: storage.snapshots.clone(),
                worker: worker.clone(),
                call_bytes_max: config.committed_bytes_max.as_u64(),
            };
            let (worker, thread) = applier::start(number, deps).map_err(io)?;
            appliers.push(worker);
            threads.push(thread);
        }
        let shard_deps = ShardDeps {
            node: self.id,
            config: config.clone(),
            mailbox,
            reporter,
            lanes: lanes.clone(),
            writer: writer.clone(),
            reader: reader.clone(),
            sends: sends.clone(),
            worker: worker.clone(),
            metrics: metrics.clone(),
            counters: counters.clone(),
        };
        threads.push(shard::start(inbox, shard_deps).map_err(io)?);
        let inner = Inner {
            id: self.id,
            config,
            store: storage.log,
            peers: peers.clone(),
            registry,
            shard: sender,
            scheduled,
            lanes,
            snapshots: storage.snapshots,
            sends,
            worker,
            writer,
            reader,
            appliers,
            metrics,
            addresses: self.addresses,
            runtime: runtime.clone(),
            lives: AtomicU64::new(1),
            states: Mutex::default(),
            starting: Mutex::default(),
        };
        // From here on dropping the node stops its threads, so that a failure to listen leaves nothing behind.
        let node = Node {
            inner: Arc::new(inner),
            listeners: Mutex::default(),
            threads: Mutex::new(threads),
            runtimes,
        };
        for (transport, at) in self.transports {
            let (lanes, scheme) = (node.inner.lanes.clone(), transport.scheme());
            let inbound = Arc::new(NodeInbound { peers: peers.clone(), lanes, scheme });
            let during = format!("while it began to listen on {at}");
            let listening = runtime.spawn(async move { transport.listen(&at, inbound).await });
            let listener = listening.await.map_err(|error| StartError::ended(&during, error))??;
            node.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(listener);
        }
        Ok(node)
    }
}

/// A runtime without timers would panic in a task of the node, later.
fn check_timers(runtime: &Handle) -> Result<(), StartError> {
    let _entered = runtime.enter();
    let sleep = catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO)));
    sleep.map_err(|panic| StartError::panicked("while it looked for timers", panic))
}

fn check_identity(id: NodeId, cluster: &ClusterId, store: &dyn IdentityStore) -> Result<(), StartError> {
    match store.load()? {
        Some(identity) if identity.cluster != *cluster => {
            Err(StartError::OtherCluster { found: identity.cluster, expected: cluster.clone() })
        }
        Some(identity) if identity.node != id => {
            Err(StartError::OtherNode { found: identity.node, expected: id })
        }
        _ => Ok(()),
    }
}

/// A log that has fewer groups than were founded or joined here is lost, or an old copy. The node gave votes that this log
/// does not know of, in the groups it still has too.
fn check_groups(identity: &dyn IdentityStore, log: &dyn LogStore) -> Result<(), StartError> {
    for group in identity.groups()? {
        let stored = log.recover(group).map_err(|error| StartError::log(group, error))?;
        if stored.conf.is_none() {
            return Err(StartError::GroupLost { group });
        }
    }
    Ok(())
}

/// A node or a group could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The builder was not told everything.
    #[error("the node has no {missing}")]
    Incomplete {
        /// What is missing.
        missing: &'static str,
    },
    /// The identity could not be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data directory belongs to another node.
    #[error("the data directory belongs to node {found}, not to node {expected}")]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who was to be started.
        expected: NodeId,
    },
    /// The data directory belongs to another cluster.
    #[error("the data directory belongs to cluster `{found}`, not to `{expected}`")]
    OtherCluster {
        /// Of which cluster it is.
        found: ClusterId,
        /// Which was to be started.
        expected: ClusterId,
    },
    /// The node could not listen.
    #[error(transparent)]
    Listen(#[from] TransportError),
    /// A thread or the runtime could not be made.
    #[error("a thread could not be started")]
    Thread {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The log could not be read or written.
    #[error("the log of group {group} cannot be used")]
    Log {
        /// The group.
        group: GroupId,
        /// What happened, with the place: a [`LogError`](crate::log_store::LogError), a
        /// [`LogReadError`](crate::log_store::LogReadError), or what the log writer said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The snapshots of the group could not be listed.
    #[error("the snapshots of group {group} cannot be listed")]
    Snapshots {
        /// The group.
        group: GroupId,
        /// What happened.
        source: SnapshotStoreError,
    },
    /// There is nothing to restart, and the storage was not made for a new node. Nothing was founded.
    #[error(
        "nothing is stored of group {group}, and an empty directory founds it only when told to: found a new group by \
         `Start::Bootstrap`, or by `Start::auto` on a directory made by `DataDir::create`; if this node had the group, its \
         disk was lost and another node must take its place"
    )]
    NothingStored {
        /// The group.
        group: GroupId,
    },
    /// The identity says that the group was founded or joined here, but the log has nothing of it. The log was lost, or it
    /// is an older copy. Put the right log back; if it is gone, remove this node from its groups and let a node with an
    /// empty directory take its place. It must not be bootstrapped again: it could vote twice.
    #[error(
        "group {group} was founded or joined here, but the log has nothing of it: the log was lost or is an old copy. \
         Put the right log back (is its volume mounted?), or replace this node by one with an empty directory"
    )]
    GroupLost {
        /// The group.
        group: GroupId,
    },
    /// There is a log, but nobody it belongs to: the identity file is gone.
    #[error("group {group} is stored here, but the directory has no identity")]
    NoIdentity {
        /// The group.
        group: GroupId,
    },
    /// The group is stored already. Restart it.
    #[error("group {group} is stored here already: it is to be restarted, not bootstrapped")]
    AlreadyBootstrapped {
        /// The group.
        group: GroupId,
    },
    /// The list of founding members cannot be.
    #[error("the list of members cannot be: {detail}")]
    Members {
        /// What is wrong.
        detail: String,
    },
    /// This version does not change memberships.
    #[error("joining an existing group is not supported by this version")]
    JoinRefused,
    /// The group runs already on this node, or another start of it is under way.
    #[error("group {group} runs already")]
    AlreadyRuns {
        /// The group.
        group: GroupId,
    },
    /// `groups_max` are running.
    #[error("{groups_max} groups run already, as many as `groups_max` allows")]
    TooManyGroups {
        /// The limit.
        groups_max: usize,
    },
    /// What is stored does not fit together, or not to the state machine.
    #[error("group {group} cannot start: {detail}")]
    Mismatch {
        /// The group.
        group: GroupId,
        /// What does not fit.
        detail: String,
    },
    /// The state machine failed or panicked: in `view` or `durable`, while it was restored from a snapshot, or while
    /// committed entries were applied to it. The group does not run. Start it again with a state machine opened anew.
    #[error("group {group} cannot start")]
    StateMachine {
        /// The group.
        group: GroupId,
        /// What it said: a [`Fatal`](crate::state_machine::Fatal), or the call that panicked with the words of the panic.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The runtime that [`NodeBuilder::runtime`] was given cannot run this node. Build it with `enable_all`.
    #[error(
        "the runtime given to `NodeBuilder::runtime` cannot run this node; build it with `enable_all`: {detail}"
    )]
    Runtime {
        /// What is missing, in the words of tokio.
        detail: String,
    },
    /// A store or a transport panicked. What ran of the start has ended.
    #[error("the start panicked {during}: {cause}")]
    Panicked {
        /// What was being done.
        during: String,
        /// What the panic said.
        cause: String,
    },
    /// The node stopped meanwhile.
    #[error("the node has stopped")]
    Stopped,
}

impl StartError {
    pub(super) fn log(group: GroupId, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Log { group, source: source.into() }
    }

    /// A part of a start that ran on its own and gave no result.
    pub(super) fn ended(during: &str, error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(panic) => Self::panicked(during, panic),
            Err(_) => Self::Stopped,
        }
    }

    fn panicked(during: &str, panic: Box<dyn Any + Send>) -> Self {
        let cause = panic_text(panic.as_ref()).to_owned();
        std::mem::forget(panic); // its drop may panic again
        // Tokio has no other way to say, and to ask it for, what a runtime lacks.
        match cause.contains("Call `enable_") {
            true => Self::Runtime { detail: cause },
            false => Self::Panicked { during: during.to_owned(), cause },
        }
    }
}
