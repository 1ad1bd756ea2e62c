//! What a user holds of a group.

use std::future::Future;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Sleep;
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use super::Inner;
use super::inbox::{Control, ShardEvent, ShardSender};
use super::ingress::Ingress;
use super::waiter::{ReadWaiter, Waiter, answer};
use crate::errors::{
    ProposeError, ReadError, StatusError, StopError, TransferLeaderError, UncertainCause, WaitLeaderError,
};
use crate::ids::{GroupId, NodeId};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, GroupStatus, Role};

/// Calls of `status` and `transfer` of one group that wait for the shard at a time.
pub(super) const QUESTIONS_MAX: usize = 1_024;

/// A running group on this node. Clones are the same group; they may be used from any thread or task.
///
/// Dropping a future of it never harms the engine: a proposal that was queued goes on without anybody waiting.
pub struct Group<S: StateMachine> {
    shared: Arc<Shared<S>>,
}

pub(crate) struct Shared<S: StateMachine> {
    pub(crate) id: GroupId,
    pub(crate) generation: u64,
    pub(crate) node: NodeId,
    /// A handle keeps neither the node nor its storage.
    pub(super) inner: Weak<Inner>,
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

    /// Hands leadership over to another voter, and returns once it has taken over. Meanwhile proposals are refused as
    /// busy, for one election timeout at most.
    ///
    /// # Errors
    /// [`TransferLeaderError`]; nothing changed then, or the outcome shows in [`state`](Self::state).
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

    /// A closer look, taken on the shard.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn status(&self) -> Result<GroupStatus, StatusError> {
        let group = self.shared.id;
        let room = self.shared.questions.clone().try_acquire_owned();
        let room = room.map_err(|_| StatusError::Busy { group, waiting_max: QUESTIONS_MAX })?;
        let (answer, answered) = answer();
        self.shared.shard.post(ShardEvent::Control(Control::Status { group, answer, room }));
        answered.await.map_err(|_| StatusError::Stopped { group, cause: self.down_cause() })
    }

    /// Stops the group on this node: flushes its state machine, takes the group out of service, and lets go of the state
    /// machine before it returns. The node and its other groups go on, and [`Start::Restart`](super::Start::Restart)
    /// starts the group again, with a state machine opened anew.
    ///
    /// All handles of the group then answer `Stopped`; commands that are under way end as
    /// [`Uncertain`](ProposeError::Uncertain). A leader hands nothing over: [`transfer`](Self::transfer) first, or the
    /// others miss a leader for an election timeout. If the group has stopped already, nothing happens. After a quarantine,
    /// `stop` releases the state machine and frees the group's place among `groups_max`. There is no deadline: `stop`
    /// waits for a call of the state machine that is under way. A pending `stop` keeps the node's storage open. If this
    /// future is dropped early, the group may stop or run on; call it again.
    ///
    /// # Errors
    /// [`StopError`]: the group has stopped all the same.
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

/// A timer of the runtime that polls this; `None` if there is no runtime, or it has no timers.
fn timer(after: Duration) -> Option<Sleep> {
    tokio::runtime::Handle::try_current().ok()?;
    // Tokio panics in a runtime without timers, and a caller cannot ask it.
    catch_unwind(|| tokio::time::sleep(after)).ok()
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
