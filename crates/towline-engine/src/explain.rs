//! What a group waits for, as [`Group::explain`](crate::node::Group::explain) returns it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use towline_metrics::labels::WaitKind;

use crate::errors::nodes_text;
use crate::ids::NodeId;
use crate::status::{AttemptOutcome, AttemptStatus, LastAttempt};

/// One thing that a group waits for. Its text says what, since when, and what ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// The peer that the wait is about; `None` for this node.
    pub peer: Option<NodeId>,
    /// The time since the wait began; of a peer that lacks entries, since it began to lack them.
    #[serde(rename = "age_ms", serialize_with = "millis")]
    pub age: Duration,
    /// What the group waits for.
    #[serde(flatten)]
    pub cause: WaitCause,
}

/// What a group waits for. Of several causes the first one in this order is named.
///
/// The causes up to `Redundancy` are about this node. Those from `Silent` on are about a peer of a leader; `Apply` is the last
/// of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WaitCause {
    /// The group is out of service on this node.
    Down {
        /// Why.
        why: Arc<str>,
    },
    /// A write of the log has not completed. The age is that of the write.
    LogWrite {
        /// The last index of the log.
        last: u64,
    },
    /// The state machine has not restored a received snapshot.
    Install {
        /// The index of the snapshot.
        index: u64,
    },
    /// Too few voters were heard of to elect a leader, or to commit. In a joint configuration: of the half that lacks its
    /// quorum.
    NoQuorum {
        /// The voters that a quorum needs. This node is one of them if it votes.
        needed: usize,
        /// The other voters.
        voters: Vec<HeardVoter>,
    },
    /// This node campaigns, or has campaigned since it lost its leader. No node has won yet.
    Election {
        /// The term of this node.
        term: u64,
    },
    /// No leader is known, and this node has not campaigned yet.
    NoLeader,
    /// Disks have too little room. A leader without room, or without a quorum of voters with room, refuses commands.
    DiskFull {
        /// Of a leader: the voters whose disks are low. Otherwise: the node that the wait is about.
        low: Vec<NodeId>,
    },
    /// A quorum has not acknowledged the end of the log.
    Commit {
        /// The commit index.
        commit: u64,
        /// The last index of the log.
        last: u64,
    },
    /// Committed entries are not applied: on this node or, where it leads, on the peer.
    Apply {
        /// The applied index.
        applied: u64,
        /// The commit index.
        commit: u64,
        /// The present call of the state machine. `None`: the entries are being read from the log, or are those of a peer.
        call: Option<Arc<str>>,
    },
    /// Leadership moves to another node. Proposals are refused meanwhile.
    Transfer {
        /// That node.
        target: NodeId,
    },
    /// Voters are silent, behind, or without room on their disks. The group serves, and fewer failures than usual would stop it.
    Redundancy {
        /// These voters.
        missing: Vec<NodeId>,
        /// How many more voters may fail.
        tolerated: usize,
    },
    /// The peer does not answer.
    Silent {
        /// The index up to which it has acknowledged the log.
        acked: u64,
    },
    /// The peer gets a snapshot.
    Snapshot {
        /// The attempt.
        attempt: AttemptStatus,
    },
    /// The peer refuses messages of the group; or the peer and this node are not connected, because one refuses the other.
    Refused {
        /// The index up to which it has acknowledged the log.
        acked: u64,
        /// Which of the two refuses, why, and what that means.
        why: Option<Arc<str>>,
    },
    /// The peer needs a snapshot, and the next attempt has to wait.
    Backoff {
        /// The time until the next attempt.
        #[serde(rename = "remaining_ms", serialize_with = "millis")]
        remaining: Duration,
        /// The previous attempt.
        last_attempt: Option<LastAttempt>,
    },
    /// The peer lacks entries.
    CatchingUp {
        /// The index up to which it has acknowledged the log.
        acked: u64,
        /// The last index of the log.
        last: u64,
    },
}

/// When another voter was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeardVoter {
    /// The voter.
    pub id: NodeId,
    /// The time since its last message; `None` for none since the group started here.
    #[serde(rename = "heard_ms", serialize_with = "some_millis")]
    pub heard: Option<Duration>,
    /// Which of the two nodes refuses the other, why, and what that means; `None` if neither does.
    pub refused: Option<Arc<str>>,
}

fn millis<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn some_millis<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, to),
        None => to.serialize_none(),
    }
}

impl WaitCause {
    /// The cause without its details: a label of metrics and log lines.
    pub fn kind(&self) -> WaitKind {
        match self {
            Self::Down { .. } => WaitKind::Down,
            Self::LogWrite { .. } => WaitKind::LogWrite,
            Self::Install { .. } => WaitKind::Install,
            Self::NoQuorum { .. } => WaitKind::NoQuorum,
            Self::Election { .. } => WaitKind::Election,
            Self::NoLeader => WaitKind::NoLeader,
            Self::Transfer { .. } => WaitKind::Transfer,
            Self::DiskFull { .. } => WaitKind::DiskFull,
            Self::Commit { .. } => WaitKind::Commit,
            Self::Apply { .. } => WaitKind::Apply,
            Self::Redundancy { .. } => WaitKind::Redundancy,
            Self::Silent { .. } => WaitKind::Silent,
            Self::Snapshot { .. } => WaitKind::Snapshot,
            Self::Refused { .. } => WaitKind::Refused,
            Self::Backoff { .. } => WaitKind::Backoff,
            Self::CatchingUp { .. } => WaitKind::CatchingUp,
        }
    }

