//! What the Redis and HTTP ports need of a replica: the engine's group in production, a fake in tests.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;

use crate::machine::{Answer, View};

/// One replica of the state. Clones are cheap.
pub(crate) trait Replica: Clone + Send + Sync + 'static {
    type Pending: Future<Output = Result<Answer, WriteError>> + Send + Unpin + 'static;

    /// Proposes, in the order of calls. Never blocks.
    fn submit(&self, command: Bytes) -> Result<Self::Pending, WriteError>;

    /// A view that sees every write acknowledged before the call.
    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static;

    /// The time to stamp commands with. `None` if this replica does not lead, or has not applied all entries of earlier
    /// leaders.
    fn now_ms(&self) -> Option<u64> {
        let ReplicaState { role, term, .. } = self.state();
        if role == Role::Leader { self.local().stamp_ms(term) } else { None }
    }

    /// What the replica has applied, fresh or not.
    fn local(&self) -> &View;

    /// Cheap.
    fn state(&self) -> ReplicaState;

    fn detail(&self) -> impl Future<Output = Detail> + Send;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Follower,
    Candidate,
    Leader,
    Down,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReplicaState {
    pub(crate) role: Role,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) down: Option<String>,
}

/// The log of this replica, and what a leader knows of the others. Times are in milliseconds.
#[derive(Debug, Clone, Serialize, Default)]
pub(crate) struct Detail {
    pub(crate) first_index: u64,
    pub(crate) last_index: u64,
    pub(crate) snapshot_index: u64,
    pub(crate) peers: Vec<PeerProgress>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct PeerProgress {
    pub(crate) id: u64,
    pub(crate) matched: u64,
    pub(crate) next: u64,
    /// Entries it does not have, as far as is known.
    pub(crate) lag: u64,
    pub(crate) progress: &'static str,
    pub(crate) progress_age_ms: u64,
    pub(crate) recent_active: bool,
    /// The snapshot under way to it.
    pub(crate) attempt: Option<towline::AttemptStatus>,
    /// How the attempt before ended.
    pub(crate) last_attempt: Option<towline::LastAttempt>,
    /// Until another attempt may begin.
    pub(crate) backoff_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("not the leader")]
    NotLeader { hint: Option<u64> },
    #[error("too much is under way")]
    Busy,
    #[error("the command has {bytes} bytes, the limit is {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// It may have happened, or may yet.
    #[error("{cause}")]
    Uncertain { cause: String },
    #[error("{cause}")]
    Stopped { cause: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("no leader")]
    NoLeader,
    #[error("too much is under way")]
    Busy,
    #[error("no majority confirmed the read in time")]
    Timeout,
    #[error("{cause}")]
    Stopped { cause: String },
}
