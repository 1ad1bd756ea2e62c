//! The identity of this node, the members of its groups, and the incarnations of its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use towline_metrics::labels::{Direction, NackDropReason};
use towline_metrics::{ByteTally, PeerMetrics};

use super::counters::{Counters, lane_label};
use super::ingress::{Delivered, Ingress};
use super::refusals::{Loudness, Refusals};
use super::refused_by::RefusedBy;
use crate::cause::{catch, chain};
use crate::core::Objection;
use crate::identity::{Identity, IdentityError, IdentityStore};
use crate::ids::{ClusterId, FoundingHash, GroupId, Incarnation, NodeId};
use crate::lanes::{Lanes, PeerGate};
use crate::message::{Batch, Lane, LostEntries};
use crate::snapshots::Receives;
use crate::sync::lock;
use crate::transport::{
    CertIdentity, ConnectError, FOUNDED_MAX, Founded, Hello, Inbound, Nack, NackCause, PROTOCOL_VERSION,
    PeerSession, ProgressCell, Refusal, SinkAnswer, SnapshotOffer, SnapshotRefusal, Violation, Welcome,
};

/// The groups of a node, as the connections see them.
pub(crate) type Registry = Arc<RwLock<BTreeMap<GroupId, Arc<Ingress>>>>;

/// The node's identity and its known peers; the gate of every handshake.
pub(crate) struct Peers {
    node: NodeId,
    cluster: ClusterId,
    store: Arc<dyn IdentityStore>,
    known: Mutex<Known>,
    /// The groups that lost entries here. Not in [`Known`], whose lock is held while the store writes: the shard locks this.
    lost: Mutex<BTreeMap<GroupId, LostEntries>>,
    registry: Registry,
    counters: Arc<Counters>,
    receives: Receives,
    refusals: Refusals,
    refused_by: RefusedBy,
}

#[derive(Default)]
struct Known {
    /// `None` until the first group is bootstrapped. Until then the node admits no peer and calls no peer.
    identity: Option<Identity>,
    /// The groups that the identity records.
    groups: BTreeSet<GroupId>,
    members: BTreeMap<GroupId, BTreeSet<NodeId>>,
    /// The founding hash of each group that was started.
    founded: BTreeMap<GroupId, FoundingHash>,
    seen: BTreeMap<NodeId, Incarnation>,
}

impl Peers {
    /// # Errors
    /// [`IdentityError`] if what is stored cannot be read.
    pub(crate) fn load(
        node: NodeId,
        cluster: ClusterId,
        store: Arc<dyn IdentityStore>,
        registry: Registry,
        counters: Arc<Counters>,
        receives: Receives,
        election_timeout: Duration,
    ) -> Result<Self, IdentityError> {
        let refusals = Refusals::new(election_timeout);
        let known = Known {
            identity: store.load()?,
            groups: store.groups()?,
            members: BTreeMap::new(),
            founded: BTreeMap::new(),
            seen: store.seen()?,
        };
        let lost = Mutex::new(store.lost()?);
        let (known, refused_by) = (Mutex::new(known), RefusedBy::default());
        Ok(Self { node, cluster, store, known, lost, registry, counters, receives, refusals, refused_by })
    }

    /// Ends the offers of snapshots that are being decided.
    pub(crate) fn close(&self) {
        self.receives.close();
    }

    /// The peers that refuse this node.
    pub(crate) fn refused_by(&self) -> &RefusedBy {
        &self.refused_by
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        lock(&self.known).identity.clone()
    }

    /// Whether the storage was made for a new node.
    pub(crate) fn may_found(&self) -> Result<bool, IdentityError> {
        self.store.may_found()
    }

    /// Creates the identity of a new directory, with a random incarnation. Keeps an existing identity.
    pub(crate) fn found(&self) -> Result<(), IdentityError> {
        let mut known = lock(&self.known);
        if known.identity.is_some() {
            return Ok(());
        }
        let incarnation = loop {
            if let Some(incarnation) = Incarnation::new(fastrand::u64(..)) {
                break incarnation;
            }
        };
        let identity = Identity { cluster: self.cluster.clone(), node: self.node, incarnation };
        self.store.create(&identity)?;
        known.identity = Some(identity);
        Ok(())
    }