    /// What ends the wait.
    pub fn ends(&self) -> &'static str {
        match self {
            Self::Down { .. } => "when that is repaired and the group is started again",
            Self::LogWrite { .. } => "when the disk of the log completes the write",
            Self::Install { .. } => "when the state machine has restored the snapshot",
            Self::NoQuorum { .. } => "when enough of these voters run and can be reached",
            Self::Election { .. } => "when a quorum votes for one candidate",
            Self::NoLeader => "when a leader is heard, or when this node campaigns",
            Self::Transfer { .. } => "when that node leads, or after the shortest election timeout",
            Self::DiskFull { .. } => "when there is room on these disks",
            Self::Commit { .. } => {
                "when a quorum has written the entries; the waits of the peers say what each lacks"
            }
            Self::Apply { call: Some(_), .. } => "when the call of the state machine returns",
            Self::Apply { call: None, .. } => "when the entries are read from the log there and applied",
            Self::Redundancy { .. } => "when these voters answer, have room and have the log",
            Self::Silent { .. } => "when the peer runs and can be reached",
            Self::Snapshot { .. } => "when the peer has the snapshot, or the attempt fails",
            Self::Refused { .. } => {
                "when the cause of the refusal is gone; the log of the node that refuses names it"
            }
            Self::Backoff { .. } => "with the next attempt, if the cause of the failure is gone",
            Self::CatchingUp { .. } => "when the peer has written the entries",
        }
    }
}

impl fmt::Display for WaitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down { why } => write!(f, "the group is down: {why}"),
            Self::LogWrite { last } => write!(f, "a log write has not completed; the log ends at {last}"),
            Self::Install { index } => write!(f, "the snapshot at {index} is not restored"),
            Self::NoQuorum { needed, voters } => {
                write!(f, "a quorum needs {needed} voters; heard of")?;
                for (n, HeardVoter { id, heard, refused }) in voters.iter().enumerate() {
                    f.write_str(if n == 0 { " " } else { ", " })?;
                    match heard {
                        Some(heard) => write!(f, "node {id} {:.1} s ago", heard.as_secs_f64())?,
                        None => write!(f, "node {id} never")?,
                    }
                    refused.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))?;
                }
                Ok(())
            }
            Self::Election { term } => write!(f, "an election after term {term} has no winner"),
            Self::NoLeader => f.write_str("no leader is known"),
            Self::Transfer { target } => write!(f, "leadership moves to node {target}"),
            Self::DiskFull { low } => {
                write!(f, "too little room on the disk of {}: commands are refused", nodes_text(low))
            }
            Self::Commit { commit, last } => {
                write!(f, "the log ends at {last} and is committed up to {commit}")
            }
            Self::Apply { applied, commit, call } => {
                write!(f, "the log is committed up to {commit} and applied up to {applied}")?;
                call.as_ref().map_or(Ok(()), |call| write!(f, ": {call}"))
            }
            Self::Redundancy { missing, tolerated } => {
                f.write_str("voters are silent, behind or without room:")?;
                missing.iter().try_for_each(|id| write!(f, " {id}"))?;
                write!(f, "; failures still tolerated: {tolerated}")
            }
            Self::Silent { acked } => write!(f, "no answer; log acknowledged up to {acked}"),
            Self::Snapshot { attempt: AttemptStatus { index, bytes, acked, phase, .. } } => {
                write!(f, "snapshot at {index}: the peer has {acked} of {bytes} bytes")?;
                phase.map_or(Ok(()), |phase| write!(f, ", phase {phase:?}"))
            }
            Self::Refused { acked, why } => {
                write!(f, "refused: {}", why.as_deref().unwrap_or("cause unknown"))?;
                write!(f, "; log acknowledged up to {acked}")
            }
            Self::Backoff { remaining, last_attempt } => {
                write!(f, "the next snapshot attempt begins in {:.1} s", remaining.as_secs_f64())?;
                match last_attempt {
                    Some(LastAttempt { outcome: AttemptOutcome::Failed(cause), .. }) => {
                        write!(f, "; the last one failed: {cause:?}")
                    }
                    _ => Ok(()),
                }
            }
            Self::CatchingUp { acked, last } => {
                write!(f, "the log ends at {last} and is acknowledged up to {acked}")
            }
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, age, cause } = self;
        match peer {
            Some(peer) => write!(f, "peer {peer}: ")?,
            None => f.write_str("this node: ")?,
        }
        write!(f, "{cause}; for {:.1} s; ends {}", age.as_secs_f64(), cause.ends())
    }
}
