//! Messages, entries and the states of a group, as plain data. Payloads are [`Bytes`] and are never copied here.
//!
//! Field for field these are the messages of the `raft` crate, so that both ends of a conversion stay trivial, but
//! no type of that crate is visible: an upgrade of it must not break whoever implements a transport or a log.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, Incarnation, NodeId, PeerAddr};

/// What an entry of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EntryKind {
    /// A command of the state machine, or empty (a new leader's first entry).
    #[default]
    Normal,
    /// A change of one member.
    ConfChange,
    /// A change of several members at once.
    ConfChangeV2,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The term in which a leader made it.
    pub term: u64,
    /// Its place in the log, from 1, without gaps.
    pub index: u64,
    /// The command.
    pub data: Bytes,
    /// Travels with the command; the engine uses it for its own proposals.
    pub context: Bytes,
}

impl Entry {
    /// Bytes of payload: what memory and queue bounds count.
    pub fn payload_bytes(&self) -> usize {
        self.data.len() + self.context.len()
    }
}

/// What a message is. Only kinds that may cross the network exist here.
///
/// Proposals and transfer requests are not among them: a follower of raft 0.7 forwards both, keeping the original
/// sender, so the engine refuses them where they are made and no peer may send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are Raft's own
pub enum MessageKind {
    Append,
    AppendResponse,
    RequestVote,
    RequestVoteResponse,
    RequestPreVote,
    RequestPreVoteResponse,
    Heartbeat,
    HeartbeatResponse,
    Snapshot,
    TimeoutNow,
    ReadIndex,
    ReadIndexResponse,
}

impl MessageKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Append,
        Self::AppendResponse,
        Self::RequestVote,
        Self::RequestVoteResponse,
        Self::RequestPreVote,
        Self::RequestPreVoteResponse,
        Self::Heartbeat,
        Self::HeartbeatResponse,
        Self::Snapshot,
        Self::TimeoutNow,
        Self::ReadIndex,
        Self::ReadIndexResponse,
    ];

    /// The lane that carries this kind, or `None` for a snapshot, which travels as a transfer of its own.
    pub fn lane(self) -> Option<Lane> {
        match self {
            Self::Append | Self::AppendResponse => Some(Lane::Append),
            Self::Snapshot => None,
            _ => Some(Lane::Control),
        }
    }
}

/// A message from one member of a group to another.
///
/// The meaning of each field depends on the kind, exactly as in Raft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// The receiver.
    pub to: NodeId,
    /// The sender.
    pub from: NodeId,
    /// The sender's term; zero only in a [`MessageKind::ReadIndex`].
    pub term: u64,
    /// The term of the entry at `index`.
    pub log_term: u64,
    /// An index of the log.
    pub index: u64,
    /// Entries, contiguous from `index + 1` in an append.
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    pub commit: u64,
    /// The term of the entry at `commit`, in votes.
    pub commit_term: u64,
    /// Raft's record of a snapshot; its bytes travel apart.
    pub snapshot: Option<SnapshotRecord>,
    /// The index a follower asks a snapshot for, or zero.
    pub request_snapshot: u64,
    /// A refusal.
    pub reject: bool,
    /// Where the refusing log and the sender's may still agree.
    pub reject_hint: u64,
    /// Opaque bytes: the round of a read barrier, or the kind of a campaign.
    pub context: Bytes,
    /// The sender's priority in elections.
    pub priority: i64,
}

impl Message {
    /// An empty message of a kind between two nodes.
    pub fn new(kind: MessageKind, from: NodeId, to: NodeId) -> Self {
        Self {
            kind,
            to,
            from,
            term: 0,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            snapshot: None,
            request_snapshot: 0,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
            priority: 0,
        }
    }

    /// Bytes of payload: commands, contexts and opaque bytes; what the byte counters on both ends count.
    pub fn payload_bytes(&self) -> usize {
        self.entries.iter().map(Entry::payload_bytes).sum::<usize>() + self.context.len()
    }
}

/// What Raft knows of a snapshot: the place in the log it stands for, and the membership there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotRecord {
    /// The last index the snapshot covers.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The membership at that index.
    pub conf_state: ConfState,
}

/// The part of Raft's state that must be durable before any answer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HardState {
    /// The newest term seen.
    pub term: u64,
    /// The node voted for in that term.
    pub vote: Option<NodeId>,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// The membership of a group as Raft sees it: ids only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfState {
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who receives the log without voting.
    pub learners: Vec<NodeId>,
    /// Who voted before a joint change; empty outside one.
    pub voters_outgoing: Vec<NodeId>,
    /// Who becomes a learner when the joint change ends.
    pub learners_next: Vec<NodeId>,
    /// Whether the joint change ends by itself.
    pub auto_leave: bool,
}

impl ConfState {
    /// Whether `node` is a member in any role.
    pub fn contains(&self, node: NodeId) -> bool {
        [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next]
            .iter()
            .any(|ids| ids.contains(&node))
    }
}

/// What the engine knows of a member beside its id; Raft's own [`ConfState`] has ids only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it listens.
    pub address: PeerAddr,
    /// The incarnation it joined with, where the membership change named it.
    pub incarnation: Option<Incarnation>,
}

/// All members by id.
pub type MemberTable = BTreeMap<NodeId, Member>;

/// A stream between two nodes that keeps its own order and its own flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes, read barriers: small, never waits behind another lane.
    Control,
    /// Appends and their answers.
    Append,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Control, Self::Append];

    /// `control` or `append`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Append => "append",
        }
    }
}

/// A message and the group it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The group.
    pub group: GroupId,
    /// The message.
    pub message: Message,
}

/// What one dispatch carries: messages of one lane to one peer, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The messages, in order.
    pub envelopes: Vec<Envelope>,
}

impl Batch {
    /// Bytes of payload of all messages.
    pub fn payload_bytes(&self) -> usize {
        self.envelopes.iter().map(|e| e.message.payload_bytes()).sum()
    }
}
