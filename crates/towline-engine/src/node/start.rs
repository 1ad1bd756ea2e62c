//! Starts and stops groups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::apply::{AnyMachine, TypedMachine, caught};
use super::handle::{Group, QUESTIONS_MAX, Shared};
use super::inbox::{Control, ShardEvent, StartGroup};
use super::ingress::Ingress;
use super::recover::{RecoveredGroup, Recovery};
use super::shard::RunningGroup;
use super::waiter::answer;
use super::writer::WriteFailure;
use super::{Node, NodeInner, StartError};
use crate::errors::StopError;
use crate::ids::{FoundingHash, GroupId, NodeId, PeerAddr};
use crate::log_store::{ConfRecord, GroupWrite, Recovered};
use crate::message::{ConfState, HardState, LogId, Member, MemberTable};
use crate::state_machine::StateMachine;
use crate::status::{GroupState, Role};
use crate::sync::lock;
use crate::transport::Peer;

/// How a group starts on a node. An empty directory never becomes a voter by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Founds a group with these voters. Each voter starts with the same list; nothing may be stored yet.
    Bootstrap(Vec<(NodeId, PeerAddr)>),
    /// Joins an existing group. This version refuses it, because it has no membership changes.
    Join,
    /// Restarts the stored group.
    Restart,
    /// See [`Start::auto`].
    Auto(Vec<(NodeId, PeerAddr)>),
}

impl Start {
    /// Restarts the group if it is stored, else founds it. Use it for the first start and for every later one.
    ///
    /// Founds the group, with the voters `founders`, only on storage for a new node
    /// ([`IdentityStore::may_found`](crate::identity::IdentityStore::may_found), as `DataDir::create` makes it).
    /// Otherwise the start fails with [`StartError::NothingStored`]: a node whose disk was lost must not vote twice.
    pub fn auto(founders: impl Into<Vec<(NodeId, PeerAddr)>>) -> Self {
        Self::Auto(founders.into())
    }
}

