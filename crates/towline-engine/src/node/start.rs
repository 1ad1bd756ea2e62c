//! Starting a group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::handle::{Group, QUESTIONS_MAX, Shared};
use super::inbox::{Control, ShardEvent, StartGroup};
use super::ingress::Ingress;
use super::recover::{Recovery, Start as Recovered};
use super::target::{Machine, Target, caught};
use super::waiter::{ReadWaiter, Waiter, answer};
use super::writer::WriteFailure;
use super::{Inner, Node, StartError};
use crate::errors::StopError;
use crate::ids::{GroupId, NodeId, PeerAddr};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{ConfState, HardState, LogId, Member, MemberTable};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, Role};
use crate::transport::Peer;

type CoreStart = Recovered<Waiter, ReadWaiter>;

/// How a group comes to life on a node. An empty directory never becomes a voter by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Founds a group with these voters. Every one of them is started with the same list; nothing may be stored yet.
    Bootstrap(Vec<(NodeId, PeerAddr)>),
    /// Joins a group that exists. Refused by this version: membership does not change yet.
    Join,
    /// Goes on with what is stored.
    Restart,
    /// See [`Start::auto`].
    Auto(Vec<(NodeId, PeerAddr)>),
}

impl Start {
    /// The common case, the same at the first start and at every later one: goes on with what is stored of the group.
    ///
    /// If nothing is stored, the group is founded with the voters `founders`, but only on storage that was made for a
    /// new node ([`IdentityStore::may_found`](crate::identity::IdentityStore::may_found); for a directory,
    /// `DataDir::create` says so). Elsewhere the start fails with [`StartError::NothingStored`]: a node whose disk was
    /// lost must not vote a second time.
    pub fn auto(founders: impl Into<Vec<(NodeId, PeerAddr)>>) -> Self {
        Self::Auto(founders.into())
    }
}

/// A group to be started.
#[must_use = "nothing happens before `start`"]
pub struct GroupBuilder<'a, S> {
    node: &'a Node,
    id: GroupId,
    machine: S,
}

impl<'a, S: StateMachine> GroupBuilder<'a, S> {
    pub(super) fn new(node: &'a Node, id: GroupId, machine: S) -> Self {
        Self { node, id, machine }
    }

    /// Starts the group: brings the state machine up to what is known to be committed, then runs it. A group that was
    /// quarantined can be started again, with a state machine opened anew.
    ///
    /// # Errors
    /// [`StartError`]; the node and its other groups are not concerned.
    pub async fn start(self, start: Start) -> Result<Group<S>, StartError> {
        let (node, group) = (&self.node.inner, self.id);
        let _reserved = node.reserve(group)?;
        let view = caught("view", || Ok(self.machine.view()));
        let view = view.map_err(|source| StartError::StateMachine { group, source })?;
        // Whatever an earlier generation of this group still has in the queue must be written before its log is read.
        let log_error = |failure: WriteFailure| StartError::log(group, failure);
        node.writer.barrier(None).await.map_err(log_error)?;
        // The same for its compactions: one that came later would remove entries below the recovered first index.
        node.reader.barrier().await;
        let founding = node.clone().blocking(move |node| node.prepare(group, start)).await?;
        let quiet_ticks =
            if founding.is_some() { 0 } else { node.config.ticks(node.config.election_timeout_min) };
        if let Some(write) = founding {
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        // The log has the group, and it has not voted yet: from now on a log without it is a lost one.
        node.clone().blocking(move |node| Ok(node.peers.add_group(group)?)).await?;
        let metrics = Arc::new(node.metrics.group(group.as_u64()));
        let target: Box<dyn Target> = Box::new(Machine { machine: self.machine, metrics: metrics.clone() });
        let (start, target) =
            node.clone().blocking(move |node| node.recover(group, quiet_ticks, target)).await?;
        let Recovered { group: core, conf, installed } = start;
        if installed {
            let write = GroupWrite { installed, ..GroupWrite::new(group) };
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        let generation = node.next_generation();
        let ingress = Arc::new(Ingress::new(group, &node.config, node.scheduled.clone()));
        let (state, watched) = watch::channel(core.state());
        let apply = node.applier(group).clone();
        apply.start_group(group, generation, target);
        let (started, running) = answer();
        let addresses = node.addresses_of(&conf);
        let peers = node.meet(group, &conf, &addresses);
        let start = StartGroup {
            id: group,
            generation,
            group: core,
            peers,
            ingress: ingress.clone(),
            state,
            apply,
            metrics: metrics.clone(),
            addresses,
            started,
        };
        node.shard.post(ShardEvent::Control(Control::Start(Box::new(start))));
        // Before anything is waited for: if this future is dropped, the group runs on and must be known.
        node.registry.write().unwrap_or_else(PoisonError::into_inner).insert(group, ingress.clone());
        node.states.lock().unwrap_or_else(PoisonError::into_inner).insert(group, watched.clone());
        running.await.map_err(|_| StartError::Stopped)?;
        Ok(Group::new(Shared {
            id: group,
            generation,
            node: node.id,
            inner: Arc::downgrade(node),
            view,
            ingress,
            shard: node.shard.clone(),
            state: watched,
            metrics,
            proposal_bytes_max: node.config.proposal_bytes_max.as_usize(),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            transfer_timeout: node.config.election_timeout_max,
        }))
    }
}

/// A start that is under way.
struct Reserved {
    node: Arc<Inner>,
    group: GroupId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.node.starting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.group);
    }
}

