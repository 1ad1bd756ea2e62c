//! Messages, entries and the states of a group, as plain data. Payloads are [`Bytes`] and are never copied here.
//!
//! The fields are those of the `raft` crate's messages, which keeps conversions trivial. No type of that crate is public
//! here: upgrading it must not break implementations of transports and logs.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{FoundingHash, GroupId, Incarnation, NodeId, PeerAddr};

/// The kind of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EntryKind {
    /// A command of the state machine, or empty (the first entry of a new leader).
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
    /// Its kind.
    pub kind: EntryKind,
    /// The term of the leader that made it.
    pub term: u64,
    /// Its log index: from 1, without gaps.
    pub index: u64,
    /// The command.
    pub data: Bytes,
    /// Opaque bytes beside the command; the engine uses them to recognise its own proposals.
    pub context: Bytes,
}

impl Entry {
    /// Payload bytes, as the bounds of memory and queues count them.
    pub fn payload_bytes(&self) -> usize {
        self.data.len() + self.context.len()
    }
}

/// The kind of a message. Only kinds that may cross the network exist here.
///
/// Proposals and transfer requests are missing on purpose. A follower of raft 0.7 forwards both under the original sender,
/// so the engine refuses them where they are made, and no peer may send them.
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

    /// The lane that carries this kind. `None` for a snapshot, which travels as a separate transfer.
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
    /// Its kind.
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
    /// Entries; in an append they are contiguous from `index + 1` on.
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    pub commit: u64,
    /// The term of the entry at `commit`, in votes.
    pub commit_term: u64,
    /// Raft's metadata of a snapshot; the snapshot's bytes travel as a transfer. Boxed, because few messages have one.
    pub snapshot: Option<Box<SnapshotRecord>>,
    /// The index for which a follower requests a snapshot, or zero.
    pub request_snapshot: u64,
    /// Whether the message is a rejection.
    pub reject: bool,
    /// The index up to which the rejecting log and the sender's log may agree.
    pub reject_hint: u64,
    /// Opaque bytes: the context of a read round, or the kind of a campaign.
    pub context: Bytes,
    /// The sender's priority in elections.
    pub priority: i64,
    /// The index that the sender's state machine has applied, in answers to heartbeats; else zero. Raft does not see it.
    pub applied: u64,
    /// The highest index that the receiver has acknowledged to this leader, in heartbeats; else zero. Raft does not see it.
    pub acked: u64,
    /// The sender's founding hash, in appends, heartbeats and requests for votes; else not stated. Raft does not see it.
    pub founding: FoundingHash,
    /// Whether the sender's disk is low, in answers to heartbeats: it takes no commands. Raft does not see it.
    pub disk_low: bool,
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
            applied: 0,
            acked: 0,
            founding: FoundingHash::default(),
            disk_low: false,
        }
    }

    /// Payload bytes: commands, contexts and opaque bytes. The byte counters of sender and receiver count these.
    pub fn payload_bytes(&self) -> usize {
        self.entries.iter().map(Entry::payload_bytes).sum::<usize>() + self.context.len()
    }
}

/// Raft's metadata of a snapshot: its log position and the membership there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotRecord {
    /// The last index the snapshot covers.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The membership at that index.
    pub conf_state: ConfState,
}

/// A log position: an index and the term of the entry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    /// The index; zero before the first entry.
    pub index: u64,
    /// The term of the entry at `index`.
    pub term: u64,
}

impl LogId {
    /// The position before the first entry.
    pub const NONE: Self = Self { index: 0, term: 0 };
}

/// Proof that a node lost entries that it had made durable: it acknowledged them to a leader, and its log does not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LostEntries {
    /// Where the log of the node ends.
    pub last_index: u64,
    /// The index up to which the node acknowledged the log.
    pub acknowledged: u64,
}

impl fmt::Display for LostEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { last_index, acknowledged } = self;
        write!(f, "synced entries were lost: log ends at {last_index}, acknowledged {acknowledged}")
    }
}

/// The part of Raft's state that must be durable before the node answers a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HardState {
    /// The current term.
    pub term: u64,
    /// The node voted for in that term.
    pub vote: Option<NodeId>,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// The membership of a group as Raft sees it, without addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfState {
    /// The voters.
    pub voters: Vec<NodeId>,
    /// Members that receive the log and do not vote.
    pub learners: Vec<NodeId>,
    /// The voters before a joint change; empty outside of a joint configuration.
    pub voters_outgoing: Vec<NodeId>,
    /// Voters that become learners when the joint configuration ends.
    pub learners_next: Vec<NodeId>,
    /// Whether the joint configuration ends by itself.
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

/// Address and incarnation of a member. Raft's own [`ConfState`] has only ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The address on which it listens.
    pub address: PeerAddr,
    /// The incarnation with which it joined, if the membership change named it.
    pub incarnation: Option<Incarnation>,
}

/// All members, by node id.
pub type MemberTable = BTreeMap<NodeId, Member>;

/// An ordered stream between two nodes with its own flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes and read-index messages: small messages that never wait behind another lane.
    Control,
    /// Appends and their answers.
    Append,
}

impl Lane {
    /// Both lanes.
    pub const ALL: [Self; 2] = [Self::Control, Self::Append];

    /// The name: `control` or `append`.
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

/// The messages of one dispatch: one lane to one peer, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The messages, in order.
    pub envelopes: Vec<Envelope>,
}

impl Batch {
    /// Payload bytes of all messages.
    pub fn payload_bytes(&self) -> usize {
        self.envelopes.iter().map(|e| e.message.payload_bytes()).sum()
    }
}
