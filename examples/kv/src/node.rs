//! The engine's group as a [`Replica`].

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use towline::{Consistency, Group, NodeId, ProposeError};

use crate::batch::{Batcher, Pending};
use crate::machine::{KvMachine, View};
use crate::replica::{Detail, PeerProgress, ReadError, Replica, ReplicaState, Role, WriteError};

/// One replica of the state on this node.
#[derive(Clone)]
pub(crate) struct GroupReplica {
    group: Group<KvMachine>,
    batcher: Batcher,
    view: View,
    tick: Duration,
}

impl GroupReplica {
    /// `tick` is the engine's tick, in which it counts.
    pub(crate) fn new(group: Group<KvMachine>, view: View, tick: Duration) -> Self {
        Self { batcher: Batcher::start(group.clone()), group, view, tick }
    }
}

pub(crate) fn write_error(error: ProposeError) -> WriteError {
    match error {
        ProposeError::NotLeader { hint } | ProposeError::Superseded { hint } => {
            WriteError::NotLeader { hint: hint.map(|leader| leader.node.as_u64()) }
        }
        ProposeError::Busy => WriteError::Busy,
        ProposeError::TooLarge { bytes, bytes_max } => WriteError::TooLarge { bytes, bytes_max },
        ProposeError::Uncertain { cause } => WriteError::Uncertain { cause: cause.to_string() },
        ProposeError::Stopped { cause } => WriteError::Stopped { cause: cause.to_string() },
        // An error of a later engine: if it does not say that nothing happened, it may have.
        other => match other.outcome() {
            towline::Outcome::NeverHappened => WriteError::Stopped { cause: other.to_string() },
            towline::Outcome::MayHaveHappened => WriteError::Uncertain { cause: other.to_string() },
        },
    }
}

fn read_error(error: towline::ReadError) -> ReadError {
    match error {
        towline::ReadError::NoLeader => ReadError::NoLeader,
        towline::ReadError::Busy => ReadError::Busy,
        towline::ReadError::Timeout => ReadError::Timeout,
        other => ReadError::Stopped { cause: other.to_string() },
    }
}

impl Replica for GroupReplica {
    type Pending = Pending;

    fn submit(&self, command: Bytes) -> Result<Pending, WriteError> {
        self.batcher.submit(command)
    }

    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static {
        let group = self.group.clone();
        async move { group.read(Consistency::Linearizable).await.map_err(read_error) }
    }

    fn local(&self) -> &View {
        &self.view
    }

    fn state(&self) -> ReplicaState {
        let state = self.group.state();
        ReplicaState {
            role: match state.role {
                towline::Role::Follower => Role::Follower,
                towline::Role::Candidate => Role::Candidate,
                towline::Role::Leader => Role::Leader,
                towline::Role::Down => Role::Down,
            },
            leader: state.leader.map(NodeId::as_u64),
            term: state.term,
            commit: state.commit,
            applied: state.applied,
            down: state.down.map(|cause| cause.to_string()),
        }
    }

    async fn detail(&self) -> Detail {
        let Ok(status) = self.group.status().await else { return Detail::default() };
        let (tick, last_index) = (self.tick, status.last_index);
        let ms = |ticks: u64| (tick.as_nanos() * u128::from(ticks) / 1_000_000) as u64;
        let progress = |peer: towline::PeerStatus| PeerProgress {
            id: peer.id.as_u64(),
            matched: peer.matched,
            next: peer.next,
            lag: last_index.saturating_sub(peer.matched),
            progress_age_ms: ms(peer.progress_age_ticks),
            attempt: peer.attempt,
            last_attempt: peer.last_attempt,
            backoff_ms: ms(peer.backoff_ticks),
            progress: match peer.progress {
                towline::PeerProgress::Probe => "probe",
                towline::PeerProgress::Replicate => "replicate",
                towline::PeerProgress::Snapshot => "snapshot",
            },
            recent_active: peer.recent_active,
        };
        Detail {
            first_index: status.first_index,
            last_index,
            snapshot_index: status.snapshot_index,
            peers: status.peers.into_iter().map(progress).collect(),
        }
    }
}
