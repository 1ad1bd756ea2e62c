//! What a group tells about itself.

use std::sync::Arc;

use serde::Serialize;

use crate::ids::{GroupId, NodeId};
use crate::reporter::{SnapshotFailure, SnapshotStatus};
use crate::transport::TransferPhase;

/// What this node is in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes, or asks whether it would get them.
    Candidate,
    /// Leads.
    Leader,
    /// Out of service on this node: quarantined, or stopped. It neither ticks nor votes.
    Down,
}

/// The newest state of a group; cheap to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupState {
    /// What this node is.
    pub role: Role,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index the state machine has applied.
    pub applied: u64,
    /// Why the group is out of service, if it is.
    pub down: Option<Arc<str>>,
}

/// A closer look at a group, taken on its shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// The newest state.
    pub state: GroupState,
    /// The index of the first entry that is kept.
    pub first_index: u64,
    /// The index of the last entry.
    pub last_index: u64,
    /// Bytes of entries that are not applied yet, with their overhead.
    pub unapplied_bytes: usize,
    /// The index of the newest snapshot on disk; zero for none.
    pub snapshot_index: u64,
    /// What a leader knows of its peers; empty on other nodes.
    pub peers: Vec<PeerStatus>,
}

/// What a leader knows of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// How the leader sends to it.
    pub progress: PeerProgress,
    /// The highest index known to be in its log.
    pub matched: u64,
    /// The next index to send.
    pub next: u64,
    /// Whether it was heard of lately: within the last election timeout or, at most, the last two.
    pub recent_active: bool,
    /// The index of a snapshot under way to it, or zero.
    pub pending_snapshot: u64,
    /// Ticks since `progress` last changed.
    pub progress_age_ticks: u64,
    /// The live attempt to send it a snapshot.
    pub attempt: Option<AttemptStatus>,
    /// The attempt before.
    pub last_attempt: Option<LastAttempt>,
    /// Ticks until another attempt may begin.
    pub backoff_ticks: u64,
}

/// A snapshot under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AttemptStatus {
    /// Counts up with each attempt of this node, whatever the group.
    pub number: u64,
    /// The snapshot's index.
    pub index: u64,
    /// Its length in payload bytes.
    pub bytes: u64,
    /// Where the receiver wanted it to begin.
    pub offset: u64,
    /// Payload bytes handed to the transport in this attempt.
    pub sent: u64,
    /// Payload bytes the receiver has, those before `offset` included. Stands while it verifies, syncs and steps.
    pub acked: u64,
    /// What the receiver does, as far as it has said anything. Verifying with nothing sent: it reads again what it has,
    /// before it answers the offer, and acknowledges that.
    pub phase: Option<TransferPhase>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastAttempt {
    /// Its number.
    pub number: u64,
    /// How.
    pub outcome: AttemptOutcome,
}

/// How an attempt to send a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The peer has it.
    Finished,
    /// It does not, for this cause.
    Failed(SnapshotFailure),
    /// The leadership it belonged to is over, or the peer is no member any more: nobody is to be told.
    Void,
}

impl From<SnapshotStatus> for AttemptOutcome {
    fn from(status: SnapshotStatus) -> Self {
        match status {
            SnapshotStatus::Finish => Self::Finished,
            SnapshotStatus::Failure(cause) => Self::Failed(cause),
        }
    }
}

/// How a leader sends to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerProgress {
    /// One message at a time. A peer that has caught up stays here until the next write, so this alone says nothing
    /// about its health.
    Probe,
    /// A stream of appends.
    Replicate,
    /// Nothing but heartbeats, until the outcome of a snapshot is known.
    Snapshot,
}