    /// Records a group before it runs. The log must have it durably.
    pub(crate) fn add_group(&self, group: GroupId) -> Result<(), IdentityError> {
        let mut known = lock(&self.known);
        if !known.groups.contains(&group) {
            self.store.add_group(group)?;
            known.groups.insert(group);
        }
        Ok(())
    }

    /// What a group lost on this node.
    pub(crate) fn lost(&self, group: GroupId) -> Option<LostEntries> {
        lock(&self.lost).get(&group).copied()
    }

    /// Keeps a group that lost entries out of service on this node. The returned call, which waits for the store, does so
    /// also after a restart.
    pub(crate) fn lose(&self, group: GroupId, lost: LostEntries) -> impl FnOnce() + Send + use<> {
        lock(&self.lost).insert(group, lost);
        let store = self.store.clone();
        move || {
            let error = match catch(|| store.record_lost(group, lost)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => chain(&error),
                Err(panic) => panic,
            };
            tracing::error!(%group, error, "the loss of entries could not be recorded");
        }
    }

    pub(crate) fn set_members(&self, group: GroupId, founding: FoundingHash, members: BTreeSet<NodeId>) {
        let mut known = lock(&self.known);
        known.members.insert(group, members);
        known.founded.insert(group, founding);
    }

    /// Tells the groups what the refusal of a peer says against their first leader.
    fn objections(&self, peer: NodeId, refusal: &Refusal) {
        let founded = match refusal {
            Refusal::WrongIncarnation { .. } => None,
            Refusal::UnknownPeer { founded, .. } => Some(founded),
            _ => return,
        };
        let objection = |(&group, ours): (&GroupId, &FoundingHash)| {
            // It met an earlier directory, so it may hold the group and votes of this node that are forgotten here.
            let Some(founded) = founded else { return Some((group, Objection::Refusal)) };
            match founded.iter().find(|theirs| theirs.group == group) {
                Some(theirs) if ours.contradicts(theirs.founding) => Some((group, Objection::OtherList)),
                // The peer may have more groups than it could name.
                None if founded.len() >= FOUNDED_MAX => Some((group, Objection::Refusal)),
                _ => None,
            }
        };
        let all: Vec<_> = lock(&self.known).founded.iter().filter_map(objection).collect();
        all.into_iter().for_each(|(group, objection)| self.note_objection(group, peer, objection));
    }

    fn note_objection(&self, group: GroupId, peer: NodeId, objection: Objection) {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(ingress) = registry.get(&group) {
            ingress.note_objection(peer, objection);
        }
    }

    /// The first message to a peer. Called only once a group runs, so there is an identity.
    pub(crate) fn hello(&self, to: NodeId) -> Hello {
        let incarnation = self.identity().map(|i| i.incarnation).or(Incarnation::new(u64::MAX));
        Hello {
            cluster: self.cluster.clone(),
            from: self.node,
            to,
            incarnation: incarnation.unwrap_or_else(|| unreachable!("u64::MAX is not zero")),
            protocol: PROTOCOL_VERSION,
        }
    }

    /// Refuses a peer whose incarnation differs from the remembered one: its disk was emptied, and it forgot its votes. The
    /// first incarnation is made durable before it counts.
    fn recognise(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), Refusal> {
        let mut known = lock(&self.known);
        match known.seen.get(&peer) {
            Some(seen) if *seen == incarnation => Ok(()),
            Some(_) => Err(Refusal::WrongIncarnation { peer: peer.as_u64() }),
            None => {
                self.store.remember(peer, incarnation).map_err(|error| {
                    tracing::error!(%peer, %error, "a peer's incarnation could not be remembered");
                    Refusal::ShuttingDown
                })?;
                known.seen.insert(peer, incarnation);
                Ok(())
            }
        }
    }

