//! The errors of a group's calls: proposals, reads, status, and leadership.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{GroupId, NodeId, PeerAddr};

/// A proposal got no reply from the state machine. [`outcome`](Self::outcome) says whether it may still have an effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This node does not lead the group. Ask the node in `hint`, or wait for a leader.
    #[error("not the leader{}", hint_text(.hint))]
    NotLeader {
        /// The leader, as far as this node knows.
        hint: Option<LeaderHint>,
    },
    /// A queue is full, or a transfer of leadership is under way. Try again a little later.
    #[error("busy: too many entries wait to be applied, or a transfer of leadership is under way")]
    Busy,
    /// The disk of this leader is low, or the voters with room on their disks are no quorum. The command was not appended.
    /// Free space on these disks, or add some; the group then takes commands again by itself.
    #[error("the disk is full: too little room on {}; the command was not appended", nodes_text(.low))]
    DiskFull {
        /// The voters whose disks are low.
        low: Arc<[NodeId]>,
    },
    /// The command is larger than `proposal_bytes_max`.
    #[error("a command of {bytes} bytes is larger than {bytes_max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The command is empty. Raft itself uses empty entries.
    #[error("a command must not be empty")]
    Empty,
    /// The command was appended to the log, but its outcome is unknown: it may be applied or not. Retry it only if it is
    /// idempotent, or has a key by which the state machine recognises it.
    #[error("the outcome is not known: {cause}")]
    Uncertain {
        /// Why the outcome is unknown.
        cause: UncertainCause,
    },
    /// Another leader's entry was committed at the index of this command, which therefore never has an effect.
    #[error("superseded by another leader; the command was not applied{}", hint_text(.hint))]
    Superseded {
        /// The leader, as far as this node knows.
        hint: Option<LeaderHint>,
    },
    /// The group or the node has stopped. The command was not appended.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: Arc<str>,
    },
}

impl ProposeError {
    /// Whether the command may have been applied, or may be applied yet.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Uncertain { .. } => Outcome::MayHaveHappened,
            _ => Outcome::NeverHappened,
        }
    }
}

/// Whether a command that was answered with an error had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It had none and never will.
    NeverHappened,
    /// It may have been applied, or may be applied yet.
    MayHaveHappened,
}

/// Why the outcome of a command is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UncertainCause {
    /// This node lost its leadership before the command was committed.
    #[error("leadership was lost before the command was committed")]
    LostLeadership,
    /// The group was quarantined or the node stopped.
    #[error("the group went down: {0}")]
    Down(Arc<str>),
    /// `proposal_timeout` passed. The command may still be applied at any time.
    #[error("not applied within {after_ms} ms: {cause}")]
    Timeout {
        /// The limit.
        after_ms: u64,
        /// What the command waited for, as far as this node knows.
        cause: Arc<str>,
    },
}

/// The node that leads a group, as far as the node that was asked knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    /// Its id.
    pub node: NodeId,
    /// The address for its peers: from [`NodeBuilder::peer_address`](crate::node::NodeBuilder::peer_address), otherwise from
    /// the member list. `None` if neither has one.
    pub address: Option<PeerAddr>,
}

impl From<NodeId> for LeaderHint {
    fn from(node: NodeId) -> Self {
        Self { node, address: None }
    }
}

