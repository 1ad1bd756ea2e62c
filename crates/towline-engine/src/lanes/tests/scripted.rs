//! A transport that does what a test says, and doubles that write down what they are told.

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

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Well,
    Fail,
    Hang,
    Panic,
}

type Key = (NodeId, Lane);

#[derive(Default)]
pub(super) struct World {
    pub(super) connect: BTreeMap<Key, Does>,
    pub(super) dispatch: BTreeMap<Key, Does>,
    pub(super) delivered: Vec<(NodeId, Lane, Envelope)>,
    pub(super) batches: BTreeMap<Key, usize>,
    pub(super) links: BTreeMap<Key, (PeerAddr, LinkFeedback)>,
    pub(super) attempts: usize,
    pub(super) reports: Vec<(NodeId, Scope, UnreachableCause)>,
    pub(super) drops: BTreeMap<(Lane, DropReason), usize>,
    pub(super) sent: BTreeMap<Lane, (usize, usize)>,
    pub(super) nacks: usize,
    pub(super) connected: BTreeMap<Key, usize>,
    pub(super) connect_failed: usize,
    pub(super) closed: usize,
    pub(super) depth: BTreeMap<Key, Depth>,
    pub(super) gate_refuses: bool,
}

#[derive(Clone, Default)]
pub(super) struct Script(Arc<Mutex<World>>);

impl Script {
    /// The world, for one look or change. Never held across an await.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
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

    /// Lanes to nodes 2 and 3, connected.
    pub(super) async fn connected(&self, config: Config) -> Lanes {
        let lanes = self.lanes(config);
        lanes.set_peer(peer(2, 1));
        lanes.set_peer(peer(3, 1));
        self.until(|w| w.connected.len() == 4).await;
        lanes
    }

    /// Waits, in the test's own time, until the world is as expected.
    pub(super) async fn until(&self, holds: impl Fn(&World) -> bool) {
        for _ in 0..60_000 {
            if self.with(|w| holds(w)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await; // not synchronisation: moves the paused clock
        }
        panic!("not within a minute");
    }

    pub(super) fn kill(&self, id: NodeId, lane: Lane) {
        let (_, feedback) = self.with(|w| w.links.remove(&(id, lane)).unwrap());
        feedback.closed(LinkClosed::Broken { detail: "killed".into() });
    }

    pub(super) fn terms(&self, id: NodeId, lane: Lane) -> Vec<u64> {
        self.with(|w| {
            let of = w.delivered.iter().filter(|(to, on, _)| (*to, *on) == (id, lane));
            of.map(|(_, _, e)| e.message.term).collect()
        })
    }

    pub(super) fn dropped(&self, lane: Lane, reason: DropReason) -> usize {
        self.with(|w| w.drops.get(&(lane, reason)).copied().unwrap_or_default())
    }

    pub(super) fn reports(&self) -> Vec<(NodeId, Scope, UnreachableCause)> {
        self.with(|w| w.reports.clone())
    }
}

pub(super) fn node(n: u64) -> NodeId {
    NodeId::new(n).unwrap()
}

pub(super) fn peer(n: u64, port: u16) -> Peer {
    Peer { id: node(n), address: PeerAddr::new(&format!("mem://host:{port}")).unwrap() }
}

pub(super) fn message(to: u64, group: u64, kind: MessageKind, term: u64) -> Envelope {
    let mut message = Message::new(kind, node(1), node(to));
    message.term = term;
    Envelope { group: GroupId::new(group), message }
}

pub(super) fn append(to: u64, group: u64, term: u64) -> Envelope {
    let mut envelope = message(to, group, MessageKind::Append, term);
    envelope.message.context = vec![0; 10].into();
    envelope
}

#[async_trait]
impl Transport for Script {
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
        let does = self.with(|w| {
            w.attempts += 1;
            w.connect.get(&key).copied().unwrap_or(Does::Well)
        });
        match does {
            Does::Well => {}
            Does::Fail => return Err(ConnectError::Refused(Refusal::ShuttingDown)),
            Does::Hang => pending().await,
            Does::Panic => panic!("scripted"),
        }
        // An old feedback is dropped without the lock: it calls back.
        let old = self.with(|w| w.links.insert(key, (to.address.clone(), feedback)));
        drop(old);
        let welcome =
            Welcome { node: to.id, incarnation: Incarnation::new(9).unwrap(), protocol: PROTOCOL_VERSION };
        Ok(Connected { link: Box::new(ScriptedLink { key, script: self.clone() }), welcome })
    }
}

struct ScriptedLink {
    key: Key,
    script: Script,
}

#[async_trait]
impl Link for ScriptedLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        let does = self.script.with(|w| {
            *w.batches.entry(self.key).or_default() += 1;
            w.dispatch.get(&self.key).copied().unwrap_or(Does::Well)
        });
        match does {
            Does::Well => {}
            Does::Fail => return Err(DispatchError::Closed),
            Does::Hang => pending().await,
            Does::Panic => panic!("scripted"),
        }
        let (id, lane) = self.key;
        self.script.with(|w| w.delivered.extend(batch.envelopes.into_iter().map(|e| (id, lane, e))));
        Ok(())
    }
}

impl Reporter for Script {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.with(|w| w.reports.push((peer, scope, cause)));
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {
        unreachable!("no snapshot goes through a lane")
    }
}

impl PeerGate for Script {
    fn welcome(&self, welcome: &Welcome) -> Result<(), String> {
        assert_eq!(welcome.incarnation.as_u64(), 9);
        if self.with(|w| w.gate_refuses) { Err("another incarnation".into()) } else { Ok(()) }
    }
}

impl LaneCounters for Script {
    fn lane(&self, peer: NodeId, scheme: &str, lane: Lane) -> Arc<dyn LaneCounter> {
        assert_eq!(scheme, "mem");
        Arc::new(Counter { key: (peer, lane), script: self.clone() })
    }

    fn unrouted(&self, _: NodeId, lane: Lane, reason: DropReason) {
        self.with(|w| *w.drops.entry((lane, reason)).or_default() += 1);
    }
}

struct Counter {
    key: Key,
    script: Script,
}

impl LaneCounter for Counter {
    fn sent(&self, messages: usize, bytes: usize) {
        self.script.with(|w| {
            let sent = w.sent.entry(self.key.1).or_default();
            *sent = (sent.0 + messages, sent.1 + bytes);
        });
    }

    fn dropped(&self, reason: DropReason, messages: usize) {
        self.script.with(|w| *w.drops.entry((self.key.1, reason)).or_default() += messages);
    }

    fn connected(&self) {
        self.script.with(|w| *w.connected.entry(self.key).or_default() += 1);
    }

    fn connect_failed(&self) {
        self.script.with(|w| w.connect_failed += 1);
    }

    fn closed(&self) {
        self.script.with(|w| w.closed += 1);
    }

    fn nack(&self) {
        self.script.with(|w| w.nacks += 1);
    }

    fn depth(&self, depth: Depth) {
        self.script.with(|w| w.depth.insert(self.key, depth));
    }
}
