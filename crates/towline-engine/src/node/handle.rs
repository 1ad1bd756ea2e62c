//! The public handle of a group.

use std::future::Future;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Sleep;
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use super::NodeInner;
use super::inbox::{Control, ShardEvent, ShardSender};
use super::ingress::Ingress;
use super::waiter::{Answer, ReadWaiter, Waiter, answer};
use crate::errors::{
    ProposeError, ReadError, StatusError, StopError, TransferLeaderError, UncertainCause, WaitLeaderError,
};
use crate::explain::{Wait, WaitCause};
use crate::ids::{GroupId, NodeId};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, GroupStatus, Role};

/// The most calls of `status`, `explain` and `transfer` of one group that wait for the shard.
pub(super) const QUESTIONS_MAX: usize = 1_024;

/// A running group on this node. Clones are the same group; use them from any thread or task.
///
/// Dropping a future of it never harms the engine: a queued proposal goes on without its caller.
pub struct Group<S: StateMachine> {
    shared: Arc<Shared<S>>,
}

pub(crate) struct Shared<S: StateMachine> {
    pub(crate) id: GroupId,
    pub(crate) generation: u64,
    pub(crate) node: NodeId,
    /// Weak: a handle keeps neither the node nor its storage.
    pub(super) inner: Weak<NodeInner>,
    pub(crate) view: S::View,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) shard: ShardSender,
    pub(crate) state: watch::Receiver<GroupState>,
    pub(crate) metrics: Arc<GroupMetrics>,
    pub(crate) proposal_bytes_max: usize,
    /// Bounds the requests to the shard by [`QUESTIONS_MAX`].
    pub(crate) questions: Arc<Semaphore>,
    /// One election timeout, after which raft gives up a leadership transfer.
    pub(crate) transfer_timeout: Duration,
}

impl<S: StateMachine> Clone for Group<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S: StateMachine> std::fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.shared.id)
            .field("node", &self.shared.node)
            .finish_non_exhaustive()
    }
}

/// How new the state of a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Consistency {
    /// Sees every command that was acknowledged anywhere before the read began. Costs a round of heartbeats, which
    /// concurrent reads share. Works on every node: a follower asks the leader.
    #[default]
    Linearizable,
    /// Sees what this node has applied, which may be old, without a message to other nodes.
    Local,
}

