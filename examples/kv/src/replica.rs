//! What the ports need of a replica: the engine's group in production, a fake in tests.

use std::future::Future;

use bytes::Bytes;
use towline::{Consistency, Group, GroupState, GroupStatus, ProposeError, ReadError, Role, Wait};

use crate::batch::{Batcher, Pending};
use crate::machine::{Answer, KvMachine, View};

/// One replica of the state. Clones are cheap.
pub(crate) trait Replica: Clone + Send + Sync + 'static {
    type Pending: Future<Output = Result<Answer, ProposeError>> + Send + Unpin + 'static;

    /// Proposes commands in the order of the calls. Never blocks.
    fn submit(&self, command: Bytes) -> Result<Self::Pending, ProposeError>;

    /// Returns a view that shows every write acknowledged before the call.
    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static;

    /// What this replica has applied. It may be behind.
    fn local(&self) -> &View;

    /// The newest state of the group. Reading it is cheap.
    fn state(&self) -> GroupState;

    /// The detailed status; `None` if the group has stopped.
    fn status(&self) -> impl Future<Output = Option<GroupStatus>> + Send;

    /// What the group waits for. Empty: for nothing.
    fn explain(&self) -> impl Future<Output = Vec<Wait>> + Send;

    /// The time to stamp commands with. `None` unless this replica leads and has applied all entries of earlier leaders.
    fn now_ms(&self) -> Option<u64> {
        let GroupState { role, term, .. } = self.state();
        if role == Role::Leader { self.local().stamp_ms(term) } else { None }
    }
}

#[derive(Clone)]
pub(crate) struct GroupReplica {
    group: Group<KvMachine>,
    batcher: Batcher,
    view: View,
}

impl GroupReplica {
    pub(crate) fn new(group: Group<KvMachine>, view: View) -> Self {
        Self { batcher: Batcher::start(group.clone()), group, view }
    }
}

impl Replica for GroupReplica {
    type Pending = Pending;

    fn submit(&self, command: Bytes) -> Result<Pending, ProposeError> {
        self.batcher.submit(command)
    }

    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static {
        let group = self.group.clone();
        async move { group.read(Consistency::Linearizable).await }
    }

    fn local(&self) -> &View {
        &self.view
    }

    fn state(&self) -> GroupState {
        self.group.state()
    }

    async fn status(&self) -> Option<GroupStatus> {
        self.group.status().await.ok()
    }

    async fn explain(&self) -> Vec<Wait> {
        self.group.explain().await.unwrap_or_default()
    }
}
