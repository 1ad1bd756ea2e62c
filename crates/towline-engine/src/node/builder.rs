//! Describes and starts a node.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use towline_metrics::{ByteTally, NodeMetrics};

use super::apply::{self, ApplyDeps};
use super::counters::Counters;
use super::disk_watch::DiskWatch;
use super::inbox::{ShardEvent, ShardInbox};
use super::peers::{NodeInbound, Peers, Registry};
use super::reader::LogReader;
use super::runtimes::Runtimes;
use super::shard::{self, ShardDeps};
use super::snapshots::NodeGroups;
use super::writer::LogWriter;
use super::{Node, NodeInner};
use crate::cause::{catch, panic_text};
use crate::config::{Config, ConfigError};
use crate::identity::{IdentityError, IdentityStore};
use crate::ids::{ClusterId, GroupId, NodeId, PeerAddr};
use crate::lanes::{LaneSettings, Lanes, LanesDeps};
use crate::log_store::LogStore;
use crate::message::LostEntries;
use crate::reporter::{Mailbox, Reporter};
use crate::snapshot_store::SnapshotStoreError;
use crate::snapshots::{Receives, ReceivesDeps, Sends, SendsDeps, SnapshotWorker, TransferSettings};
use crate::storage::Storage;
use crate::sync::lock;
use crate::transport::{Hello, Transport, TransportError};

