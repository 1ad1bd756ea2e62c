//! Every seam can be implemented with public items only, and handles and futures go wherever they are needed.
//!
//! That this file compiles is most of the test.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use static_assertions::{assert_impl_all, assert_not_impl_any, assert_obj_safe};
use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use towline_engine::log_store::{LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::{Batch, Entry, Lane, LogId};
use towline_engine::node::{
    Consistency, Group, GroupBuilder, Node, NodeBuilder, Proposal, Start, StartError,
};
use towline_engine::reporter::{
    Reporter, Scope, SnapshotAttempt, SnapshotFailure, SnapshotStatus, SnapshotTicket, UnreachableCause,
};
use towline_engine::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
    Trailer,
};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::storage::Storage;
use towline_engine::transport::*;

struct Machine;

impl StateMachine for Machine {
    type Response = u64;
    type View = Arc<Mutex<u64>>;

    fn view(&self) -> Self::View {
        Arc::default()
    }

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        for command in batch.commands() {
            replies.push(command.index + command.term + command.data.len() as u64);
        }
        let _ = (batch.through(), batch.len(), batch.is_empty());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(Source))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        io::copy(body, &mut io::sink())?;
        if meta.length == 0 { Err(Fatal::new("empty")) } else { Ok(()) }
    }
}

struct Source;

impl SnapshotSource for Source {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(b"state")
    }
}

struct Log;

impl LogStore for Log {
    fn recover(&self, _group: GroupId) -> Result<Recovered, LogError> {
        Ok(Recovered { last_index: 0, ..Recovered::default() })
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        if let Some(write) = batch.writes.first() {
            return Err(LogError::Invalid { group: write.group, detail: "read only".into() });
        }
        Ok(())
    }

    fn entries(
        &self,
        _group: GroupId,
        range: Range<u64>,
        _bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        out.clear();
        Err(LogReadError::Beyond { index: range.start, last: 0 })
    }

    fn term(&self, _group: GroupId, index: u64) -> Result<u64, LogReadError> {
        Err(LogReadError::Compacted { index, first: index + 1 })
    }

    fn compact(&self, _group: GroupId, _through: u64) -> Result<(), LogError> {
        Err(LogError::Poisoned { cause: "a test".into() })
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        Err(LogError::Io { during: "purge", source: io::ErrorKind::Other.into() })
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Err(LogError::Corrupt { place: "file 1".into(), detail: "torn".into() })
    }

    fn remove(&self, _group: GroupId) -> Result<(), LogError> {
        Ok(())
    }
}

struct Ids;

impl IdentityStore for Ids {
    fn load(&self) -> Result<Option<Identity>, IdentityError> {
        Err(IdentityError::Corrupt { file: "identity".into(), detail: "torn".into() })
    }

    fn create(&self, identity: &Identity) -> Result<(), IdentityError> {
        Err(IdentityError::Exists { node: identity.node, cluster: identity.cluster.clone() })
    }

    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError> {
        Ok(BTreeSet::new())
    }

    fn add_group(&self, _group: GroupId) -> Result<(), IdentityError> {
        Ok(())
    }

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(BTreeMap::new())
    }

    fn remember(&self, _peer: NodeId, _incarnation: Incarnation) -> Result<(), IdentityError> {
        let source = io::ErrorKind::Other.into();
        Err(IdentityError::Io { file: "peers".into(), during: "write", source })
    }
}

struct Snapshots;

impl SnapshotStore for Snapshots {
    fn complete(&self, _group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(Vec::new())
    }

    fn find(&self, _group: GroupId, _content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(None)
    }

    fn create(&self, _head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(Box::new(Writer(0)))
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
        Err(SnapshotStoreError::Io { during: "removal", source: io::ErrorKind::Other.into() })
    }
}

struct Writer(u64);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for Writer {
    fn verified(&self) -> u64 {
        self.0
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        let content = expected.map_or(ContentId([0; 16]), |trailer| trailer.content);
        Err(SnapshotStoreError::Corrupt { content, detail: "short".into() })
    }

    fn commit(self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        Err(SnapshotStoreError::Corrupt { content: ContentId([0; 16]), detail: "short".into() })
    }

    fn discard(self: Box<Self>) {}
}

struct Wire;