    /// Admits or refuses a dialler. A refusal of a member counts for what its groups wait for, unless the certificate is of
    /// another node: such a dialler may be anyone.
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Welcome, Refusal> {
        let checked = self.check(hello, cert);
        let is_proved = cert.is_none_or(|cert| cert.node == hello.from);
        match &checked {
            Ok(_) => self.refused_by.admits(hello.from),
            Err(refusal) if is_proved && self.is_member(hello.from) => {
                self.refused_by.refuses(hello.from, &refusal.to_string(), Instant::now());
            }
            Err(_) => {}
        }
        checked
    }

    fn is_member(&self, peer: NodeId) -> bool {
        lock(&self.known).members.values().any(|members| members.contains(&peer))
    }

    fn check(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Welcome, Refusal> {
        if hello.protocol != PROTOCOL_VERSION {
            return Err(Refusal::Version { ours: PROTOCOL_VERSION, theirs: hello.protocol });
        }
        if hello.cluster != self.cluster {
            return Err(Refusal::WrongCluster { ours: self.cluster.to_string() });
        }
        if hello.to != self.node {
            return Err(Refusal::WrongNode { ours: self.node.as_u64() });
        }
        if let Some(cert) = cert.filter(|cert| cert.node != hello.from) {
            return Err(Refusal::Unauthenticated {
                detail: format!("the certificate is of node {}, the hello of node {}", cert.node, hello.from),
            });
        }
        let identity = {
            let member = self.is_member(hello.from);
            let known = lock(&self.known);
            known.identity.clone().filter(|_| member && hello.from != self.node).ok_or_else(|| {
                let founded = known.founded.iter().take(FOUNDED_MAX);
                let founded = founded.map(|(&group, &founding)| Founded { group, founding });
                Refusal::UnknownPeer { peer: hello.from.as_u64(), founded: founded.collect() }
            })?
        };
        self.recognise(hello.from, hello.incarnation)?;
        Ok(Welcome { node: self.node, incarnation: identity.incarnation, protocol: PROTOCOL_VERSION })
    }
}

impl PeerGate for Peers {
    fn welcome(&self, welcome: &Welcome) -> Result<(), String> {
        self.refused_by.admitted(welcome.node);
        let recognised =
            self.recognise(welcome.node, welcome.incarnation).map_err(|refusal| refusal.to_string());
        match &recognised {
            Ok(()) => self.refused_by.admits(welcome.node),
            Err(refusal) => self.refused_by.refuses(welcome.node, refusal, Instant::now()),
        }
        recognised
    }

    fn connect_failed(&self, peer: NodeId, error: &ConnectError) {
        let refusal = match error {
            ConnectError::Refused(refusal) => refusal,
            ConnectError::Certificate { .. } | ConnectError::WrongPeer { .. } => {
                return self.refused_by.refuses(peer, &error.to_string(), Instant::now());
            }
            _ => return,
        };
        let node = self.node;
        self.objections(peer, refusal);
        if let Some(meaning) = self.refused_by.refused(peer, refusal, Instant::now()) {
            tracing::warn!(%node, %peer, %refusal, meaning, "a peer refuses this node");
        }
    }

    fn nacked(&self, peer: NodeId, nack: Nack) {
        if nack.cause == NackCause::FoundedDifferently {
            self.note_objection(nack.group, peer, Objection::OtherList);
        }
    }
}

/// The inbound side of one transport.
pub(crate) struct NodeInbound {
    pub(crate) peers: Arc<Peers>,
    /// Notified of each peer that connects.
    pub(crate) lanes: Lanes,
    pub(crate) scheme: &'static str,
}

impl Inbound for NodeInbound {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let welcome = self.peers.admit(hello, cert).inspect_err(|refusal| self.refused(refusal))?;
        self.lanes.notify_peer_connected(hello.from);
        let metrics = self.peers.counters.inbound(hello.from, self.scheme);
        Ok(Arc::new(Session { peers: self.peers.clone(), peer: hello.from, welcome, metrics }))
    }

