//! A node with a log in memory, no snapshots, and a transport that reaches no peer.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; each file uses its part

pub(crate) mod gated;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use towline_engine::config::Config;
use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use towline_engine::log_store::{
    DiskSpace, GroupWrite, LogBatch, LogError, LogReadError, LogStore, Recovered,
};
use towline_engine::message::{Entry, Lane, LogId, LostEntries};
use towline_engine::node::{Group, Node, NodeBuilder, Start, StartError};
use towline_engine::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::storage::Storage;
use towline_engine::transport::*;
use towline_metrics::NodeMetrics;
use towline_metrics::exporter::Exporter;

/// The longest wait of a test, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The defaults with long election timeouts, so that a node on a busy machine stays leader, and one apply worker.
pub(crate) fn steady() -> Config {
    let (election_timeout_min, election_timeout_max) =
        (Duration::from_millis(500), Duration::from_millis(800));
    Config { election_timeout_min, election_timeout_max, apply_workers: 1, ..Config::default() }
}

pub(crate) fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// Waits for a condition; panics with `what` at the deadline.
pub(crate) async fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await; // not synchronisation: paces the look at a condition
    }
}

/// A node without peers, with its inbound side and its counters.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) exporter: Exporter,
    inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
}

impl TestNode {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_on(Arc::default(), config).await
    }

    pub(crate) async fn start_on(log: Arc<MemLog>, config: Config) -> Self {
        let storage =
            Storage { log, snapshots: Arc::new(NoSnapshots), identity: Arc::new(MemIdentity::default()) };
        let inbound = Arc::default();
        Self::over(config, storage, Arc::new(NoPeers(Arc::clone(&inbound))), inbound, |builder, _| builder)
            .await
    }

    /// Starts a node on this storage, over a transport of the scheme `nowhere` that sets `inbound`.
    pub(crate) async fn over(
        config: Config,
        storage: Storage,
        transport: Arc<dyn Transport>,
        inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
        change: impl FnOnce(NodeBuilder, &Exporter) -> NodeBuilder,
    ) -> Self {
        let exporter = Exporter::new();
        let builder = Node::builder(id(1), ClusterId::new("c").unwrap())
            .config(config)
            .storage(storage)
            .metrics(NodeMetrics::new(1, Some(exporter.recorder())))
            .transport(transport, "nowhere://here:1".parse().unwrap());
        let node = change(builder, &exporter).start().await.unwrap();
        Self { node, exporter, inbound }
    }

    /// Starts a group whose only voter is this node.
    pub(crate) async fn found<S: StateMachine>(
        &self,
        group: u64,
        machine: S,
    ) -> Result<Group<S>, StartError> {
        let members = vec![(id(1), address(1))];
        self.node.group(GroupId::new(group), machine).start(Start::Bootstrap(members)).await
    }

    /// Like [`found`](Self::found), and waits until the node leads the group.
    pub(crate) async fn lead<S: StateMachine>(&self, group: u64, machine: S) -> Group<S> {
        let group = self.found(group, machine).await.unwrap();
        group.wait_leader(DEADLINE).await.unwrap();
        group
    }

    pub(crate) fn inbound(&self) -> &Arc<dyn Inbound> {
        self.inbound.get().expect("the node listens")
    }

    /// The session of a peer after its handshake.
    pub(crate) fn session(&self, peer: u64) -> Arc<dyn PeerSession> {
        let hello = Hello {
            cluster: ClusterId::new("c").unwrap(),
            from: id(peer),
            to: id(1),
            incarnation: Incarnation::new(peer).unwrap(),
            protocol: PROTOCOL_VERSION,
        };
        self.inbound().admit(&hello, None).unwrap()
    }

    pub(crate) fn counter(&self, name: &str, label: &str) -> u64 {
        counter(&self.exporter, name, label)
    }
}

/// The sum of a counter over all label sets that contain `label`.
pub(crate) fn counter(exporter: &Exporter, name: &str, label: &str) -> u64 {
    let text = exporter.render();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

pub(crate) fn address(peer: u64) -> PeerAddr {
    PeerAddr::new(&format!("nowhere://peer:{peer}")).unwrap()
}

/// A state machine without state.
#[derive(Default)]
pub(crate) struct EmptyMachine {
    /// The call that panics.
    pub(crate) panics_in: &'static str,
}

impl StateMachine for EmptyMachine {
    type Response = ();
    type View = ();

    fn view(&self) {
        assert!(self.panics_in != "view", "no such index");
    }

    fn durable(&self) -> LogId {
        assert!(self.panics_in != "durable", "no such index");
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        batch.commands().for_each(|_| replies.push(()));
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Err(Fatal::new("no snapshots"))
    }

    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        io::copy(body, &mut io::sink()).map(|_| ()).map_err(|error| Fatal::new(error.to_string()))
    }
}

type LogHook = Box<dyn Fn(&str) + Send + Sync>;
type SpaceHook = Box<dyn Fn() -> io::Result<Option<DiskSpace>> + Send + Sync>;

