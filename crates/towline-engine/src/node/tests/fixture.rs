//! A node that leads groups of five voters. The fixture plays the peers: two have the whole log, two need a snapshot.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use towline_metrics::NodeMetrics;

use super::common::{DEADLINE, EmptyMachine, MemIdentity, MemLog, TestListener, TestNode, address, id, wait};
use super::hooks::{HookedRecorder, Losses, LossyReporter, ShardHooks};
use crate::config::Config;
use crate::identity::{Identity, IdentityStore as _};
use crate::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use crate::log_store::{ConfRecord, GroupWrite, Install, LogBatch, LogStore as _};
use crate::message::{
    Batch, ConfState, Envelope, HardState, Lane, LogId, Member, MemberTable, Message, MessageKind,
};
use crate::node::{Group, Start};
use crate::reporter::{Reporter, SnapshotAttempt};
use crate::snapshot_store::*;
use crate::snapshots::fixture::TestStore;
use crate::status::{PeerStatus, Role};
use crate::storage::Storage;
use crate::transport::*;

/// Where the log of every group begins.
const TRUNCATED: LogId = LogId { index: 10, term: 1 };

pub(super) const GROUPS_MAX: u64 = 20;

const BODY: Bytes = Bytes::from_static(b"body");

/// The peers that need a snapshot.
pub(super) const BEHIND: [u64; 2] = [4, 5];

pub(super) struct LeaderFixture {
    pub(super) test: TestNode,
    pub(super) groups: Vec<Group<EmptyMachine>>,
    pub(super) played: Arc<PlayedPeers>,
    pub(super) hooks: ShardHooks,
    pub(super) losses: Losses,
    /// The node's own reporter.
    pub(super) reporter: Arc<dyn Reporter>,
}

pub(super) struct PlayedPeers {
    inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
    /// The peers that have the log of a group.
    have: Mutex<BTreeSet<(GroupId, NodeId)>>,
    /// While false, the peers do not answer offers.
    pub(super) answers: watch::Sender<bool>,
    /// Heartbeats to peers that are behind.
    pub(super) beats: watch::Sender<u64>,
}

impl LeaderFixture {
    /// A node that runs no group yet.
    pub(super) async fn new(config: Config) -> Self {
        let (log, ids) = (MemLog::default(), MemIdentity::default());
        ids.create(&Identity { cluster: cluster(), node: id(1), incarnation: incarnation(1) }).unwrap();
        for group in 1..=GROUPS_MAX {
            log.append(&mut LogBatch { writes: vec![stored(GroupId::new(group))] }).unwrap();
        }
        let inbound = Arc::default();
        let played = Arc::new(PlayedPeers {
            inbound: Arc::clone(&inbound),
            have: Mutex::default(),
            answers: watch::Sender::new(true),
            beats: watch::Sender::new(0),
        });
        let storage = Storage { log: Arc::new(log), snapshots: Arc::new(store()), identity: Arc::new(ids) };
        let (hooks, losses) = (ShardHooks::default(), Losses::none(played.beats.subscribe()));
        let own = Arc::new(OnceLock::new());
        let (hooked, lossy, given) = (hooks.clone(), losses.clone(), own.clone());
        let transport = Arc::new(PlayedTransport(played.clone()));
        let test = TestNode::over(config, storage, transport, inbound, |builder, exporter| {
            let recorder = HookedRecorder { inner: exporter.recorder(), hooks: hooked };
            let wrap = move |inner: Arc<dyn Reporter>| -> Arc<dyn Reporter> {
                let _ = given.set(inner.clone());
                Arc::new(LossyReporter { inner, losses: lossy })
            };
            builder.metrics(NodeMetrics::new(1, Some(Arc::new(recorder)))).reporter(wrap)
        });
        let test = test.await;
        let reporter = own.get().expect("the node has one").clone();
        Self { test, groups: Vec::new(), played, hooks, losses, reporter }
    }

