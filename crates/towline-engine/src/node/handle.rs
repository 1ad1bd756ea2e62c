//! What a user holds of a group.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use super::answer::answer;
use super::ingress::Ingress;
use super::mail::{Control, ShardEvent, ShardSender};
use super::waiter::{ReadWaiter, Waiter};
use crate::errors::{ProposeError, ReadError, TransferLeaderError, UncertainCause};
use crate::ids::{GroupId, NodeId};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, GroupStatus, Role};

/// A running group on this node. Clones are the same group; they may be used from any thread or task.
///
/// Dropping a future of it never harms the engine: a proposal that was queued goes on without anybody waiting.
pub struct Group<S: StateMachine> {
    shared: Arc<Shared<S>>,
}

pub(crate) struct Shared<S: StateMachine> {
    pub(crate) id: GroupId,
    pub(crate) node: NodeId,
    pub(crate) view: S::View,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) shard: ShardSender,
    pub(crate) state: watch::Receiver<GroupState>,
    pub(crate) metrics: Arc<GroupMetrics>,
    pub(crate) proposal_bytes_max: usize,
    /// Room for questions to the shard.
    pub(crate) questions: Arc<Semaphore>,
    /// How long a hand-over of leadership may take: one election timeout, after which raft gives it up.
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

/// How new the state must be that a read sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Consistency {
    /// Sees every command that was acknowledged anywhere before the read began. Costs a round of heartbeats, shared by
    /// all reads that wait at the same time. Works on every node: one that does not lead asks the leader.
    #[default]
    Linearizable,
    /// Sees what this node has applied, which may be old, without asking anybody.
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

    /// Replicates a command and gives the state machine's answer once it is applied on this node.
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
    /// [`ProposeError::Empty`] and [`ProposeError::TooLarge`]; everything else comes out of the [`Proposal`].
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

    /// The state machine's view, once it is as new as `consistency` asks for.
    ///
    /// # Errors
    /// [`ReadError`]; a read has no effect and may always be tried again.
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

    /// The newest state. Cheap.
    pub fn state(&self) -> GroupState {
        self.shared.state.borrow().clone()
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<GroupState> {
        self.shared.state.clone()
    }

    /// Waits until a leader is known, and says who.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] when `deadline` has passed, [`ReadError::Stopped`] if the group goes down.
    pub async fn wait_leader(&self, deadline: Duration) -> Result<NodeId, ReadError> {
        let mut state = self.watch();
        let known = state.wait_for(|state| state.leader.is_some() || state.role == Role::Down);
        match tokio::time::timeout(deadline, known).await {
            Ok(Ok(state)) => match (state.leader, &state.down) {
                (Some(leader), _) => Ok(leader),
                (None, down) => {
                    Err(ReadError::Stopped { cause: down.clone().unwrap_or_else(|| "stopped".into()) })
                }
            },
            Ok(Err(_)) => Err(ReadError::Stopped { cause: self.down_cause() }),
            Err(_) => Err(ReadError::NoLeader),
        }
    }

    /// Hands leadership over to another voter, and returns once it has taken over. Meanwhile proposals are refused as
    /// busy, for one election timeout at most.
    ///
    /// # Errors
    /// [`TransferLeaderError`]; nothing changed then, or the outcome shows in [`state`](Self::state).
    pub async fn transfer(&self, target: NodeId) -> Result<(), TransferLeaderError> {
        let stopped = || TransferLeaderError::Stopped { cause: self.down_cause() };
        let room =
            self.shared.questions.clone().try_acquire_owned().map_err(|_| TransferLeaderError::Busy)?;
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
        let transferred = tokio::time::timeout(self.shared.transfer_timeout, transfer).await;
        transferred.unwrap_or(Err(TransferLeaderError::Timeout { target }))
    }

    /// A closer look, taken on the shard.
    ///
    /// # Errors
    /// [`ReadError::Busy`] if very many ask at once, [`ReadError::Stopped`] if the group does not run any more.
    pub async fn status(&self) -> Result<GroupStatus, ReadError> {
        let room = self.shared.questions.clone().try_acquire_owned().map_err(|_| ReadError::Busy)?;
        let (answer, answered) = answer();
        self.shared.shard.post(ShardEvent::Control(Control::Status { group: self.shared.id, answer, room }));
        answered.await.map_err(|_| ReadError::Stopped { cause: self.down_cause() })
    }

    fn rejected(&self, error: ProposeError) -> ProposeError {
        self.shared.metrics.proposals(ProposalOutcome::Rejected, 1);
        error
    }

    fn down_cause(&self) -> Arc<str> {
        self.state().down.unwrap_or_else(|| "the node has stopped".into())
    }
}

/// The answer to a command that is on its way. Dropping it abandons the answer, not the command.
#[must_use = "dropping it abandons the answer"]
pub struct Proposal<R> {
    answer: oneshot::Receiver<Result<R, ProposeError>>,
}

impl<R> Future for Proposal<R> {
    type Output = Result<R, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answered| {
            // A waiter that was dropped unanswered had its group torn down around it.
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
