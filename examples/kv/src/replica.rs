//! What the ports need of a replica: the engine's group in production, a fake in tests.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use towline::{
    Consistency, Group, GroupState, GroupStatus, NodeId, ProposeError, ReadError, Role, Wait, WaitCause,
};

use crate::batch::{Batcher, Pending};
use crate::machine::{Answer, KvMachine, StoreRoom, View};

/// One replica of the state. Clones are cheap.
pub(crate) trait Replica: Clone + Send + Sync + 'static {
    type Pending: Future<Output = Result<Answer, ProposeError>> + Send + Unpin + 'static;

    /// Proposes commands in the order of the calls. Never blocks.
    fn submit(&self, command: Bytes) -> Result<Self::Pending, ProposeError>;

    /// Returns a view that shows every write acknowledged before the call.
    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static;

    /// Why every command is refused while the group does not run.
    fn refusal(&self) -> Option<ProposeError> {
        None
    }

    /// What this replica has applied. It may be behind. `None` while the group does not run.
    fn local(&self) -> Option<View>;

    /// The newest state of the group. Reading it is cheap.
    fn state(&self) -> GroupState;

    /// The detailed status; `None` if the group has stopped.
    fn status(&self) -> impl Future<Output = Option<GroupStatus>> + Send;

    /// What the group waits for. Empty: for nothing.
    fn explain(&self) -> impl Future<Output = Vec<Wait>> + Send;

    /// The time to stamp commands with. `None` unless this replica leads and has applied all entries of earlier leaders.
    fn now_ms(&self) -> Option<u64> {
        let GroupState { role, term, .. } = self.state();
        if role == Role::Leader { self.local()?.stamp_ms(term) } else { None }
    }
}

/// The group of this node, which may be started again.
#[derive(Clone)]
pub(crate) struct GroupReplica {
    node: NodeId,
    room: StoreRoom,
    current: Arc<RwLock<Current>>,
}

enum Current {
    Runs(Running),
    /// The group does not run. The state is its last one.
    Absent {
        since: Instant,
        state: GroupState,
        refusal: ProposeError,
    },
}

struct Running {
    group: Group<KvMachine>,
    batcher: Batcher,
    view: View,
}

impl GroupReplica {
    /// A replica whose group starts for the first time.
    pub(crate) fn new(node: NodeId, room: StoreRoom) -> Self {
        let state = GroupState {
            role: Role::Down,
            leader: None,
            term: 0,
            commit: 0,
            applied: 0,
            down: None,
            refused: None,
        };
        let current = Arc::new(RwLock::new(absent(node, state)));
        Self { node, room, current }
    }

    pub(crate) fn runs(&self, group: Group<KvMachine>, view: View) {
        let batcher = Batcher::start(group.clone());
        self.change(Current::Runs(Running { group, batcher, view }));
    }

    /// Lets go of a group that went down with `state`: its handles keep the store open.
    pub(crate) fn starts_again(&self, state: GroupState) {
        self.change(absent(self.node, state));
    }

    /// Shows that the group will not start again.
    pub(crate) fn stays_down(&self, cause: Arc<str>) {
        let refusal = ProposeError::Stopped { cause: cause.clone() };
        let state = GroupState { down: Some(cause), ..self.state() };
        self.change(Current::Absent { since: Instant::now(), state, refusal });
    }

    fn change(&self, next: Current) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let last = std::mem::replace(&mut *current, next);
        drop(current);
        // Closing a store takes long, and readers wait for the lock.
        drop(last);
    }

    fn with<T>(&self, act: impl FnOnce(&Current) -> T) -> T {
        act(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn group(&self) -> Result<Group<KvMachine>, ProposeError> {
        self.with(|current| match current {
            Current::Runs(running) => Ok(running.group.clone()),
            Current::Absent { refusal, .. } => Err(refusal.clone()),
        })
    }
}

/// A group that waits for room, or starts.
fn absent(node: NodeId, state: GroupState) -> Current {
    Current::Absent { since: Instant::now(), state, refusal: ProposeError::DiskFull { low: [node].into() } }
}

impl Replica for GroupReplica {
    type Pending = Pending;

    fn submit(&self, command: Bytes) -> Result<Pending, ProposeError> {
        self.with(|current| match current {
            Current::Runs(running) => running.batcher.submit(command),
            Current::Absent { refusal, .. } => Err(refusal.clone()),
        })
    }

    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static {
        let group = self.group();
        async move {
            match group {
                Ok(group) => group.read(Consistency::Linearizable).await,
                Err(ProposeError::Stopped { cause }) => Err(ReadError::Stopped { cause }),
                Err(_) => Err(ReadError::DiskFull),
            }
        }
    }

    fn refusal(&self) -> Option<ProposeError> {
        self.group().err()
    }

    fn local(&self) -> Option<View> {
        self.with(|current| match current {
            Current::Runs(running) => Some(running.view.clone()),
            Current::Absent { .. } => None,
        })
    }

    fn state(&self) -> GroupState {
        self.with(|current| match current {
            Current::Runs(running) => running.group.state(),
            Current::Absent { state, .. } => state.clone(),
        })
    }

    async fn status(&self) -> Option<GroupStatus> {
        self.group().ok()?.status().await.ok()
    }

    async fn explain(&self) -> Vec<Wait> {
        let (age, why) = match self.with(|current| match current {
            Current::Runs(running) => Err(running.group.clone()),
            Current::Absent { since, state, .. } => Ok((since.elapsed(), state.down.clone())),
        }) {
            Err(group) => return group.explain().await.unwrap_or_default(),
            Ok(starts) => starts,
        };
        let cause = match self.room.has(0) {
            false => WaitCause::DiskFull { low: vec![self.node] },
            true => WaitCause::Down { why: why.unwrap_or_else(|| "the group starts".into()) },
        };
        vec![Wait { peer: None, age, cause }]
    }
}
