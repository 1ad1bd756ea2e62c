//! A transport that does what a test says, and records what the lanes do.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;

use super::super::policy::{Depth, DropReason};
use super::super::{LaneCounter, LaneCounters, LaneSettings, Lanes, LanesDeps, PeerGate};
use crate::config::Config;
use crate::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use crate::message::{Batch, Envelope, Lane, Message, MessageKind};
use crate::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};
use crate::transport::*;

/// What a call of the transport does, if it does not succeed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Fail,
    Hang,
    Panic,
}

impl Does {
    /// `Err` is a failure.
    async fn run(does: Option<Self>) -> Result<(), ()> {
        match does {
            None => Ok(()),
            Some(Self::Fail) => Err(()),
            Some(Self::Hang) => pending().await,
            Some(Self::Panic) => panic!("scripted"),
        }
    }
}

pub(super) type LaneKey = (NodeId, Lane);
pub(super) type UnreachableReport = (NodeId, Scope, UnreachableCause);

#[derive(Default)]
pub(super) struct ScriptedState {
    pub(super) connect: BTreeMap<LaneKey, Does>,
    pub(super) dispatch: BTreeMap<LaneKey, Does>,
    pub(super) delivered: Vec<(LaneKey, Envelope)>,
    pub(super) batches: BTreeMap<LaneKey, usize>,
    pub(super) links: BTreeMap<LaneKey, (PeerAddr, LinkFeedback)>,
    pub(super) attempts: usize,
    pub(super) reports: Vec<UnreachableReport>,
    pub(super) drops: BTreeMap<(Lane, DropReason), usize>,
    pub(super) sent: BTreeMap<Lane, (usize, usize)>,
    pub(super) nacks: usize,
    pub(super) connected: BTreeMap<LaneKey, usize>,
    pub(super) connect_failed: usize,
    pub(super) closed: usize,
    pub(super) depth: BTreeMap<LaneKey, Depth>,
    pub(super) gate_refuses: bool,
}

#[derive(Clone, Default)]
pub(super) struct ScriptedTransport(Arc<Mutex<ScriptedState>>);

impl ScriptedTransport {
    /// Whose calls for these lanes to connect do this.
    pub(super) fn connecting(does: Does, keys: &[LaneKey]) -> Self {
        let script = Self::default();
        script.with(|s| s.connect.extend(keys.iter().map(|&key| (key, does))));
        script
    }

    /// Whose calls on these lanes to dispatch do this.
    pub(super) fn dispatching(does: Does, keys: &[LaneKey]) -> Self {
        let script = Self::default();
        script.with(|s| s.dispatch.extend(keys.iter().map(|&key| (key, does))));
        script
    }

    /// Reads or changes the state. Never held across an await.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut ScriptedState) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    pub(super) fn lanes(&self, config: Config) -> Lanes {
        let hello = |to| Hello {
            cluster: ClusterId::new("test").unwrap(),
            from: node(1),
            to,
            incarnation: Incarnation::new(1).unwrap(),
            protocol: PROTOCOL_VERSION,
        };
        let deps = LanesDeps {
            reporter: Arc::new(self.clone()),
            gate: Arc::new(self.clone()),
            counters: Arc::new(self.clone()),
            transports: [("mem".to_owned(), Arc::new(self.clone()) as Arc<dyn Transport>)].into(),
            runtime: Handle::current(),
            hello: Arc::new(hello),
        };
        Lanes::new(LaneSettings::from(&config.validate().unwrap()), deps)
    }

    /// Lanes to node 2.
    pub(super) fn lanes_to_one_peer(&self, config: Config) -> Lanes {
        let lanes = self.lanes(config);
        lanes.set_peer(peer(2, 1));
        lanes
    }

    /// Connected lanes to nodes 2 and 3.
    pub(super) async fn connected(&self, config: Config) -> Lanes {
        let lanes = self.lanes_to_one_peer(config);
        lanes.set_peer(peer(3, 1));
        self.until(|s| s.connected.len() == 4).await;
        lanes
    }

    /// Waits, in the test's own time, for a condition.
    pub(super) async fn until(&self, holds: impl Fn(&ScriptedState) -> bool) {
        for _ in 0..60_000 {
            if self.with(|s| holds(s)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await; // not synchronisation: moves the paused clock
        }
        panic!("not within a minute");
    }

    pub(super) async fn until_delivered(&self, messages: usize) {
        self.until(|s| s.delivered.len() == messages).await;
    }

    /// Waits until a lane has established this number of links.
    pub(super) async fn until_connected(&self, key: LaneKey, links: usize) {
        self.until(|s| s.connected.get(&key) == Some(&links)).await;
    }

    /// Breaks the link of a lane.
    pub(super) fn kill(&self, key: LaneKey) {
        let (_, feedback) = self.with(|s| s.links.remove(&key).unwrap());
        feedback.closed(LinkClosed::Broken { detail: "killed".into() });
    }

    /// The terms of the messages delivered on a lane.
    pub(super) fn terms(&self, key: LaneKey) -> Vec<u64> {
        self.with(|s| s.delivered.iter().filter(|(on, _)| *on == key).map(|(_, e)| e.message.term).collect())
    }

    pub(super) fn dropped(&self, lane: Lane, reason: DropReason) -> usize {
        self.with(|s| s.drops.get(&(lane, reason)).copied().unwrap_or_default())
    }

    pub(super) fn reports(&self) -> Vec<UnreachableReport> {
        self.with(|s| s.reports.clone())
    }
}