impl Inner {
    /// Takes one generation of a group out of service, if it still runs.
    pub(super) async fn stop_group(
        &self,
        group: GroupId,
        generation: u64,
        ingress: &Arc<Ingress>,
        state: &watch::Receiver<GroupState>,
    ) -> Result<(), StopError> {
        let newest = self.states.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned();
        if newest.is_none_or(|newest| !newest.same_channel(state)) {
            return Ok(());
        }
        let lost = |_| Err("the apply worker has stopped".into());
        let was_down = state.borrow().role == Role::Down;
        let flushed = match was_down {
            true => Ok(LogId::NONE),
            false => self.applier(group).flush(group).await.unwrap_or_else(lost),
        };
        let (answer, answered) = answer();
        let cause = "the group was stopped on this node".into();
        self.shard.post(ShardEvent::Control(Control::Close {
            group,
            generation: Some(generation),
            cause,
            write: true,
            answer,
        }));
        if let Ok(Some(written)) = answered.await {
            // The last commit index only: without it the next start applies less before it runs.
            let _ = written.await;
        }
        // Behind the removal of the state machine in the worker's queue.
        let _ = self.applier(group).flush(group).await;
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.get(&group).is_some_and(|newest| newest.same_channel(state)) {
            states.remove(&group);
        }
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        if registry.get(&group).is_some_and(|newest| Arc::ptr_eq(newest, ingress)) {
            registry.remove(&group);
        }
        flushed.map(drop).map_err(|cause| StopError { group, cause })
    }