#[async_trait]
impl Transport for Wire {
    fn scheme(&self) -> &'static str {
        "wire"
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        inbound.refused(&Refusal::HandshakeTimeout);
        match at.authority() {
            "taken:1" => {
                Err(TransportError::Bind { address: at.clone(), source: io::ErrorKind::AddrInUse.into() })
            }
            "far:1" => Err(TransportError::Address { address: at.clone(), detail: "too far".into() }),
            _ => Ok(Box::new(Ear)),
        }
    }

    async fn connect(
        &self,
        to: &Peer,
        _lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        feedback.nack(Nack { group: GroupId::DEFAULT, cause: NackCause::InboxFull });
        feedback.closed(LinkClosed::ByPeer { detail: "bye".into() });
        let welcome = Welcome { node: to.id, incarnation: hello.incarnation, protocol: PROTOCOL_VERSION };
        Ok(Connected { link: Box::new(Lane1), welcome })
    }

    async fn offer(
        &self,
        _to: &Peer,
        _hello: &Hello,
        offer: &SnapshotOffer,
        _deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        match offer.attempt {
            0 => Ok(OfferAnswer::AlreadyHave { commit: offer.meta.head.at.index }),
            1 => Ok(OfferAnswer::Refused(SnapshotRefusal::Busy)),
            _ => Ok(OfferAnswer::Accepted { offset: 0, transfer: Box::new(Sending) }),
        }
    }
}

struct Ear;

#[async_trait]
impl Listener for Ear {
    fn local_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    async fn shutdown(self: Box<Self>) {}
}

struct Lane1;

#[async_trait]
impl Link for Lane1 {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        if batch.payload_bytes() > MESSAGE_BYTES_MAX {
            return Err(DispatchError::TooLarge {
                bytes: batch.payload_bytes(),
                bytes_max: MESSAGE_BYTES_MAX,
            });
        }
        Err(DispatchError::Closed)
    }
}

struct Sending;

#[async_trait]
impl Transfer for Sending {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        Err(TransferError::Broken { detail: format!("at {}", chunk.offset) })
    }

    async fn finish(self: Box<Self>, _trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        Ok(SnapshotReceipt { commit: 1 })
    }

    fn progress(&self) -> ProgressCell {
        ProgressCell::new(0)
    }
}

struct Door;

impl Inbound for Door {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        match cert {
            Some(cert) if cert.node == hello.from => Ok(Arc::new(Session(hello.from))),
            _ => Err(Refusal::UnknownPeer { peer: hello.from.as_u64() }),
        }
    }
}

struct Session(NodeId);

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.0
    }

    fn welcome(&self) -> Welcome {
        Welcome { node: self.0, incarnation: Incarnation::new(1).unwrap(), protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, _lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        if batch.envelopes.is_empty() {
            return Err(Violation { detail: "nothing".into() });
        }
        Ok(Vec::new())
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        _deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        match offer.attempt {
            0 => Ok(SinkAnswer::AlreadyHave { commit: 1 }),
            _ => Ok(SinkAnswer::Accept { offset: 0, sink: Box::new(Sink) }),
        }
    }
}

struct Sink;

#[async_trait]
impl SnapshotSink for Sink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        Err(SnapshotRefusal::Corrupt { detail: format!("{:x}", chunk.crc32c) })
    }

    async fn finish(self: Box<Self>, _trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        Err(SnapshotRefusal::NotTaken { detail: "old".into() })
    }

    fn progress(&self) -> ProgressCell {
        let progress = ProgressCell::new(3);
        progress.advance(TransferProgress { acked: 2, phase: TransferPhase::Syncing });
        progress
    }
}

/// Where workers post, recording.
#[derive(Default)]
struct Reports(Mutex<Vec<(NodeId, Option<SnapshotStatus>)>>);

impl Reporter for Reports {
    fn report_unreachable(&self, peer: NodeId, _scope: Scope, _cause: UnreachableCause) {
        self.0.lock().unwrap().push((peer, None));
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        self.0.lock().unwrap().push((attempt.peer, Some(status)));
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<LinkClosed>>);

impl LinkEvents for Heard {
    fn nack(&self, _nack: Nack) {}