pub(super) fn node(n: u64) -> NodeId {
    NodeId::new(n).unwrap()
}

pub(super) fn peer(n: u64, port: u16) -> Peer {
    Peer { id: node(n), address: PeerAddr::new(&format!("mem://host:{port}")).unwrap() }
}

pub(super) fn message(to: u64, group: u64, kind: MessageKind, term: u64) -> Envelope {
    let message = Message { term, ..Message::new(kind, node(1), node(to)) };
    Envelope { group: GroupId::new(group), message }
}

pub(super) fn append(to: u64, group: u64, term: u64) -> Envelope {
    let mut envelope = message(to, group, MessageKind::Append, term);
    envelope.message.context = vec![0; 10].into();
    envelope
}

#[async_trait]
impl Transport for ScriptedTransport {
    fn scheme(&self) -> &'static str {
        "mem"
    }

    async fn listen(&self, _: &PeerAddr, _: Arc<dyn Inbound>) -> Result<Box<dyn Listener>, TransportError> {
        unreachable!("the lanes only dial")
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        _: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let key = (to.id, lane);
        let does = self.with(|s| {
            s.attempts += 1;
            s.connect.get(&key).copied()
        });
        Does::run(does).await.map_err(|()| ConnectError::Refused(Refusal::ShuttingDown))?;
        // An old feedback is dropped without the lock, because it calls back.
        let old = self.with(|s| s.links.insert(key, (to.address.clone(), feedback)));
        drop(old);
        let welcome =
            Welcome { node: to.id, incarnation: Incarnation::new(9).unwrap(), protocol: PROTOCOL_VERSION };
        Ok(Connected { link: Box::new(ScriptedLane { key, script: self.clone() }), welcome })
    }
}

/// A link of a lane, and the counters of the lane.
struct ScriptedLane {
    key: LaneKey,
    script: ScriptedTransport,
}

#[async_trait]
impl Link for ScriptedLane {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        let does = self.script.with(|s| {
            *s.batches.entry(self.key).or_default() += 1;
            s.dispatch.get(&self.key).copied()
        });
        Does::run(does).await.map_err(|()| DispatchError::Closed)?;
        self.script.with(|s| s.delivered.extend(batch.envelopes.into_iter().map(|e| (self.key, e))));
        Ok(())
    }
}

impl LaneCounter for ScriptedLane {
    fn sent(&self, messages: usize, bytes: usize) {
        self.script.with(|s| {
            let sent = s.sent.entry(self.key.1).or_default();
            *sent = (sent.0 + messages, sent.1 + bytes);
        });
    }

    fn dropped(&self, reason: DropReason, messages: usize) {
        self.script.with(|s| *s.drops.entry((self.key.1, reason)).or_default() += messages);
    }

    fn connected(&self) {
        self.script.with(|s| *s.connected.entry(self.key).or_default() += 1);
    }

    fn connect_failed(&self) {
        self.script.with(|s| s.connect_failed += 1);
    }

    fn closed(&self) {
        self.script.with(|s| s.closed += 1);
    }

    fn nack(&self) {
        self.script.with(|s| s.nacks += 1);
    }

    fn depth(&self, depth: Depth) {
        self.script.with(|s| s.depth.insert(self.key, depth));
    }
}

impl Reporter for ScriptedTransport {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.with(|s| s.reports.push((peer, scope, cause)));
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {
        unreachable!("no snapshot goes through a lane")
    }
}

impl PeerGate for ScriptedTransport {
    fn welcome(&self, welcome: &Welcome) -> Result<(), String> {
        assert_eq!(welcome.incarnation.as_u64(), 9);
        if self.with(|s| s.gate_refuses) { Err("another incarnation".into()) } else { Ok(()) }
    }

    fn connect_failed(&self, _: NodeId, _: &ConnectError) {}

    fn nacked(&self, _: NodeId, _: Nack) {}
}

impl LaneCounters for ScriptedTransport {
    fn lane(&self, peer: NodeId, scheme: &str, lane: Lane) -> Arc<dyn LaneCounter> {
        assert_eq!(scheme, "mem");
        Arc::new(ScriptedLane { key: (peer, lane), script: self.clone() })
    }

    fn unrouted(&self, _: NodeId, lane: Lane, reason: DropReason) {
        self.with(|s| *s.drops.entry((lane, reason)).or_default() += 1);
    }
}