    /// Keeps every other start of the group out: two generations of one group at a time could vote twice.
    fn reserve(self: &Arc<Self>, group: GroupId) -> Result<Reserved, StartError> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let known = states.get(&group);
        if known.is_some_and(|state| state.borrow().role != Role::Down) || starting.contains(&group) {
            return Err(StartError::AlreadyRuns { group });
        }
        let new = starting.iter().filter(|other| !states.contains_key(other)).count();
        if known.is_none() && states.len() + new >= self.config.groups_max {
            return Err(StartError::TooManyGroups { groups_max: self.config.groups_max });
        }
        starting.insert(group);
        Ok(Reserved { node: self.clone(), group })
    }

    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        run: impl FnOnce(&Self) -> Result<T, StartError> + Send + 'static,
    ) -> Result<T, StartError> {
        let runtime = self.runtime.clone();
        let ran = runtime.spawn_blocking(move || run(&self)).await;
        ran.map_err(|error| StartError::ended("in a store of the node", error))?
    }

    /// Checks that the act fits what is stored; gives the first write of a new group.
    fn prepare(&self, group: GroupId, start: Start) -> Result<Option<GroupWrite>, StartError> {
        let stored = self.store.recover(group).map_err(|error| StartError::log(group, error))?;
        let is_stored = stored.conf.is_some();
        let founders = match start {
            Start::Join => return Err(StartError::JoinRefused),
            Start::Bootstrap(founders) => Some(founders),
            Start::Auto(founders) if !is_stored && self.peers.may_found()? => Some(founders),
            Start::Auto(_) | Start::Restart => None,
        };
        match (founders, is_stored) {
            (None, false) => Err(StartError::NothingStored { group }),
            (None, true) => match self.peers.identity() {
                Some(_) => Ok(None),
                None => Err(StartError::NoIdentity { group }),
            },
            (Some(_), true) => Err(StartError::AlreadyBootstrapped { group }),
            (Some(members), false) => {
                let conf = self.founding_members(members)?;
                // The identity first: a group without one would never start, one without a group can be bootstrapped.
                self.peers.found()?;
                let hard_state = Some(HardState::default());
                Ok(Some(GroupWrite { hard_state, conf: Some(conf), ..GroupWrite::new(group) }))
            }
        }
    }

    fn founding_members(&self, list: Vec<(NodeId, PeerAddr)>) -> Result<ConfRecord, StartError> {
        let count = list.len();
        let members: MemberTable =
            list.into_iter().map(|(id, address)| (id, Member { address, incarnation: None })).collect();
        if members.len() != count {
            return Err(StartError::Members { detail: "a node is named twice".into() });
        }
        if !members.contains_key(&self.id) {
            return Err(StartError::Members { detail: format!("node {} itself is not among them", self.id) });
        }
        let conf_state = ConfState { voters: members.keys().copied().collect(), ..ConfState::default() };
        Ok(ConfRecord { conf_state, index: 0, members })
    }

    fn recover(
        &self,
        group: GroupId,
        quiet_ticks: u64,
        mut target: Box<dyn Target>,
    ) -> Result<(CoreStart, Box<dyn Target>), StartError> {
        let incarnation = self.peers.identity().map_or(0, |identity| identity.incarnation.as_u64());
        let mut origin = [0; 16];
        let (node, run) = origin.split_at_mut(8);
        node.copy_from_slice(&self.id.as_u64().to_be_bytes());
        // Unique to this run too: a leader may still remember rounds of the one before.
        run.copy_from_slice(&(incarnation ^ fastrand::u64(..)).to_be_bytes());
        let recovery = Recovery {
            store: &*self.store,
            snapshots: &*self.snapshots,
            group,
            node: self.id,
            config: &self.config,
            quiet_ticks,
            origin,
        };
        let start = recovery.run(target.as_mut())?;
        Ok((start, target))
    }

    /// The addresses of the members of a group.
    fn addresses_of(&self, conf: &ConfRecord) -> BTreeMap<NodeId, PeerAddr> {
        let given = |id, member: &Member| self.addresses.get(id).unwrap_or(&member.address).clone();
        conf.members.iter().map(|(id, member)| (*id, given(id, member))).collect()
    }

    /// Admits the other members of a group, and connects to them.
    fn meet(
        &self,
        group: GroupId,
        conf: &ConfRecord,
        addresses: &BTreeMap<NodeId, PeerAddr>,
    ) -> BTreeSet<NodeId> {
        let others: BTreeSet<_> = conf.members.keys().copied().filter(|id| *id != self.id).collect();
        self.peers.set_members(group, others.clone());
        for &id in &others {
            if let Some(address) = addresses.get(&id) {
                let peer = Peer { id, address: address.clone() };
                self.sends.set_peer(peer.clone());
                self.lanes.set_peer(peer);
            }
        }
        others
    }
}