/// A log in memory.
#[derive(Default)]
pub(crate) struct MemLog {
    groups: Mutex<BTreeMap<GroupId, GroupWrite>>,
    /// Called in `entries`, `compact` and `purge`, with the name of the call.
    pub(crate) hook: OnceLock<LogHook>,
    /// The answer of `space`.
    pub(crate) space: OnceLock<SpaceHook>,
}

impl MemLog {
    fn run_hook(&self, call: &str) {
        self.hook.get().into_iter().for_each(|hook| hook(call));
    }
}

impl LogStore for MemLog {
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        let log = self.groups.lock().unwrap();
        let Some(stored) = log.get(&group) else { return Ok(Recovered::default()) };
        let truncated = truncated(stored);
        Ok(Recovered {
            hard_state: stored.hard_state,
            conf: stored.conf.clone(),
            truncated,
            last_index: stored.entries.last().map_or(truncated.index, |entry| entry.index),
            installing: None,
        })
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        let mut log = self.groups.lock().unwrap();
        for write in batch.writes.drain(..) {
            log.entry(write.group).or_insert_with(|| GroupWrite::new(write.group)).append(write);
        }
        Ok(())
    }

    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        _bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        out.clear();
        let log = self.groups.lock().unwrap();
        let stored = log.get(&group).into_iter().flat_map(|stored| &stored.entries);
        out.extend(stored.filter(|entry| range.contains(&entry.index)).cloned());
        drop(log); // the hook may panic
        self.run_hook("entries");
        Ok(())
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        let log = self.groups.lock().unwrap();
        if let Some(begin) = log.get(&group).map(truncated).filter(|begin| begin.index == index) {
            return Ok(begin.term);
        }
        let mut stored = log.get(&group).into_iter().flat_map(|stored| &stored.entries);
        let found = stored.find(|entry| entry.index == index);
        found.map(|entry| entry.term).ok_or(LogReadError::Beyond { index, last: 0 })
    }

    fn compact(&self, _group: GroupId, _through: u64) -> Result<(), LogError> {
        self.run_hook("compact");
        Ok(())
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.run_hook("purge");
        Ok(Vec::new())
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.groups.lock().unwrap().keys().copied().collect())
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        self.groups.lock().unwrap().remove(&group);
        Ok(())
    }

    fn space(&self) -> io::Result<Option<DiskSpace>> {
        self.space.get().map_or(Ok(None), |space| space())
    }
}

/// The log position after which the log of a group begins.
fn truncated(stored: &GroupWrite) -> LogId {
    stored.install.as_ref().map_or(LogId::NONE, |install| install.at)
}

#[derive(Default)]
pub(crate) struct MemIdentity(Mutex<(Option<Identity>, BTreeMap<NodeId, Incarnation>)>);

impl IdentityStore for MemIdentity {
    fn load(&self) -> Result<Option<Identity>, IdentityError> {
        Ok(self.0.lock().unwrap().0.clone())
    }

    fn create(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.0.lock().unwrap().0 = Some(identity.clone());
        Ok(())
    }

    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError> {
        Ok(BTreeSet::new())
    }

    fn add_group(&self, _group: GroupId) -> Result<(), IdentityError> {
        Ok(())
    }

    fn lost(&self) -> Result<BTreeMap<GroupId, LostEntries>, IdentityError> {
        Ok(BTreeMap::new())
    }

    fn record_lost(&self, _group: GroupId, _lost: LostEntries) -> Result<(), IdentityError> {
        Ok(())
    }

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(self.0.lock().unwrap().1.clone())
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        self.0.lock().unwrap().1.insert(peer, incarnation);
        Ok(())
    }
}

struct NoSnapshots;

impl SnapshotStore for NoSnapshots {
    fn complete(&self, _group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(Vec::new())
    }

    fn find(&self, _group: GroupId, _content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(None)
    }

    fn create(&self, _head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: ContentId([0; 16]) })
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        _: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Busy { content: meta.content })
    }

    fn open(&self, meta: &SnapshotMeta, _offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: meta.content })
    }

    fn retain(&self, _group: GroupId, _keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        Ok(())
    }
}

/// A transport that reaches no peer. It keeps the inbound side for the test.
struct NoPeers(Arc<OnceLock<Arc<dyn Inbound>>>);

#[async_trait]
impl Transport for NoPeers {
    fn scheme(&self) -> &'static str {
        "nowhere"
    }

    async fn listen(
        &self,
        _at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let _ = self.0.set(inbound);
        Ok(Box::new(TestListener))
    }

    async fn connect(
        &self,
        to: &Peer,
        _lane: Lane,
        _hello: &Hello,
        _feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        Err(ConnectError::Address { address: to.address.clone(), detail: "nowhere".into() })
    }

    async fn offer(
        &self,
        _to: &Peer,
        _hello: &Hello,
        _offer: &SnapshotOffer,
        _deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        Err(TransferError::Broken { detail: "nowhere".into() })
    }
}

pub(crate) struct TestListener;

#[async_trait]
impl Listener for TestListener {
    fn local_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    async fn shutdown(self: Box<Self>) {}
}