/// Describes a group; [`start`](Self::start) runs it.
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

    /// Brings the state machine up to the stored commit index, then runs the group. A quarantined group can start again,
    /// with a state machine opened anew.
    ///
    /// # Errors
    /// [`StartError`]. The node and its other groups go on.
    pub async fn start(self, start: Start) -> Result<Group<S>, StartError> {
        let (node, group) = (&self.node.inner, self.id);
        let _reserved = node.reserve(group)?;
        let view = caught("view", || Ok(self.machine.view()));
        let view = view.map_err(|source| StartError::StateMachine { group, source })?;
        // The queued writes of an earlier generation must be durable before its log is read.
        let log_error = |failure: WriteFailure| StartError::log(group, failure);
        node.writer.barrier(None).await.map_err(log_error)?;
        // So must its compactions: a later one would remove entries of the recovered log.
        node.reader.barrier().await;
        let founding = node.clone().blocking(move |node| node.prepare(group, start)).await?;
        let quiet_ticks =
            if founding.is_some() { 0 } else { node.config.ticks(node.config.election_timeout_min) };
        if let Some(write) = founding {
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        // Recorded before the first vote: from now on a log without the group counts as lost.
        node.clone().blocking(move |node| Ok(node.peers.add_group(group)?)).await?;
        let metrics = Arc::new(node.metrics.group(group.as_u64()));
        let machine = Box::new(TypedMachine { machine: self.machine, metrics: metrics.clone() });
        let (recovered, machine) =
            node.clone().blocking(move |node| node.recover(group, quiet_ticks, machine)).await?;
        let RecoveredGroup { group: core, conf, installed } = recovered;
        if installed {
            let write = GroupWrite { installed, ..GroupWrite::new(group) };
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        let generation = node.next_generation();
        let ingress = Arc::new(Ingress::new(group, &node.config, node.scheduled.clone()));
        let (state, watched) = watch::channel(core.state());
        let apply = node.apply_worker(group).clone();
        apply.start_group(group, generation, machine);
        let addresses = node.addresses_of(&conf);
        let peers = node.meet(group, &conf, &addresses);
        let running = RunningGroup {
            generation,
            group: core,
            ingress: ingress.clone(),
            state,
            apply,
            metrics: metrics.clone(),
            transfer: None,
            addresses,
            dirty: true,
            tick: node.config.tick,
            node_peers: node.peers.clone(),
            other_list: None,
        };
        let (started, confirmed) = answer();
        let start = StartGroup { id: group, running, peers, started };
        node.shard.post(ShardEvent::Control(Control::Start(Box::new(start))));
        // Before any wait: if this future is dropped, the group runs on and must be registered.
        node.registry.write().unwrap_or_else(PoisonError::into_inner).insert(group, ingress.clone());
        lock(&node.states).insert(group, watched.clone());
        confirmed.await.map_err(|_| StartError::Stopped)?;
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

/// Keeps other starts of the group out until it is dropped.
struct Reserved {
    node: Arc<NodeInner>,
    group: GroupId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.node.starting).remove(&self.group);
    }
}

impl NodeInner {
    /// Takes one generation of a group out of service, if it still runs.
    pub(super) async fn stop_group(
        &self,
        group: GroupId,
        generation: u64,
        ingress: &Arc<Ingress>,
        state: &watch::Receiver<GroupState>,
    ) -> Result<(), StopError> {
        let newest = lock(&self.states).get(&group).cloned();
        if newest.is_none_or(|newest| !newest.same_channel(state)) {
            return Ok(());
        }
        let lost = |_| Err("the apply worker has stopped".into());
        let was_down = state.borrow().role == Role::Down;
        let flushed = match was_down {
            true => Ok(LogId::NONE),
            false => self.apply_worker(group).flush(group).await.unwrap_or_else(lost),
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
            // The result does not matter: without the last commit index the next start applies less before it runs.
            let _ = written.await;
        }
        // Waits until the worker has dropped the state machine.
        let _ = self.apply_worker(group).flush(group).await;
        let mut states = lock(&self.states);
        if states.get(&group).is_some_and(|newest| newest.same_channel(state)) {
            states.remove(&group);
        }
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        if registry.get(&group).is_some_and(|newest| Arc::ptr_eq(newest, ingress)) {
            registry.remove(&group);
        }
        flushed.map(drop).map_err(|cause| StopError { group, cause })
    }

    /// Reserves the group for one start: two generations at a time could vote twice.
    fn reserve(self: &Arc<Self>, group: GroupId) -> Result<Reserved, StartError> {
        let states = lock(&self.states);
        let mut starting = lock(&self.starting);
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

    /// Checks `start` against the stores. Returns the first write of a new group.
    fn prepare(&self, group: GroupId, start: Start) -> Result<Option<GroupWrite>, StartError> {
        let stored = self.store.recover(group).map_err(|error| StartError::log(group, error));
        if let Some(lost) = self.peers.lost(group) {
            // The other members may connect, to hear why they get no answer.
            if let Ok(Recovered { conf: Some(conf), .. }) = stored {
                let others = conf.members.into_keys().filter(|id| *id != self.id);
                self.peers.set_members(group, conf.founding, others.collect());
            }
            return Err(StartError::EntriesLost { group, lost });
        }
        let stored = stored?;
        let is_stored = stored.conf.is_some();
        let founders = match start {
            Start::Join => return Err(StartError::JoinRefused),
            Start::Bootstrap(founders) => Some(founders),
            Start::Auto(founders) if !is_stored && self.peers.may_found()? => Some(founders),
            Start::Auto(founders) => {
                let listed = FoundingHash::of(group, founders.iter().map(|(id, _)| *id));
                if stored.conf.as_ref().is_some_and(|conf| conf.founding.contradicts(listed)) {
                    let list: Vec<u64> = founders.iter().map(|(id, _)| id.as_u64()).collect();
                    tracing::warn!(%group, ?list, "the start lists other founders than the group has: the stored members count");
                }
                None
            }
            Start::Restart => None,
        };
        match (founders, is_stored) {
            (None, false) => Err(StartError::NothingStored { group }),
            (None, true) => match self.peers.identity() {
                Some(_) => Ok(None),
                None => Err(StartError::NoIdentity { group }),
            },
            (Some(_), true) => Err(StartError::AlreadyBootstrapped { group }),
            (Some(members), false) => {
                let conf = self.founding_members(group, members)?;
                // The identity comes first: without it a stored group never starts.
                self.peers.found()?;
                let hard_state = Some(HardState::default());
                Ok(Some(GroupWrite { hard_state, conf: Some(conf), ..GroupWrite::new(group) }))
            }
        }
    }

    fn founding_members(
        &self,
        group: GroupId,
        list: Vec<(NodeId, PeerAddr)>,
    ) -> Result<ConfRecord, StartError> {
        let mut members = MemberTable::new();
        for (id, address) in list {
            if members.insert(id, Member { address, incarnation: None }).is_some() {
                return Err(StartError::Members { detail: format!("node {id} appears twice") });
            }
        }
        if !members.contains_key(&self.id) {
            return Err(StartError::Members { detail: format!("node {} itself is missing", self.id) });
        }
        let conf_state = ConfState { voters: members.keys().copied().collect(), ..ConfState::default() };
        let founding = FoundingHash::of(group, members.keys().copied());
        Ok(ConfRecord { conf_state, index: 0, members, founding })
    }

    fn recover(
        &self,
        group: GroupId,
        quiet_ticks: u64,
        mut machine: Box<dyn AnyMachine>,
    ) -> Result<(RecoveredGroup, Box<dyn AnyMachine>), StartError> {
        let incarnation = self.peers.identity().map_or(0, |identity| identity.incarnation.as_u64());
        let mut origin = [0; 16];
        let (node, run) = origin.split_at_mut(8);
        node.copy_from_slice(&self.id.as_u64().to_be_bytes());
        // Unique to this run: a leader may still remember rounds of the last run.
        run.copy_from_slice(&(incarnation ^ fastrand::u64(..)).to_be_bytes());
        let recovery = Recovery { node: self, group, quiet_ticks, origin };
        Ok((recovery.run(machine.as_mut())?, machine))
    }

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
        self.peers.set_members(group, conf.founding, others.clone());
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