impl<S: StateMachine> Group<S> {
    pub(crate) fn new(shared: Shared<S>) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Replicates a command. Returns the state machine's reply once the command is applied on this node.
    ///
    /// # Errors
    /// [`ProposeError`]; its [`outcome`](ProposeError::outcome) says whether the command may have been applied.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<S::Response, ProposeError> {
        self.submit(command)?.await
    }

    /// Queues a command and returns at once. Commands of one caller enter the log in the order of the calls, as long as
    /// this node leads. Dropping the [`Proposal`] abandons the answer, not the command.
    ///
    /// # Errors
    /// [`ProposeError::Empty`] and [`ProposeError::TooLarge`]. The [`Proposal`] returns all other errors.
    pub fn submit(&self, command: impl Into<Bytes>) -> Result<Proposal<S::Response>, ProposeError> {
        let command = command.into();
        let bytes_max = self.shared.proposal_bytes_max;
        match command.len() {
            0 => return Err(self.rejected(ProposeError::Empty)),
            bytes if bytes > bytes_max => {
                return Err(self.rejected(ProposeError::TooLarge { bytes, bytes_max }));
            }
            bytes => self.shared.metrics.proposal_bytes(bytes as u64),
        }
        let (waiter, answer) = Waiter::new(self.shared.metrics.clone());
        self.shared.ingress.propose(command, waiter);
        Ok(Proposal { answer })
    }

    /// Returns the state machine's view once it is as new as `consistency` requires.
    ///
    /// # Errors
    /// [`ReadError`]. A read has no effect, so it may always be retried.
    pub async fn read(&self, consistency: Consistency) -> Result<S::View, ReadError> {
        if consistency == Consistency::Linearizable {
            let (reader, answer) = ReadWaiter::new(self.shared.metrics.clone());
            self.shared.ingress.read(reader);
            answer.await.unwrap_or_else(|_| Err(ReadError::Stopped { cause: self.down_cause() }))?;
        } else if let Some(cause) = self.state().down {
            return Err(ReadError::Stopped { cause });
        }
        Ok(self.shared.view.clone())
    }

    /// The newest published state. Cheap.
    pub fn state(&self) -> GroupState {
        self.shared.state.borrow().clone()
    }

    /// A receiver of state changes.
    pub fn watch(&self) -> watch::Receiver<GroupState> {
        self.shared.state.clone()
    }

    /// Waits until a leader is known, and returns it.
    ///
    /// # Errors
    /// [`WaitLeaderError`]: [`NoLeader`](WaitLeaderError::NoLeader) when `deadline` has passed.
    pub async fn wait_leader(&self, deadline: Duration) -> Result<NodeId, WaitLeaderError> {
        let group = self.shared.id;
        let stopped = |cause| WaitLeaderError::Stopped { group, cause };
        let timer = timer(deadline).ok_or(WaitLeaderError::NoRuntime)?;
        let mut state = self.watch();
        let known = state.wait_for(|state| state.leader.is_some() || state.role == Role::Down);
        tokio::select! {
            biased;
            known = known => match known {
                Ok(state) => state.leader.ok_or_else(|| stopped(down_cause(&state))),
                Err(_) => Err(stopped(self.down_cause())),
            },
            () = timer => Err(WaitLeaderError::NoLeader { group, waited: deadline }),
        }
    }

    /// Transfers leadership to another voter, and returns once that voter leads. Meanwhile proposals fail with `Busy`, for
    /// one election timeout at most.
    ///
    /// # Errors
    /// [`TransferLeaderError`]. [`state`](Self::state) shows who leads.
    pub async fn transfer(&self, target: NodeId) -> Result<(), TransferLeaderError> {
        let stopped = || TransferLeaderError::Stopped { cause: self.down_cause() };
        let room =
            self.shared.questions.clone().try_acquire_owned().map_err(|_| TransferLeaderError::Busy)?;
        let timer = timer(self.shared.transfer_timeout).ok_or(TransferLeaderError::NoRuntime)?;
        let (answer, answered) = answer();
        let control =
            Control::Transfer { group: self.shared.id, target: Some(target), answer, room: Some(room) };
        let mut state = self.watch();
        let transfer = async {
            self.shared.shard.post(ShardEvent::Control(control));
            answered.await.map_err(|_| stopped())??;
            match state.wait_for(|state| state.leader == Some(target) || state.role == Role::Down).await {
                Ok(state) if state.leader == Some(target) => Ok(()),
                Ok(_) | Err(_) => Err(stopped()),
            }
        };
        tokio::select! {
            biased;
            transferred = transfer => transferred,
            () = timer => Err(TransferLeaderError::Timeout { target }),
        }
    }

    /// A detailed status, which the shard takes.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn status(&self) -> Result<GroupStatus, StatusError> {
        self.ask(|group, answer, room| Control::Status { group, answer, room }).await
    }

    /// Says what the group waits for: at most one thing for this node, and one for each peer if this node leads. Each lasts
    /// longer than half of the shortest election timeout and is at most a heartbeat interval old. A healthy group, idle or
    /// under load, waits for nothing.
    ///
    /// # Errors
    /// [`StatusError`]. A group that is down is no error: it waits for [`Down`](WaitCause::Down).
    pub async fn explain(&self) -> Result<Vec<Wait>, StatusError> {
        match self.shared.ingress.closed() {
            Some((why, age)) => Ok(vec![Wait { peer: None, age, cause: WaitCause::Down { why } }]),
            None => self.ask(|group, answer, room| Control::Explain { group, answer, room }).await,
        }
    }

    async fn ask<T>(
        &self,
        control: impl FnOnce(GroupId, Answer<T>, OwnedSemaphorePermit) -> Control,
    ) -> Result<T, StatusError> {
        let group = self.shared.id;
        let room = self.shared.questions.clone().try_acquire_owned();
        let room = room.map_err(|_| StatusError::Busy { group, waiting_max: QUESTIONS_MAX })?;
        let (answer, answered) = answer();
        self.shared.shard.post(ShardEvent::Control(control(group, answer, room)));
        answered.await.map_err(|_| StatusError::Stopped { group, cause: self.down_cause() })
    }

    /// Stops the group on this node: flushes its state machine, takes the group out of service, and drops the state machine.
    /// The node and its other groups go on. [`Start::Restart`](super::Start::Restart) starts the group again, with a state
    /// machine opened anew.
    ///
    /// All handles of the group then return `Stopped`; pending commands end as [`Uncertain`](ProposeError::Uncertain). A
    /// leader does not transfer leadership: call [`transfer`](Self::transfer) first, or the group has no leader for an
    /// election timeout. After a quarantine, `stop` drops the state machine and frees the group's place among `groups_max`.
    /// A second `stop` does nothing.
    ///
    /// There is no deadline: `stop` waits for the present call of the state machine, and keeps the node's storage open
    /// meanwhile. If this future is dropped early, the group may stop or run on; call it again.
    ///
    /// # Errors
    /// [`StopError`] if the state machine was not flushed. The group has stopped nevertheless.
    pub async fn stop(&self) -> Result<(), StopError> {
        let shared = &self.shared;
        match shared.inner.upgrade() {
            Some(node) => node.stop_group(shared.id, shared.generation, &shared.ingress, &shared.state).await,
            None => Ok(()),
        }
    }

    fn rejected(&self, error: ProposeError) -> ProposeError {
        self.shared.metrics.proposals(ProposalOutcome::Rejected, 1);
        error
    }

    fn down_cause(&self) -> Arc<str> {
        down_cause(&self.shared.state.borrow())
    }
}

fn down_cause(state: &GroupState) -> Arc<str> {
    state.down.clone().unwrap_or_else(|| "the node has stopped".into())
}

/// A timer of the present runtime. `None` if there is no runtime, or it has no timers.
fn timer(after: Duration) -> Option<Sleep> {
    tokio::runtime::Handle::try_current().ok()?;
    // Tokio panics in a runtime without timers, and offers no check.
    catch_unwind(|| tokio::time::sleep(after)).ok()
}

/// The pending reply to a command. Dropping it abandons the reply, not the command.
#[must_use = "dropping it abandons the reply"]
pub struct Proposal<R> {
    answer: oneshot::Receiver<Result<R, ProposeError>>,
}

impl<R> Future for Proposal<R> {
    type Output = Result<R, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answered| {
            // A waiter is dropped unanswered only with its group.
            let lost = || UncertainCause::Down("the group was torn down".into());
            answered.unwrap_or_else(|_| Err(ProposeError::Uncertain { cause: lost() }))
        })
    }
}

impl<R> std::fmt::Debug for Proposal<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposal").finish_non_exhaustive()
    }
}