    /// Starts up to [`GROUPS_MAX`] groups, and waits until the node leads them.
    pub(super) async fn lead(&mut self, count: u64) {
        for group in (1..=count).map(GroupId::new) {
            self.played.have(group, [2, 3]);
            let group = self.test.node.group(group, EmptyMachine::default());
            self.groups.push(group.start(Start::Restart).await.unwrap());
        }
        for group in &self.groups {
            wait("leadership", || (group.state().role == Role::Leader).then_some(())).await;
        }
    }

    pub(super) async fn peers(&self) -> Vec<(GroupId, PeerStatus)> {
        let mut all = Vec::new();
        for group in &self.groups {
            let status = group.status().await.unwrap();
            all.extend(status.peers.into_iter().map(|peer| (group.id(), peer)));
        }
        all
    }

    /// Waits until `so` holds for all peers that need a snapshot, and returns their status.
    pub(super) async fn when_behind(
        &self,
        what: &str,
        mut so: impl FnMut(&PeerStatus) -> bool,
    ) -> Vec<PeerStatus> {
        let started = std::time::Instant::now();
        loop {
            let peers = self.peers().await.into_iter().map(|(_, peer)| peer);
            let behind: Vec<_> = peers.filter(|peer| BEHIND.contains(&peer.id.as_u64())).collect();
            if behind.iter().all(&mut so) {
                return behind;
            }
            assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}: {behind:?}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits for two live attempts of each group.
    pub(super) async fn attempts(&self) -> Vec<SnapshotAttempt> {
        self.when_behind("a snapshot is on its way", |peer| peer.attempt.is_some()).await;
        let mut attempts = Vec::new();
        for group in &self.groups {
            let status = group.status().await.unwrap();
            attempts.extend(status.peers.iter().filter_map(|peer| {
                let live = peer.attempt?;
                let (group, term) = (group.id(), status.state.term);
                Some(SnapshotAttempt { group, peer: peer.id, term, index: live.index, number: live.number })
            }));
        }
        attempts
    }

    /// Ends the shard's thread with a panic.
    pub(super) async fn panic_shard(&self) {
        let node = &self.test.node;
        self.hooks.after_turn(|| panic!("a hook panics"));
        let is_over = |thread: &std::thread::JoinHandle<()>| {
            thread.thread().name() == Some("towline-shard") && thread.is_finished()
        };
        let over = || node.threads.lock().unwrap().iter().any(is_over).then_some(());
        wait("the end of the shard's thread", over).await;
    }

    pub(super) fn reports(&self, kind: &str, outcome: &str) -> u64 {
        self.test.counter("towline_reports_total", &format!("kind=\"{kind}\",outcome=\"{outcome}\""))
    }
}

impl PlayedPeers {
    /// From now on these peers have the log of the group.
    pub(super) fn have(&self, group: GroupId, peers: impl IntoIterator<Item = u64>) {
        self.have.lock().unwrap().extend(peers.into_iter().map(|peer| (group, id(peer))));
    }

    fn has(&self, group: GroupId, peer: NodeId) -> bool {
        self.have.lock().unwrap().contains(&(group, peer))
    }

    /// The peer's answer to a message.
    fn answer(&self, group: GroupId, asked: &Message) -> Option<Message> {
        let kind = match asked.kind {
            MessageKind::RequestPreVote => MessageKind::RequestPreVoteResponse,
            MessageKind::RequestVote => MessageKind::RequestVoteResponse,
            MessageKind::Heartbeat => MessageKind::HeartbeatResponse,
            MessageKind::Append => MessageKind::AppendResponse,
            _ => return None,
        };
        let mut answer = Message { term: asked.term, ..Message::new(kind, asked.to, asked.from) };
        let has = self.has(group, asked.to);
        match kind {
            MessageKind::HeartbeatResponse => {
                answer.context = asked.context.clone();
                if BEHIND.contains(&asked.to.as_u64()) {
                    self.beats.send_modify(|beats| *beats += 1);
                }
            }
            MessageKind::AppendResponse if has => {
                answer.index = asked.entries.last().map_or(asked.index, |entry| entry.index);
            }
            MessageKind::AppendResponse => (answer.index, answer.reject) = (asked.index, true),
            _ => {}
        }
        Some(answer)
    }
}

struct PlayedTransport(Arc<PlayedPeers>);

#[async_trait]
impl Transport for PlayedTransport {
    fn scheme(&self) -> &'static str {
        "nowhere"
    }

