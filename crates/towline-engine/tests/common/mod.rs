//! A node of one process on doubles: a log in memory, no snapshots, and a transport that goes nowhere.
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
use towline_engine::log_store::{GroupWrite, LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::{Entry, Lane, LogId};
use towline_engine::node::{Node, NodeBuilder};
use towline_engine::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::storage::Storage;
use towline_engine::transport::*;
use towline_metrics::NodeMetrics;
use towline_metrics::exporter::Exporter;

/// How long anything that must happen may take on a machine that is busy with other work.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

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

/// A node that listens nowhere, with the way in that its transport was given and what it counts.
pub(crate) struct Alone {
    pub(crate) node: Node,
    pub(crate) exporter: Exporter,
    inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
}

impl Alone {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_on(Arc::default(), config).await
    }

    pub(crate) async fn start_on(log: Arc<Log>, config: Config) -> Self {
        let storage = Storage { log, snapshots: Arc::new(NoSnapshots), identity: Arc::new(Ids::default()) };
        let inbound = Arc::default();
        Self::over(config, storage, Arc::new(Nowhere(Arc::clone(&inbound))), inbound, |builder, _| builder)
            .await
    }

    /// The same on what is stored already, over a transport of the scheme `nowhere` that fills `inbound`, after `change`.
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

    pub(crate) fn inbound(&self) -> &Arc<dyn Inbound> {
        self.inbound.get().expect("the node listens")
    }

    /// The session of a peer that passed the handshake.
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

    /// [`counter`] of this node.
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

/// A state machine that keeps nothing.
#[derive(Default)]
pub(crate) struct Machine {
    /// The call that panics.
    pub(crate) panics_in: &'static str,
}

impl StateMachine for Machine {
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

/// Keeps the last state of each group; entries stay in the engine's own memory.
#[derive(Default)]
pub(crate) struct Log(Mutex<BTreeMap<GroupId, GroupWrite>>);

impl LogStore for Log {
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        let log = self.0.lock().unwrap();
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
        let mut log = self.0.lock().unwrap();
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
        let log = self.0.lock().unwrap();
        let stored = log.get(&group).into_iter().flat_map(|stored| &stored.entries);
        out.extend(stored.filter(|entry| range.contains(&entry.index)).cloned());
        Ok(())
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        let log = self.0.lock().unwrap();
        let place = log.get(&group).map(truncated).filter(|place| place.index == index);
        if let Some(place) = place {
            return Ok(place.term);
        }
        let mut stored = log.get(&group).into_iter().flat_map(|stored| &stored.entries);
        let found = stored.find(|entry| entry.index == index);
        found.map(|entry| entry.term).ok_or(LogReadError::Beyond { index, last: 0 })
    }

    fn compact(&self, _group: GroupId, _through: u64) -> Result<(), LogError> {
        Ok(())
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(Vec::new())
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.0.lock().unwrap().keys().copied().collect())
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        self.0.lock().unwrap().remove(&group);
        Ok(())
    }
}

/// Where the log of a group begins.
fn truncated(stored: &GroupWrite) -> LogId {
    stored.install.as_ref().map_or(LogId::NONE, |install| install.at)
}

#[derive(Default)]
pub(crate) struct Ids(Mutex<(Option<Identity>, BTreeMap<NodeId, Incarnation>)>);

impl IdentityStore for Ids {
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

/// Reaches nobody, and keeps the way in for the test to use.
struct Nowhere(Arc<OnceLock<Arc<dyn Inbound>>>);

#[async_trait]
impl Transport for Nowhere {
    fn scheme(&self) -> &'static str {
        "nowhere"
    }

    async fn listen(
        &self,
        _at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let _ = self.0.set(inbound);
        Ok(Box::new(Deaf))
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

pub(crate) struct Deaf;

#[async_trait]
impl Listener for Deaf {
    fn local_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    async fn shutdown(self: Box<Self>) {}
}
