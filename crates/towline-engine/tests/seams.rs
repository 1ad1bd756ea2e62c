//! The public types: object safety of the seams, and which types may move between threads.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::EmptyMachine;
use static_assertions::{assert_impl_all, assert_not_impl_any, assert_obj_safe};
use towline_engine::identity::IdentityStore;
use towline_engine::ids::{ClusterId, GroupId, NodeId};
use towline_engine::log_store::LogStore;
use towline_engine::message::{Batch, Entry, LogId};
use towline_engine::node::{
    Consistency, Group, GroupBuilder, Node, NodeBuilder, Proposal, Start, StartError,
};
use towline_engine::reporter::{
    Reporter, Scope, SnapshotAttempt, SnapshotFailure, SnapshotStatus, SnapshotTicket, UnreachableCause,
};
use towline_engine::snapshot_store::{SnapshotStore, SnapshotWriter};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine as _};
use towline_engine::storage::Storage;
use towline_engine::transport::*;

/// Records what is reported to it.
struct Recorded<T>(Mutex<Vec<T>>);

impl Reporter for Recorded<SnapshotStatus> {
    fn report_unreachable(&self, _peer: NodeId, _scope: Scope, _cause: UnreachableCause) {}

    fn report_snapshot(&self, _attempt: SnapshotAttempt, status: SnapshotStatus) {
        self.0.lock().unwrap().push(status);
    }
}

impl LinkEvents for Recorded<LinkClosed> {
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
assert_impl_all!(GroupBuilder<'static, EmptyMachine>: Send);
assert_impl_all!(Group<EmptyMachine>: Clone, Send, Sync);
assert_impl_all!(Proposal<u64>: Send, Sync, Unpin, Future);
assert_impl_all!(LinkFeedback: Send, Sync);
assert_impl_all!(SnapshotTicket: Send, Sync);
assert_impl_all!(Storage: Clone, Send, Sync);
assert_impl_all!(Fatal: Send, Sync);
assert_impl_all!(Batch: Send, Sync);
assert_impl_all!(StartError: Send, Sync, std::error::Error);
assert_impl_all!(ConnectError: Send, Sync, std::error::Error);
// One value, one report.
assert_not_impl_any!(SnapshotTicket: Clone);
assert_not_impl_any!(LinkFeedback: Clone);

fn assert_send<T: Send>(future: T) -> T {
    future
}

/// Compiled and never run.
async fn every_public_future_is_send(node: Node, group: Group<EmptyMachine>) {
    let id = NodeId::new(1).unwrap();
    let builder = Node::builder(id, ClusterId::new("c").unwrap());
    let _ = assert_send(builder.start()).await;
    let _ = assert_send(node.group(GroupId::DEFAULT, EmptyMachine::default()).start(Start::Restart)).await;
    let _ = assert_send(group.propose("x")).await;
    let _ = assert_send(group.read(Consistency::Linearizable)).await;
    let _ = assert_send(group.status()).await;
    let _ = assert_send(group.transfer(id)).await;
    let _ = assert_send(group.wait_leader(Duration::ZERO)).await;
    assert_send(node.shutdown(Duration::ZERO)).await;
}

#[test]
fn a_link_feedback_reports_its_end_once_also_on_drop() {
    let events = Arc::new(Recorded(Mutex::default()));
    drop(LinkFeedback::new(events.clone()));
    LinkFeedback::new(events.clone()).closed(LinkClosed::Broken { detail: "cut".into() });
    let broken = LinkClosed::Broken { detail: "cut".into() };
    assert_eq!(*events.0.lock().unwrap(), [LinkClosed::Abandoned, broken]);
}

#[test]
fn a_ticket_reports_once_also_on_drop() {
    let reports = Arc::new(Recorded(Mutex::default()));
    let peer = NodeId::new(2).unwrap();
    let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer, term: 1, index: 1, number: 1 };
    SnapshotTicket::new(attempt, reports.clone()).finish();
    drop(SnapshotTicket::new(attempt, reports.clone()));
    let expected = [SnapshotStatus::Finish, SnapshotStatus::Failure(SnapshotFailure::Abandoned)];
    assert_eq!(*reports.0.lock().unwrap(), expected);
}

/// A state machine can be tested without an engine.
#[test]
fn a_batch_can_be_made_by_hand() {
    let entries = [Entry { index: 3, term: 2, data: "ab".into(), ..Entry::default() }, Entry::default()];
    let batch = ApplyBatch::new(&entries, LogId { index: 3, term: 2 });
    let mut replies = Replies::with_capacity(batch.len());
    EmptyMachine::default().apply(batch, &mut replies).unwrap();
    assert_eq!(replies.into_vec().len(), 1);
}