    async fn listen(
        &self,
        _: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let _ = self.0.inbound.set(inbound);
        Ok(Box::new(TestListener))
    }

    async fn connect(
        &self,
        to: &Peer,
        _: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let incarnation = incarnation(to.id.as_u64());
        let back = Hello { from: to.id, to: hello.from, incarnation, ..hello.clone() };
        let session = self.0.inbound.get().expect("it listens").admit(&back, None).unwrap();
        let link = Box::new(PlayedLink { played: self.0.clone(), session, _feedback: feedback });
        Ok(Connected { link, welcome: Welcome { node: to.id, incarnation, protocol: PROTOCOL_VERSION } })
    }

    async fn offer(
        &self,
        to: &Peer,
        _: &Hello,
        offer: &SnapshotOffer,
        _: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let mut answers = self.0.answers.subscribe();
        let _ = answers.wait_for(|open| *open).await;
        self.0.have(offer.meta.head.group, [to.id.as_u64()]);
        Ok(OfferAnswer::AlreadyHave { commit: offer.meta.head.at.index })
    }
}

struct PlayedLink {
    played: Arc<PlayedPeers>,
    session: Arc<dyn PeerSession>,
    _feedback: LinkFeedback,
}

#[async_trait]
impl Link for PlayedLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        for Envelope { group, message } in batch.envelopes {
            if let Some(message) = self.played.answer(group, &message) {
                let lane = message.kind.lane().expect("no answer is a snapshot");
                let _ = self.session.deliver(lane, Batch { envelopes: vec![Envelope { group, message }] });
            }
        }
        Ok(())
    }
}

fn cluster() -> ClusterId {
    ClusterId::new("c").unwrap()
}

fn incarnation(node: u64) -> Incarnation {
    Incarnation::new(node).unwrap()
}

fn conf() -> ConfRecord {
    let member = |node| (id(node), Member { address: address(node), incarnation: None });
    let members: MemberTable = (1..=5).map(member).collect();
    let conf_state = ConfState { voters: members.keys().copied().collect(), ..ConfState::default() };
    ConfRecord { conf_state, index: 0, members, founding: Default::default() }
}

/// A group whose log begins after its snapshot.
fn stored(group: GroupId) -> GroupWrite {
    GroupWrite {
        install: Some(Install { at: TRUNCATED, installing: meta(group).content }),
        hard_state: Some(HardState { term: TRUNCATED.term, vote: None, commit: TRUNCATED.index }),
        conf: Some(conf()),
        installed: true,
        ..GroupWrite::new(group)
    }
}

fn meta(group: GroupId) -> SnapshotMeta {
    let ConfRecord { conf_state, members, .. } = conf();
    let head = SnapshotHead { founding: Default::default(), group, at: TRUNCATED, conf_state, members };
    let mut hasher = ContentHasher::new(&head);
    hasher.update(&BODY);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head, length, content }
}

/// A store with one snapshot for each group.
fn store() -> TestStore {
    let open = |_: &SnapshotMeta, offset: u64| -> Result<Box<dyn SnapshotReader>, _> {
        Ok(Box::new(Body(BODY.slice(offset as usize..))))
    };
    TestStore { complete: Box::new(|group| vec![meta(group)]), open: Box::new(open), ..TestStore::default() }
}

struct Body(Bytes);

impl SnapshotReader for Body {
    fn next_part(&mut self, _: usize) -> io::Result<Option<BodyPart>> {
        let bytes = std::mem::take(&mut self.0);
        let crc32c = crc32c::crc32c(&bytes);
        Ok(Some(BodyPart { bytes, crc32c }).filter(|part| !part.bytes.is_empty()))
    }
}