    fn closed(&self, cause: LinkClosed) {
        self.0.lock().unwrap().push(cause);
    }
}

assert_obj_safe!(LogStore, IdentityStore, SnapshotStore, SnapshotWriter, SnapshotSource);
assert_obj_safe!(Transport, Link, Transfer, Listener, Inbound, PeerSession, SnapshotSink, LinkEvents);
assert_obj_safe!(Reporter);

assert_impl_all!(Node: Send, Sync);
assert_impl_all!(NodeBuilder: Send);
assert_impl_all!(GroupBuilder<'static, Machine>: Send);
assert_impl_all!(Group<Machine>: Clone, Send, Sync);
assert_impl_all!(Proposal<u64>: Send, Sync, Unpin, Future);
assert_impl_all!(LinkFeedback: Send, Sync);
assert_impl_all!(SnapshotTicket: Send, Sync);
assert_impl_all!(Storage: Clone, Send, Sync);
assert_impl_all!(Fatal: Send, Sync);
assert_impl_all!(Batch: Send, Sync);
assert_impl_all!(StartError: Send, Sync, std::error::Error);
assert_impl_all!(ConnectError: Send, Sync, std::error::Error);
// One obligation, one report.
assert_not_impl_any!(SnapshotTicket: Clone);
assert_not_impl_any!(LinkFeedback: Clone);

fn sent<T: Send>(future: T) -> T {
    future
}

/// Never run: that these futures may move between threads is what it says.
async fn every_public_future_is_send(node: Node, group: Group<Machine>) {
    let id = NodeId::new(1).unwrap();
    let builder = Node::builder(id, ClusterId::new("c").unwrap());
    let _ = sent(builder.start()).await;
    let _ = sent(node.group(GroupId::DEFAULT, Machine).start(Start::Restart)).await;
    let _ = sent(group.propose("x")).await;
    let _ = sent(group.read(Consistency::Linearizable)).await;
    let _ = sent(group.status()).await;
    let _ = sent(group.transfer(id)).await;
    let _ = sent(group.wait_leader(Duration::ZERO)).await;
    sent(node.shutdown(Duration::ZERO)).await;
}

#[test]
fn a_feedback_tells_its_end_once_also_when_dropped() {
    let heard = Arc::new(Heard::default());
    drop(LinkFeedback::new(heard.clone()));
    LinkFeedback::new(heard.clone()).closed(LinkClosed::Broken { detail: "cut".into() });
    let broken = LinkClosed::Broken { detail: "cut".into() };
    assert_eq!(*heard.0.lock().unwrap(), [LinkClosed::Abandoned, broken]);
}

#[test]
fn a_ticket_reports_once_also_when_dropped() {
    let reports = Arc::new(Reports::default());
    let peer = NodeId::new(2).unwrap();
    let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer, term: 1, index: 1, number: 1 };
    SnapshotTicket::new(attempt, reports.clone()).finish();
    drop(SnapshotTicket::new(attempt, reports.clone()));
    let statuses = [SnapshotStatus::Finish, SnapshotStatus::Failure(SnapshotFailure::Abandoned)]
        .map(|status| (peer, Some(status)));
    assert_eq!(*reports.0.lock().unwrap(), statuses);
}

/// A state machine can be tested without an engine.
#[test]
fn a_batch_can_be_made_by_hand() {
    let entries = [Entry { index: 3, term: 2, data: "ab".into(), ..Entry::default() }, Entry::default()];
    let batch = ApplyBatch::new(&entries, LogId { index: 3, term: 2 });
    let mut replies = Replies::with_capacity(batch.len());
    Machine.apply(batch, &mut replies).unwrap();
    assert_eq!(replies.into_vec(), [7]);
}

/// Seams of a user's own are enough to build a node; what they say comes back typed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_seams_of_a_users_own() {
    let storage = Storage { log: Arc::new(Log), snapshots: Arc::new(Snapshots), identity: Arc::new(Ids) };
    let builder = Node::builder(NodeId::new(1).unwrap(), ClusterId::new("c").unwrap());
    let address = "wire://here:1".parse().unwrap();
    let error = builder.storage(storage).transport(Arc::new(Wire), address).start().await.unwrap_err();
    assert_eq!(error.to_string(), "identity file identity cannot be read: torn");
}