/// `node 1, node 2`
pub(crate) fn nodes_text(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

fn hint_text(hint: &Option<LeaderHint>) -> String {
    match hint {
        Some(LeaderHint { node, address: Some(address) }) => format!("; node {node} at {address} is"),
        Some(LeaderHint { node, address: None }) => format!("; node {node} is"),
        None => "; no leader is known".into(),
    }
}

/// A read could not be confirmed. Reads have no effect, so they can always be tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader was known when the deadline passed.
    #[error("no leader is known")]
    NoLeader,
    /// Too many reads are waiting. Try again a little later.
    #[error("busy: too many reads are waiting")]
    Busy,
    /// A leader is known, but a majority did not confirm the read in time.
    #[error("no majority confirmed the read in time")]
    Timeout,
    /// The read was not served in time, because disks are full: this node knows no leader, or lacks entries, or leads and
    /// cannot commit in its term. Free space on the disks, or add some.
    #[error("the read was not served in time: the disk of this node or of too many voters is full")]
    DiskFull,
    /// A majority confirmed the read, but this node's state machine did not reach its index in time.
    #[error(
        "the read must see entry {index}, but the state machine is at {applied}{}",
        .call.as_ref().map_or_else(String::new, |call| format!(": {call}"))
    )]
    NotApplied {
        /// The index that the read must see.
        index: u64,
        /// The applied index.
        applied: u64,
        /// The running call of the state machine, if there is one.
        call: Option<Arc<str>>,
    },
    /// The group or the node does not run any more.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: Arc<str>,
    },
}

/// [`Group::wait_leader`](crate::node::Group::wait_leader) cannot name a leader. Waiting has no effect on the group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitLeaderError {
    /// No leader was known in time. Likely, no majority of the voters runs, or the nodes cannot reach each other.
    #[error(
        "no leader of group {group} was known within {waited:?}; check that a majority of its voters runs and is connected"
    )]
    NoLeader {
        /// The group.
        group: GroupId,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The group or the node does not run any more.
    #[error("group {group} has stopped on this node: {cause}")]
    Stopped {
        /// The group.
        group: GroupId,
        /// Why.
        cause: Arc<str>,
    },
    /// The future was polled outside of a tokio runtime, or in one without timers. Nothing was waited for.
    #[error(
        "the future must be polled in a tokio runtime that has timers; build it with `enable_time` or `enable_all`"
    )]
    NoRuntime,
}

/// [`Group::status`](crate::node::Group::status) has no answer. Asking has no effect on the group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// Too many calls wait for the shard thread. Try again a little later.
    #[error(
        "busy: {waiting_max} calls of `status`, `explain` and `transfer` wait for group {group}; try again later"
    )]
    Busy {
        /// The group.
        group: GroupId,
        /// The limit.
        waiting_max: usize,
    },
    /// The group or the node does not run any more.
    #[error("group {group} has stopped on this node: {cause}")]
    Stopped {
        /// The group.
        group: GroupId,
        /// Why.
        cause: Arc<str>,
    },
}

/// [`Group::stop`](crate::node::Group::stop) could not flush the state machine. The group has stopped on this node.
/// Nothing acknowledged is lost: the next start applies from the log what the state machine did not make durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("group {group} has stopped on this node, but its state machine was not flushed: {cause}")]
pub struct StopError {
    /// The group.
    pub group: GroupId,
    /// Why it was not flushed.
    pub cause: Arc<str>,
}

/// Leadership was not transferred. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferLeaderError {
    /// Only a leader can transfer leadership.
    #[error("not the leader{}", hint_text(.hint))]
    NotLeader {
        /// The leader, as far as this node knows.
        hint: Option<LeaderHint>,
    },
    /// The target is no voter of this group, or is this node.
    #[error("node {target} is not another voter of this group")]
    NotVoter {
        /// The target.
        target: NodeId,
    },
    /// The target is too far behind, or silent. A transfer would stop proposals in vain.
    #[error("node {target} is not ready to lead: {detail}")]
    NotReady {
        /// The target.
        target: NodeId,
        /// What is missing.
        detail: String,
    },
    /// Another transfer is under way.
    #[error("another transfer of leadership is under way")]
    Busy,
    /// The target did not become leader within an election timeout.
    #[error("node {target} did not take over in time")]
    Timeout {
        /// The target.
        target: NodeId,
    },
    /// The group or the node does not run any more.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: Arc<str>,
    },
    /// The future was polled outside of a tokio runtime, or in one without timers. The leader was not asked.
    #[error(
        "the future must be polled in a tokio runtime that has timers; build it with `enable_time` or `enable_all`"
    )]
    NoRuntime,
}
