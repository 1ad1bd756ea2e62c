//! The control of case 1, on the raft crate alone: without a report of its snapshot a follower stays latched.

use raft::eraftpb::{Entry, HardState, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, ProgressState, RawNode, SnapshotStatus};

const HEARTBEATS: usize = 1_000;

/// Node 1 of two voters. Its log begins after the last entry of node 2.
fn leader() -> RawNode<MemStorage> {
    let config = Config { id: 1, applied: 5, election_tick: 10, heartbeat_tick: 1, ..Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let storage = MemStorage::new_with_conf_state((vec![1, 2], vec![]));
    let entry = |index| Entry { index, term: 1, ..Entry::default() };
    storage.wl().append(&(1..=5).map(entry).collect::<Vec<_>>()).unwrap();
    storage.wl().set_hardstate(HardState { term: 1, commit: 5, ..HardState::default() });
    storage.wl().compact(4).unwrap();
    let mut node = RawNode::new(&config, storage, &logger).unwrap();
    node.campaign().unwrap();
    take_messages(&mut node);
    node.step(from_peer(&node, MessageType::MsgRequestVoteResponse)).unwrap();
    node
}

fn from_peer(node: &RawNode<MemStorage>, kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (2, 1, node.raft.term);
    message
}

/// Handles all readies and returns their messages.
fn take_messages(node: &mut RawNode<MemStorage>) -> Vec<Message> {
    let mut messages = Vec::new();
    while node.has_ready() {
        let mut ready = node.ready();
        messages.extend(ready.take_messages());
        if let Some(hard_state) = ready.hs() {
            node.mut_store().wl().set_hardstate(hard_state.clone());
        }
        node.mut_store().wl().append(ready.entries()).unwrap();
        messages.extend(ready.take_persisted_messages());
        let mut light = node.advance(ready);
        messages.extend(light.take_messages());
        node.advance_apply();
    }
    messages
}

fn has(messages: &[Message], kind: MessageType) -> bool {
    messages.iter().any(|m| m.get_msg_type() == kind)
}

/// A leader whose snapshot to node 2 was sent and lost.
fn with_a_lost_snapshot() -> RawNode<MemStorage> {
    let mut node = leader();
    let probe = take_messages(&mut node).into_iter().find(|m| m.get_msg_type() == MessageType::MsgAppend);
    let mut reject = from_peer(&node, MessageType::MsgAppendResponse);
    (reject.reject, reject.index, reject.reject_hint) = (true, probe.unwrap().index, 0);
    node.step(reject).unwrap();
    assert!(has(&take_messages(&mut node), MessageType::MsgSnapshot));
    assert_eq!(node.raft.prs().get(2).unwrap().state, ProgressState::Snapshot);
    node
}

/// Exchanges one heartbeat and returns what else the leader sends.
fn heartbeat(node: &mut RawNode<MemStorage>) -> Vec<Message> {
    node.tick();
    let mut sent = take_messages(node);
    assert!(has(&sent, MessageType::MsgHeartbeat));
    node.step(from_peer(node, MessageType::MsgHeartbeatResponse)).unwrap();
    sent.extend(take_messages(node));
    sent.retain(|m| m.get_msg_type() != MessageType::MsgHeartbeat);
    sent
}

#[test]
fn an_unreported_lost_snapshot_stops_replication_for_ever() {
    let mut node = with_a_lost_snapshot();
    for _ in 0..HEARTBEATS {
        assert_eq!(heartbeat(&mut node), []);
    }
    node.report_unreachable(2);
    assert_eq!(heartbeat(&mut node), [], "a report of an unreachable peer does not help");
    assert_eq!(node.raft.prs().get(2).unwrap().state, ProgressState::Snapshot);
}

#[test]
fn after_a_report_of_failure_the_leader_sends_the_snapshot_within_a_heartbeat() {
    let mut node = with_a_lost_snapshot();
    node.report_snapshot(2, SnapshotStatus::Failure);
    assert_eq!(node.raft.prs().get(2).unwrap().state, ProgressState::Probe);
    assert!(has(&heartbeat(&mut node), MessageType::MsgSnapshot));
}
