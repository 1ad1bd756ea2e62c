//! The public types: object safety of the seams, and which types may move between threads.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::EmptyMachine;
use static_assertions::{assert_impl_all, assert_not_impl_any, assert_obj_safe};
use towline_engine::identity::IdentityStore;
use towline_engine::ids::{ClusterId, GroupId, NodeId};
use towline_engine::log_store::LogStore;
use towline_engine::message::Batch;
use towline_engine::node::{
    Consistency, Group, GroupBuilder, Node, NodeBuilder, Proposal, Start, StartError,
};
use towline_engine::reporter::{Reporter, SnapshotTicket};
use towline_engine::snapshot_store::{SnapshotStore, SnapshotWriter};
use towline_engine::state_machine::{Fatal, SnapshotSource};
use towline_engine::storage::Storage;
use towline_engine::transport::*;

#[derive(Default)]
struct ClosedLinks(Mutex<Vec<LinkClosed>>);

impl LinkEvents for ClosedLinks {
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
    let events = Arc::new(ClosedLinks::default());
    drop(LinkFeedback::new(events.clone()));
    LinkFeedback::new(events.clone()).closed(LinkClosed::Broken { detail: "cut".into() });
    let broken = LinkClosed::Broken { detail: "cut".into() };
    assert_eq!(*events.0.lock().unwrap(), [LinkClosed::Abandoned, broken]);
}
