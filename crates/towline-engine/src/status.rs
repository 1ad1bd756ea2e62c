//! The state and status of a group, as its handle returns them.

use std::sync::Arc;

use serde::Serialize;

use crate::ids::{GroupId, NodeId};
use crate::message::LostEntries;
use crate::reporter::{SnapshotFailure, SnapshotStatus};
use crate::transport::TransferPhase;

/// The role of this node in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks for votes or pre-votes.
    Candidate,
    /// It leads.
    Leader,
    /// Out of service on this node: quarantined, or stopped. It neither ticks nor votes.
    Down,
}

/// The newest state of a group. Reading it is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupState {
    /// The role of this node.
    pub role: Role,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index the state machine has applied.
    pub applied: u64,
    /// Why the group is out of service, if it is.
    pub down: Option<Arc<str>>,
    /// Which peer refuses this node, why, and what that means; `None` if none does.
    pub refused: Option<Arc<str>>,
}

/// A peer that refuses this node, as of this node's last call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerRefusal {
    /// The peer.
    pub by: NodeId,
    /// The cause that it gave.
    pub refusal: Arc<str>,
    /// What the refusal means for this node, and what to do.
    pub meaning: &'static str,
    /// The milliseconds since then.
    pub age_ms: u64,
}

/// The detailed status of a group, collected on its shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// The newest state.
    pub state: GroupState,
    /// The index of the first entry in the log.
    pub first_index: u64,
    /// The index of the last entry.
    pub last_index: u64,
    /// Bytes of entries that are not applied yet, with their overhead.
    pub unapplied_bytes: usize,
    /// Ticks since the oldest log write that is not durable was made; zero if none is under way.
    pub write_age_ticks: u64,
    /// Ticks since the oldest committed entry that is not applied was given to the state machine; zero if none waits.
    pub apply_age_ticks: u64,
    /// Whether the disk of this node is low: it takes no commands.
    pub disk_low: bool,
    /// The index of the newest snapshot on disk; zero for none.
    pub snapshot_index: u64,
    /// The peers that refuse this node.
    pub refusals: Vec<PeerRefusal>,
    /// The progress of each peer; empty unless this node leads.
    pub peers: Vec<PeerStatus>,
}

/// A leader's view of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// How the leader replicates to it.
    pub progress: PeerProgress,
    /// The highest index known to match the leader's log.
    pub matched: u64,
    /// The index that its state machine has applied, as of its last answer to a heartbeat.
    pub applied: u64,
    /// Whether its disk is low, as of its last answer to a heartbeat: it takes no commands.
    pub disk_low: bool,
    /// The entries that it lost, if it says so: its group is out of service.
    pub lost: Option<LostEntries>,
    /// The next index to send.
    pub next: u64,
    /// Whether the leader heard from it within the last one to two election timeouts.
    pub recent_active: bool,
    /// The index of the snapshot that is being sent to it, or zero.
    pub pending_snapshot: u64,
    /// Ticks since `progress` last changed.
    pub progress_age_ticks: u64,
    /// The current attempt to send it a snapshot.
    pub attempt: Option<AttemptStatus>,
    /// The previous attempt.
    pub last_attempt: Option<LastAttempt>,
    /// Ticks until another attempt may begin.
    pub backoff_ticks: u64,
}

/// The current attempt to send a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AttemptStatus {
    /// The attempt's number; it grows with each attempt of this node, over all groups.
    pub number: u64,
    /// The snapshot's index.
    pub index: u64,
    /// Its length in payload bytes.
    pub bytes: u64,
    /// The offset in the body at which the receiver asked the transfer to begin.
    pub offset: u64,
    /// Payload bytes passed to the transport in this attempt.
    pub sent: u64,
    /// Payload bytes that the receiver has, including those before `offset`. Does not grow while the receiver verifies and
    /// syncs the file, and while its Raft takes the snapshot.
    pub acked: u64,
    /// The phase that the receiver last reported. `Verifying` before the first sent byte means that the receiver verifies its
    /// partial file before it answers the offer.
    pub phase: Option<TransferPhase>,
}

/// An ended attempt to send a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastAttempt {
    /// The attempt's number.
    pub number: u64,
    /// Its outcome.
    pub outcome: AttemptOutcome,
}

/// The outcome of an attempt to send a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The peer has the snapshot.
    Finished,
    /// The attempt failed for this cause.
    Failed(SnapshotFailure),
    /// The term of leadership ended, or the peer is no longer a member. Raft gets no report.
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

/// How a leader replicates to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerProgress {
    /// One message at a time. A peer that is up to date stays in this state until the next write, so the state alone is no
    /// sign of a fault.
    Probe,
    /// A stream of appends.
    Replicate,
    /// Only heartbeats, until the outcome of a snapshot is known.
    Snapshot,
}