/// Wraps the node's own reporter.
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

    /// The settings. The defaults suit production.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The durable stores. Required.
    pub fn storage(mut self, storage: impl Into<Storage>) -> Self {
        self.storage = Some(storage.into());
        self
    }

    /// Adds a transport and the address at which this node listens with it. Call it once for each scheme; at least one is
    /// required. The scheme of a peer's address picks the transport for calls to that peer.
    pub fn transport(mut self, transport: Arc<dyn Transport>, listen: PeerAddr) -> Self {
        self.transports.push((transport, listen));
        self
    }

    /// Adds a transport that only calls peers. In a cluster with mixed transports, each node listens with one and calls
    /// with all.
    pub fn dialler(mut self, transport: Arc<dyn Transport>) -> Self {
        self.diallers.push(transport);
        self
    }

    /// Replaces the address that a peer was bootstrapped with.
    pub fn peer_address(mut self, peer: NodeId, address: PeerAddr) -> Self {
        self.addresses.insert(peer, address);
        self
    }

    /// Counts into these metrics. By default the node uses the recorder of the process, if one is installed before
    /// [`start`](Self::start).
    pub fn metrics(mut self, metrics: NodeMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Counts into the recorder of `exporter`, with this node's label `node`.
    #[cfg(feature = "prometheus")]
    pub fn prometheus(self, exporter: &towline_metrics::exporter::Exporter) -> Self {
        let metrics = NodeMetrics::new(self.id.as_u64(), Some(exporter.recorder()));
        self.metrics(metrics)
    }

    /// Moves bytes on the caller's runtime instead of two runtimes of the node. Work that blocks that runtime then delays
    /// heartbeats, and snapshots get the same priority as everything else.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Wraps the node's own reporter: lanes, tickets and the watchdog report to the reporter that `wrap` returns. A report
    /// that it does not pass on is lost, and a peer may then wait for ever. For tests and experiments with lost reports.
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
    /// [`StartError`]; then nothing runs.
    pub async fn start(self) -> Result<Node, StartError> {
        let config = self.config.validate()?;
        let storage = self.storage.ok_or(StartError::Incomplete { missing: "storage" })?;
        if self.transports.is_empty() {
            return Err(StartError::Incomplete { missing: "transport" });
        }
        let all = self.transports.iter().map(|(transport, _)| transport).chain(&self.diallers);
        all.into_iter().try_for_each(|transport| check_certificate(self.id, &**transport))?;
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
        let (worker, snapshotting) = SnapshotWorker::start(storage.snapshots.clone(), move |done| {
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
        let counted = counters.clone();
        let sends = Sends::new(SendsDeps {
            node: self.id,
            settings: TransferSettings::from(&config),
            store: storage.snapshots.clone(),
            transports: transports.clone(),
            hello: hello.clone(),
            runtime: handles.bulk,
            tally: Arc::new(move |peer| ByteTally::new(counted.snapshot_sent(peer))),
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

        let disk_low = config.disk_low.as_u64();
        let (disk, watching) =
            DiskWatch::start(storage.log.clone(), sender.clone(), metrics.clone(), disk_low).map_err(io)?;
        let (writer, writing) =
            LogWriter::start(storage.log.clone(), sender.clone(), metrics.clone(), disk.clone())
                .map_err(io)?;
        let (reader, reading) = LogReader::start(storage.log.clone(), sender.clone()).map_err(io)?;
        let (mut apply_workers, mut threads) = (Vec::new(), vec![watching, writing, reading, snapshotting]);
        for number in 0..config.apply_workers {
            let deps = ApplyDeps {
                shard: sender.clone(),
                store: storage.snapshots.clone(),
                worker: worker.clone(),
                call_bytes_max: config.committed_bytes_max.as_u64(),
            };
            let (worker, thread) = apply::start(number, deps).map_err(io)?;
            apply_workers.push(worker);
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
            peers: peers.clone(),
            metrics: metrics.clone(),
            counters: counters.clone(),
        };
        threads.push(shard::start(inbox, shard_deps).map_err(io)?);
        let inner = NodeInner {
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
            disk,
            apply_workers,
            metrics,
            addresses: self.addresses,
            runtime: runtime.clone(),
            generations: AtomicU64::new(1),
            states: Mutex::default(),
            starting: Mutex::default(),
        };
        // From here on a drop of the node stops its threads, so a failure to listen leaves nothing behind.
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
            lock(&node.listeners).push(listener);
        }
        Ok(node)
    }
}

/// Refuses a runtime without timers, which would panic later in a task of the node.
fn check_timers(runtime: &Handle) -> Result<(), StartError> {
    let _entered = runtime.enter();
    let sleep = catch(|| drop(tokio::time::sleep(Duration::ZERO)));
    sleep.map_err(|cause| StartError::panicked("while it looked for timers", cause))
}

/// Refuses another node's certificate: every peer would refuse this node.
fn check_certificate(id: NodeId, transport: &dyn Transport) -> Result<(), StartError> {
    match transport.identity() {
        Some(found) if found != id => {
            Err(StartError::OtherCertificate { scheme: transport.scheme(), found, expected: id })
        }
        _ => Ok(()),
    }
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

/// Refuses a log that lacks a recorded group: the log is lost, or an old copy. It also lacks votes that this node gave in
/// its other groups.
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
    /// A required part was not given to the builder.
    #[error("the node has no {missing}: call `NodeBuilder::{missing}`")]
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
        /// The owner of the directory.
        found: NodeId,
        /// The node that was started.
        expected: NodeId,
    },
    /// The data directory belongs to another cluster.
    #[error("the data directory belongs to cluster `{found}`, not to `{expected}`")]
    OtherCluster {
        /// The cluster of the directory.
        found: ClusterId,
        /// The cluster that the builder names.
        expected: ClusterId,
    },
    /// A transport has the certificate of another node, so every peer would refuse this node.
    #[error(
        "the certificate of transport `{scheme}` names node {found}, but this is node {expected}: give this node the \
         certificate that was issued to node {expected}, or correct the node id"
    )]
    OtherCertificate {
        /// The transport's scheme.
        scheme: &'static str,
        /// The node that the certificate names.
        found: NodeId,
        /// The node that was started.
        expected: NodeId,
    },
    /// The node could not listen.
    #[error(transparent)]
    Listen(#[from] TransportError),
    /// A thread or the runtime could not start.
    #[error("a thread could not be started")]
    Thread {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The log could not be read or written.
    #[error("the log of group {group} cannot be used")]
    Log {
        /// The group.
        group: GroupId,
        /// A [`LogError`](crate::log_store::LogError), a [`LogReadError`](crate::log_store::LogReadError), or the error of
        /// the log writer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The snapshots of the group could not be listed.
    #[error("the snapshots of group {group} cannot be listed")]
    Snapshots {
        /// The group.
        group: GroupId,
        /// The store's error.
        source: SnapshotStoreError,
    },
    /// There is nothing to restart, and the storage was not made for a new node.
    #[error(
        "nothing is stored of group {group}: found it with `Start::Bootstrap`, or with `Start::auto` on a directory made by \
         `DataDir::create`; if this node ran the group before, put its files back, or keep it stopped if they are lost, \
         because this version cannot replace a member"
    )]
    NothingStored {
        /// The group.
        group: GroupId,
    },
    /// The identity records the group, but the log has nothing of it: the log is lost, or an older copy. Put the right log
    /// back. If it is gone, keep this node stopped: bootstrapped again it could vote twice, and an empty directory would
    /// start under a new incarnation, which peers refuse.
    #[error(
        "group {group} was founded or joined here, but the log has nothing of it: the log was lost or is an old copy. \
         Put the right log back (is its volume mounted?); if it is gone, keep this node stopped, because this version \
         cannot replace a member"
    )]
    GroupLost {
        /// The group.
        group: GroupId,
    },
    /// This node lost entries of the group that it had acknowledged to a leader, so it may have lost votes too. It can never
    /// run the group again: its vote could elect a leader that lacks committed entries.
    #[error(
        "group {group} cannot start: {lost}. Keep the group stopped on this node and use this data directory nowhere, \
         because its votes could lose committed commands; the other nodes go on. This version cannot replace a member"
    )]
    EntriesLost {
        /// The group.
        group: GroupId,
        /// What was lost.
        lost: LostEntries,
    },
    /// The group has a log, but the identity file is gone.
    #[error("group {group} is stored here, but the directory has no identity")]
    NoIdentity {
        /// The group.
        group: GroupId,
    },
    /// The group is stored already. Restart it.
    #[error("group {group} is stored here already: restart it with `Start::Restart`")]
    AlreadyBootstrapped {
        /// The group.
        group: GroupId,
    },
    /// The list of founding members is invalid.
    #[error("invalid member list: {detail}")]
    Members {
        /// What is wrong.
        detail: String,
    },
    /// This version has no membership changes.
    #[error("joining an existing group is not supported by this version")]
    JoinRefused,
    /// The group runs already on this node, or is starting.
    #[error("group {group} runs already: stop it first")]
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
    /// Log, snapshots and state machine do not match.
    #[error("group {group} cannot start: {detail}")]
    Mismatch {
        /// The group.
        group: GroupId,
        /// The mismatch and its remedy.
        detail: String,
    },
    /// The state machine failed or panicked, in `view`, `durable`, `restore` or `apply`. Start the group again with a state
    /// machine opened anew.
    #[error("group {group} cannot start")]
    StateMachine {
        /// The group.
        group: GroupId,
        /// A [`Fatal`](crate::state_machine::Fatal), or the call that panicked with the text of the panic.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The runtime that [`NodeBuilder::runtime`] was given cannot run this node. Build it with `enable_all`.
    #[error(
        "the runtime given to `NodeBuilder::runtime` cannot run this node; build it with `enable_all`: {detail}"
    )]
    Runtime {
        /// Tokio's text on what is missing.
        detail: String,
    },
    /// A store or a transport panicked.
    #[error("the start panicked {during}: {cause}")]
    Panicked {
        /// The step of the start.
        during: String,
        /// The text of the panic.
        cause: String,
    },
    /// The node stopped during the start.
    #[error("the node has stopped")]
    Stopped,
}

impl StartError {
    pub(super) fn log(group: GroupId, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Log { group, source: source.into() }
    }

    /// The error of a task that gave no result.
    pub(super) fn ended(during: &str, error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(panic) => {
                let cause = panic_text(panic.as_ref()).to_owned();
                std::mem::forget(panic); // its drop may panic again
                Self::panicked(during, cause)
            }
            Err(_) => Self::Stopped,
        }
    }

    fn panicked(during: &str, cause: String) -> Self {
        // Tokio reports what a runtime lacks only in the text of a panic.
        match cause.contains("Call `enable_") {
            true => Self::Runtime { detail: cause },
            false => Self::Panicked { during: during.to_owned(), cause },
        }
    }
}