    fn refused(&self, refusal: &Refusal) {
        let (peers, node) = (&self.peers, self.peers.node);
        let runs = !lock(&peers.known).members.is_empty();
        match peers.refusals.loudness(refusal, runs, Instant::now()) {
            Loudness::Quiet => tracing::debug!(%node, runs, %refusal, "a connection was refused"),
            Loudness::Info => tracing::info!(%node, runs, %refusal, "a connection was refused"),
            Loudness::Warn => tracing::warn!(%node, runs, %refusal, "a connection was refused"),
        }
        peers.counters.refused(refusal);
    }
}

struct Session {
    peers: Arc<Peers>,
    peer: NodeId,
    welcome: Welcome,
    /// Of the transport that the peer used, which may differ from the one that this node uses to call it.
    metrics: PeerMetrics,
}

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn welcome(&self) -> Welcome {
        self.welcome.clone()
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        let counted = self.metrics.lane(lane_label(lane));
        counted.messages_received(batch.envelopes.len() as u64);
        counted.payload_bytes_received(batch.payload_bytes() as u64);
        let registry = self.peers.registry.read().unwrap_or_else(PoisonError::into_inner);
        let mut nacks = self.peers.counters.take_late(self.peer, lane);
        let mut superseded = 0;
        for envelope in batch.envelopes {
            let group = envelope.group;
            let result = match registry.get(&group) {
                Some(ingress) => ingress.deliver(self.peer, envelope.message),
                None => Err(NackCause::UnknownGroup),
            };
            let result = result.map_err(|cause| self.peers.lost(group).map_or(cause, NackCause::EntriesLost));
            match result {
                Ok(Delivered::Queued) => {}
                Ok(Delivered::Superseded) => superseded += 1,
                // One nack for each group is enough: it makes the sender probe.
                Err(cause) if !nacks.iter().any(|nack| nack.group == group) => {
                    nacks.push(Nack { group, cause });
                }
                Err(_) => {}
            }
        }
        if superseded > 0 {
            counted.messages_superseded(superseded);
        }
        if !nacks.is_empty() {
            counted.nacks_sent(nacks.len() as u64);
        }
        Ok(nacks)
    }

    fn nacks_dropped(&self, lane: Lane, count: usize) {
        self.metrics.lane(lane_label(lane)).nacks_dropped(NackDropReason::NoRoom, count as u64);
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        let tally = ByteTally::new(self.metrics.snapshot_record(Direction::Received));
        self.peers.receives.offer(self.peer, offer, tally, deciding).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::common::{EmptyMachine, TestNode, address, id, steady};
    use crate::node::{Group, Start};

    /// Anyone could mark a member as refused with a hello in its name.
    #[tokio::test]
    async fn a_hello_in_the_name_of_a_member_counts_only_with_the_certificate_of_that_member() {
        let test = TestNode::start(steady()).await;
        let members = vec![(id(1), address(1)), (id(2), address(2))];
        let group = test.node.group(GroupId::DEFAULT, EmptyMachine::default());
        let _group: Group<_> = group.start(Start::Bootstrap(members)).await.unwrap();
        let hello = Hello {
            cluster: ClusterId::new("other").unwrap(),
            from: id(2),
            to: id(1),
            incarnation: Incarnation::new(2).unwrap(),
            protocol: PROTOCOL_VERSION,
        };
        let peers = &test.node.inner.peers;
        let why = |hello: &Hello, cert| {
            assert!(test.inbound().admit(hello, Some(&CertIdentity { node: id(cert) })).is_err());
            let refused = peers.refused_by().lately(Duration::MAX, Instant::now());
            refused.get(&id(2)).map(ToString::to_string)
        };
        let own = Hello { cluster: ClusterId::new("c").unwrap(), ..hello.clone() };
        for stranger in [&hello, &own] {
            assert_eq!(why(stranger, 3), None);
        }
        let refused = why(&hello, 2).expect("it is a member");
        assert!(refused.contains("wrong cluster"), "{refused}");
    }
}
